"""Every metric of a run's predictions with its interval, from resampling lesions. NumPy alone."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.stats.bootstrap import (
    RESAMPLES,
    Found,
    check_resampling,
    interval,
    resampled,
    share_interval,
)
from lesionfast.stats.metrics import (
    ALL,
    as_codes,
    binary_metrics,
    check_predictions,
    count_metrics,
    mean_over_classes,
    proper_scores,
    ratio,
)


def measure(
    truth: ArrayLike,
    probabilities: ArrayLike,
    decision: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every metric with its 95 % interval: columns metric, of, n, value, low, high.

    `truth` and `decision` (n,) are class numbers, `probabilities` (n, k), `lesions` (n,) whatever
    names the lesion of an image. `of` is a class, `Classes.cancer` (the malignant classes against
    the others, by the sum of their probabilities) or 'all'; `n` counts the images that the metric
    is about. Intervals are percentiles of `resamples` bootstraps of whole lesions within each class
    (Efron and Tibshirani 1993, chapters 8 and 13); where every resample says the same, as with 13
    right of 13, they are Wilson's (1927) over the lesions. NaN where a metric is undefined.
    """
    truth, probabilities = check_predictions(truth, probabilities, classes)
    decision, lesions = as_codes(decision, len(classes)), np.asarray(lesions)
    check_resampling(truth, [decision], lesions, resamples)
    find = weighted_metrics(truth, probabilities, decision, classes)
    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    counts = count_images(truth, classes)
    rows = []
    for (metric, of), value in values.items():
        ends = interval(drawn[metric, of])
        if metric in SHARES:
            behind = count_lesions_behind(metric, of, truth, decision, lesions, classes)
            ends = share_interval(value, drawn[metric, of], behind)
        rows.append((metric, of, counts[of], value, *ends))
    return pd.DataFrame(rows, columns=["metric", "of", "n", "value", "low", "high"])


def weighted_metrics(
    truth: np.ndarray, probabilities: np.ndarray, decision: np.ndarray, classes: Sequence[str]
) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) that gives each metric, (b,), by its name and class."""
    k, kinds = len(classes), Kinds(truth * len(classes) + decision, len(classes) ** 2)
    scores = proper_scores(truth, probabilities)
    rankings = {
        name: Ranking(truth == number, probabilities[:, number])
        for number, name in enumerate(classes)
    }
    classes = Classes.of(classes)
    cancer, cancers = classes.cancer, np.isin(classes, classes.malignant)
    if cancer not in rankings and cancers.any() and not cancers.all():
        rankings[cancer] = Ranking(cancers[truth], probabilities[:, cancers].sum(axis=1))

    def find(weights: np.ndarray) -> Found:
        counts = kinds.count(weights).reshape(-1, k, k)
        found = count_metrics(counts, classes)
        if cancer in rankings and cancer not in classes:
            found |= binary_metrics(*binary_counts(counts, cancers), cancer)
        for name, ranking in rankings.items():
            found["auc", name], found["average_precision", name] = ranking.areas(weights)
        for metric in ("auc", "average_precision"):
            found[f"macro_{metric}", ALL] = mean_over_classes(found, metric, classes)
        return found | scores(weights)

    return find


SHARES = ("sensitivity", "specificity", "precision", "accuracy")


class Kinds:
    """Counts rows of each kind, numbers from 0 to k - 1 (n,), under any weights of the rows."""

    def __init__(self, kinds: np.ndarray, k: int) -> None:
        self.k, self.order = k, np.argsort(kinds, kind="stable")
        self.present, self.starts = np.unique(kinds[self.order], return_index=True)

    def count(self, weights: np.ndarray) -> np.ndarray:
        """Return the sum of the weights (b, n) of each kind, (b, k)."""
        counts = np.zeros((len(weights), self.k))
        ordered = np.take(weights, self.order, axis=1)
        counts[:, self.present] = np.add.reduceat(ordered, self.starts, axis=1)
        return counts


def binary_counts(counts: np.ndarray, positive: np.ndarray) -> list[np.ndarray]:
    """Return hits, misses, false alarms and rights (b,) of some classes (k,) against the others.

    `counts` is (b, k, k), truth by decision.
    """
    sides = positive, ~positive
    return [
        counts[:, truth][:, :, decided].sum(axis=(1, 2)) for truth in sides for decided in sides
    ]


class Ranking:
    """The order that a score puts positive and negative rows in, for any weights of the rows."""

    def __init__(self, positive: np.ndarray, score: np.ndarray) -> None:
        self.order = np.argsort(-score, kind="stable")
        ordered, self.positive = score[self.order], positive[self.order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of equal scores
        self.starts = None if len(starts) == len(score) else starts
        self.found = np.flatnonzero(np.logical_or.reduceat(self.positive, starts))

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ROC AUC and average precision (b,) under weights (b, n); NaN where undefined.

        Both are sums over the scores that some positive row has. Average precision is the sum of
        precision times the gain in recall, as scikit-learn's.
        """
        ordered = np.take(weights, self.order, axis=1)
        rows = self.by_score(ordered)
        hits = self.by_score(ordered * self.positive) if self.starts is not None else ordered
        hits, alarms = hits[:, self.found], rows[:, self.found]
        alarms = alarms - hits
        passed = rows.cumsum(axis=1)
        total, passed = passed[:, -1], passed[:, self.found]
        found = hits.cumsum(axis=1)
        n_hits = found[:, -1] if found.size else np.zeros(len(weights))
        n_alarms = total - n_hits
        below = n_alarms[:, None] - (passed - found) + alarms / 2
        area = ratio(np.einsum("bn,bn->b", hits, below), n_hits * n_alarms)
        precision = np.divide(found, passed, out=np.zeros_like(found), where=passed > 0)
        return area, ratio(np.einsum("bn,bn->b", hits, precision), n_hits)

    def by_score(self, weights: np.ndarray) -> np.ndarray:
        """Return weights (b, n) summed over rows of the same score."""
        return weights if self.starts is None else np.add.reduceat(weights, self.starts, axis=1)


def count_images(truth: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of images of all, of the malignant classes together, and of each class."""
    classes, counts = Classes.of(classes), np.bincount(truth, minlength=len(classes))
    malignant = int(counts[np.isin(classes, classes.malignant)].sum())
    found = {ALL: len(truth), str(classes.cancer): malignant}
    return found | dict(zip(classes, counts.tolist(), strict=True))


def count_lesions_behind(
    metric: str,
    of: str,
    truth: np.ndarray,
    decision: np.ndarray,
    lesions: np.ndarray,
    classes: Sequence[str],
) -> int:
    """Return the number of lesions that a share is taken over."""
    chosen = np.asarray(Classes.of(classes).members(of)) if of != ALL else np.zeros(len(classes))
    over = {
        "sensitivity": chosen[truth] > 0,
        "specificity": chosen[truth] == 0,
        "precision": chosen[decision] > 0,
    }.get(metric, np.ones(len(truth), bool))
    return len(np.unique(lesions[over]))


def by_lesion(
    truth: np.ndarray, probabilities: np.ndarray, lesions: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth (m,), mean probabilities (m, k) and names (m,) of the lesions of n images.

    A lesion of several classes (joined near-duplicates) has that of its first image.
    """
    names, first, codes = np.unique(np.asarray(lesions), return_index=True, return_inverse=True)
    sums = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(sums, codes, probabilities)
    return truth[first], sums / np.bincount(codes)[:, None], names
