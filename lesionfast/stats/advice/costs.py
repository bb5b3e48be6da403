"""What errors cost, as a person states it, and the action of least expected cost."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.stats.rules import as_probabilities

EXAMPLE = "--cost missed_melanoma=30,missed_cancer=10,needless_excision=1"


@dataclass(frozen=True)
class Costs:
    """What each error costs, in any unit; only their ratios count.

    `missed_melanoma` and `missed_cancer` (any other malignant class) are the costs of leaving such
    a lesion alone, `needless_excision` is that of removing a benign one. The defaults are a
    convention, not a measurement: by them an examination is worth it from a chance of melanoma of
    1 in 31, or of another cancer of 1 in 11.
    """

    missed_melanoma: float = 30.0
    missed_cancer: float = 10.0
    needless_excision: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise LesionfastError(
                    f"the cost {name} is {value}; costs are numbers above 0. Type such as {EXAMPLE}"
                )
        values = asdict(self).values()
        if max(values) / min(values) == math.inf:
            raise LesionfastError(f"the costs {self} are too far apart. Type such as {EXAMPLE}")

    def __str__(self) -> str:
        """Return them as a person types them."""
        return ",".join(f"{name}={value:g}" for name, value in asdict(self).items())

    @classmethod
    def parse(cls, text: str | None, base: "Costs | None" = None) -> "Costs":
        """Return the costs of a text such as "missed_melanoma=50"; the others are those of `base`.

        Raises `LesionfastError` for an unknown name, one that is there twice, and what is not a
        number above 0.
        """
        names, given = [field.name for field in fields(cls)], {}
        for part in text.split(",") if text else []:
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in names or name in given:
                problem = "is there twice" if name in given else "is not a cost"
                raise LesionfastError(
                    f"--cost {text}: '{name}' {problem}.{did_you_mean(name, names)} The costs are "
                    f"{', '.join(names)}. Type such as {EXAMPLE}"
                )
            try:
                given[name] = float(number)
            except ValueError:
                raise LesionfastError(
                    f"--cost {text}: '{number}' is not a number. Type such as {EXAMPLE}"
                ) from None
        return replace(base or cls(), **given)

    def relative(self) -> "Costs":
        """Return them in the unit that a person is told: that of a needless excision."""
        unit = self.needless_excision
        return Costs(self.missed_melanoma / unit, self.missed_cancer / unit, 1.0)

    def misses(self, classes: Sequence[str]) -> np.ndarray:
        """Return what leaving a lesion of each class alone costs, (k,): 0 for the benign ones."""
        classes = Classes.of(classes)
        melanomas = {classes.melanoma, *classes.other_melanomas}
        prices = [self.missed_melanoma if c in melanomas else self.missed_cancer for c in classes]
        return np.where(np.isin(classes, classes.malignant), prices, 0.0)

    def expected(self, probabilities: ArrayLike, classes: Sequence[str]) -> np.ndarray:
        """Return the expected cost (n, 2) of leaving each lesion alone, and of examining it.

        `probabilities` (n, k) are to be calibrated. The cost of an action is sum_i p_i costs[i,
        action] (Elkan 2001, The Foundations of Cost-Sensitive Learning, IJCAI, eq. 1), where
        finding a cancer costs nothing.
        """
        misses = self.misses(classes)
        needless = np.where(misses > 0, 0.0, self.needless_excision)
        return as_probabilities(probabilities) @ np.stack([misses, needless], axis=1)
