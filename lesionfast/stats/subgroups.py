"""Metrics in groups of patients by sex, age and site, and how far the groups are apart."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.stats.bootstrap import RESAMPLES, Found, interval, resampled, share_interval, strata
from lesionfast.stats.measures import Ranking
from lesionfast.stats.metrics import ALL, mean_defined, ratio, weighted_recall

COLUMNS = ("sex", "age", "localization")
AGE_BANDS = (40, 60)  # years at which a band ends and the next begins
BAND_NAMES = ("<40", "40-59", "60+")
UNKNOWN = "unknown"
FEWEST = 20  # lesions on either side of a question, below which a group is not ranked
Labels = dict[str, np.ndarray]  # a column, and the group of each image


def group_labels(values: pd.Series, column: str) -> np.ndarray:
    """Return the group of each value (n,): an age's band, any other value as text, or 'unknown'."""
    if column == "age":
        years = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
        names = np.array([*BAND_NAMES, UNKNOWN], dtype=object)
        place = np.digitize(years, AGE_BANDS)
        return names[np.where(np.isnan(years), len(names) - 1, place)]
    text = values.astype(object).where(values.notna(), UNKNOWN).astype(str)
    return text.replace("", UNKNOWN).to_numpy(object)


def measure_subgroups(
    truth: np.ndarray,
    probabilities: np.ndarray,
    decision: np.ndarray,
    lesions: ArrayLike,
    groups: Labels,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[pd.DataFrame, Found]:
    """Return the table of `Interpretation.subgroups`, and each of its values in each resample.

    The values are by (column, group, metric, of). Lesions are drawn from all groups together,
    within each class, so a group is now larger and now smaller, as in another sample of patients.
    """
    masks = {
        (column, group): labels == group
        for column, labels in groups.items()
        for group in order_groups(labels, column)
    }
    finds = {
        key: weighted_statistics(truth[mask], probabilities[mask], decision[mask], classes)
        for key, mask in masks.items()
    }

    def find(weights: np.ndarray) -> Found:
        return {
            (*key, *name): values
            for key, mask in masks.items()
            for name, values in finds[key](weights[:, mask]).items()
        }

    lesions = np.asarray(lesions)
    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = [
        describe_cell(key, value, drawn[key], truth, lesions, masks[key[:2]], classes)
        for key, value in values.items()
    ]
    return add_ranks(pd.DataFrame(rows, columns=TABLE)), drawn


TABLE = ["column", "group", "metric", "of", "images", "lesions", "positives", "negatives"]
TABLE += ["value", "low", "high", "few"]


def order_groups(labels: np.ndarray, column: str) -> list[str]:
    """Return the groups: age bands by age, others by their number of images, 'unknown' last."""
    names, counts = np.unique(labels.astype(str), return_counts=True)
    bands = BAND_NAMES if column == "age" else ()
    place = {
        name: bands.index(name) if name in bands else -count
        for name, count in zip(names, counts, strict=True)
    }
    return sorted(names.tolist(), key=lambda name: (name == UNKNOWN, place[name], name))


def weighted_statistics(
    truth: np.ndarray, probabilities: np.ndarray, decision: np.ndarray, classes: Sequence[str]
) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) that gives each metric, (b,), by (metric, of)."""
    sides = positive_classes(classes)
    rankings = {
        name: Ranking(chosen[truth], probabilities[:, chosen].sum(axis=1))
        for name, chosen in sides.items()
    }
    recall = weighted_recall(truth, decision, len(classes))

    def find(weights: np.ndarray) -> Found:
        found: Found = {}
        for name, chosen in sides.items():
            hits = weights @ (chosen[truth] & chosen[decision]).astype(float)
            found["sensitivity", name] = ratio(hits, weights @ chosen[truth].astype(float))
            undefined = np.full(len(weights), np.nan)
            found["auc", name] = rankings[name].areas(weights)[0] if len(truth) else undefined
        found["balanced_accuracy", ALL] = mean_defined(recall(weights))
        return found

    return find


def positive_classes(classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return which classes (k,) are melanoma, and which malignant, where there are such."""
    classes = Classes.of(classes)
    sides = {of: np.asarray(classes.members(of)) for of in classes.targets}
    return {name: chosen for name, chosen in sides.items() if chosen.any() and not chosen.all()}


def describe_cell(
    key: tuple,
    value: float,
    drawn: np.ndarray,
    truth: np.ndarray,
    lesions: np.ndarray,
    mask: np.ndarray,
    classes: Sequence[str],
) -> tuple:
    """Return one row of the table: counts, value, interval, and whether its cases are few."""
    metric, of = key[2:]
    truth, lesions = truth[mask], lesions[mask]
    if of == ALL:
        positives = min(count_lesions(lesions, truth == code) for code in range(len(classes)))
        negatives = 0
    else:
        positive = positive_classes(classes)[of][truth]
        positives, negatives = count_lesions(lesions, positive), count_lesions(lesions, ~positive)
    few = positives < FEWEST or (metric == "auc" and negatives < FEWEST)
    low, high = interval(drawn)
    if metric == "sensitivity":
        low, high = share_interval(value, drawn, positives)
    elif low == high:
        low = high = np.nan  # a perfect order of a few says nothing of the next
    counts = (len(truth), len(set(lesions)), positives, negatives)
    return *key, *counts, value, low, high, few


def count_lesions(lesions: np.ndarray, chosen: np.ndarray) -> int:
    """Return the number of lesions among the chosen images."""
    return len(np.unique(lesions[chosen]))


def add_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Add the rank of each value in its column, 1 the best; NaN for few cases."""
    counted = table["value"].astype(float).where(~table["few"].astype(bool))
    by = [table[name] for name in ("column", "metric", "of")]
    return table.assign(rank=counted.groupby(by).rank(ascending=False, method="min"))


PERMUTATIONS = 1000
BLOCK = 100  # permutations at a time


def measure_gaps(
    truth: np.ndarray,
    probabilities: np.ndarray,
    decision: np.ndarray,
    lesions: ArrayLike,
    groups: Labels,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the gap of each column and metric: the best of the ranked groups less the worst.

    Columns: column, metric, of, groups (ranked), best, worst, value, low, high, expected, p. A
    largest value less a smallest is above 0 even where groups do not differ, the more so the more
    groups and the fewer cases. `expected` is the mean gap if groups are dealt out to the lesions
    anew, within each class, and `p` the share of such gaps at least as large (the observed one
    counted; Phipson and Smyth 2010, doi:10.2202/1544-6115.1585), not corrected for the number of
    rows. The interval is that of the difference between the two groups named, as if they had been
    chosen beforehand: of more than two groups it is too high as well. NaN where fewer than two
    groups are ranked.
    """
    data = truth, probabilities, decision, np.asarray(lesions)
    table, drawn = measure_subgroups(*data, groups, classes, resamples=resamples, seed=seed)
    rows = []
    for column, part in table.groupby("column", sort=False):
        counted = part[part["rank"].notna()]
        kept = {name: cells["group"].tolist() for name, cells in counted.groupby(["metric", "of"])}
        dealt = permute_gaps(*data, groups[column], classes, kept, permutations, seed)
        for name in dict.fromkeys(zip(part["metric"], part["of"], strict=True)):
            cells = counted[(counted["metric"] == name[0]) & (counted["of"] == name[1])]
            rows.append((column, *name, *measure_gap(column, cells, drawn, dealt.get(name))))
    return pd.DataFrame(rows, columns=GAPS)


GAPS = ["column", "metric", "of", "groups", "best", "worst", "value", "low", "high"]
GAPS += ["expected", "p"]


def measure_gap(column: str, cells: pd.DataFrame, drawn: Found, dealt: np.ndarray | None) -> tuple:
    """Return groups, best, worst, value, low, high, expected and p of the ranked cells."""
    if len(cells) < 2 or dealt is None:
        return len(cells), "", "", *[np.nan] * 5
    ordered = cells.sort_values("value", kind="stable")
    worst, best = ordered.iloc[0], ordered.iloc[-1]
    value = float(best["value"] - worst["value"])
    of_best, of_worst = (drawn[column, *each[["group", "metric", "of"]]] for each in (best, worst))
    low, high = interval(of_best - of_worst)
    p = (1 + (dealt >= value - 1e-12).sum()) / (1 + len(dealt))
    return len(cells), best["group"], worst["group"], value, low, high, float(dealt.mean()), p


def spread(values: np.ndarray) -> np.ndarray:
    """Return the largest less the smallest of values (groups, b), NaN where one is undefined."""
    return values.max(axis=0) - values.min(axis=0)


def permute_gaps(
    truth: np.ndarray,
    probabilities: np.ndarray,
    decision: np.ndarray,
    lesions: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    kept: dict[tuple[str, str], list[str]],
    permutations: int,
    seed: int,
) -> Found:
    """Return the gap among the `kept` groups of each metric if groups are dealt out anew.

    All images of a lesion go to one group, that of its first image; each class has as many
    lesions in each group as before.
    """
    kept = {name: groups for name, groups in kept.items() if len(groups) > 1}
    wanted = sorted({group for groups in kept.values() for group in groups})
    find = weighted_statistics(truth, probabilities, decision, classes)
    _, first, codes = np.unique(lesions, return_index=True, return_inverse=True)
    own, members = labels[first], strata(truth, codes)
    rng, parts = np.random.default_rng(seed), []
    for start in range(0, permutations if kept else 0, BLOCK):
        dealt = np.tile(own, (min(BLOCK, permutations - start), 1))
        for each in members:
            dealt[:, each] = rng.permuted(dealt[:, each], axis=1)
        of_images = dealt[:, codes]
        found = {group: find((of_images == group).astype(float)) for group in wanted}
        parts.append({n: spread(np.stack([found[g][n] for g in kept[n]])) for n in kept})
    return {name: np.concatenate([part[name] for part in parts]) for name in kept}
