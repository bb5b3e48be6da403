"""What one input contributes: runs without it, compared with the run that has all inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lesionfast.diagnoses import Classes
from lesionfast.evaluation.comparison import align_images
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.runs import Run
from lesionfast.stats.bootstrap import RESAMPLES, Found, interval, resampled, share_interval
from lesionfast.stats.measures import weighted_metrics
from lesionfast.stats.metrics import ALL

WITHHELD = "metadata withheld"
ENDS = ("difference", "difference_low", "difference_high")


def without_metadata(run: Run, split: str, rule: str | None = None) -> Interpretation | None:
    """Return the predictions of a split with all metadata withheld; None if the run has none.

    `rule` is the run's own unless given.
    """
    table = run.predictions_without_metadata
    if table is None:
        return None
    rows = table[table["split"] == split].reset_index(drop=True)
    return None if rows.empty else Interpretation.of_table(run, rows, split, rule)


def contribution_table(
    whole: Interpretation,
    others: Mapping[str, Interpretation],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the metrics of a run and of others by name, and their paired differences from it.

    Columns: system, metric, of, value, low, high, and difference, difference_low and
    difference_high: the other less the whole, over the same resamples of lesions, so that what
    both get wrong alike does not widen the interval. Raises `LesionfastError` for runs of other
    images, diagnoses or classes.
    """
    read = {"whole": whole, **others}
    orders = align_images(list(read.values()))
    truth, lesions = whole.truth[orders[0]], whole.lesions[orders[0]]
    wanted = contribution_metrics(whole.classes)
    metrics = {
        name: weighted_metrics(truth, one.probabilities[order], one.decision[order], one.classes)
        for (name, one), order in zip(read.items(), orders, strict=True)
    }

    def find(weights: np.ndarray) -> Found:
        return {
            (name, *key): value
            for name, measure in metrics.items()
            for key, value in measure(weights).items()
            if key in wanted
        }

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    is_melanoma = whole.rows["truth"].to_numpy() == whole.classes.melanoma
    melanomas, rows = len(np.unique(whole.lesions[is_melanoma])), []
    for (name, *key), value in values.items():
        own, first = drawn[name, *key], drawn["whole", *key]
        is_share = key[0] == "sensitivity"
        ends = share_interval(value, own, melanomas) if is_share else interval(own)
        difference = value - values["whole", *key]
        rows.append((name, *key, value, *ends, difference, *interval(own - first)))
    columns = ["system", "metric", "of", "value", "low", "high", *ENDS]
    return pd.DataFrame(rows, columns=columns)


def contribution_metrics(classes: Classes) -> tuple[tuple[str, str | None], ...]:
    """Return the metrics of the table, and what each is of."""
    overall = (("balanced_accuracy", ALL), ("macro_auc", ALL))
    return *overall, ("sensitivity", classes.melanoma), ("auc", classes.cancer)


def describe_loss(table: pd.DataFrame, system: str, loses: str) -> str:
    """Return what a system loses of balanced accuracy, "no measurable change: +0.3 points […]".

    And of melanoma sensitivity, where its interval excludes 0.
    """
    low, high, change = describe_change(table, system, "balanced_accuracy", "balanced accuracy")
    verdict = f"{loses}: no measurable change: {change}"
    if low > 0:
        verdict = f"{loses} is a gain: {change}"
    elif high < 0:
        verdict = f"{loses} costs: {change}"
    if "sensitivity" not in set(table["metric"]):
        return verdict
    low, high, change = describe_change(table, system, "sensitivity", "melanoma sensitivity")
    return f"{verdict}; and {change}" if low > 0 or high < 0 else verdict


def describe_change(
    table: pd.DataFrame, system: str, metric: str, name: str
) -> tuple[float, float, str]:
    """Return both ends of a difference in per cent, and "+0.3 points [-0.9, 1.5] of the name"."""
    row = table[(table["system"] == system) & (table["metric"] == metric)]
    change, low, high = (100 * row[end].item() for end in ENDS)
    return low, high, f"{change:+.1f} points [{low:.1f}, {high:.1f}] of {name}"


def describe_missed_melanomas(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return melanoma sensitivity with and without metadata, and a warning if it falls.

    '' if the table has none.
    """
    rows = table[table["metric"] == "sensitivity"].set_index("system")
    if rows.empty:
        return ""
    names, (change, low, high) = " and ".join(columns), 100 * rows.loc[WITHHELD, list(ENDS)]
    with_it, without = (
        f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for _, row in rows.loc[["whole", WITHHELD]].iterrows()
    )
    words = (
        f"Melanoma sensitivity is {with_it} with {names}, and {without} without: {change:+.1f} "
        f"points [{low:.1f}, {high:.1f}], paired."
    )
    if high >= 0:
        return words
    return (
        f"{words} Warning: without {names} the model misses melanomas that it finds with them. "
        f"Give {names} when you predict, or train with a higher --metadata-dropout."
    )
