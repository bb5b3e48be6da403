"""Who a model fails for: its metrics in groups of patients by sex, age and site."""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.bootstrap import RESAMPLES, interval, share_interval
from lesionfast.evaluation.interpretation import Interpretation, predictions_of
from lesionfast.evaluation.measures import ALL, Ranking, mean_of
from lesionfast.evaluation.metrics import ratio
from lesionfast.evaluation.resampling import Found, resampled

logger = logging.getLogger("lesionfast")

COLUMNS = ("sex", "age", "localization")
AGE_BANDS = (40, 60)  # years at which a band ends and the next begins
UNKNOWN = "unknown"
FEWEST = 20  # lesions on either side of a question, below which a group is not ranked
Labels = dict[str, np.ndarray]  # a column, and the group of each image


def subgroup_table(
    interpretation: Interpretation, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the metrics of each group of patients with their 95 % intervals.

    `columns` are those of the predictions, sex, age and localization unless given; age is cut at
    `AGE_BANDS`, and what is not known is a group of its own. Columns: column, group, metric, of
    (`Classes.targets`, each against the others, or 'all'), images and lesions (of the group),
    positives and negatives (lesions that are, and are not, `of`; for 'all' those of the rarest
    class, and 0), value, low, high, few and rank. A cell with fewer than 20 lesions to count
    (positive ones; for an AUC negative ones too; for balanced accuracy those of each class) is
    `few`, and has no rank. Raises `LesionfastError` for a column that is not there.
    """
    groups = labels_of(interpretation, columns)
    return measure_subgroups(*arrays_of(interpretation), groups, interpretation.classes)[0]


def arrays_of(interpretation: Interpretation) -> tuple[np.ndarray, ...]:
    """Return truth (n,), probabilities (n, k), decision (n,) and lesions (n,)."""
    lesions = interpretation.rows["group"].to_numpy()
    found = interpretation
    return found.truth, found.probabilities, found.decision, lesions


def labels_of(interpretation: Interpretation, columns: Sequence[str] | None = None) -> Labels:
    """Return the group of each image by each column; default columns that are not there are said.

    Raises `LesionfastError` for a column asked for that the predictions do not have.
    """
    table = predictions_of(interpretation.run, interpretation.split)
    if columns is None:
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            logger.info("no subgroups by %s: the dataset has no such column", ", ".join(missing))
        columns = [name for name in COLUMNS if name in table]
    for name in columns:
        if name not in table:
            raise LesionfastError(
                f"column '{name}' is not in the predictions of {interpretation.run.path}; they "
                f"have: {', '.join(table)}.{did_you_mean(name, list(table))} Name one of those."
            )
    return {name: group_labels(table[name], name) for name in columns}


def group_labels(values: pd.Series, column: str) -> np.ndarray:
    """Return the group of each value (n,): an age's band, any other value as text, or 'unknown'."""
    if column == "age":
        years = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
        names = np.array([*age_bands(), UNKNOWN], dtype=object)
        place = np.digitize(years, AGE_BANDS)
        return names[np.where(np.isnan(years), len(names) - 1, place)]
    text = values.astype(object).where(values.notna(), UNKNOWN).astype(str)
    return text.replace("", UNKNOWN).to_numpy(object)


def age_bands() -> list[str]:
    """Return the names of the age bands: '<40', '40-59', '60+'."""
    between = [f"{low}-{high - 1}" for low, high in pairwise(AGE_BANDS)]
    return [f"<{AGE_BANDS[0]}", *between, f"{AGE_BANDS[-1]}+"]


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
    """Return the table of `subgroup_table`, and each of its values in each resample.

    The values are by (column, group, metric, of). Lesions are drawn from all groups together,
    within each class, so a group is now larger and now smaller, as in another sample of patients.
    """
    masks = {
        (column, group): labels == group
        for column, labels in groups.items()
        for group in in_order(labels, column)
    }
    finds = {
        key: statistics(truth[mask], probabilities[mask], decision[mask], classes)
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
        row_of(key, value, drawn[key], truth, lesions, masks[key[:2]], classes)
        for key, value in values.items()
    ]
    return ranked(pd.DataFrame(rows, columns=TABLE)), drawn


TABLE = ["column", "group", "metric", "of", "images", "lesions", "positives", "negatives"]
TABLE += ["value", "low", "high", "few"]


def in_order(labels: np.ndarray, column: str) -> list[str]:
    """Return the groups: age bands by age, others by their number of images, 'unknown' last."""
    names, counts = np.unique(labels.astype(str), return_counts=True)
    bands = age_bands() if column == "age" else []
    place = {
        name: bands.index(name) if name in bands else -count
        for name, count in zip(names, counts, strict=True)
    }
    return sorted(names.tolist(), key=lambda name: (name == UNKNOWN, place[name], name))


def statistics(
    truth: np.ndarray, probabilities: np.ndarray, decision: np.ndarray, classes: Sequence[str]
) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) that gives each metric, (b,), by (metric, of)."""
    sides = sides_of(classes)
    rankings = {
        name: Ranking(chosen[truth], probabilities[:, chosen].sum(axis=1))
        for name, chosen in sides.items()
    }
    onehot = np.eye(len(classes))[truth]
    right = onehot * (truth == decision)[:, None]

    def find(weights: np.ndarray) -> Found:
        found: Found = {}
        for name, chosen in sides.items():
            hits = weights @ (chosen[truth] & chosen[decision]).astype(float)
            found["sensitivity", name] = ratio(hits, weights @ chosen[truth].astype(float))
            undefined = np.full(len(weights), np.nan)
            found["auc", name] = rankings[name].areas(weights)[0] if len(truth) else undefined
        recall = ratio(weights @ right, weights @ onehot)
        found["balanced_accuracy", ALL] = mean_of(list(recall.T))
        return found

    return find


def sides_of(classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return which classes (k,) are melanoma, and which malignant, where there are such."""
    classes = Classes.of(classes)
    sides = {of: np.asarray(classes.members(of)) for of in classes.targets}
    return {name: chosen for name, chosen in sides.items() if chosen.any() and not chosen.all()}


def row_of(
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
        positives = min(lesions_in(lesions, truth == code) for code in range(len(classes)))
        negatives = 0
    else:
        positive = sides_of(classes)[of][truth]
        positives, negatives = lesions_in(lesions, positive), lesions_in(lesions, ~positive)
    few = positives < FEWEST or (metric == "auc" and negatives < FEWEST)
    low, high = interval(drawn)
    if metric == "sensitivity":
        low, high = share_interval(value, drawn, positives)
    elif low == high:
        low = high = np.nan  # a perfect order of a few says nothing of the next
    counts = (len(truth), len(set(lesions)), positives, negatives)
    return *key, *counts, value, low, high, few


def lesions_in(lesions: np.ndarray, chosen: np.ndarray) -> int:
    """Return the number of lesions among the chosen images."""
    return len(np.unique(lesions[chosen]))


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Add the rank of each value in its column, 1 the best; NaN for few cases."""
    counted = table["value"].astype(float).where(~table["few"].astype(bool))
    by = [table[name] for name in ("column", "metric", "of")]
    return table.assign(rank=counted.groupby(by).rank(ascending=False, method="min"))
