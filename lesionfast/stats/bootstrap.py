"""Confidence intervals from resampling lesions, the same lesions for every run. NumPy alone."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.errors import LesionfastError

RESAMPLES = 2000
FEWEST = 1000
LEVEL = 0.95
BLOCK = 200_000  # drawn rows at a time, which stay in a processor's cache
Found = dict[Hashable, np.ndarray]  # a statistic's name, and its value under each set of weights


def resampled(
    find: Callable[[np.ndarray], Found],
    truth: np.ndarray,
    lesions: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[Hashable, float], Found]:
    """Return what `find` says of all rows, and of each resample of lesions, (resamples,).

    `find` takes weights (b, n) and returns (b,) for each name; `truth` (n,) are class numbers,
    `lesions` (n,) the lesion of each image: all images of a drawn lesion count, as often as it is
    drawn. The same seed draws the same lesions, so the difference of two statistics is a paired
    one. Raises `LesionfastError` for fewer than 1,000 resamples, and lesions that do not fit.
    (Efron and Tibshirani 1993, An Introduction to the Bootstrap, ISBN 978-0412042317, chapters 6,
    8 and 13.)
    """
    codes = np.unique(np.asarray(lesions), return_inverse=True)[1]
    check_resampling(truth, [], codes, resamples)
    values = {key: float(each[0]) for key, each in find(np.ones((1, len(truth)))).items()}
    parts = [find(counts[:, codes]) for counts in drawn_lesions(truth, codes, resamples, seed)]
    return values, {key: np.concatenate([part[key] for part in parts]) for key in values}


def out_of_bag_choice(
    metrics: Sequence[Callable[[np.ndarray], np.ndarray]],
    truth: np.ndarray,
    lesions: ArrayLike,
    *,
    more_is_better: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Return what the best of several models has on the lesions that did not choose it.

    Each of `metrics` takes weights (b, n) and returns (b,). In each resample of lesions the best
    model is chosen on those that were drawn, and its metric on the others is returned,
    (resamples,); NaN where a class is missing from them. (Tsamardinos et al. 2018, algorithm 3 of
    doi:10.1007/s10994-018-5714-4.)
    """
    codes = np.unique(np.asarray(lesions), return_inverse=True)[1]
    check_resampling(truth, [], codes, resamples)
    found, sign = [], 1 if more_is_better else -1
    for counts in drawn_lesions(truth, codes, resamples, seed):
        drawn = counts[:, codes]
        left = (drawn == 0).astype(np.float64)
        inside = sign * np.stack([find(drawn) for find in metrics])
        best = np.where(np.isnan(inside), -np.inf, inside).argmax(axis=0)
        values = np.stack([find(left) for find in metrics])[best, np.arange(len(left))]
        whole = np.all([left[:, truth == k].any(axis=1) for k in np.unique(truth)], axis=0)
        found.append(np.where(whole, values, np.nan))
    return np.concatenate(found)


def check_resampling(
    truth: np.ndarray, decisions: list[np.ndarray], lesions: np.ndarray, resamples: int
) -> None:
    """Raise `LesionfastError` unless all are as long as `truth` and resamples are enough."""
    lengths = {len(each) for each in (*decisions, lesions)}
    if lengths != {len(truth)} or not len(truth):
        raise LesionfastError(
            f"truth, decisions and lesions need one entry per image; found {len(truth)} and "
            f"{sorted(lengths)}. Pass those of the same images."
        )
    if resamples < FEWEST:
        raise LesionfastError(
            f"{resamples} resamples are too few for the ends of a 95 % interval. "
            f"Type {FEWEST} or more."
        )


def strata(truth: np.ndarray, lesions: np.ndarray) -> list[np.ndarray]:
    """Return the lesions of each class; one of several classes counts for the rarest of them."""
    rarity = np.bincount(truth)[truth]
    order = np.argsort(-rarity, kind="stable")  # the rarest is written last
    stratum = np.zeros(lesions.max() + 1, np.int64)
    stratum[lesions[order]] = truth[order]
    return [np.flatnonzero(stratum == each) for each in np.unique(stratum)]


def drawn_lesions(
    truth: np.ndarray, lesions: np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield blocks of resamples: how often each lesion is drawn, float64 (block, lesions).

    Every interval of this project comes from these draws. They depend on the seed and on the
    lesions of each class alone, not on the order of the rows or the size of the blocks.
    """
    groups = strata(truth, lesions)
    streams = [np.random.default_rng([seed, number]) for number in range(len(groups))]
    step = max(1, BLOCK // len(truth))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        counts = np.zeros((size, lesions.max() + 1))
        for members, stream in zip(groups, streams, strict=True):
            counts[:, members] = draws(len(members), size, stream)
        yield counts


def draws(lesions: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each lesion is drawn in each resample, (resamples, lesions)."""
    drawn = rng.integers(0, lesions, (resamples, lesions))
    drawn += np.arange(resamples)[:, None] * lesions
    size = resamples * lesions
    return np.bincount(drawn.ravel(), minlength=size).reshape(resamples, -1).astype(np.float64)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of the resampled values (resamples,); NaN if undefined.

    (Efron and Tibshirani 1993, section 13.3.) Of a class with a single lesion it has no width:
    nothing is known of how lesions of that class differ.
    """
    if np.isnan(values).all():
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def share_interval(value: float, drawn: np.ndarray, lesions: int) -> tuple[float, float]:
    """Return the percentile interval of a share; Wilson's of `lesions` if no resample differs."""
    low, high = interval(drawn)
    if low == high == value:
        low, high = wilson(value, lesions)
        return min(low, value), max(high, value)  # its ends are rounded
    return low, high


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of n (Wilson 1927, doi:10.2307/2276774)."""
    if not n or np.isnan(share):
        return float("nan"), float("nan")
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def centred_interval(value: float, drawn: np.ndarray) -> tuple[float, float]:
    """Return the basic interval of a statistic that noise makes larger, such as an ECE.

    A resample adds to such a statistic what the sample added to the truth, so percentiles would
    count the excess twice; reflected about `value` they take it off (Davison and Hinkley 1997,
    ISBN 978-0521574716, eq. 2.10). The upper end is never below `value`.
    """
    low, high = interval(drawn)
    return max(0.0, 2 * value - high), max(value, 2 * value - low)
