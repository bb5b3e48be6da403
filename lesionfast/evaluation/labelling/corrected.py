"""What corrections of labels change in what a run is measured by."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.console import Table, estimate
from lesionfast.data.corrections.applying import describe_effect
from lesionfast.data.split import PARTS
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.evaluation.comparison import CORRECTED, ENDS, ORIGINAL, contribution_metrics
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run
from lesionfast.stats.bootstrap import Found, interval, resampled, share_interval
from lesionfast.stats.measures import SHARES, count_lesions_behind, weighted_metrics
from lesionfast.stats.metrics import metric_name


def record_corrections(run: Run, df: pd.DataFrame) -> dict[str, Any]:
    """Return what metrics.json says of the corrections of a run's table."""
    return {"corrections": describe_effect(df), **measure_uncorrected(run)}


def measure_uncorrected(run: Run) -> dict[str, Any]:
    """Return the metrics of a run's parts by the original labels, as metrics.json has them."""
    read = {split: Interpretation.before_corrections(run, split) for split in PARTS[1:]}
    return {"before_corrections": {split: one.metrics for split, one in read.items() if one}}


def relabelled(run: Run, split: str = "test") -> pd.DataFrame:
    """Return the metrics of one run's predictions by the original and by the corrected labels.

    Columns: labels, metric, of, value, low, high, and difference, difference_low and
    difference_high: by the corrected labels less by the original ones, over the same resamples of
    the original lesions. Raises `LesionfastError` for a run without corrections.
    """
    former, now = Interpretation.before_corrections(run, split), Interpretation.from_run(run, split)
    if former is None:
        raise LesionfastError(
            f"{run.path} was trained without corrections. Name a run of: lesionfast train "
            "--corrections FILE"
        )
    images = former.rows["image_id"]
    places = pd.Series(range(len(images)), images)[now.rows["image_id"]].to_numpy()
    wanted = [*contribution_metrics(former.classes)]
    measures = {
        ORIGINAL: weigh(former, np.arange(len(images))),
        CORRECTED: weigh(now, places),
    }

    def find(weights: np.ndarray) -> Found:
        return {
            (labels, *key): value
            for labels, measure in measures.items()
            for key, value in measure(weights).items()
            if key in wanted
        }

    values, drawn = resampled(find, former.truth, former.lesions)
    rows = []
    for (labels, *key), value in values.items():
        own, first = drawn[labels, *key], drawn[ORIGINAL, *key]
        read = former if labels == ORIGINAL else now
        ends = interval(own)
        if key[0] in SHARES:
            about = read.truth, read.decision, read.lesions, read.classes
            ends = share_interval(value, own, count_lesions_behind(*key, *about))
        difference = value - values[ORIGINAL, *key]
        rows.append((labels, *key, value, *ends, difference, *interval(own - first)))
    columns = ["labels", "metric", "of", "value", "low", "high", *ENDS]
    return pd.DataFrame(rows, columns=columns)


def weigh(read: Interpretation, places: np.ndarray) -> Callable[[np.ndarray], Found]:
    """Return the metrics as a function of weights (b, n) of images, of which some are measured."""
    measure = weighted_metrics(read.truth, read.probabilities, read.decision, read.classes)
    return lambda weights: measure(weights[:, places])


def describe_corrections(run: Run) -> str:
    """Return what a run was corrected with, in a sentence; '' if with nothing."""
    told = run.metrics.get("corrections")
    if told is None:
        return ""
    words = [
        f"{pluralize(told['changed'], 'label')} changed and {told['confirmed']:,} confirmed",
        f"{pluralize(told['unclear'], 'unclear image')} left out",
        f"{pluralize(told['joined'], 'lesion')} joined",
    ]
    words += [
        f"{pluralize(told['moved'], 'image')} left out because their lesion is held out elsewhere"
    ] * bool(told["moved"])
    return (
        f"Corrections: {told['file']} (SHA-256 {told['sha256']}): {', '.join(words)}. The split is "
        "the one without corrections."
    )


def corrections_table(run: Run, split: str = "test") -> Table:
    """Return one row a metric: by the original labels, by the corrected ones, and the difference.

    The predictions are the same.
    """
    found = relabelled(run, split)
    table = Table(
        f"{split}: what the corrections change for the same predictions",
        ["metric", *(f"by the {labels}" for labels in (ORIGINAL, CORRECTED)), "difference"],
        note="difference: paired, over the same resamples of the original lesions",
    )
    for (metric, of), rows in found.groupby(["metric", "of"], sort=False):
        by_labels = rows.set_index("labels").to_dict("index")
        name = metric_name(metric, of, run.classes)
        cells = [estimate(by_labels[labels]) for labels in (ORIGINAL, CORRECTED)]
        table.add(name, *cells, estimate(by_labels[CORRECTED], "difference", "+.3f"))
    return table
