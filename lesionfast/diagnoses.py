"""What classes mean: their full names, and which are melanoma, nevus and malignant."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from lesionfast.errors import LesionfastError, did_you_mean

MARKS = ',:="'  # what has a meaning in a list


def split_unquoted(text: str, separator: str) -> list[str]:
    """Return the parts of a text between separators that are not in double quotes."""
    return re.split(rf'{re.escape(separator)}(?=(?:[^"]*"[^"]*")*[^"]*$)', text)


def unquote(typed: str) -> str:
    """Return the name that was typed, with or without quotes around it."""
    name = typed.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        return name[1:-1].replace('""', '"')
    return name


def quote(name: str) -> str:
    """Return a name as it is typed in a list: in double quotes if it has a mark in it."""
    plain = name == name.strip() and not any(mark in name for mark in MARKS)
    return name if plain else '"{}"'.format(name.replace('"', '""'))


def split_names(text: str) -> list[str]:
    """Return the names of a list such as `mel,"a, b"`."""
    return [unquote(part) for part in split_unquoted(text, ",") if part.strip()]


def join_names(names: list[str], separator: str = ", ") -> str:
    """Return names as a list that `split_names` reads."""
    return separator.join(map(quote, names))


NAMES = {
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus",
    "vasc": "vascular lesion",
    "scc": "squamous cell carcinoma",
}
MELANOMA = ("mel", "melanoma", "malignant melanoma")
NEVUS = ("nv", "nev", "nevus", "naevus", "melanocytic nevus", "melanocytic naevus")
CANCER = "malignant"
MALIGNANT = (  # akiec is counted with carcinoma in situ
    *MELANOMA,
    *("melanoma in situ", "bcc", "basal cell carcinoma", "scc", "squamous cell carcinoma"),
    *("akiec", CANCER),
)
ALARMING = ("melanoma", "carcinoma", "sarcoma", "lymphoma", "cancer", "malignan")


class Classes(list[str]):
    """Class names in the order of the probabilities, and what they mean.

    `melanoma` is one of them or None, `malignant` those that are malignant, both by their names in
    any case unless they are given. A name that is given must be a class.
    """

    def __init__(
        self,
        names: Iterable[str],
        melanoma: str | None = None,
        malignant: Sequence[str] | None = None,
    ) -> None:
        super().__init__(names)
        self.melanoma = melanoma or first_of(self, MELANOMA)
        if malignant is None:
            malignant = [each for each in self if plain(each) in MALIGNANT or each == self.melanoma]
        self.malignant = list(malignant)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Classes":
        """Return class names with what they mean; those that know it already as they are."""
        return names if isinstance(names, cls) else cls(names)

    @classmethod
    def of_model(cls, model: dict[str, Any]) -> "Classes":
        """Return the classes of a model.json, by their names where it does not say more."""
        return cls(model["classes"], model.get("melanoma"), model.get("malignant"))

    @classmethod
    def chosen(cls, names: Sequence[str], melanoma: str | None, malignant: str | None) -> "Classes":
        """Return classes as --melanoma and --malignant say; raises `LesionfastError`."""
        given = split_names(malignant) if malignant is not None else None
        if melanoma is not None and melanoma not in names:
            melanoma = unquote(melanoma)
        for option, name in [
            *([("--melanoma", melanoma)] if melanoma is not None else []),
            *(("--malignant", typed) for typed in given or []),
        ]:
            if name not in names:
                raise LesionfastError(
                    f"{option} names '{name}', which is not a class.{did_you_mean(name, names)} "
                    f"The data has: {join_names(names)}."
                )
        classes = cls(names, melanoma, given)
        if given is not None and classes.melanoma not in [None, *given]:
            raise LesionfastError(
                f"--malignant {malignant} leaves out '{classes.melanoma}', the class of melanoma. "
                "Name it there too, or name another class with --melanoma."
            )
        return classes

    @cached_property
    def nevus(self) -> str | None:
        """The class of nevi, None if there is none."""
        return first_of(self, NEVUS)

    @property
    def doubtful(self) -> list[str]:
        """The classes that are not malignant, though their names speak of it."""
        benign = [name for name in self if name not in self.malignant]
        return [name for name in benign if any(word in plain(name) for word in ALARMING)]

    @property
    def costliest(self) -> tuple[str, str] | None:
        """Truth and decision of the error that costs most, a melanoma taken for a nevus."""
        return (self.melanoma, self.nevus) if self.melanoma and self.nevus else None

    @cached_property
    def cancer(self) -> str | None:
        """What the malignant classes together are called, None if there are none.

        It is 'malignant', and 'any malignant' beside a class of that name. A class of that name
        which is the only malignant one stands for itself.
        """
        named = first_of(self, (CANCER,))
        if not self.malignant or self.malignant == [named]:
            return named if self.malignant else None
        return CANCER if named is None else f"any {CANCER}"

    @property
    def targets(self) -> list[str]:
        """What thresholds are chosen for: melanoma, and the malignant classes together."""
        return [each for each in (self.melanoma, self.cancer) if each is not None]

    def members(self, of: str) -> list[bool]:
        """Return which classes (k,) a class, or `cancer`, is made of.

        Raises `LesionfastError` for anything else.
        """
        if of == self.cancer:
            return [each in self.malignant for each in self]
        if of in self:
            return [each == of for each in self]
        groups = [self.cancer] if self.cancer and self.cancer not in self else []
        raise LesionfastError(
            f"there is no '{of}' among the classes.{did_you_mean(of, [*self, *groups])} "
            f"Name one of: {join_names([*self, *groups])}."
        )

    def gravity(self, name: str) -> int:
        """Return 0 for melanoma, 1 for the other malignant classes, 2 for the rest: a sort key."""
        return 0 if name == self.melanoma else 1 if name in self.malignant else 2


def plain(name: str) -> str:
    """Return a name in lower case, with spaces between its words."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def first_of(classes: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the class that has the first of these names, in any case; None if none has one."""
    found = sorted((names.index(plain(each)), each) for each in classes if plain(each) in names)
    return found[0][1] if found else None


def full_name(name: str) -> str:
    """Return "mel (melanoma)" for a short name that is known, any other class as it is."""
    return f"{name} ({NAMES[name.casefold()]})" if name.casefold() in NAMES else name
