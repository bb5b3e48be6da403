"""Figures of what probabilities mean: reliability, coverage of sets, and risk by share kept."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lesionfast.diagnoses import full_name
from lesionfast.evaluation.canvas import GREY, count_drawn, drawn_classes, new_figure, save, sign
from lesionfast.evaluation.conformal import BY_CLASS, MARGINAL, Conformal
from lesionfast.evaluation.coverage import coverage_of
from lesionfast.evaluation.fitted import lesions_of
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.reliability import calibration_table, reliability_bins
from lesionfast.evaluation.scaling import Calibrator
from lesionfast.evaluation.selective import Referral, aurc_table, confidence_in, risk_coverage
from lesionfast.evaluation.tables import with_interval

COLUMNS = 4
FEWEST = 5  # lesions: of fewer a share says nothing
LOOKS = {
    "before": {"color": "#7F7F7F", "marker": "s", "linestyle": "dashed"},
    "after": {"color": "#0072B2", "marker": "o", "linestyle": "solid"},
    MARGINAL: {"color": "#7F7F7F", "marker": "s", "linestyle": "dashed"},
    BY_CLASS: {"color": "#0072B2", "marker": "o", "linestyle": "solid"},
}
RISKS = {
    "error": ("error (1 - accuracy)", "#7F7F7F", "dashed"),
    "balanced_error": (
        "balanced error (1 - balanced\naccuracy of the classes kept)",
        "#000000",
        "solid",
    ),
    "mel_missed": (
        f"melanomas missed\n(where {FEWEST} lesions or more are kept)",
        "#D55E00",
        (0, (6, 1.5, 1.5, 1.5)),
    ),
}


def draw_reliability(test: Interpretation, calibrator: Calibrator, folder: Path) -> Path:
    """Draw accuracy against confidence before and after calibration, the images of a bin below."""
    subtitle = f"{images(test)}; 15 bins of equal width; bars: 95 % intervals"
    figure = new_figure(9, 6.6, f"Reliability {around(calibrator)}", subtitle)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect")
    sides = {"before": test.probabilities, "after": calibrator.apply(test.probabilities)}
    for shift, (side, probabilities) in enumerate(sides.items()):
        table = top_bins(test, probabilities)
        draw_bins(above, table, f"{side}\n{gap_told(test, probabilities)}", LOOKS[side])
        middle, width = (table["from"] + table["to"]) / 2, 0.028
        hatch = {"hatch": "////" if shift else "", "edgecolor": LOOKS[side]["color"]}
        look = {"color": "white" if shift else LOOKS[side]["color"], "label": f"images {side}"}
        below.bar(middle + (shift - 0.5) * width, table["images"], width, **(look | hatch))
    above.set(ylabel="share that is right", ylim=(-0.02, 1.02))
    below.set(xlabel="confidence (probability of the most probable class)", ylabel="images")
    below.set_xlim(-0.01, 1.01)
    for axis in (above, below):
        finish(axis)
    sign(figure, test)
    return save(figure, folder / "reliability.png")


def top_bins(test: Interpretation, probabilities: np.ndarray) -> pd.DataFrame:
    """Return the reliability bins of the most probable class."""
    right = probabilities.argmax(axis=1) == test.truth
    return reliability_bins(probabilities.max(axis=1), right, test.truth, lesions_of(test))


def gap_told(test: Interpretation, probabilities: np.ndarray) -> str:
    """Return "ECE 0.034 [0.013, 0.040]"."""
    table = calibration_table(test.truth, probabilities, lesions_of(test), test.classes)
    row = table[table["metric"] == "ece"].iloc[0]
    return f"ECE {with_interval(row, 'value', between=' ')}"


def draw_bins(axis: Axes, table: pd.DataFrame, label: str, look: dict, size: float = 5) -> None:
    """Draw the share of each bin over its mean score, with the interval."""
    ends = (table["value"] - table["low"], table["high"] - table["value"])
    bars = np.clip(np.array(ends, np.float64), 0, None)
    axis.errorbar(
        table["score"],
        table["value"],
        yerr=bars,
        label=label,
        markersize=size,
        linewidth=1.5,
        elinewidth=0.9,
        **look,
    )


def finish(axis: Axes) -> None:
    """Give an axis its grid and, outside, its legend."""
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, handlelength=3, fontsize=9
    )


def draw_class_reliability(test: Interpretation, calibrator: Calibrator, folder: Path) -> Path:
    """Draw, for each class, its frequency against its probability, before and after."""
    names = drawn_classes(test)
    columns, rows = min(COLUMNS, len(names) + 1), -(-(len(names) + 1) // COLUMNS)
    subtitle = f"{images(test)}; 6 bins of equal width; bars: 95 % intervals{count_drawn(test)}"
    title = f"Reliability of each class {around(calibrator)}"
    figure = new_figure(max(2.9 * columns, 6.5), 3.0 * rows + 1.0, title, subtitle)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    sides = {"before": test.probabilities, "after": calibrator.apply(test.probabilities)}
    for axis, name in zip(axes, names, strict=False):
        number = test.classes.index(name)
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect")
        for side, probabilities in sides.items():
            table = class_bins(test, probabilities[:, number], number)
            draw_bins(axis, table, side, LOOKS[side], size=4)
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axis.set_xlabel("probability of the class", fontsize=8.5)
        n = int((test.truth == number).sum())
        axis.set_title(f"{full_name(name)}, n {n}", loc="left", fontsize=8.5)
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.axis("off")
    handles = axes[0].get_legend_handles_labels()
    axes[len(names)].legend(*handles, loc="center", frameon=False, handlelength=3.5)
    figure.supylabel("share that is of the class")
    sign(figure, test)
    return save(figure, folder / "reliability_by_class.png")


def class_bins(test: Interpretation, scores: np.ndarray, number: int) -> pd.DataFrame:
    """Return the bins of one class: few, for a rare class has few images of a high probability."""
    return reliability_bins(scores, test.truth == number, test.truth, lesions_of(test), bins=6)


def draw_coverage(test: Interpretation, conformal: Conformal, folder: Path) -> Path:
    """Draw how often the sets hold the truth, and how large they are, for each group."""
    table = coverage_of(test, conformal)
    left_out = set(test.classes) - set(drawn_classes(test))
    table = table[(table["images"] > 0) & ~table["of"].isin(left_out)]
    groups = list(dict.fromkeys(table["of"]))
    subtitle = f"{images(test)}; each lesion weighs 1; bars: 95 % intervals{count_drawn(test)}"
    title = f"Prediction sets at a coverage of {conformal.coverage:g}"
    figure = new_figure(11, 0.42 * len(groups) + 2.2, title, subtitle)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.3, 1))
    for shift, kind in ((-0.15, MARGINAL), (0.15, BY_CLASS)):
        for axis, metric in ((left, "coverage"), (right, "set_size")):
            chosen = (table["kind"] == kind) & (table["metric"] == metric)
            draw_dots(axis, table[chosen], shift, kind)
    left.axvline(conformal.coverage, color="black", linewidth=1, linestyle=(0, (2, 2)))
    left.set_yticks(range(len(groups)), [labelled(table, name) for name in groups])
    left.invert_yaxis()
    left.set(xlabel="sets that hold the truth (dotted: promised)", xlim=(-0.02, 1.02))
    left.xaxis.set_major_formatter(PercentFormatter(1))
    right.set(xlabel="classes in a set, mean", xlim=(0, None))
    for axis in (left, right):
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    sign(figure, test)
    return save(figure, folder / "coverage.png")


def labelled(table: pd.DataFrame, name: str) -> str:
    """Return "mel (melanoma), 92 lesions"."""
    lesions = table.loc[table["of"] == name, "lesions"].iloc[0]
    return f"{full_name(name)}, {lesions} lesion{'s' if lesions != 1 else ''}"


def draw_dots(axis: Axes, rows: pd.DataFrame, shift: float, kind: str) -> None:
    """Draw one dot a group with its interval, a little beside the line of the group."""
    bars = np.clip(
        np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]], np.float64), 0, None
    )
    look = {"color": LOOKS[kind]["color"], "marker": LOOKS[kind]["marker"], "linestyle": "none"}
    places = np.arange(len(rows)) + shift
    axis.errorbar(rows["value"], places, xerr=bars, label=kind, markersize=5.5, **look)


def draw_risk_coverage(test: Interpretation, referral: Referral, folder: Path) -> Path:
    """Draw what is wrong among the images kept, the least confident referred first."""
    lesions, confidence = lesions_of(test), confidence_in(test)
    data = (test.truth, test.decision, confidence, lesions)
    table, area = risk_coverage(*data, test.classes), aurc_table(*data).iloc[0]
    told = f"AURC of the error {with_interval(area, 'value', between=' ')}"
    figure = new_figure(9.6, 5.4, "Risk among the images kept", f"{counted(test)}; {told}")
    axis = figure.subplots()
    for metric, rows in table[table["lesions"] >= FEWEST].groupby("metric", sort=False):
        label, color, line = RISKS[metric]
        axis.plot(
            rows["kept"], rows["value"], color=color, linestyle=line, linewidth=2, label=label
        )
        axis.fill_between(rows["kept"], rows["low"], rows["high"], color=color, alpha=0.13, lw=0)
    kept = float((~referral.referred(confidence)).mean())
    label = f"threshold of validation\n(refer {referral.share:.0%}): keeps {kept:.0%}"
    axis.axvline(kept, color=GREY, linewidth=1, linestyle=(0, (2, 2)), label=label)
    axis.set(xlabel="images kept, the most confident first", ylabel="risk among them; band: 95 %")
    axis.set(xlim=(0, 1.01), ylim=(0, None))
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(PercentFormatter(1))
    finish(axis)
    sign(figure, test)
    return save(figure, folder / "risk_coverage.png")


def around(calibrator: Calibrator) -> str:
    """Return "before and after dirichlet scaling", or that there is none."""
    if calibrator.method == "none":
        return "(validation chose no scaling: before and after are the same)"
    return f"before and after {calibrator.method} scaling"


def images(interpretation: Interpretation) -> str:
    """Return "test, 1500 images"."""
    return f"{interpretation.split}, {len(interpretation.rows)} images"


def counted(interpretation: Interpretation) -> str:
    """Return "test, 1500 images, rule balanced"."""
    return f"{images(interpretation)}, rule {interpretation.rule}"
