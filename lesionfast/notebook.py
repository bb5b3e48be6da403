"""How results show themselves in a notebook: headline metrics with intervals, and confusions."""

from typing import TYPE_CHECKING

from lesionfast.console import Table, cell, estimate
from lesionfast.diagnoses import Classes

if TYPE_CHECKING:
    import numpy as np

HEADLINES = ("balanced_accuracy", "macro_auc", "accuracy")  # over all classes
OF_MELANOMA = ("sensitivity", "specificity", "auc")


def predictions_html(
    title: str,
    truth: "np.ndarray",
    probabilities: "np.ndarray",
    decision: "np.ndarray",
    lesions: "np.ndarray",
    classes: Classes,
) -> str:
    """Return predictions as HTML; see `measure` for the arrays."""
    from lesionfast.stats.measures import measure
    from lesionfast.stats.metrics import ALL, confusion_counts, metric_name

    wanted = [(name, ALL) for name in HEADLINES[:2]]
    wanted += [(name, classes.melanoma) for name in OF_MELANOMA if classes.melanoma]
    wanted += [(name, ALL) for name in HEADLINES[2:]]
    measures = measure(truth, probabilities, decision, lesions, classes).set_index(["metric", "of"])
    metrics = Table(title, ["metric", "value [95 % interval]", "images"])
    for name, of in wanted:
        row = measures.loc[(name, of)]
        metrics.add(metric_name(name, of, classes), str(estimate(row)), int(row["n"]))
    counts = confusion_counts(truth, decision, len(classes))
    confusion = Table("Truth (rows) by decision (columns)", ["", *classes])
    for name, row in zip(classes, counts, strict=True):
        confusion.add(name, *(cell(int(count)) for count in row))
    return metrics.to_html() + confusion.to_html()
