"""Operating points: thresholds chosen on validation, kept in the run, and reported on test."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.bootstrap import RESAMPLES, share_interval
from lesionfast.evaluation.fitted import keep, lesions_of, read_fitted, write_fitted
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.metrics import as_codes, as_probabilities, check_shapes, ratio
from lesionfast.evaluation.resampling import Found, resampled
from lesionfast.runs import Run

logger = logging.getLogger("lesionfast")

FILE = "operating.json"
GOALS = {"specificity": 0.90, "sensitivity": 0.95}
SHARES = ("sensitivity", "specificity", "precision", "flagged")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of the score of melanoma or of malignancy, and what it reached on validation.

    `of` is one of `Classes.targets`, `goal` is what must be at least `level`. An image is flagged
    if its score is `threshold` or more.
    """

    of: str
    goal: str
    level: float
    threshold: float
    sensitivity: float
    specificity: float


def positive_and_score(
    of: str, truth: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are positive (n,), bool, and the score of each (n,).

    `of` is a class, or the malignant ones together (`Classes.cancer`), by the sum of their
    probabilities. Raises `LesionfastError` for anything else.
    """
    probabilities, truth = as_probabilities(probabilities), as_codes(truth, len(classes))
    check_shapes(truth, probabilities, classes)
    chosen = np.asarray(Classes.of(classes).members(of))
    return chosen[truth], probabilities[:, chosen].sum(axis=1)


def choose_points(
    truth: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]
) -> list[OperatingPoint]:
    """Return the operating points of melanoma and malignancy, to be chosen on validation.

    `truth` (n,) holds class numbers, `probabilities` is (n, k). Left out, and said in the log:
    what has no class, no positive or no negative image.
    """
    points, classes = [], Classes.of(classes)
    for name, of in (("melanoma", classes.melanoma), ("malignant classes", classes.cancer)):
        if of is None:
            logger.warning("no operating points of %s: there is no such class", name)
    for of in classes.targets:
        positive, score = positive_and_score(of, truth, probabilities, classes)
        if positive.all() or not positive.any():
            what = "negative" if positive.all() else "positive"
            logger.warning("no operating points of %s: validation has no %s image", of, what)
            continue
        points += [choose_point(of, goal, positive, score) for goal in GOALS]
    return points


def choose_point(of: str, goal: str, positive: np.ndarray, score: np.ndarray) -> OperatingPoint:
    """Return the point that meets a goal and has the most of the other share.

    Candidates are the scores that occur, and one above them all, which flags nothing.
    """
    candidates = np.unique(score)
    candidates = np.r_[candidates, np.nextafter(candidates[-1], np.inf)]
    misses = np.searchsorted(np.sort(score[positive]), candidates)
    rights = np.searchsorted(np.sort(score[~positive]), candidates)
    reached = {
        "sensitivity": (positive.sum() - misses) / positive.sum(),
        "specificity": rights / (~positive).sum(),
    }
    meets = np.flatnonzero(reached[goal] >= GOALS[goal])
    best = meets[0] if goal == "specificity" else meets[-1]
    shares = {name: float(values[best]) for name, values in reached.items()}
    return OperatingPoint(of, goal, GOALS[goal], float(candidates[best]), **shares)


def apply_points(
    points: Sequence[OperatingPoint],
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what each point reaches: one row a point, each share with its 95 % interval.

    Columns: of, goal, level, threshold, n_positive, n_negative, and sensitivity, specificity,
    precision and flagged (the share of all images), each with _low and _high: percentiles of a
    bootstrap of lesions within each class, Wilson's where no resample differs. NaN if undefined.
    """
    lesions, truth = np.asarray(lesions), as_codes(truth, len(classes))
    rows = []
    for point in points:
        positive, score = positive_and_score(point.of, truth, probabilities, classes)
        row = {name: getattr(point, name) for name in ("of", "goal", "level", "threshold")}
        row |= {"n_positive": int(positive.sum()), "n_negative": int((~positive).sum())}
        flagged = score >= point.threshold
        rows.append(row | flag_shares(positive, flagged, truth, lesions, resamples, seed))
    return pd.DataFrame(rows, columns=table_columns())


def table_columns() -> list[str]:
    """Return the columns of `apply_points`, which a table without points has too."""
    shares = [f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")]
    return ["of", "goal", "level", "threshold", "n_positive", "n_negative", *shares]


def flag_shares(
    positive: np.ndarray,
    flagged: np.ndarray,
    truth: np.ndarray,
    lesions: np.ndarray,
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """Return sensitivity, specificity, precision and the share flagged, with intervals."""
    over = {
        "sensitivity": (flagged & positive, positive),
        "specificity": (~flagged & ~positive, ~positive),
        "precision": (flagged & positive, flagged),
        "flagged": (flagged, np.ones(len(flagged), bool)),
    }

    def find(weights: np.ndarray) -> Found:
        return {
            name: ratio(weights @ part, weights @ whole) for name, (part, whole) in over.items()
        }

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    found = {}
    for name, (_, whole) in over.items():
        ends = share_interval(values[name], drawn[name], len(np.unique(lesions[whole])))
        found |= dict(
            zip((name, f"{name}_low", f"{name}_high"), (values[name], *ends), strict=True)
        )
    return found


def write_points(run: Run) -> Path:
    """Choose the points on a run's validation predictions, keep them in operating.json."""
    return keep_points(run, points_of(run))


def points_of(run: Run) -> list[OperatingPoint]:
    """Return the points that a run's validation predictions choose."""
    require_valid_rows(run)
    valid = Interpretation.of(run, "valid", "argmax")
    return choose_points(valid.truth, valid.probabilities, valid.classes)


def keep_points(run: Run, points: Sequence[OperatingPoint]) -> Path:
    """Write points that a run's validation chose to operating.json."""
    told = {"classes": list(run.classes), "points": [asdict(point) for point in points]}
    return write_fitted(run, FILE, told)


def read_points(run: Run) -> list[OperatingPoint]:
    """Return the points kept in a run, chosen and kept now if there are none yet."""
    if not run.holds(FILE):
        points = points_of(run)
        keep(run, lambda: keep_points(run, points))
        return points
    found = read_fitted(run, FILE, f"remove {run.path / FILE}; it is written anew.")
    return [OperatingPoint(**point) for point in found["points"]]


def require_valid_rows(run: Run) -> None:
    """Raise `LesionfastError` unless a run has validation predictions."""
    known = sorted(run.predictions["split"].unique())
    if "valid" not in known:
        raise LesionfastError(
            f"{run.path} has no validation predictions, which operating points are chosen on; "
            f"it has: {', '.join(known)}. Train it again: lesionfast train"
        )


def points_table(test: Interpretation) -> pd.DataFrame:
    """Return what the run's points reach on a split that they were not chosen on."""
    if test.split == "valid":
        raise LesionfastError(
            "operating points are reported on a split that they were not chosen on; found 'valid'. "
            "Pass Interpretation.of(run, 'test')."
        )
    given = test.truth, test.probabilities, lesions_of(test), test.classes
    return apply_points(read_points(test.run), *given)
