"""Thresholds of a score, the net benefit of flagging by one, and decisions of least cost."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.stats.bootstrap import Found, interval, resampled, share_interval
from lesionfast.stats.metrics import as_codes, check_predictions, ratio
from lesionfast.stats.rules import as_probabilities

logger = logging.getLogger("lesionfast")

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
    truth, probabilities = check_predictions(truth, probabilities, classes)
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
        rows.append(row | measure_shares(positive, flagged, truth, lesions))
    shares = [f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")]
    columns = ["of", "goal", "level", "threshold", "n_positive", "n_negative", *shares]
    return pd.DataFrame(rows, columns=columns)


def measure_shares(
    positive: np.ndarray,
    flagged: np.ndarray,
    truth: np.ndarray,
    lesions: np.ndarray,
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

    values, drawn = resampled(find, truth, lesions)
    found = {}
    for name, (_, whole) in over.items():
        ends = share_interval(values[name], drawn[name], len(np.unique(lesions[whole])))
        found |= {name: values[name], f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return found


THRESHOLDS = np.arange(1, 100) / 100
SAME = 1e-12  # costs that differ by less are rounded differently, not different


def net_benefit(positive: ArrayLike, score: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Return the net benefit (t,), in true positives an image, of flagging score >= threshold.

    A false positive counts as threshold / (1 - threshold) of a true one (Vickers and Elkin 2006,
    doi:10.1177/0272989X06295361). Raises `LesionfastError` for thresholds outside 0 to 1.
    """
    return gains(np.asarray(positive, bool), np.asarray(score), thresholds).mean(axis=0)


def gains(positive: np.ndarray, score: np.ndarray, thresholds: ArrayLike) -> np.ndarray:
    """Return what each image (n,) adds at each threshold (t,), (n, t)."""
    thresholds = np.asarray(thresholds, np.float64)
    if not ((thresholds >= 0) & (thresholds < 1)).all():
        raise LesionfastError(
            f"thresholds of a decision curve are from 0 to below 1; found {thresholds.min():g} to "
            f"{thresholds.max():g}. Pass probabilities."
        )
    worth = np.where(positive[:, None], 1.0, -thresholds / (1 - thresholds))
    return worth * (score[:, None] >= thresholds)


def decision_curve(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    of: str,
) -> pd.DataFrame:
    """Return the decision curve of one of `Classes.targets`: one row a threshold.

    `probabilities` (n, k) are to be calibrated: a threshold is a chance.

    Columns: threshold, net_benefit with low and high (bootstrap of lesions within each class),
    all (everyone flagged) and none (nobody, 0), in true positives an image.
    """
    positive, score = positive_and_score(of, truth, probabilities, classes)
    each = gains(positive, score, THRESHOLDS)

    def find(weights: np.ndarray) -> Found:
        shares = weights @ each / weights.sum(axis=1, keepdims=True)
        return dict(enumerate(shares.T))

    codes = as_codes(truth, len(classes))
    values, drawn = resampled(find, codes, lesions)
    ends = np.array([interval(drawn[number]) for number in values])
    table = {"threshold": THRESHOLDS, "net_benefit": list(values.values())}
    table |= {"low": ends[:, 0], "high": ends[:, 1]}
    all_flagged = net_benefit(positive, np.ones(len(positive)), THRESHOLDS)
    return pd.DataFrame(table | {"all": all_flagged, "none": 0.0})


def cost_decision(probabilities: ArrayLike, costs: ArrayLike) -> np.ndarray:
    """Return the class of least expected cost, int64 (n,), from probabilities (n, k).

    It is argmin_j sum_i p_i costs[i, j] (Elkan 2001, The Foundations of Cost-Sensitive Learning,
    IJCAI, eq. 1); of several the first. Raises `LesionfastError` for costs that do not fit.
    """
    probabilities = as_probabilities(probabilities)
    risks = probabilities @ as_costs(costs, probabilities.shape[1])
    least = risks.min(axis=1, keepdims=True)
    return (risks <= least + SAME * np.maximum(1, np.abs(least))).argmax(axis=1)


def as_costs(costs: ArrayLike, n_classes: int) -> np.ndarray:
    """Return costs (k, k) as float64; raises `LesionfastError` if they are none."""
    costs = np.asarray(costs, np.float64)
    if costs.shape != (n_classes, n_classes) or not (np.isfinite(costs) & (costs >= 0)).all():
        raise LesionfastError(
            f"costs must be {n_classes} by {n_classes} numbers from 0, truth by decision; found "
            f"shape {costs.shape}. Type such as --cost mel:nv=10."
        )
    return costs


def cost_table(
    truth: ArrayLike,
    decisions: Mapping[str, ArrayLike],
    costs: ArrayLike,
    lesions: ArrayLike,
) -> pd.DataFrame:
    """Return the mean cost an image of each rule's decisions (n,): rule, value, low, high."""
    k = len(np.asarray(costs))
    costs, truth = as_costs(costs, k), as_codes(truth, k)
    paid = {name: costs[truth, as_codes(each, k)] for name, each in decisions.items()}

    def find(weights: np.ndarray) -> Found:
        return {name: weights @ each / weights.sum(axis=1) for name, each in paid.items()}

    values, drawn = resampled(find, truth, lesions)
    rows = [(name, value, *interval(drawn[name])) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["rule", "value", "low", "high"])
