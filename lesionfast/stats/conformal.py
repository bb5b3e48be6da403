"""Prediction sets that hold the truth as often as promised, over all and within each class.

Images of a lesion are not exchangeable, lesions are: each lesion weighs as one in a quantile,
shared by its images, and the promise is about one image of a new lesion (Lee, Barber and Willett
2023, arXiv:2306.06342). No image is thrown away, and no chance decides which image counts. With one
image a lesion this is the usual split-conformal quantile. NumPy alone: MAPIE 1.6 does the marginal
sets of one image a lesion, but takes neither weights nor classes, and wants a model to wrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.stats.bootstrap import Found, interval, resampled, share_interval
from lesionfast.stats.metrics import (
    ALL,
    check_predictions,
    check_shapes,
    ratio,
)
from lesionfast.stats.rules import as_probabilities

COVERAGE = 0.9
MARGINAL, BY_CLASS = "marginal", "class-conditional"
KINDS = (MARGINAL, BY_CLASS)
ROUNDING = 1e-9
BANDS = {"under 40": (0, 40), "40-59": (40, 60), "60+": (60, np.inf)}  # years


@dataclass(frozen=True)
class Conformal:
    """The scores 1 - p that prediction sets reach to, fitted on validation.

    `marginal` is one for all classes (LAC, Sadinle et al. 2019, arXiv:1609.00451), `by_class` (k)
    one for each (Mondrian: Vovk 2012, arXiv:1209.2673; Ding et al. 2023, arXiv:2306.09335).
    `lesions` (k) are those of validation. Of a class with too few, it is infinite: always in the
    set.
    """

    coverage: float
    classes: tuple[str, ...]
    marginal: float
    by_class: tuple[float, ...]
    lesions: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.classes) == len(self.by_class) == len(self.lesions):
            raise LesionfastError(
                f"the prediction sets of {len(self.classes)} classes have {len(self.by_class)} "
                f"scores and {len(self.lesions)} counts. Fit them again, or copy them again."
            )

    def sets(self, probabilities: ArrayLike, kind: str = BY_CLASS) -> np.ndarray:
        """Return whether each class is in each image's set, bool (n, k). A set may be empty."""
        probabilities = as_probabilities(probabilities)
        if kind not in KINDS:
            raise LesionfastError(
                f"there are no prediction sets '{kind}'. Choose: {', '.join(KINDS)}."
            )
        check_shapes(np.zeros(len(probabilities)), probabilities, self.classes)
        reach = self.marginal if kind == MARGINAL else np.asarray(self.by_class)
        return 1 - probabilities <= reach

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Conformal":
        """Return the sets of a JSON object, where null is infinity."""
        reaches = [found["marginal"], *found["by_class"]]
        marginal, *by_class = (np.inf if reach is None else float(reach) for reach in reaches)
        classes, lesions = tuple(found["classes"]), tuple(found["lesions"])
        return cls(found["coverage"], classes, marginal, tuple(by_class), lesions)

    @property
    def unbounded(self) -> list[str]:
        """The classes with too few lesions in validation, which are in every set."""
        pairs = zip(self.classes, self.by_class, strict=True)
        return [name for name, reach in pairs if np.isinf(reach)]


def fit_conformal(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    coverage: float = COVERAGE,
) -> Conformal:
    """Return the scores that hold `coverage` of the truths of these images, those of validation.

    `truth` (n,) are class numbers, `probabilities` (n, k), `lesions` (n,) name the lesion of each
    image. Raises `LesionfastError` unless 0 < `coverage` < 1.
    """
    check_coverage(coverage)
    truth, probabilities = check_predictions(truth, probabilities, classes)
    lesions = np.asarray(lesions)
    scores = 1 - probabilities[np.arange(len(truth)), truth]
    members = [truth == number for number in range(len(classes))]
    return Conformal(
        coverage=float(coverage),
        classes=tuple(classes),
        marginal=conformal_quantile(scores, lesions, coverage),
        by_class=tuple(conformal_quantile(scores[m], lesions[m], coverage) for m in members),
        lesions=tuple(len(np.unique(lesions[m])) for m in members),
    )


def check_coverage(coverage: float) -> None:
    """Raise `LesionfastError` unless `coverage` is a share above 0 and below 1."""
    if not 0 < coverage < 1:
        raise LesionfastError(
            f"a coverage lies between 0 and 1; found {coverage}. Type for example --coverage 0.9"
        )


def lesion_weights(lesions: ArrayLike) -> np.ndarray:
    """Return the weight of each image (n,), so that the images of a lesion weigh 1 together."""
    codes, counts = np.unique(np.asarray(lesions), return_inverse=True, return_counts=True)[1:]
    return 1 / counts[codes]


def conformal_quantile(scores: np.ndarray, lesions: ArrayLike, coverage: float) -> float:
    """Return the least score that `coverage` of the lesions and one unseen one do not exceed.

    The unseen one counts as infinite, so of m lesions with an image each it is the score of rank
    ceil((m + 1) coverage); infinite if m is less than that.
    """
    weights = lesion_weights(lesions)
    order = np.argsort(scores, kind="stable")
    reached = weights[order].cumsum() / (weights.sum() + 1)
    enough = np.flatnonzero(reached >= coverage - ROUNDING)
    return float(scores[order][enough[0]]) if len(enough) else float("inf")


def coverage_table(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    conformal: Conformal,
    age: ArrayLike | None = None,
) -> pd.DataFrame:
    """Return kind, of, images, lesions, metric, value, low, high, both kinds of set beside it.

    `truth` (n,), `probabilities` (n, k), `lesions` (n,), `age` (n,) in years or NaN. The metrics:
    coverage, set_size (mean classes), singletons and empty (shares of sets). `of` is 'all', a
    class, 'malignant' or it with an age band ('malignant, age unknown' where there is no age). Each
    lesion weighs 1, as in the promise. NaN for a group of no images.
    """
    truth, probabilities = check_predictions(truth, probabilities, classes)
    lesions, groups = np.asarray(lesions), patient_groups(truth, classes, age)
    facts = {kind: set_facts(conformal.sets(probabilities, kind), truth) for kind in KINDS}
    member = np.stack(list(groups.values()), axis=1) * lesion_weights(lesions)[:, None]

    def find(weights: np.ndarray) -> Found:
        total = weights @ member
        return {
            (kind, of, metric): column
            for kind, metrics in facts.items()
            for metric, fact in metrics.items()
            for of, column in zip(
                groups, ratio(weights @ (member * fact[:, None]), total).T, strict=True
            )
        }

    values, drawn = resampled(find, truth, lesions)
    counts = {of: (int(m.sum()), len(np.unique(lesions[m]))) for of, m in groups.items()}
    rows = []
    for (kind, of, metric), value in values.items():
        draws = drawn[kind, of, metric]
        is_size = metric == "set_size"
        ends = interval(draws) if is_size else share_interval(value, draws, counts[of][1])
        rows.append((kind, of, *counts[of], metric, value, *ends))
    columns = ["kind", "of", "images", "lesions", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def set_facts(sets: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is counted of each set (n, k), (n,) each."""
    size = sets.sum(axis=1)
    return {
        "coverage": sets[np.arange(len(truth)), truth].astype(np.float64),
        "set_size": size.astype(np.float64),
        "singletons": (size == 1).astype(np.float64),
        "empty": (size == 0).astype(np.float64),
    }


def patient_groups(
    truth: np.ndarray, classes: Sequence[str], age: ArrayLike | None
) -> dict[str, np.ndarray]:
    """Return the images (n,) bool of each group of the table, by its name."""
    groups = {ALL: np.ones(len(truth), bool)}
    groups |= {name: truth == number for number, name in enumerate(classes)}
    classes = Classes.of(classes)
    if classes.cancer is None:
        return groups
    cancer = np.asarray(classes.members(classes.cancer))[truth]
    groups[classes.cancer] = cancer
    if age is None:
        return groups
    years = pd.to_numeric(pd.Series(age), errors="coerce").to_numpy(np.float64)
    for name, (low, high) in BANDS.items():
        groups[f"{classes.cancer}, {name}"] = cancer & (years >= low) & (years < high)
    groups[f"{classes.cancer}, age unknown"] = cancer & np.isnan(years)
    return groups
