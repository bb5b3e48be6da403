"""How far the groups of patients are apart in a model's metrics, and how far by chance."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.evaluation.bootstrap import RESAMPLES, interval, strata
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.resampling import Found
from lesionfast.evaluation.subgroups import (
    Labels,
    arrays_of,
    labels_of,
    measure_subgroups,
    statistics,
)

PERMUTATIONS = 1000
BLOCK = 100  # permutations at a time


def gap_table(interpretation: Interpretation, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return how far the best ranked group of a column is from its worst: columns as `gaps_of`."""
    return measure_gaps(
        *arrays_of(interpretation), labels_of(interpretation, columns), interpretation.classes
    )


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
        dealt = permuted_gaps(*data, groups[column], classes, kept, permutations, seed)
        for name in dict.fromkeys(zip(part["metric"], part["of"], strict=True)):
            cells = counted[(counted["metric"] == name[0]) & (counted["of"] == name[1])]
            rows.append((column, *name, *gap_of(column, cells, drawn, dealt.get(name))))
    return pd.DataFrame(rows, columns=GAPS)


GAPS = ["column", "metric", "of", "groups", "best", "worst", "value", "low", "high"]
GAPS += ["expected", "p"]


def gap_of(column: str, cells: pd.DataFrame, drawn: Found, dealt: np.ndarray | None) -> tuple:
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


def permuted_gaps(
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
    find = statistics(truth, probabilities, decision, classes)
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
