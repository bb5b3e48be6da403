"""How far predicted probabilities are from what happens: bins, ECE, Brier and log loss."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.stats.bootstrap import (
    RESAMPLES,
    Found,
    centred_interval,
    interval,
    resampled,
    share_interval,
)
from lesionfast.stats.metrics import ALL, check_predictions, proper_scores, ratio

BINS = 15
NOISE = " noise"


def bin_edges(scores: np.ndarray, bins: int = BINS, adaptive: bool = False) -> np.ndarray:
    """Return the edges of bins of equal width, or `adaptive`, of as many scores each.

    Equal scores fall into one bin, so there may be fewer adaptive bins than asked for.
    """
    if not adaptive:
        return np.linspace(0, 1, bins + 1)
    return np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)))


def assign_bins(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin (low, high] of each score (n,), the first with its lower edge."""
    return np.searchsorted(edges[1:-1], scores, side="left")


def reliability_bins(
    scores: np.ndarray,
    happened: np.ndarray,
    truth: np.ndarray,
    lesions: ArrayLike,
    *,
    bins: int = BINS,
    adaptive: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row a bin that is not empty: from, to, images, score, value, low, high.

    `scores` (n,) are probabilities of what `happened` (n,) or did not; `score` is their mean and
    `value` the share that happened, with its interval. `truth` (n,) are classes, the strata.
    """
    edges = bin_edges(scores, bins, adaptive)
    number, happened = assign_bins(scores, edges), np.asarray(happened, np.float64)
    member = np.eye(max(len(edges) - 1, 1))[number]

    def find(weights: np.ndarray) -> Found:
        shares = ratio(weights @ (member * happened[:, None]), weights @ member)
        return dict(enumerate(shares.T))

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = []
    for each in np.unique(number):
        inside = number == each
        n = len(np.unique(np.asarray(lesions)[inside]))
        ends = share_interval(values[each], drawn[each], n)
        edge = edges[each], edges[min(each + 1, len(edges) - 1)]
        rows.append((*edge, int(inside.sum()), scores[inside].mean(), values[each], *ends))
    columns = ["from", "to", "images", "score", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def weighted_gap(
    scores: np.ndarray,
    happened: np.ndarray,
    adaptive: bool = False,
    bins: int = BINS,
    noise: bool = False,
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of weights (b, n) that gives the expected calibration error (b,).

    That is the mean distance of score and frequency over bins (Guo et al. 2017, arXiv:1706.04599,
    eq. 3). Adaptive bins are those of all rows, for every set of weights. With `noise` the gap of
    each bin is taken off: what is left is what chance alone makes of probabilities that are right.
    """
    edges = bin_edges(scores, bins, adaptive)
    member = np.eye(max(len(edges) - 1, 1))[assign_bins(scores, edges)]
    excess = member * (scores - happened)[:, None]
    if noise:
        excess = excess - member * np.nan_to_num(ratio(excess.sum(axis=0), member.sum(axis=0)))
    return lambda weights: ratio(np.abs(weights @ excess).sum(axis=1), weights.sum(axis=1))


def weighted_calibration(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) that gives each calibration measure by name and class.

    'ece' and 'adaptive_ece' are about the most probable class. 'class_ece' takes the probability
    of each class against the rest, and over 'all' is their mean (Kull et al. 2019,
    arXiv:1910.12656, section 2). A name with ' noise' is what chance alone makes of it.
    """
    right = (probabilities.argmax(axis=1) == truth).astype(np.float64)
    onehot, top = np.eye(len(classes))[truth], probabilities.max(axis=1)
    about = {("ece", ALL): (top, right), ("adaptive_ece", ALL): (top, right, True)}
    for number, name in enumerate(classes):
        about["class_ece", name] = (probabilities[:, number], onehot[:, number])
    gaps = {key: weighted_gap(*each) for key, each in about.items()}
    gaps |= {
        (key[0] + NOISE, key[1]): weighted_gap(*each, noise=True) for key, each in about.items()
    }
    scores = proper_scores(truth, probabilities)

    def find(weights: np.ndarray) -> Found:
        found = {key: gap(weights) for key, gap in gaps.items()}
        for metric in ("class_ece", "class_ece" + NOISE):
            found[metric, ALL] = np.mean([found[metric, name] for name in classes], axis=0)
        return found | scores(weights)

    return find


def calibration_table(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every calibration measure with its 95 % interval: metric, of, value, low, high.

    `truth` (n,) are class numbers, `probabilities` (n, k). Log loss in nats; Brier is the sum over
    classes, from 0 to 2. Calibration errors are 0 at best, and of a finite sample never quite:
    their intervals are those of `calibration_interval`.
    """
    truth, probabilities = check_predictions(truth, probabilities, classes)
    find = weighted_calibration(truth, probabilities, classes)
    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = [
        (*key, value, *calibration_interval(key, value, drawn))
        for key, value in values.items()
        if not key[0].endswith(NOISE)
    ]
    return pd.DataFrame(rows, columns=["metric", "of", "value", "low", "high"])


def calibration_interval(key: tuple[str, str], value: float, drawn: Found) -> tuple[float, float]:
    """Return the interval of a measure: centred for a calibration error, else percentiles.

    A calibration error that chance alone could make (97.5 % of it) may be 0, so that its lower
    end is 0, where a reflected interval holds too seldom.
    """
    metric, of = key
    if not metric.endswith("ece"):
        return interval(drawn[key])
    low, high = centred_interval(value, drawn[key])
    return (0.0 if value <= np.quantile(drawn[metric + NOISE, of], 0.975) else low), high
