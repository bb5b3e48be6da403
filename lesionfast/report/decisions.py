"""Figures of operating points: where validation's land on test, and what flagging is worth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lesionfast.console import with_interval
from lesionfast.diagnoses import Classes
from lesionfast.evaluation.decisions import Decisions, few_lesions_warning, points_table
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.isic import COLUMNS, challenge_score
from lesionfast.report.page import (
    GREY,
    Section,
    Table,
    new_figure,
    picture_of,
    save,
    sign,
    table_of,
)
from lesionfast.stats.thresholds import OperatingPoint, decision_curve, positive_and_score

LOOKS = {"specificity": ("#0072B2", "o"), "sensitivity": ("#D55E00", "s")}
NOTHING = "no images to tell apart"


def draw_operating(test: Interpretation, folder: Path) -> Path:
    """Draw both ROC curves of each panel, the points of validation and where they land."""
    points = Decisions(test.run).points
    table = points_table(test, points)
    valid = Interpretation.of(test.run, "valid")
    subtitle = (
        f"thresholds chosen on validation, {len(valid.rows)} images (open marks); reached on "
        f"{test.split}, {len(test.rows)} images\n(filled marks, with 95 % intervals over lesions)"
    )
    figure = new_figure(11, 6.9, "Operating points", subtitle)
    for axis, of in panels(figure, test):
        if draw_rocs(axis, of, valid, test):
            for point in (each for each in points if each.of == of):
                row = table[(table["of"] == of) & (table["goal"] == point.goal)].iloc[0]
                draw_point(axis, point, row, test.split)
        finish(axis, "1 - specificity (false positive rate)", "sensitivity")
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    sign(figure, test)
    return save(figure, folder / "operating_points.png")


def panels(figure: Figure, split: Interpretation) -> Iterator[tuple[Axes, str]]:
    """Yield a titled panel for melanoma and one for the malignant classes, as far as there are."""
    targets = split.classes.targets
    axes = figure.subplots(1, max(1, len(targets)), squeeze=False)[0]
    if not targets:
        axes[0].text(0.5, 0.5, NOTHING, ha="center", transform=axes[0].transAxes)
    for axis, of in zip(axes, targets, strict=False):
        axis.set_title(title_of(of, split.classes), loc="left", fontsize=11)
        yield axis, of


def title_of(of: str, classes: Classes) -> str:
    """Return "Melanoma", or "Malignant: bcc or mel"."""
    if of == classes.melanoma:
        return "Melanoma"
    *most, last = classes.malignant
    return f"Malignant: {', '.join(most)} or {last}" if most else f"Malignant: {last}"


def draw_rocs(axis: Axes, of: str, valid: Interpretation, test: Interpretation) -> bool:
    """Draw the ROC curves of both splits; return whether both have one."""
    from sklearn.metrics import roc_curve

    looks = ((valid, "0.6", (0, (3, 1.5))), (test, "black", "solid"))
    if not all(separable(of, split) for split, _, _ in looks):
        axis.text(0.5, 0.5, NOTHING, ha="center", transform=axis.transAxes)
        return False
    for split, color, line in looks:
        found = positive_and_score(of, split.truth, split.probabilities, split.classes)
        alarms, hits, _ = roc_curve(*found)
        axis.plot(alarms, hits, color=color, linestyle=line, label=f"ROC curve, {split.split}")
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    return True


def separable(of: str, split: Interpretation) -> bool:
    """Return whether a split has positive and negative images."""
    positive, _ = positive_and_score(of, split.truth, split.probabilities, split.classes)
    return bool(positive.any() and not positive.all())


def draw_point(axis: Axes, point: OperatingPoint, row: pd.Series, split: str) -> None:
    """Draw a point as chosen (open) and as reached (filled) with its interval."""
    color, marker = LOOKS[point.goal]
    look = {"color": color, "marker": marker, "linestyle": "none", "clip_on": False}
    axis.plot(
        [1 - point.specificity], [point.sensitivity], markerfacecolor="white", markersize=9,
        label=f"valid, {point.goal} {point.level:.0%} or more: threshold {point.threshold:.3g}",
        zorder=5, **look,
    )  # fmt: skip
    x, y = 1 - row["specificity"], row["sensitivity"]
    across = [[row["specificity_high"] - row["specificity"]],
              [row["specificity"] - row["specificity_low"]]]  # fmt: skip
    upright = [[y - row["sensitivity_low"]], [row["sensitivity_high"] - y]]
    axis.errorbar(
        [x], [y], xerr=np.clip(across, 0, None), yerr=np.clip(upright, 0, None), capsize=3,
        markeredgecolor="black", markersize=7, zorder=6, label=reached(row, split), **look,
    )  # fmt: skip


def reached(row: pd.Series, split: str) -> str:
    """Return sensitivity and specificity with their intervals, in words of two lines."""
    words = [
        f"{name} {with_interval(row, name, between=' ')}" for name in ("sensitivity", "specificity")
    ]
    return f"{split}: {words[0]},\n{words[1]}"


def draw_decision_curves(test: Interpretation, chances: np.ndarray, folder: Path) -> Path:
    """Draw the net benefit of flagging by `chances` (n, k), of flagging all and flagging none.

    A threshold is a chance, so `chances` are to be calibrated.
    """
    subtitle = (
        f"{test.split}, {len(test.rows)} images; a false positive counts threshold / "
        "(1 - threshold) of a true one;\nband: 95 % interval over lesions"
    )
    figure = new_figure(11, 5.6, "Decision curves", subtitle)
    for axis, of in panels(figure, test):
        if separable(of, test):
            draw_benefit(axis, of, test, chances)
        else:
            axis.text(0.5, 0.5, NOTHING, ha="center", transform=axis.transAxes)
        finish(axis, "threshold (calibrated probability)", "net benefit (true positives an image)")
    sign(figure, test)
    return save(figure, folder / "decision_curves.png")


def draw_benefit(axis: Axes, of: str, test: Interpretation, chances: np.ndarray) -> None:
    """Draw one decision curve with its band and the two that need no model."""
    table = decision_curve(test.truth, chances, test.lesions, test.classes, of)
    x = table["threshold"]
    axis.fill_between(x, table["low"], table["high"], color="#0072B2", alpha=0.22, linewidth=0)
    axis.plot(x, table["net_benefit"], color="#0072B2", linewidth=2, label="flag by the model")
    axis.plot(x, table["all"], color=GREY, linestyle=(0, (5, 1.5)), label="flag every image")
    axis.plot(x, table["none"], color="black", linestyle=(0, (1.2, 1.2)), label="flag none")
    top = max(table["high"].max(), table["all"].max())
    axis.set(xlim=(0, 1), ylim=(-0.3 * top, 1.08 * top))


def finish(axis: Axes, x: str, y: str) -> None:
    """Give an axis its names, grid, and the legend below it."""
    axis.set(xlabel=x, ylabel=y)
    axis.grid(color="0.92")
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, fontsize=8.5)


def operating(findings: Findings) -> Section | None:
    """Return what the thresholds that validation chose reach on these images."""
    read = findings.interpretation
    if not findings.on_test or not read.classes.targets:
        return None
    words = [
        "The thresholds are chosen on validation, to reach there the specificity or sensitivity "
        "that is named, and reported here; they are kept in the run's operating.json.",
    ]
    words += filter(None, [few_lesions_warning(findings.validation)])
    tables = [operating_table(points_table(read, findings.decisions.points))]
    if findings.cost:
        words.append(
            f"Costs: {findings.cost}; any other error costs 1, a right decision nothing. "
            "The least expected cost is that of the calibrated probabilities."
        )
        tables.append(costs_table(findings))
    points = findings.drawn(draw_operating)
    curves = findings.drawn(draw_decision_curves, findings.chances)
    shown = [
        picture_of(points, "The points on the curves of validation and of these images"),
        picture_of(curves, "Net benefit of flagging by the model, over the threshold"),
    ]
    return Section("Operating points", words, tables, shown)


def operating_table(found: pd.DataFrame) -> Table:
    """Return one row a point: its aim on validation, and what it reaches."""
    aims = [f"{row.goal} {row.level:.0%}" for row in found.itertuples()]
    names = {"of": "of", "aim": "aim on validation", "threshold": "threshold"}
    names |= {name: name for name in ("sensitivity", "specificity", "precision", "flagged")}
    return table_of(found.assign(aim=aims), "Flagged at or above the threshold", names)


def costs_table(findings: Findings) -> Table:
    """Return the mean cost an image of each rule as a table of the report."""
    return table_of(findings.mean_costs, "Mean cost an image", {"rule": "rule", "value": "cost"})


def challenge(findings: Findings) -> Section | None:
    """Return the score of ISIC 2018 Task 3, by the challenge's own rules."""
    read = findings.interpretation
    if {name.upper() for name in read.classes} != set(COLUMNS):
        return None
    score = challenge_score(read)
    row = {"score": "balanced multi-class accuracy", "value": score["balanced_accuracy"]}
    row |= {end: score[f"balanced_accuracy_{end}"] for end in ("low", "high")}
    words = ["The decision is the most probable class, ties count as wrong; not by the run's rule."]
    return Section("ISIC 2018 score", words, [table_of(pd.DataFrame([row]), "Task 3")])
