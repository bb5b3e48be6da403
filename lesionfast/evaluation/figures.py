"""Figures of a run as PNG files: confusion, curves of each class, training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lesionfast.diagnoses import NAMES, full_name
from lesionfast.evaluation.canvas import (
    GREY,
    class_styles,
    count_drawn,
    drawn_classes,
    new_figure,
    save,
    sign,
)
from lesionfast.evaluation.grids import per_cent
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.tables import with_interval

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


def draw_confusion(interpretation: Interpretation, folder: Path) -> Path:
    """Draw the confusion matrix, each cell its share of the truth and its count."""
    names = drawn_classes(interpretation)
    whole = interpretation.confusion()
    counts = whole.loc[names, names]
    shares = interpretation.confusion(normalize=True).loc[names, names]
    k = len(names)
    side = max(0.85 * k if k <= 12 else 0.55 * k, 3.7)
    subtitle = f"{told(interpretation)}; per cent of the truth, and images"
    subtitle += count_drawn(interpretation)
    figure = new_figure(side + 2.8, side + 1.5, "Confusion matrix", subtitle)
    axis = figure.subplots()
    axis.imshow(shares.fillna(0), cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(k, k):
        share, count = shares.iat[i, j], counts.iat[i, j]
        write_cell(axis, i, j, share, count, size=9.5 if k <= 12 else 6.5)
    totals = whole.sum(axis=1)
    rows = [f"{full_name(name)}\nn {totals[name]}" for name in counts.index]
    axis.set_yticks(range(k), rows)
    short = all(name in NAMES or len(name) <= 8 for name in counts)
    turned = {} if short else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(k), counts.columns, **turned)
    axis.set(xlabel="decision", ylabel="truth")
    axis.tick_params(length=0)
    sign(figure, interpretation)
    return save(figure, folder / "confusion.png")


def write_cell(axis: Axes, i: int, j: int, share: float, count: int, size: float) -> None:
    """Write one cell of the confusion matrix; nothing where there is nothing."""
    if count:
        color = "white" if share > 0.7 else "black"
        weight = "bold" if i == j else "normal"
        text = f"{per_cent(share)}\n{count}"
        axis.text(j, i, text, ha="center", va="center", color=color, weight=weight, fontsize=size)


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
    for name, (label, color, line, mark) in columns.items():
        if name in history and history[name].notna().any():
            look = {"color": color, "linestyle": line, "marker": mark, "markersize": 4}
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


def told(interpretation: Interpretation) -> str:
    """Return "test, 1500 images, rule balanced"."""
    return f"{interpretation.split}, {len(interpretation.rows)} images, rule {interpretation.rule}"
