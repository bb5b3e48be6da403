"""How often prediction sets hold the truth: by class, and for malignant lesions by age."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.evaluation.bootstrap import RESAMPLES, interval, share_interval
from lesionfast.evaluation.conformal import KINDS, Conformal, lesion_weights
from lesionfast.evaluation.fitted import lesions_of
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.measures import ALL
from lesionfast.evaluation.metrics import as_codes, as_probabilities, check_shapes, ratio
from lesionfast.evaluation.resampling import Found, resampled

BANDS = {"under 40": (0, 40), "40-59": (40, 60), "60+": (60, np.inf)}  # years


def coverage_table(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    conformal: Conformal,
    age: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return kind, of, images, lesions, metric, value, low, high, both kinds of set beside it.

    `truth` (n,), `probabilities` (n, k), `lesions` (n,), `age` (n,) in years or NaN. The metrics:
    coverage, set_size (mean classes), singletons and empty (shares of sets). `of` is 'all', a
    class, 'malignant' or it with an age band ('malignant, age unknown' where there is no age). Each
    lesion weighs 1, as in the promise. NaN for a group of no images.
    """
    probabilities, truth = as_probabilities(probabilities), as_codes(truth, len(classes))
    check_shapes(truth, probabilities, classes)
    lesions, groups = np.asarray(lesions), groups_of(truth, classes, age)
    told = {kind: facts_of(conformal.sets(probabilities, kind), truth) for kind in KINDS}
    weight = lesion_weights(lesions)
    member = np.stack(list(groups.values()), axis=1) * weight[:, None]

    def find(weights: np.ndarray) -> Found:
        total = weights @ member
        return {
            (kind, of, metric): column
            for kind, facts in told.items()
            for metric, fact in facts.items()
            for of, column in zip(
                groups, ratio(weights @ (member * fact[:, None]), total).T, strict=True
            )
        }

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    counts = {of: (int(m.sum()), len(np.unique(lesions[m]))) for of, m in groups.items()}
    rows = []
    for (kind, of, metric), value in values.items():
        each = drawn[kind, of, metric]
        size = metric == "set_size"
        ends = interval(each) if size else share_interval(value, each, counts[of][1])
        rows.append((kind, of, *counts[of], metric, value, *ends))
    columns = ["kind", "of", "images", "lesions", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def facts_of(sets: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is counted of each set (n, k), (n,) each."""
    size = sets.sum(axis=1)
    return {
        "coverage": sets[np.arange(len(truth)), truth].astype(np.float64),
        "set_size": size.astype(np.float64),
        "singletons": (size == 1).astype(np.float64),
        "empty": (size == 0).astype(np.float64),
    }


def groups_of(
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


def coverage_of(
    test: Interpretation, conformal: Conformal, *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Return `coverage_table` of a run's predictions; without a column `age`, without age bands."""
    age = test.rows.get("age")
    return coverage_table(
        test.truth,
        test.probabilities,
        lesions_of(test),
        test.classes,
        conformal,
        age,
        resamples=resamples,
        seed=seed,
    )
