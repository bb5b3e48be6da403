"""What people call the classes: full names, and which are malignant."""

NAMES = {
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus",
    "vasc": "vascular lesion",
}
MALIGNANT = ("mel", "bcc", "akiec")  # the gravest first; akiec is counted with in-situ carcinoma


def full_name(name: str) -> str:
    """Return "mel (melanoma)" for a class of HAM10000, any other class as it is."""
    return f"{name} ({NAMES[name]})" if name in NAMES else name


def gravity(name: str) -> int:
    """Return 0 for melanoma, 1 for the other malignant classes, 2 for the rest: a sort key."""
    return 0 if name == "mel" else 1 if name in MALIGNANT else 2
