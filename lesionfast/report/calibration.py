"""The calibration chapter: reliability diagrams, and metrics before and after calibration."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from lesionfast.console import with_interval
from lesionfast.diagnoses import full_name
from lesionfast.evaluation.decisions import CALIBRATION, few_lesions_warning, require_unseen
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report.page import (
    Section,
    Table,
    count_drawn,
    drawn_classes,
    new_figure,
    picture_of,
    save,
    sign,
    table_of,
)
from lesionfast.stats.bootstrap import RESAMPLES, Found, interval, resampled
from lesionfast.stats.calibration import Calibrator, choose_methods
from lesionfast.stats.conformal import BY_CLASS, MARGINAL
from lesionfast.stats.measures import weighted_metrics
from lesionfast.stats.metrics import ALL, decide
from lesionfast.stats.reliability import (
    NOISE,
    calibration_interval,
    calibration_table,
    reliability_bins,
    weighted_calibration,
)

REPORTED = (
    ("log_loss", ALL),
    ("ece", ALL),
    ("adaptive_ece", ALL),
    ("brier", ALL),
    ("macro_auc", ALL),
    ("balanced_accuracy", ALL),
)


def before_and_after(
    valid: Interpretation,
    test: Interpretation,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what each method, fitted on validation, does to the metrics of test.

    Columns method, chosen (by validation), metric, of, value, low, high, and the paired difference
    from 'none': difference, difference_low, difference_high. The rule of `test` decides before and
    after; 'balanced' divides calibrated probabilities by the class shares of validation, which
    they have learned, and not by the prior of a loss that was weighted by class. Without a class
    of melanoma its sensitivity is left out.
    """
    require_unseen(test)
    methods = choose_methods(valid.probabilities)
    fitted = {name: CALIBRATION.fit(valid, method=name, seed=seed) for name in methods}
    scores = {name: each.scores[name] for name, each in fitted.items()}
    chosen = min(scores, key=scores.get)
    rows, first = [], None
    for name, calibrator in fitted.items():
        prior = test.run.model["prior"] if name == "none" else shares_of(valid)
        found = reported(test, calibrator, prior, resamples, seed)
        first = first or found
        rows += [(name, name == chosen, *row) for row in compared(found, first)]
    ends = ["value", "low", "high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=["method", "chosen", "metric", "of", *ends])


def shares_of(valid: Interpretation) -> np.ndarray:
    """Return the share of each class among the images (k,)."""
    return np.bincount(valid.truth, minlength=len(valid.classes)) / len(valid.truth)


def reported(
    test: Interpretation,
    calibrator: Calibrator,
    prior: ArrayLike,
    resamples: int,
    seed: int,
) -> tuple[dict, Found]:
    """Return the metrics of calibrated probabilities, and of each resample."""
    after = calibrator.apply(test.probabilities)
    decision = decide(after, test.rule, prior)
    measured = weighted_metrics(test.truth, after, decision, test.classes)
    calibrated = weighted_calibration(test.truth, after, test.classes)
    melanoma = test.classes.melanoma
    wanted = [*REPORTED, *([("sensitivity", melanoma)] if melanoma else [])]
    wanted += [(key[0] + NOISE, key[1]) for key in wanted if key[0].endswith("ece")]

    def find(weights: np.ndarray) -> Found:
        found = measured(weights) | calibrated(weights)
        return {key: found[key] for key in wanted}

    return resampled(find, test.truth, test.lesions, resamples=resamples, seed=seed)


def compared(found: tuple[dict, Found], first: tuple[dict, Found]) -> list[tuple]:
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


COLUMNS = 4
FEWEST = 5  # lesions: of fewer a share says nothing
LOOKS = {
    "before": {"color": "#7F7F7F", "marker": "s", "linestyle": "dashed"},
    "after": {"color": "#0072B2", "marker": "o", "linestyle": "solid"},
    MARGINAL: {"color": "#7F7F7F", "marker": "s", "linestyle": "dashed"},
    BY_CLASS: {"color": "#0072B2", "marker": "o", "linestyle": "solid"},
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
    return reliability_bins(probabilities.max(axis=1), right, test.truth, test.lesions)


def gap_told(test: Interpretation, probabilities: np.ndarray) -> str:
    """Return "ECE 0.034 [0.013, 0.040]"."""
    table = calibration_table(test.truth, probabilities, test.lesions, test.classes)
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
    return reliability_bins(scores, test.truth == number, test.truth, test.lesions, bins=6)


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


LABELS = {
    "log_loss": "log loss, nats",
    "ece": "ECE, 15 bins",
    "adaptive_ece": "ECE, 15 bins of equal numbers",
    "brier": "Brier score",
    "macro_auc": "macro AUC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "melanoma sensitivity",
}


def calibration(findings: Findings) -> Section | None:
    """Return what the calibrations that were fitted on validation do to these images."""
    if not findings.on_test:
        return None
    read, calibrator = findings.interpretation, findings.calibrator
    words = [
        "Fitted on validation; the method with the least log loss there, over five folds of its "
        f"lesions, is chosen: {calibrator.method}. The rule that decides is the same before and "
        "after, so a change of melanoma sensitivity is what the calibration does to it.",
        "On average, chance makes an expected calibration error (ECE) larger than the truth; its "
        "interval takes that off, and so may end at the estimate.",
    ]
    words += warned(findings)
    pictures = [
        picture_of(findings.drawn(draw, calibrator), told)
        for draw, told in (
            (draw_reliability, "Accuracy of the decided class against its probability"),
            (draw_class_reliability, "Frequency of each class against its probability"),
        )
    ]
    table = before_and_after(findings.validation, read)
    return Section("Calibration", words, [calibration_cells(table)], pictures)


def warned(findings: Findings) -> list[str]:
    """Return the warning of classes of few validation lesions as a list of one, or of none."""
    return list(filter(None, [few_lesions_warning(findings.validation)]))


def calibration_cells(found: pd.DataFrame) -> Table:
    """Return one row a metric, one column a method, and the paired change by the chosen one."""
    rows = []
    for metric in dict.fromkeys(found["metric"]):
        chosen = found[found["metric"] == metric]
        row: dict[str, object] = {"metric": LABELS[metric]}
        for each in chosen.itertuples():
            name = "before" if each.method == "none" else each.method
            row |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
            if each.chosen:
                ends = {"_low": each.difference_low, "_high": each.difference_high}
                row["change by the chosen"] = each.difference
                row |= {f"change by the chosen{end}": value for end, value in ends.items()}
        rows.append(row)
    return table_of(pd.DataFrame(rows), "Before, and after each calibration")
