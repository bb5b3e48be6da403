"""Class names: what they mean, and how people type lists of them."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from sys import float_info
from typing import TYPE_CHECKING, Any

from lesionfast.errors import LesionfastError, did_you_mean, shell_quote

if TYPE_CHECKING:
    import numpy as np

NAMES = {  # short names of the public datasets in plain words; the order decides the colours
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus",
    "vasc": "vascular lesion",
    "scc": "squamous cell carcinoma",
    "sek": "seborrheic keratosis",
    "ben oth": "other benign lesion",
    "inf": "inflammation or infection",
    "mal oth": "other malignant lesion",
    "sccka": "squamous cell carcinoma or keratoacanthoma",
    "misc": "miscellaneous",
    "unk": "unknown",
}
NAMES |= {"ak": NAMES["akiec"], "ack": NAMES["akiec"], "nev": NAMES["nv"], "sk": NAMES["sek"]}
CANCER = "malignant"
SMALLEST = float_info.epsilon  # the smallest probability whose logarithm is taken
SAME = 1e-6  # what shares of one prior may differ by
MELANOMA = ("mel", "melanoma", "malignant melanoma", "melanoma nos", "melanoma malignant", "mm")
MALIGNANT = ("mel", "mm", "bcc", "scc", "sccka", "sccis", "cscc", "nmsc", "mcc", "dfsp", "mal oth")
MALIGNANT += ("ak", "ack", "akiec")  # as akiec, they are counted with carcinoma in situ
NEVUS = ("nv", "nev", "nevus", "naevus", "nevi", "naevi", "melanocytic nevus", "melanocytic naevus")
NEVUS += ("melanocytic nevi", "melanocytic naevi", "nevus nos", "nevocytic nevus", "common nevus")
NEVUS += ("clark nevus", "benign melanocytic", "mole", "moles")
IS_MELANOMA = re.compile(r"m[eé]lanom(as?|es?|en)?\b|\bmel\b|\blentigo maligna\b")
IS_MALIGNANT = re.compile(
    r"m[eé]lanom(as?|es?|en)?\b|\b(mel|bcc|scc)\b"
    r"|carcinomas?\b|sarcomas?\b|(?<!pseudo)lymphomas?\b|\bcancers?\b|\bleuka?emia"
    r"|\bmalignan(t|cy|cies)\b|\blentigo maligna\b|\bmetasta(sis|ses|tic)\b|\bmerkel|\bkaposi"
    r"|\bmycosis fungoides\b|\bs[eé]zary|\bctcl\b|\bpaget|\bbowen( s)?\b|\bkeratoacanthomas?\b"
    r"|\berythroplasia\b|\bplasmacytoid\b|\b(actinic|solar) (or actinic )?keratos[ie]s\b"
)
IS_NEVUS = re.compile(r"\bn(a?evus|a?evi|v|ev)\b")
NOT_MELANOCYTIC = re.compile(
    r"sebac|epiderm|comedon|lipomat|flamm|an[ae]mic|depigment|becker|connective|verruc|araneus"
)
IS_DENIED = re.compile(
    r"\b(?:no|not|non|without|free of|other than|kein|keine|pas de|sans) \w+|\bnon(?=[mcn])\w+"
)
IS_BENIGN = re.compile(r"\b(benign|n(a?evus|a?evi)|moles?)\b")
ALARMING = ("melanoma", "carcinoma", "sarcoma", "lymphoma", "cancer", "malignan")
MARKS = ',:="'  # have a meaning in a list


def name_rule(base: str, weight: float = 1.0) -> str:
    """Return what tables and metrics.json call a decision rule: "balanced (melanoma x 2.13)"."""
    return f"{base} (melanoma x {weight:g})" if weight > 1 else base


class Classes(list[str]):
    """Class names in the order of the probabilities, and what they mean.

    `melanoma` is one of them or None, `malignant` the malignant ones, both recognised by their
    names in any case and spelling unless they are given. A name that is given must be a class. Of
    several classes of melanoma the one with the plainest name is `melanoma`, none if all are kinds
    of it (in situ, nodular, …); all count as malignant.
    """

    def __init__(
        self,
        names: Iterable[str],
        melanoma: str | None = None,
        malignant: Sequence[str] | None = None,
    ) -> None:
        super().__init__(names)
        self.melanoma = melanoma or find_first(self, MELANOMA, is_melanoma)
        if malignant is None:
            malignant = [name for name in self if is_malignant(name) or name == self.melanoma]
        self.malignant = list(malignant)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Classes":
        """Return class names with what they mean; `Classes` are returned unchanged."""
        return names if isinstance(names, cls) else cls(names)

    @classmethod
    def of_model(cls, model: dict[str, Any]) -> "Classes":
        """Return the classes of a model.json, recognised by name where it has no more than that.

        Raises `ValueError` for a melanoma or malignant class that is none of them.
        """
        for name in (model.get("melanoma"), *(model.get("malignant") or [])):
            if name is not None and name not in model["classes"]:
                raise ValueError(f"{name!r} is not one of its classes")
        classes = cls(model["classes"], model.get("melanoma"), model.get("malignant"))
        if "melanoma" in model:  # None: it was none when the model was trained
            classes.melanoma = model["melanoma"]
        return classes

    @classmethod
    def chosen(cls, names: Sequence[str], melanoma: str | None, malignant: str | None) -> "Classes":
        """Return classes with what --melanoma and --malignant say; raises `LesionfastError`."""
        if melanoma is not None and melanoma not in names:
            melanoma = unquote(melanoma)
        cancers = split_names(malignant) if malignant is not None else None
        if melanoma is not None:
            find_class("--melanoma", melanoma, names)
        for name in cancers or []:
            find_class("--malignant", name, names)
        classes = cls(names, melanoma, cancers)
        if cancers is not None and classes.melanoma not in [None, *cancers]:
            raise LesionfastError(
                f"--malignant {malignant} leaves out '{classes.melanoma}', the melanoma class. "
                "Add it, or name another class with --melanoma."
            )
        return classes

    @cached_property
    def nevus(self) -> str | None:
        """The class of nevi, None if there is none."""
        return find_first(self, NEVUS, is_nevus)

    @property
    def other_melanomas(self) -> list[str]:
        """The classes that are melanoma by their names, but not `melanoma`."""
        return [name for name in self if is_melanoma(name) and name != self.melanoma]

    @property
    def doubtful(self) -> list[str]:
        """The classes that count as benign although their names suggest cancer."""
        benign = [name for name in self if name not in self.malignant]
        return [name for name in benign if any(word in asserted(name) for word in ALARMING)]

    @property
    def costliest(self) -> tuple[str, str] | None:
        """Truth and decision of the costliest error, a melanoma taken for a nevus."""
        return (self.melanoma, self.nevus) if self.melanoma and self.nevus else None

    @cached_property
    def cancer(self) -> str | None:
        """The name of all malignant classes together, None if there are none.

        It is 'malignant', or 'any malignant' beside a class of that name. A class of that name
        which is the only malignant one stands for itself.
        """
        named = next((name for name in self if plain(name) == CANCER), None)
        if not self.malignant or self.malignant == [named]:
            return named if self.malignant else None
        return CANCER if named is None else f"any {CANCER}"

    @property
    def targets(self) -> list[str]:
        """What thresholds are chosen for: melanoma, and the malignant classes together."""
        return [name for name in (self.melanoma, self.cancer) if name is not None]

    def members(self, of: str) -> list[bool]:
        """Return which classes (k,) belong to a class, or to `cancer`; raises `LesionfastError`."""
        if of == self.cancer:
            return [name in self.malignant for name in self]
        if of in self:
            return [name == of for name in self]
        names = list(dict.fromkeys(filter(None, [*self, self.cancer])))
        raise LesionfastError(
            f"there is no class '{of}'.{did_you_mean(of, names)} Name one of: {join_names(names)}."
        )

    def gravity(self, name: str) -> int:
        """Return 0 for melanoma, 1 for the other malignant classes, 2 for the rest: a sort key."""
        return 0 if name == self.melanoma else 1 if name in self.malignant else 2


def plain(name: str) -> str:
    """Return a name as words in lower case, without marks: "melanoma nos" for "Melanoma, NOS"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name)  # BasalCellCarcinoma
    return " ".join(re.sub(r"[\W_]+", " ", spaced.casefold()).split())


def asserted(name: str) -> str:
    """Return a name in plain words, without what it denies: "" for "Not melanoma"."""
    return IS_DENIED.sub("", plain(name)).strip()


def is_malignant(name: str) -> bool:
    """Whether a class is malignant by its name; one of benign and malignant lesions is not."""
    text = asserted(name)
    return text in MALIGNANT or bool(IS_MALIGNANT.search(text) and not IS_BENIGN.search(text))


def is_melanoma(name: str) -> bool:
    """Whether a class is melanoma or a kind of it by its name."""
    text = asserted(name)
    return text in MELANOMA or (bool(IS_MELANOMA.search(text)) and is_malignant(name))


def is_nevus(name: str) -> bool:
    """Whether a class is melanocytic nevi or a kind of them by its name."""
    text = asserted(name)
    is_other = NOT_MELANOCYTIC.search(text) or any(word in text for word in ALARMING)
    return text in NEVUS or bool(IS_NEVUS.search(text) and not is_other)


def find_first(
    classes: Iterable[str], names: Sequence[str], is_kind: Callable[[str], bool]
) -> str | None:
    """Return the class with the first of some plain names, else the only one that `is_kind`."""
    classes = list(classes)
    ranked = sorted((names.index(plain(name)), name) for name in classes if plain(name) in names)
    kinds = ranked[:1] or [(0, name) for name in classes if is_kind(name)]
    return kinds[0][1] if len(kinds) == 1 else None


def full_name(name: str) -> str:
    """Return "mel (melanoma)" for a usual short name, any other class as it is."""
    return f"{name} ({NAMES[plain(name)]})" if plain(name) in NAMES else name


def probability_columns(classes: Iterable[str]) -> list[str]:
    """Return the columns of a table of predictions that hold the probability of each class."""
    return [f"p_{name}" for name in classes]


def same_prior(first: Iterable[float], second: Iterable[float]) -> bool:
    """Return whether two priors, the shares of the classes, are one."""
    return all(abs(one - other) <= SAME for one, other in zip(first, second, strict=True))


def prior_factors(before: Iterable[float], after: Iterable[float]) -> list[float]:
    """Return after / before of each class, what a move of the prior multiplies probabilities by.

    It is 0 for a class that was never learned.
    """
    return [new / old if old else 0.0 for old, new in zip(before, after, strict=True)]


def move_prior(probabilities: Any, before: Iterable[float], after: Iterable[float]) -> Any:
    """Return probabilities (n, k) that hold for class shares `before` (k,) as they are for `after`.

    They are an array, or a tensor of PyTorch. They are multiplied by after / before and scaled to a
    sum of 1 (Saerens et al. 2002, doi:10.1162/089976602753284446, eq. 2.4).
    """
    if same_prior(before, after):
        return probabilities
    import numpy as np

    like = getattr(probabilities, "new_tensor", np.asarray)
    odds = probabilities * like(prior_factors(before, after))
    return odds / odds.sum(axis=-1, keepdims=True).clip(SMALLEST)


def find_class(option: str, name: str, classes: Sequence[str]) -> int:
    """Return the index of the class that an option names; raises `LesionfastError`."""
    if name not in classes:
        raise LesionfastError(
            f"{option} names '{name}', which is not a class.{did_you_mean(name, classes)} "
            f"The data has: {join_names(classes)}."
        )
    return classes.index(name)


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


def join_names(names: Iterable[str], separator: str = ", ") -> str:
    """Return names as a list that `split_names` reads."""
    return separator.join(map(quote, names))


def read_pairs(option: str, text: str | None, example: str) -> dict[tuple[str, ...], float]:
    """Return {("mel", "nv"): 4.0} for "mel:nv=4" and {("mel",): 2.0} for "mel=2".

    Pairs are separated by commas. There are as many names before = as in `example`, in double
    quotes if they have marks in them. Raises `LesionfastError` unless the numbers are positive
    and the names differ.
    """
    pairs: dict[tuple[str, ...], float] = {}
    for part in split_unquoted(text, ",") if text else []:
        left, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        names = tuple(map(unquote, split_unquoted(left, ":") if ":" in example else [left]))
        if not (left.strip() and 0 < value < math.inf) or len(names) != example.count(":") + 1:
            kinds = "two classes" if ":" in example else "a class"
            quoted = example.replace("mel", '"a, b"')
            raise LesionfastError(
                f"{option} has '{part.strip()}', but it needs {kinds} and a number above 0, "
                f"such as {example}. A name with a comma, = or : goes in double quotes: "
                f"{option} '{quoted}'."
            )
        if names in pairs:
            raise LesionfastError(f"{option} {text} names a class twice. Name each once.")
        pairs[names] = value
    return pairs


def read_weights(text: str | None) -> dict[str, float]:
    """Return the weight of each class that "mel=2,bcc=1.5" names."""
    return {name: value for (name,), value in read_pairs("--class-weight", text, "mel=2").items()}


def write_weights(weights: dict[str, float]) -> str:
    """Return weights as `read_weights` reads them."""
    return ",".join(f"{quote(name)}={value:g}" for name, value in weights.items())


def read_class_weights(text: str | None, classes: Sequence[str]) -> "np.ndarray":
    """Return the weight of each class (k,) from "mel=2,bcc=1.5"; 1 for the others."""
    import numpy as np

    weights = np.ones(len(classes))
    for name, value in read_weights(text).items():
        weights[find_class("--class-weight", name, classes)] = value
    return weights


def read_costs(text: str | None, classes: Sequence[str]) -> "np.ndarray":
    """Return the costs (k, k) of deciding column when row is true, from "mel:nv=4,bcc:nv=2"."""
    import numpy as np

    costs = np.zeros((len(classes), len(classes)))
    for (truth, decision), value in read_pairs("--cost", text, "mel:nv=4").items():
        if truth == decision:
            raise LesionfastError(
                f"--cost has '{truth}:{decision}', but a right decision costs nothing. "
                "Name two classes, such as --cost mel:nv=4."
            )
        row, column = (find_class("--cost", name, classes) for name in (truth, decision))
        costs[row, column] = value
    return costs


def read_subclasses(text: str | None, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of subclasses of each class that "mel=3,nv=2" names; 2 or more."""
    counts = {}
    for (name,), value in read_pairs("--subclass", text, "mel=3").items():
        find_class("--subclass", name, classes)
        if value < 2 or value != int(value):
            raise LesionfastError(
                f"--subclass has {name}={value:g}; type a whole number from 2, such as "
                f"{shell_quote(quote(name))}=3."
            )
        counts[name] = int(value)
    return counts
