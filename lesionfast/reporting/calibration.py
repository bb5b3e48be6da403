"""The calibration chapter: metrics before and after calibration, and reliability diagrams."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lesionfast.console import Table, estimate
from lesionfast.diagnoses import full_name
from lesionfast.evaluation.decisions import CALIBRATION, few_lesions_warning, require_unseen
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.page import (
    Section,
    count_drawn,
    draw_picture,
    drawn_classes,
    new_axes,
    new_figure,
    save,
    style_axis,
    subtitle,
)
from lesionfast.stats.bootstrap import Found, interval, resampled
from lesionfast.stats.calibration import (
    NOISE,
    Calibrator,
    calibration_interval,
    calibration_table,
    choose_methods,
    reliability_bins,
    weighted_calibration,
)
from lesionfast.stats.measures import weighted_metrics
from lesionfast.stats.metrics import ALL, METRIC_NAMES
from lesionfast.stats.rules import DecisionRule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORTED = ("log_loss", "ece", "adaptive_ece", "brier", "macro_auc", "balanced_accuracy")
ENDS = ("value", "low", "high", "difference", "difference_low", "difference_high")
COLUMNS = 4  # panels in a line
BEFORE = {"color": "#7F7F7F", "marker": "s", "linestyle": "dashed"}
AFTER = {"color": "#0072B2", "marker": "o", "linestyle": "solid"}
PERFECT = {"color": "0.6", "linewidth": 1, "label": "perfect"}


def calibration(findings: Findings) -> Section | None:
    """Return what the calibrations that were fitted on validation do to these images."""
    if not findings.on_test:
        return None
    read, calibrator = findings.interpretation, findings.decisions.calibrator
    what = "melanoma sensitivity" if read.classes.melanoma else "sensitivity"
    words = [
        "Calibrations are fitted on validation. The chosen one has the least log loss there, over "
        f"five folds of its lesions: {calibrator.method}. The decision rule is the same before "
        f"and after, so a change of {what} comes from the calibration.",
        "Estimates of the expected calibration error (ECE) are biased upwards. "
        "The interval corrects for this bias, so the estimate may lie near its end.",
        *filter(None, [few_lesions_warning(findings.validation)]),
    ]
    captions = {
        draw_reliability: "Accuracy of the most probable class against its probability",
        draw_class_reliability: "Frequency of each class against its probability",
    }
    pictures = [draw_picture(findings, *figure, calibrator) for figure in captions.items()]
    table = methods_table(before_and_after(findings.validation, read))
    return Section("Calibration", words, [table], pictures)


def before_and_after(valid: Interpretation, test: Interpretation) -> pd.DataFrame:
    """Return what each method, fitted on validation, does to the metrics of test.

    Columns method, chosen (by validation), metric, of, value, low, high, and the paired difference
    from 'none': difference, difference_low, difference_high. The rule of `test` decides before and
    after; 'balanced' divides calibrated probabilities by the class shares of validation, which
    they have learned, and not by the prior of a loss that was weighted by class. Without a class
    of melanoma its sensitivity is left out.
    """
    require_unseen(test)
    methods = choose_methods(valid.probabilities)
    fitted = {name: CALIBRATION.fit(valid, method=name) for name in methods}
    scores = {name: calibrator.scores[name] for name, calibrator in fitted.items()}
    chosen = min(scores, key=scores.get)
    shares = np.bincount(valid.truth, minlength=len(valid.classes)) / len(valid.truth)
    rows, first = [], None
    for name, calibrator in fitted.items():
        rule = test.decision_rule
        rule = rule if name == "none" else replace(rule, prior=shares)
        metrics = resample_calibrated(test, calibrator, rule)
        first = first or metrics
        rows += [(name, name == chosen, *row) for row in compare_with_first(metrics, first)]
    return pd.DataFrame(rows, columns=["method", "chosen", "metric", "of", *ENDS])


def resample_calibrated(
    test: Interpretation, calibrator: Calibrator, rule: DecisionRule
) -> tuple[dict, Found]:
    """Return the metrics of calibrated probabilities, and of each resample."""
    after = calibrator.apply(test.probabilities)
    decision = rule.decide(after)
    measured = weighted_metrics(test.truth, after, decision, test.classes)
    calibrated = weighted_calibration(test.truth, after, test.classes)
    melanoma = test.classes.melanoma
    wanted = [(name, ALL) for name in REPORTED]
    wanted += [("sensitivity", melanoma)] if melanoma else []
    wanted += [(name + NOISE, of) for name, of in wanted if name.endswith("ece")]

    def find(weights: np.ndarray) -> Found:
        found = measured(weights) | calibrated(weights)
        return {key: found[key] for key in wanted}

    return resampled(find, test.truth, test.lesions)


def compare_with_first(found: tuple[dict, Found], first: tuple[dict, Found]) -> list[tuple]:
    """Return metric, of, value and interval, difference from the first and its interval."""
    rows = []
    for key, value in found[0].items():
        if key[0].endswith(NOISE):
            continue
        ends = calibration_interval(key, value, found[1])
        difference = value - first[0][key]
        low, high = interval(found[1][key] - first[1][key])
        if key[0].endswith("ece"):  # reflected, as the interval of each
            low, high = 2 * difference - high, 2 * difference - low
        rows.append((*key, value, *ends, difference, low, high))
    return rows


def methods_table(changes: pd.DataFrame) -> Table:
    """Return one row a metric, one column a method, and the paired change by the chosen one."""
    methods = list(dict.fromkeys(changes["method"]))
    columns = ["before", *(name for name in methods if name != "none"), "change by the chosen one"]
    table = Table("Before, and after each calibration", ["metric", *columns])
    for (metric, _), rows in changes.groupby(["metric", "of"], sort=False):
        chosen = rows[rows["chosen"]].iloc[0]
        name = "melanoma sensitivity" if metric == "sensitivity" else METRIC_NAMES[metric]
        cells = [estimate(row) for row in rows.to_dict("records")]
        table.add(name, *cells, estimate(chosen, "difference"))
    return table


def draw_reliability(test: Interpretation, calibrator: Calibrator, folder: Path) -> Path:
    """Draw accuracy against confidence before and after calibration, the images of a bin below."""
    text = subtitle(test, "15 bins of equal width", "bars: 95 % intervals", rule=False)
    figure = new_figure(9, 6.6, f"Reliability {describe_scaling(calibrator)}", text)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], **PERFECT)
    sides = {"before": test.probabilities, "after": calibrator.apply(test.probabilities)}
    lesions, width = test.lesions, 0.028
    for side, probabilities in sides.items():
        look, is_after = (AFTER, True) if side == "after" else (BEFORE, False)
        right = probabilities.argmax(axis=1) == test.truth
        bins = reliability_bins(probabilities.max(axis=1), right, test.truth, lesions)
        table = calibration_table(test.truth, probabilities, lesions, test.classes)
        ece = estimate(table[table["metric"] == "ece"].iloc[0])
        draw_bins(above, bins, f"{side}\nECE {ece}", look)
        below.bar(
            (bins["from"] + bins["to"]) / 2 + (is_after - 0.5) * width,
            bins["images"],
            width,
            color="white" if is_after else look["color"],
            edgecolor=look["color"],
            hatch="////" if is_after else "",
            label=f"images {side}",
        )
    style_axis(above, "right", ylabel="accuracy", ylim=(-0.02, 1.02))
    label = "confidence (probability of the most probable class)"
    style_axis(below, "right", xlabel=label, ylabel="images", xlim=(-0.01, 1.01))
    return save(figure, folder / "reliability.png", test)


def draw_class_reliability(test: Interpretation, calibrator: Calibrator, folder: Path) -> Path:
    """Draw, for each class, its frequency against its probability, before and after."""
    names = drawn_classes(test)
    columns = min(COLUMNS, len(names) + 1)
    notes = "6 bins of equal width", "bars: 95 % intervals", count_drawn(test)
    title = f"Reliability of each class {describe_scaling(calibrator)}"
    size = max(2.9 * columns, 6.5), 3.0 * ceil((len(names) + 1) / columns) + 1.0
    figure = new_figure(*size, title, subtitle(test, *notes, rule=False))
    *axes, beside = new_axes(figure, len(names) + 1, columns)
    calibrated = calibrator.apply(test.probabilities)
    for axis, name in zip(axes, names, strict=True):
        number = test.classes.index(name)
        positive, lesions = test.truth == number, test.lesions
        axis.plot([0, 1], [0, 1], **PERFECT)
        for side, scores, look in (
            ("before", test.probabilities[:, number], BEFORE),
            ("after", calibrated[:, number], AFTER),
        ):
            # Few bins, because a rare class has few images of a high probability.
            bins = reliability_bins(scores, positive, test.truth, lesions, bins=6)
            draw_bins(axis, bins, side, look, size=4)
        style_axis(axis, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axis.set_xlabel("probability of the class", fontsize=8.5)
        axis.set_title(f"{full_name(name)}, n {positive.sum()}", loc="left", fontsize=8.5)
    beside.set_axis_off()
    handles = axes[0].get_legend_handles_labels()
    beside.legend(*handles, loc="center", frameon=False, handlelength=3.5)
    figure.supylabel("frequency of the class")
    return save(figure, folder / "reliability_by_class.png", test)


def draw_bins(axis: Axes, bins: pd.DataFrame, label: str, look: dict, size: float = 5) -> None:
    """Draw the share of each bin over its mean score, with the interval."""
    style = {"label": label, "markersize": size, "linewidth": 1.5, "elinewidth": 0.9}
    axis.errorbar(bins["score"], bins["value"], yerr=error_bars(bins), **style, **look)


def error_bars(table: pd.DataFrame) -> np.ndarray:
    """Return the distances (2, n) of low and high from value, as matplotlib draws them."""
    ends = (table["value"] - table["low"], table["high"] - table["value"])
    return np.clip(np.array(ends, np.float64), 0, None)


def describe_scaling(calibrator: Calibrator) -> str:
    """Return "before and after dirichlet scaling", or that there is none."""
    if calibrator.method == "none":
        return "(validation chose no scaling: before and after are the same)"
    return f"before and after {calibrator.method} scaling"
