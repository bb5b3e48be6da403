"""A statistic of weighted rows, its value and its 95 % interval from resampling lesions."""

from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.evaluation.bootstrap import RESAMPLES, check_resampling, drawn_rows, interval

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

    `find` takes weights (b, n) and returns (b,) for each name. The same seed draws the same
    lesions, so the difference of two statistics is a paired one.
    """
    codes = np.unique(np.asarray(lesions), return_inverse=True)[1]
    check_resampling(truth, [], codes, resamples)
    values = {key: float(each[0]) for key, each in find(np.ones((1, len(truth)))).items()}
    parts = [find(weights) for weights in drawn_rows(truth, codes, resamples, seed)]
    return values, {key: np.concatenate([part[key] for part in parts]) for key in values}


def centred_interval(value: float, drawn: np.ndarray, floor: float = 0.0) -> tuple[float, float]:
    """Return the basic interval of a statistic that noise makes larger, such as an ECE.

    A resample adds to such a statistic what the sample added to the truth, so percentiles would
    count the excess twice; reflected about `value` they take it off (Davison and Hinkley 1997,
    ISBN 978-0521574716, eq. 2.10). The upper end is never below `value`.
    """
    low, high = interval(drawn)
    return max(floor, 2 * value - high), max(value, 2 * value - low)
