"""The metrics chapter: every metric with its interval, ROC and precision-recall, training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lesionfast.console import Table, estimate
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.page import (
    GREY,
    Section,
    class_styles,
    count_drawn,
    draw_picture,
    drawn_classes,
    new_figure,
    save,
    style_axis,
    subtitle,
)
from lesionfast.run import Run
from lesionfast.stats.metrics import ALL, METRIC_NAMES
from lesionfast.stats.rules import RULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OVER_ALL = (  # plain accuracy last
    *("balanced_accuracy", "macro_auc", "macro_f1", "macro_average_precision", "macro_precision"),
    *("macro_specificity", "kappa", "log_loss", "brier", "accuracy"),
)
OF_A_CLASS = ("sensitivity", "specificity", "precision", "f1", "auc", "average_precision")
LOSS_LINES = {  # column of the history: colour, line, mark
    "train_loss": ("#7F7F7F", "dashed", "s"),
    "valid_loss": ("#000000", "solid", "o"),
}
METRIC_LINES = {
    "balanced_accuracy": ("#000000", "solid", "o"),
    "macro_auc": ("#0072B2", "dashed", "s"),
    "mel_sensitivity": ("#D55E00", "dashdot", "P"),
    "accuracy": ("#7F7F7F", "dotted", "^"),
}

Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def metrics(findings: Findings) -> Section:
    """Return every metric, over images and over lesions."""
    read = findings.interpretation
    classes = read.classes
    names = list(dict.fromkeys([*classes, classes.cancer]))
    parts = {
        "by image": read.measures,
        "by lesion": read.lesion_measures,
    }
    tables = [overall_table(parts)]
    for part, measures in parts.items():
        title = f"Each class against the rest, {part}"
        tables.append(class_table(measures, names, title, melanoma=classes.melanoma))
    words = ["By lesion: the probabilities of a lesion's images are averaged before the decision."]
    captions = {
        draw_roc: "ROC curve of each class against the rest",
        draw_precision_recall: "Precision and sensitivity of each class against the rest",
    }
    curves = [draw_picture(findings, *figure, read.measures) for figure in captions.items()]
    return Section("Metrics", words, tables, curves)


def overall_table(parts: dict[str, pd.DataFrame]) -> Table:
    """Return the metrics over all classes, a column each of the tables of metrics."""
    table = Table("Over all classes", ["metric", *parts])
    tables = [measures[measures["of"] == ALL].set_index("metric") for measures in parts.values()]
    for name in OVER_ALL:
        table.add(METRIC_NAMES[name], *(estimate(rows.loc[name]) for rows in tables))
    return table


def class_table(
    measures: pd.DataFrame,
    names: Iterable[str | None],
    title: str,
    metrics: Iterable[str] = OF_A_CLASS,
    melanoma: str | None = None,
    short: bool = False,
) -> Table:
    """Return one row a class that has metrics, one column a metric; the melanoma in bold."""
    table = Table(title, ["class", "n", *(METRIC_NAMES[metric] for metric in metrics)])
    for name in names:
        rows = measures[measures["of"] == name].set_index("metric")
        if not rows.empty:
            cells = [estimate(rows.loc[metric]) for metric in metrics]
            label, n = name if short else full_name(name), int(rows["n"].iloc[0])
            table.add(label, n, *cells, style="bold" if name == melanoma else "")
    return table


def draw_roc(interpretation: Interpretation, measures: pd.DataFrame, folder: Path) -> Path:
    """Draw one ROC curve a class, with `measures` in the legend and marks of the rule."""
    from sklearn.metrics import roc_curve

    table = interpretation.sensitivity_table()
    figure, axis = draw_curves(
        interpretation,
        measures,
        "ROC curve of each class against the rest",
        ("auc", "AUC"),
        lambda positive, scores: roc_curve(positive, scores)[:2],
        (1 - table["specificity"], table["sensitivity"]),
    )
    axis.plot([0, 1], [0, 1], color="0.75", linewidth=1, zorder=0)
    axis.set(xlabel="1 - specificity (false positive rate)", ylabel="sensitivity")
    return save(figure, folder / "roc.png", interpretation)


def draw_precision_recall(
    interpretation: Interpretation, measures: pd.DataFrame, folder: Path
) -> Path:
    """Draw one precision-recall curve a class, with the same legend and marks as the ROC curves."""
    from sklearn.metrics import precision_recall_curve

    table = interpretation.sensitivity_table()
    figure, axis = draw_curves(
        interpretation,
        measures,
        "Precision and sensitivity of each class against the rest",
        ("average_precision", "AP"),
        lambda positive, scores: precision_recall_curve(positive, scores)[1::-1],
        (table["sensitivity"], table["precision"]),
        "steps-post",
    )
    axis.set(xlabel="sensitivity (recall)", ylabel="precision (positive predictive value)")
    return save(figure, folder / "precision_recall.png", interpretation)


def draw_curves(
    interpretation: Interpretation,
    measures: pd.DataFrame,
    title: str,
    metric: tuple[str, str],
    curve: Curve,
    marks: tuple[pd.Series, pd.Series],
    drawstyle: str = "default",
) -> tuple[Figure, Axes]:
    """Return a figure with one curve a class and its mark, the legend beside in their order.

    The legend has the images of each class, and a metric, by its name and abbreviation.
    """
    rows, short = measures[measures["metric"] == metric[0]].set_index("of"), metric[1]
    names, styles = drawn_classes(interpretation), class_styles(interpretation.classes)
    notes = "marks: where the rule decides", count_drawn(interpretation)
    height = max(5.6, 0.45 * len(names))
    figure = new_figure(8.2, height, title, subtitle(interpretation, *notes))
    axis = figure.subplots()
    for name in names:
        number, look = interpretation.classes.index(name), styles[name]
        positive = interpretation.truth == number
        points, value = ([], []), "undefined"
        if positive.any() and not positive.all():
            points = curve(positive, interpretation.probabilities[:, number])
            value = f"{short} {estimate(rows.loc[name])}"
        label = f"{full_name(name)}, n {rows.loc[name, 'n']}\n{value}"
        width = 2.8 if name == interpretation.classes.melanoma else 1.6
        line = {"label": label, "linewidth": width, "markevery": [], "markersize": 7}
        axis.plot(*points, drawstyle=drawstyle, **line, **look)
        mark = {"color": look["color"], "marker": look["marker"], "edgecolor": "black"}
        axis.scatter(marks[0][name], marks[1][name], s=60, zorder=5, clip_on=False, **mark)
    limits = {"xlim": (-0.01, 1.01), "ylim": (-0.01, 1.01)}
    style_axis(axis, "right", **limits, aspect="equal", anchor="W")
    return figure, axis


def training(findings: Findings) -> Section | None:
    """Return the training curves, if the run has any."""
    if not findings.run.holds("history.csv"):
        return None
    words = "Losses and validation metrics over the epochs"
    return Section("Training", pictures=[draw_picture(findings, draw_training, words)])


def draw_training(interpretation: Interpretation, folder: Path) -> Path:
    """Draw losses and validation metrics over the epochs, with the phases and the best epoch."""
    from matplotlib.ticker import MaxNLocator

    run, history = interpretation.run, interpretation.run.history
    note = f"{run.config.arch}; the metrics are those of the validation images"
    figure = new_figure(9.2, 7.2, "Training", note)
    above, below = figure.subplots(2, 1, sharex=True)
    best = run.metrics.get("best_epoch") if run.finished else None
    for axis, lines in ((above, LOSS_LINES), (below, METRIC_LINES)):
        for name, (color, line, marker) in lines.items():
            if name in history and history[name].notna().any():
                look = {"color": color, "linestyle": line, "marker": marker, "markersize": 4}
                axis.plot(history["epoch"], history[name], label=METRIC_NAMES[name], **look)
        if best is not None:
            label = f"epoch {best}: its weights are kept"
            axis.axvline(best, color=GREY, linewidth=1, linestyle=(0, (2, 2)), label=label)
    last = history["epoch"].max() + 0.5
    style_axis(above, "right", ylabel="loss")
    style_axis(below, "right", ylabel="share (0 to 1)", xlabel="epoch", xlim=(0.5, last))
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    name_phases(above, history)
    return save(figure, folder / "training.png", interpretation)


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


def metrics_table(run: Run, split: str = "test") -> Table:
    """Return the metrics of one split under both plain rules, and under the weighted one in use.

    Raises `LesionfastError` for a split that the run has no metrics of.
    """
    summary = split_metrics(run, split)
    in_use = run.decision_rule.name
    if in_use not in summary["rules"]:  # whoever chose the rule was killed before this was written
        summary = Interpretation.from_run(run, split).metrics
    names = list(dict.fromkeys([*RULES, in_use]))
    rules = [summary["rules"][name] for name in names]
    part = f"{split} (out of fold)" if split == "valid" and run.is_out_of_fold else split
    title = f"{part}: {summary['n']} images of {len(run.classes)} classes"
    note = f"split sha256 {run.metrics['split_sha256'][:12]}"
    table = Table(f"{title}; rule in use: {in_use}", ["metric", *names], note=note)
    for key in ("balanced_accuracy", "macro_auc", "macro_f1", "mel_sensitivity"):
        if key in summary or key in rules[0]:
            values = [summary.get(key, rule.get(key)) for rule in rules]
            style = "bold" if key == "balanced_accuracy" else ""
            table.add(METRIC_NAMES[key], *values, style=style)
    for key in ("sensitivity", "precision"):
        table.add_line()
        table.add(key, *[""] * len(rules))
        for name in run.classes:
            label = f"  {full_name(name)}, n {summary['counts'][name]}"
            table.add(label, *(rule[key][name] for rule in rules))
    table.add_line()
    table.add("accuracy", *(rule["accuracy"] for rule in rules))
    return table


def split_metrics(run: Run, split: str) -> dict[str, Any]:
    """Return the metrics of one split; raises `LesionfastError` if there are none."""
    names = [name for name in ("valid", "test") if name in run.metrics]
    if split not in names:
        raise LesionfastError(
            f"{run.path} has no metrics of the split '{split}'; it has: {', '.join(names)}."
            f"{did_you_mean(split, names)} Choose one with --split."
        )
    return run.metrics[split]


PRICED = {
    "sensitivity": "melanoma sensitivity",
    "specificity": "melanoma specificity",
    "balanced_accuracy": METRIC_NAMES["balanced_accuracy"],
}


def price_table(run: Run, prices: Mapping[str, pd.DataFrame]) -> Table:
    """Return what the weight on melanoma changes, from `price_of_weight` of each split."""
    asked = run.model.get("melanoma_sensitivity", 0.0)
    title = f"Weight {run.decision_rule.weight:g} on melanoma, fitted on validation"
    note = f"for a validation sensitivity of {asked:g}; in brackets: 95 % intervals, paired ones "
    note += "of the changes"
    table = Table(title, ["images", "weight", *PRICED.values()], note=note)
    for split, price in prices.items():
        parts = {
            system: rows.set_index("metric").loc[list(PRICED)].to_dict("records")
            for system, rows in price.groupby("system")
        }
        for system, label in (("whole", "without"), ("weighted", "with")):
            table.add(split, label, *map(estimate, parts[system]))
        changes = (estimate(row, "difference", "+.3f") for row in parts["weighted"])
        table.add(split, "change", *changes)
        table.add_line()
    return table
