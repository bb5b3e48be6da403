"""Selective prediction: the risk that is left when the least certain images are referred."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.stats.bootstrap import Found, interval, resampled, share_interval
from lesionfast.stats.metrics import (
    ALL,
    mean_defined,
    ratio,
    weighted_recall,
)

SHARE = 0.2
KEPT_RIGHT = {  # a risk -> the metric that is 1 less it
    "error": "accuracy",
    "balanced_error": "balanced_accuracy",
    "mel_missed": "sensitivity",
}
KEPT = np.arange(1, 21) / 20  # the shares of images kept that a risk-coverage curve has


def weighted_risks(
    truth: np.ndarray, decision: np.ndarray, classes: Sequence[str]
) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) of the kept rows that gives each risk (b,).

    'error' is 1 - accuracy, 'balanced_error' 1 - the mean sensitivity of the classes that are still
    there, 'mel_missed' the share of the melanomas not decided so.
    """
    recall, melanoma = weighted_recall(truth, decision, len(classes)), Classes.of(classes).melanoma
    right = (decision == truth).astype(np.float64)

    def find(weights: np.ndarray) -> Found:
        sensitivity = recall(weights)
        found = {
            "error": 1 - ratio(weights @ right, weights.sum(axis=1)),
            "balanced_error": 1 - mean_defined(sensitivity),
        }
        if melanoma is not None:
            found["mel_missed"] = 1 - sensitivity[:, list(classes).index(melanoma)]
        return found

    return find


def risk_coverage(
    truth: np.ndarray,
    decision: np.ndarray,
    confidence: np.ndarray,
    lesions: ArrayLike,
    classes: Sequence[str],
) -> pd.DataFrame:
    """Return kept, images, lesions, metric, value, low, high: the risk of the most confident.

    `kept` is the share of images kept, 0.05 to 1; images as confident as the last kept are kept
    too, and `lesions` are those that the risk is taken over. Error is the risk of Geifman and
    El-Yaniv 2017 (arXiv:1705.08500); balanced error and melanomas missed are beside it, for on
    skin lesions a small error can be made of nevi alone.
    """
    risks, ordered = weighted_risks(truth, decision, classes), np.sort(confidence)[::-1]
    last = np.ceil(KEPT * len(truth) - 1e-9).astype(int) - 1
    masks = {share: confidence >= ordered[at] for share, at in zip(KEPT, last, strict=True)}

    def find(weights: np.ndarray) -> Found:
        return {
            (share, metric): value
            for share, mask in masks.items()
            for metric, value in risks(weights * mask).items()
        }

    values, drawn = resampled(find, truth, lesions)
    melanoma, rows = np.isin(classes, Classes.of(classes).melanoma), []
    for (share, metric), value in values.items():
        kept, draws = masks[share], drawn[share, metric]
        over = kept & melanoma[truth] if metric == "mel_missed" else kept
        n = len(np.unique(np.asarray(lesions)[over]))
        is_share = metric != "balanced_error"
        ends = share_interval(value, draws, n) if is_share else interval(draws)
        rows.append((float(share), int(kept.sum()), n, metric, value, *ends))
    columns = ["kept", "images", "lesions", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def weighted_aurc(wrong: np.ndarray, confidence: np.ndarray) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n), whole numbers, that gives 'aurc' and 'excess_aurc'.

    AURC is the mean error over the shares kept (Geifman and El-Yaniv 2017, arXiv:1705.08500); rows
    of equal confidence are kept together. The excess is over that of a confidence which puts
    every error last (Geifman et al. 2019, arXiv:1805.08206).
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    errors = np.asarray(wrong, np.float64)[order]

    def find(weights: np.ndarray) -> Found:
        rows = np.add.reduceat(weights[:, order], starts, axis=1)
        failed = np.add.reduceat(weights[:, order] * errors, starts, axis=1)
        passed = rows.cumsum(axis=1)
        risk = np.divide(failed.cumsum(axis=1), passed, out=np.zeros_like(passed), where=passed > 0)
        area = (rows * risk).sum(axis=1) / passed[:, -1]
        return {"aurc": area, "excess_aurc": area - least_aurc(passed[:, -1], failed.sum(axis=1))}

    return find


def least_aurc(rows: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the mean of j / (right + j) over the errors j, divided by the rows: (b,)."""
    from scipy.special import digamma

    right = rows - errors
    return (errors - right * (digamma(rows + 1) - digamma(right + 1))) / rows


def aurc_table(
    truth: np.ndarray,
    decision: np.ndarray,
    confidence: np.ndarray,
    lesions: ArrayLike,
) -> pd.DataFrame:
    """Return AURC and excess AURC of the error with intervals: metric, value, low, high."""
    find = weighted_aurc(decision != truth, confidence)
    values, drawn = resampled(find, truth, lesions)
    rows = [(metric, value, *interval(drawn[metric])) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high"])


@dataclass(frozen=True)
class Referral:
    """The confidence below which an image goes to a dermatologist, chosen on validation."""

    share: float
    threshold: float
    rule: str
    classes: tuple[str, ...]

    def referred(self, confidence: np.ndarray) -> np.ndarray:
        """Return whether each image is referred, bool (n,)."""
        return np.asarray(confidence) < self.threshold


def fit_referral(confidence: ArrayLike, share: float = SHARE) -> float:
    """Return the threshold that at most `share` of these images, of validation, are below.

    Raises `LesionfastError` unless 0 < `share` < 1.
    """
    check_share(share)
    ordered = np.sort(np.asarray(confidence, np.float64))
    return float(ordered[int(share * len(ordered) + 1e-9)])


def check_share(share: float) -> None:
    """Raise `LesionfastError` unless `share` is above 0 and below 1."""
    if not 0 < share < 1:
        raise LesionfastError(
            f"the share to refer lies between 0 and 1; found {share}. Type for example --refer 0.2"
        )


def referral_table(
    truth: np.ndarray,
    decision: np.ndarray,
    referred: np.ndarray,
    lesions: ArrayLike,
    classes: Sequence[str],
) -> pd.DataFrame:
    """Return metric, of, among, value, low, high: the share referred, and what is left.

    `truth` and `decision` (n,) are class numbers, `referred` (n,) bool. Accuracy, balanced accuracy
    and melanoma sensitivity are among 'all' and among the 'kept'; 'referred' among the 'missed'
    is the share of the misclassified melanomas that a dermatologist sees. Without melanoma
    what is about it is left out. NaN where undefined.
    """
    melanoma = Classes.of(classes).melanoma
    members, asked = {ALL: np.ones(len(truth), bool)}, [(ALL, "all")]
    if melanoma:
        members[melanoma] = truth == list(classes).index(melanoma)
        asked += [(melanoma, "all"), (melanoma, "missed")]
    sides = {"all": members[ALL], "kept": ~referred, "missed": decision != truth}
    risks = weighted_risks(truth, decision, classes)

    def find(weights: np.ndarray) -> Found:
        found = {}
        for of, among in asked:
            side = members[of] & sides[among]
            found["referred", of, among] = ratio(weights @ (side * referred), weights @ side)
        for among in ("all", "kept"):
            for risk, value in risks(weights * sides[among]).items():
                of = melanoma if risk == "mel_missed" else ALL
                found[KEPT_RIGHT[risk], of, among] = 1 - value
        return found

    values, drawn = resampled(find, truth, lesions)
    rows = []
    for (metric, of, among), value in values.items():
        n = len(np.unique(np.asarray(lesions)[members[of] & sides[among]]))
        draws, is_share = drawn[metric, of, among], metric != "balanced_accuracy"
        ends = share_interval(value, draws, n) if is_share else interval(draws)
        rows.append((metric, of, among, n, value, *ends))
    columns = ["metric", "of", "among", "lesions", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
