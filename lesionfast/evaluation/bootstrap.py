"""Confidence intervals from resampling lesions, the same lesions for every run. NumPy alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.metrics import as_codes, ratio

RESAMPLES = 2000
FEWEST = 1000
BLOCK = 4_000_000  # drawn lesions at a time: 32 MB


@dataclass(frozen=True, eq=False)
class Resamples:
    """What each resample says of each run, as shares; NaN where undefined.

    `balanced_accuracy` and `taken` (the share of one class decided to be another, such as
    melanomas taken for nevi) are (runs, resamples), `sensitivity` is (runs, resamples, k).
    Row i of every run is the same resample, so the difference of two runs is a paired one.
    """

    balanced_accuracy: np.ndarray
    sensitivity: np.ndarray
    taken: np.ndarray


def resample(
    truth: ArrayLike,
    decisions: ArrayLike,
    lesions: ArrayLike,
    n_classes: int,
    *,
    taken: tuple[int, int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resamples:
    """Draw lesions with replacement, class by class, and return each run's metrics every time.

    `truth` (n,) and `decisions` (runs, n) are class numbers, `lesions` (n,) the lesion of each
    image: all images of a drawn lesion count, as often as it is drawn. `taken` is the pair
    (truth, decision) whose share is wanted. Raises `LesionfastError` for fewer than 1,000
    resamples, and decisions or lesions that do not fit. (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, ISBN 978-0412042317, chapters 6, 8 and 13.)
    """
    truth = as_codes(truth, n_classes)
    decisions = [as_codes(each, n_classes) for each in np.atleast_2d(np.asarray(decisions))]
    codes = np.unique(np.asarray(lesions), return_inverse=True)[1]
    check_resampling(truth, decisions, codes, resamples)
    pair = taken or (0, 0)
    counts = np.hstack(
        [per_lesion(truth, codes, n_classes)]
        + [per_lesion(truth, codes, n_classes, each == truth) for each in decisions]
        + [per_lesion(truth, codes, n_classes, each == pair[1])[:, [pair[0]]] for each in decisions]
    )
    sums = resampled_sums(counts, strata(truth, codes), resamples, np.random.default_rng(seed))
    images, hits, wrong = np.split(sums, [n_classes, n_classes * (1 + len(decisions))], axis=1)
    hits = hits.reshape(resamples, len(decisions), n_classes).transpose(1, 0, 2)
    sensitivity = ratio(hits, np.broadcast_to(images, hits.shape))
    of_class = np.broadcast_to(images[:, pair[0]], wrong.T.shape)
    share = ratio(wrong.T, of_class) if taken else np.full(wrong.T.shape, np.nan)
    return Resamples(mean_of_defined(sensitivity), sensitivity, share)


def check_resampling(
    truth: np.ndarray, decisions: list[np.ndarray], lesions: np.ndarray, resamples: int
) -> None:
    """Raise `LesionfastError` unless all are as long as `truth` and resamples are enough."""
    lengths = {len(each) for each in (*decisions, lesions)}
    if lengths != {len(truth)} or not len(truth):
        raise LesionfastError(
            f"truth, decisions and lesions must be as many, one an image; found {len(truth)} and "
            f"{sorted(lengths)}. Pass those of the same images."
        )
    if resamples < FEWEST:
        raise LesionfastError(
            f"{resamples} resamples are too few for the ends of a 95 % interval. "
            f"Type {FEWEST} or more."
        )


def per_lesion(
    truth: np.ndarray, lesions: np.ndarray, n_classes: int, counted: np.ndarray | None = None
) -> np.ndarray:
    """Return how many images of each class a lesion has (those `counted`), (lesions, k)."""
    size = (lesions.max() + 1) * n_classes
    pairs = lesions * n_classes + truth
    return np.bincount(pairs, counted, size).reshape(-1, n_classes).astype(np.float64)


def strata(truth: np.ndarray, lesions: np.ndarray) -> list[np.ndarray]:
    """Return the lesions of each class; one of several classes counts for the rarest of them."""
    rarity = np.bincount(truth)[truth]
    order = np.argsort(-rarity, kind="stable")  # the rarest is written last
    stratum = np.zeros(lesions.max() + 1, np.int64)
    stratum[lesions[order]] = truth[order]
    return [np.flatnonzero(stratum == each) for each in np.unique(stratum)]


def resampled_sums(
    counts: np.ndarray, groups: list[np.ndarray], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the sums of `counts` (lesions, m) over each resample, (resamples, m)."""
    sums = np.zeros((resamples, counts.shape[1]))
    for members in groups:
        chosen = counts[members]
        used = chosen.any(axis=0)  # a class has few columns of its own
        for rows in blocks(resamples, len(members)):
            drawn = draws(len(members), rows.stop - rows.start, rng)
            sums[rows, used] += drawn @ chosen[:, used]
    return sums


def blocks(resamples: int, lesions: int) -> Iterator[slice]:
    """Yield slices over the resamples, each of as many draws as fit into memory with ease."""
    step = max(1, BLOCK // lesions)
    for start in range(0, resamples, step):
        yield slice(start, min(start + step, resamples))


def draws(lesions: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each lesion is drawn in each resample, (resamples, lesions)."""
    drawn = rng.integers(0, lesions, (resamples, lesions))
    drawn += np.arange(resamples)[:, None] * lesions
    size = resamples * lesions
    return np.bincount(drawn.ravel(), minlength=size).reshape(resamples, -1).astype(np.float64)


def mean_of_defined(sensitivity: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of what is not NaN."""
    return ratio(np.nansum(sensitivity, axis=-1), (~np.isnan(sensitivity)).sum(axis=-1))


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the resampled values (resamples,); NaN if undefined.

    (Efron and Tibshirani 1993, section 13.3.) Of a class with a single lesion it has no width:
    nothing is known of how lesions of that class differ.
    """
    if np.isnan(values).all():
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
