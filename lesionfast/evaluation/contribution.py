"""What one input contributes: runs over the same images, less the run that has all inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lesionfast.diagnoses import Classes
from lesionfast.evaluation.comparison import check_images
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
    orders = check_images(list(read.values()))
    finds = {
        name: weighted_metrics(whole.truth[orders[0]], e.probabilities[o], e.decision[o], e.classes)
        for (name, e), o in zip(read.items(), orders, strict=True)
    }

    def find(weights: np.ndarray) -> Found:
        return {
            (name, *key): value
            for name, each in finds.items()
            for key, value in each(weights).items()
            if key in shown(whole.classes)
        }

    lesions = whole.lesions[orders[0]]
    values, drawn = resampled(find, whole.truth[orders[0]], lesions, resamples=resamples, seed=seed)
    is_melanoma = whole.rows["truth"].to_numpy() == whole.classes.melanoma
    melanomas, rows = len(np.unique(whole.lesions[is_melanoma])), []
    for (name, *key), value in values.items():
        first = values["whole", *key]
        ends = interval(drawn[name, *key])
        if key[0] == "sensitivity":
            ends = share_interval(value, drawn[name, *key], melanomas)
        paired = interval(drawn[name, *key] - drawn["whole", *key])
        rows.append((name, *key, value, *ends, value - first, *paired))
    columns = ["system", "metric", "of", "value", "low", "high", *ENDS]
    return pd.DataFrame(rows, columns=columns)


def shown(classes: Classes) -> tuple[tuple[str, str | None], ...]:
    """Return the metrics of the table, and what each is of."""
    told = (("sensitivity", classes.melanoma), ("auc", classes.cancer))
    return ("balanced_accuracy", ALL), ("macro_auc", ALL), *told


def in_words(table: pd.DataFrame, system: str, loses: str) -> str:
    """Return what a system loses of balanced accuracy, "no measurable change: +0.3 points […]".

    And of melanoma sensitivity, where its interval leaves out 0.
    """
    low, high, told = points(table, system, "balanced_accuracy", "balanced accuracy")
    verdict = f"{loses}: no measurable change: {told}"
    if low > 0:
        verdict = f"{loses} is a gain: {told}"
    elif high < 0:
        verdict = f"{loses} costs: {told}"
    if "sensitivity" not in set(table["metric"]):
        return verdict
    low, high, told = points(table, system, "sensitivity", "melanoma sensitivity")
    return f"{verdict}; and {told}" if low > 0 or high < 0 else verdict


def melanomas_missed(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return melanoma sensitivity with and without metadata, and a warning if it falls.

    '' if the table has none.
    """
    rows = table[table["metric"] == "sensitivity"].set_index("system")
    if rows.empty:
        return ""
    names, (change, low, high) = " and ".join(columns), 100 * rows.loc[WITHHELD, list(ENDS)]
    known, unknown = (
        f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for _, row in rows.loc[["whole", WITHHELD]].iterrows()
    )
    words = (
        f"Melanoma sensitivity is {known} with {names}, and {unknown} without: {change:+.1f} "
        f"points [{low:.1f}, {high:.1f}], paired."
    )
    if high >= 0:
        return words
    return (
        f"{words} Warning: without {names} the model misses melanomas that it finds with them. "
        "Say what is known when you predict, or train with a higher --metadata-dropout."
    )


def points(table: pd.DataFrame, system: str, metric: str, name: str) -> tuple[float, float, str]:
    """Return both ends of a difference in per cent, and "+0.3 points [-0.9, 1.5] of the name"."""
    chosen = table[(table["system"] == system) & (table["metric"] == metric)]
    change, low, high = (100 * chosen[end].item() for end in ENDS)
    return low, high, f"{change:+.1f} points [{low:.1f}, {high:.1f}] of {name}"
