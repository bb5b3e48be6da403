"""The metrics chapter: every metric with its interval, ROC and precision-recall, training."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lesionfast.console import add_columns, decimal, new_table, with_interval
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report.page import (
    GREY,
    OVER_ALL,
    Section,
    Table,
    class_styles,
    count_drawn,
    drawn_classes,
    label_of,
    mark,
    new_figure,
    picture_of,
    pivot,
    save,
    sign,
    table_of,
    told,
)
from lesionfast.runs import Run
from lesionfast.stats.metrics import ALL, RULES

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

LOSSES = {  # column of the history: label, colour, line, mark
    "train_loss": ("training loss", "#7F7F7F", "dashed", "s"),
    "valid_loss": ("validation loss", "#000000", "solid", "o"),
}
METRICS = {
    "balanced_accuracy": ("balanced accuracy", "#000000", "solid", "o"),
    "macro_auc": ("macro AUC", "#0072B2", "dashed", "s"),
    "mel_sensitivity": ("melanoma sensitivity", "#D55E00", "dashdot", "P"),
    "accuracy": ("accuracy", "#7F7F7F", "dotted", "^"),
}


def draw_precision_recall(
    interpretation: Interpretation, measures: pd.DataFrame, folder: Path
) -> Path:
    """Draw one precision-recall curve a class, with a mark where the rule decides.

    `measures` is what `measures.measure` says of the same predictions.
    """
    from sklearn.metrics import precision_recall_curve

    def curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(positive, scores)
        return recall, precision

    title = "Precision and sensitivity of each class against the rest"
    labels = labels_of(interpretation, measures, "average_precision", "AP")
    figure, axis = draw_curves(interpretation, title, curve, labels, "steps-post")
    table = interpretation.sensitivity_table()
    mark_decisions(axis, interpretation, table["sensitivity"], table["precision"])
    axis.set(xlabel="sensitivity (recall)", ylabel="precision (positive predictive value)")
    sign(figure, interpretation)
    return save(figure, folder / "precision_recall.png")


def draw_roc(interpretation: Interpretation, measures: pd.DataFrame, folder: Path) -> Path:
    """Draw one ROC curve a class, with a mark where the rule decides.

    `measures` is what `measures.measure` says of the same predictions.
    """
    from sklearn.metrics import roc_curve

    def curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return roc_curve(positive, scores)[:2]

    title = "ROC curve of each class against the rest"
    labels = labels_of(interpretation, measures, "auc", "AUC")
    figure, axis = draw_curves(interpretation, title, curve, labels)
    axis.plot([0, 1], [0, 1], color="0.75", linewidth=1, zorder=0)
    table = interpretation.sensitivity_table()
    mark_decisions(axis, interpretation, 1 - table["specificity"], table["sensitivity"])
    axis.set(xlabel="1 - specificity (false positive rate)", ylabel="sensitivity")
    sign(figure, interpretation)
    return save(figure, folder / "roc.png")


def draw_curves(
    interpretation: Interpretation,
    title: str,
    curve: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    labels: dict[str, str],
    drawstyle: str = "default",
) -> tuple[Figure, Axes]:
    """Return a figure with one curve a class, the legend beside it in the order of the classes."""
    subtitle = f"{told(interpretation)}; marks: where the rule decides"
    names, styles = drawn_classes(interpretation), class_styles(interpretation.classes)
    subtitle += count_drawn(interpretation)
    figure = new_figure(8.2, max(5.6, 0.45 * len(names)), title, subtitle)
    axis = figure.subplots()
    for name in names:
        number = interpretation.classes.index(name)
        positive = interpretation.truth == number
        points: tuple = ([], [])
        if is_told_apart(positive):
            points = curve(positive, interpretation.probabilities[:, number])
        axis.plot(
            *points,
            label=labels[name],
            linewidth=2.8 if name == interpretation.classes.melanoma else 1.6,
            markevery=[],
            markersize=7,
            **styles[name],
            drawstyle=drawstyle,
        )
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", anchor="W")
    axis.grid(color="0.92")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, handlelength=3.5)
    return figure, axis


def labels_of(
    interpretation: Interpretation, measures: pd.DataFrame, metric: str, label: str
) -> dict[str, str]:
    """Return what the legend says of each class: its images, and a metric with its interval."""
    found = measures[measures["metric"] == metric].set_index("of")
    told = {}
    for number, name in enumerate(interpretation.classes):
        row, value = found.loc[name], "undefined"
        if is_told_apart(interpretation.truth == number):
            value = f"{label} {with_interval(row, 'value', between=' ')}"
        told[name] = f"{full_name(name)}, n {row['n']}\n{value}"
    return told


def is_told_apart(positive: np.ndarray) -> bool:
    """Return whether there are images of a class and others, so that it has a curve."""
    return bool(positive.any() and not positive.all())


def mark_decisions(axis: Axes, interpretation: Interpretation, x: pd.Series, y: pd.Series) -> None:
    """Mark each class at (x, y), where the rule's decisions are."""
    styles = class_styles(interpretation.classes)
    for name in drawn_classes(interpretation):
        style = styles[name]
        look = {"color": style["color"], "marker": style["marker"], "edgecolor": "black"}
        axis.scatter(x[name], y[name], s=60, zorder=5, clip_on=False, **look)


def draw_training(interpretation: Interpretation, folder: Path) -> Path:
    """Draw losses and validation metrics over the epochs, with the phases and the best epoch."""
    run = interpretation.run
    history = run.history
    subtitle = f"{run.config.arch}; the metrics are those of the validation images"
    figure = new_figure(9.2, 7.2, "Training", subtitle)
    above, below = figure.subplots(2, 1, sharex=True)
    draw_columns(above, history, LOSSES)
    draw_columns(below, history, METRICS)
    above.set(ylabel="loss")
    below.set(ylabel="share (0 to 1)", xlabel="epoch", xlim=(0.5, history["epoch"].max() + 0.5))
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    name_phases(above, history)
    for axis in (above, below):
        finish(axis, run.metrics.get("best_epoch") if run.finished else None)
    sign(figure, interpretation)
    return save(figure, folder / "training.png")


def draw_columns(axis: Axes, history: pd.DataFrame, columns: dict[str, tuple]) -> None:
    """Draw columns of the history over the epochs, those that it has values of."""
    for name, (label, color, line, marker) in columns.items():
        if name in history and history[name].notna().any():
            look = {"color": color, "linestyle": line, "marker": marker, "markersize": 4}
            axis.plot(history["epoch"], history[name], label=label, **look)


def name_phases(axis: Axes, history: pd.DataFrame) -> None:
    """Write the phases above an axis, each over the middle of its epochs, as far as they fit."""
    shown: dict[float, str] = {}
    for phase, middle in history.groupby("phase", sort=False)["epoch"].mean().items():
        if not shown or middle - max(shown) >= len(history) / 40:
            shown[middle] = str(phase)
    top = axis.secondary_xaxis("top")
    steep = 20 if len(history) <= 10 else 60
    top.set_xticks(list(shown), list(shown.values()), rotation=steep, ha="left", fontsize=8)
    top.tick_params(length=3)


def finish(axis: Axes, best_epoch: int | None) -> None:
    """Mark the epoch whose weights were kept, and give an axis its legend and grid."""
    if best_epoch is not None:
        label = f"epoch {best_epoch}: its weights are kept"
        axis.axvline(best_epoch, color=GREY, linewidth=1, linestyle=(0, (2, 2)), label=label)
    axis.grid(color="0.92")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def metrics(findings: Findings) -> Section:
    """Return every metric, over images and over lesions."""
    classes = findings.interpretation.classes
    classes = list(dict.fromkeys([*classes, classes.cancer]))
    tables = [
        overall(findings),
        pivot(findings.measures, classes, "Each class against the rest, by image"),
        pivot(findings.lesion_measures, classes, "Each class against the rest, by lesion"),
    ]
    words = ["By lesion: the probabilities of a lesion's images are averaged, then decided."]
    files = {
        draw_roc: "ROC curve of each class against the rest",
        draw_precision_recall: "Precision and sensitivity of each class against the rest",
    }
    curves = [
        picture_of(findings.drawn(draw, findings.measures), told) for draw, told in files.items()
    ]
    return Section("Metrics", words, tables, curves)


def overall(findings: Findings) -> Table:
    """Return the metrics over all classes, by image and by lesion."""
    parts = {"by image": findings.measures, "by lesion": findings.lesion_measures}
    rows = []
    for name, label in OVER_ALL.items():
        row: dict[str, object] = {"metric": label}
        for part, measures in parts.items():
            found = measures[(measures["metric"] == name) & (measures["of"] == ALL)].iloc[0]
            row |= {part: found["value"]}
            row |= {f"{part}_low": found["low"], f"{part}_high": found["high"]}
        rows.append(row)
    return table_of(pd.DataFrame(rows), "Over all classes")


def training(findings: Findings) -> Section | None:
    """Return the training curves, if the run has any."""
    if not findings.run.holds("history.csv"):
        return None
    file = findings.drawn(draw_training)
    words = "Losses and validation metrics over the epochs"
    return Section("Training", pictures=[picture_of(file, words)])


OVERALL = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "macro_f1": "macro F1",
    "mel_sensitivity": "melanoma sensitivity",
}


def metrics_table(run: Run, split: str = "test") -> "Table":
    """Return the metrics of one split under both rules, the deciding one marked.

    Raises `LesionfastError` for a split that the run has no metrics of.
    """
    summary = metrics_of(run, split)
    rules = summary["rules"]
    title = f"{split}: {summary['n']} images of {len(run.classes)} classes"
    table = new_table(title, f"split sha256 {run.metrics['split_sha256'][:12]}")
    add_columns(table, "metric", *(mark(rule, run.model["rule"]) for rule in RULES))
    for key, label in OVERALL.items():
        values = [summary.get(key, rules[rule].get(key)) for rule in RULES]
        if key in summary or key in rules[RULES[0]]:
            style = "bold" if key == "balanced_accuracy" else None
            table.add_row(label, *map(decimal, values), style=style)
    for key in ("sensitivity", "precision"):
        table.add_section()
        table.add_row(key)
        for name in run.classes:
            values = [rules[rule][key][name] for rule in RULES]
            table.add_row(f"  {label_of(name, summary)}", *map(decimal, values))
    table.add_section()
    table.add_row("accuracy", *(decimal(rules[rule]["accuracy"]) for rule in RULES))
    return table


def metrics_of(run: Run, split: str) -> dict[str, Any]:
    """Return the metrics of one split; raises `LesionfastError` if there are none."""
    known = [name for name in ("valid", "test") if name in run.metrics]
    if split not in known:
        raise LesionfastError(
            f"{run.path} has no metrics of the split '{split}'; it has: {', '.join(known)}."
            f"{did_you_mean(split, known)} Choose one with --split."
        )
    return run.metrics[split]
