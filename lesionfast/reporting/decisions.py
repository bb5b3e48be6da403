"""The decisions chapter: what thresholds, prediction sets and referral of validation are worth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lesionfast.console import Table, estimate
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import Decisions, few_lesions_warning, points_table
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.isic import COLUMNS, isic_score
from lesionfast.reporting.calibration import AFTER, BEFORE, error_bars
from lesionfast.reporting.page import (
    GREY,
    Section,
    count_drawn,
    draw_picture,
    drawn_classes,
    new_figure,
    save,
    style_axis,
    subtitle,
)
from lesionfast.stats.conformal import BY_CLASS, KINDS, MARGINAL, Conformal, coverage_table
from lesionfast.stats.metrics import METRIC_NAMES
from lesionfast.stats.selective import Referral, aurc_table, referral_table, risk_coverage
from lesionfast.stats.thresholds import (
    OperatingPoint,
    apply_points,
    decision_curve,
    positive_and_score,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {"specificity": ("#0072B2", "o"), "sensitivity": ("#D55E00", "s")}
NOTHING = "no images to tell apart"


def operating(findings: Findings) -> Section | None:
    """Return what the thresholds that validation chose reach on these images."""
    read = findings.interpretation
    if not findings.on_test or not read.classes.targets:
        return None
    kind = "calibrated" if findings.calibrator else "uncalibrated"
    words = [
        f"The thresholds of the {kind} probabilities are chosen on validation, to reach the named "
        "specificity or sensitivity there, and reported on these images. The run keeps them in "
        "operating.json.",
        *filter(None, [few_lesions_warning(findings.validation)]),
    ]
    tables = [operating_table(points_table(read, findings.decisions.points))]
    if findings.cost:
        words.append(
            f"Costs: {findings.cost}; any other error costs 1, a correct decision nothing. "
            f"The least expected cost is that of the {kind} probabilities."
        )
        tables.append(costs_table(findings))
    points = "The thresholds on the curves of validation and these images"
    curves = "Net benefit of flagging by the model, over the threshold"
    pictures = [
        draw_picture(findings, draw_operating, points, findings.decisions, read=findings.shown),
        draw_picture(findings, draw_decision_curves, curves, kind, read=findings.shown),
    ]
    return Section("Operating points", words, tables, pictures)


def operating_table(points: pd.DataFrame) -> Table:
    """Return one row a point: its aim on validation, and what it reaches."""
    aims = [f"{row.goal} {row.level:.0%}" for row in points.itertuples()]
    names = {"of": "class", "aim": "aim on validation", "threshold": "threshold"}
    names |= {name: name for name in ("sensitivity", "specificity", "precision", "flagged")}
    return Table.from_frame(points.assign(aim=aims), "Flagged at or above the threshold", names)


def costs_table(findings: Findings) -> Table:
    """Return the mean cost per image of each rule, and of the decision of least expected cost."""
    names, note = {"rule": "rule", "value": "cost"}, f"{findings.cost}; any other error costs 1"
    return Table.from_frame(findings.mean_costs, "Mean cost per image", names, note)


def draw_operating(test: Interpretation, decisions: Decisions, folder: Path) -> Path:
    """Draw the ROC curves of validation and test, the points of validation, where they land.

    `test` are predictions as people see them.
    """
    points, valid = decisions.points, decisions.shown
    arrays = test.truth, test.probabilities, test.lesions, test.classes
    table = apply_points(points, *arrays)
    text = (
        f"{subtitle(test, rule=False)} (filled marks, with 95 % intervals over lesions)\n"
        f"thresholds chosen on {subtitle(valid, rule=False)} (open marks)"
    )
    figure = new_figure(11, 6.9, "Operating points", text)
    for axis, of in panels(figure, test):
        if separable(axis, of, valid, test):
            draw_rocs(axis, of, valid, test)
            for point in (point for point in points if point.of == of):
                row = table[(table["of"] == of) & (table["goal"] == point.goal)].iloc[0]
                draw_point(axis, point, row, test.split)
        limits = {"xlim": (-0.01, 1.01), "ylim": (-0.01, 1.01), "aspect": "equal"}
        names = {"xlabel": "1 - specificity (false positive rate)", "ylabel": "sensitivity"}
        style_axis(axis, "below", **limits, **names)
    return save(figure, folder / "operating_points.png", test)


def panels(figure: Figure, test: Interpretation) -> Iterator[tuple[Axes, str]]:
    """Yield a titled panel for melanoma and one for the malignant classes, as far as they exist."""
    classes = test.classes
    axes = figure.subplots(1, max(1, len(classes.targets)), squeeze=False)[0]
    if not classes.targets:
        write_nothing(axes[0])
    for axis, of in zip(axes, classes.targets, strict=False):
        *most, last = classes.malignant
        malignant = f"Malignant: {', '.join(most)} or {last}" if most else f"Malignant: {last}"
        title = "Melanoma" if of == classes.melanoma else malignant
        axis.set_title(title, loc="left", fontsize=11)
        yield axis, of


def separable(axis: Axes, of: str, *splits: Interpretation) -> bool:
    """Return whether all splits have positive and negative images; if not, write that."""
    for split in splits:
        positive, _ = positive_and_score(of, split.truth, split.probabilities, split.classes)
        if not positive.any() or positive.all():
            write_nothing(axis)
            return False
    return True


def write_nothing(axis: Axes) -> None:
    """Write that there is nothing to draw."""
    axis.text(0.5, 0.5, NOTHING, ha="center", transform=axis.transAxes)


def draw_rocs(axis: Axes, of: str, valid: Interpretation, test: Interpretation) -> None:
    """Draw the ROC curves of both splits."""
    from sklearn.metrics import roc_curve

    for split, color, line in ((valid, "0.6", (0, (3, 1.5))), (test, "black", "solid")):
        both = positive_and_score(of, split.truth, split.probabilities, split.classes)
        alarms, hits, _ = roc_curve(*both)
        axis.plot(alarms, hits, color=color, linestyle=line, label=f"ROC curve, {split.split}")
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)


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
    reached = ",\n".join(f"{name} {estimate(row, name)}" for name in ("sensitivity", "specificity"))
    axis.errorbar(
        [x], [y], xerr=np.clip(across, 0, None), yerr=np.clip(upright, 0, None), capsize=3,
        markeredgecolor="black", markersize=7, zorder=6, label=f"{split}: {reached}", **look,
    )  # fmt: skip


def draw_decision_curves(test: Interpretation, kind: str, folder: Path) -> Path:
    """Draw the net benefit of flagging by the probabilities, of flagging all and flagging none.

    `kind` is 'calibrated', as a threshold is a chance, or else 'uncalibrated'.
    """
    text = (
        f"{subtitle(test, rule=False)}; a false positive counts threshold / (1 - threshold) of a "
        "true one;\nband: 95 % interval over lesions"
    )
    figure = new_figure(11, 5.6, "Decision curves", text)
    for axis, of in panels(figure, test):
        if separable(axis, of, test):
            draw_benefit(axis, of, test)
        names = {"xlabel": f"threshold ({kind} probability)"}
        style_axis(axis, "below", ylabel="net benefit (true positives per image)", **names)
    return save(figure, folder / "decision_curves.png", test)


def draw_benefit(axis: Axes, of: str, test: Interpretation) -> None:
    """Draw one decision curve with its band and the two that need no model."""
    table = decision_curve(test.truth, test.probabilities, test.lesions, test.classes, of)
    x = table["threshold"]
    axis.fill_between(x, table["low"], table["high"], color="#0072B2", alpha=0.22, linewidth=0)
    axis.plot(x, table["net_benefit"], color="#0072B2", linewidth=2, label="flag by the model")
    axis.plot(x, table["all"], color=GREY, linestyle=(0, (5, 1.5)), label="flag every image")
    axis.plot(x, table["none"], color="black", linestyle=(0, (1.2, 1.2)), label="flag none")
    top = max(table["high"].max(), table["all"].max())
    axis.set(xlim=(0, 1), ylim=(-0.3 * top, 1.08 * top))


def challenge(findings: Findings) -> Section | None:
    """Return the score of ISIC 2018 Task 3, by the challenge's own rules."""
    read = findings.interpretation
    if {name.upper() for name in read.classes} != set(COLUMNS):
        return None
    score = isic_score(read.truth, read.probabilities, read.classes, read.lesions)
    table = Table("Task 3", ["score", "value"])
    table.add("balanced multi-class accuracy", estimate(score, "balanced_accuracy"))
    words = [
        "The challenge decides by the most probable class, whatever the rule of the run, and "
        "counts ties as wrong."
    ]
    return Section("ISIC 2018 score", words, [table])


FEWEST = 5  # lesions: the risk of fewer is not drawn
SET_LOOKS = {MARGINAL: BEFORE | {"linestyle": "none"}, BY_CLASS: AFTER | {"linestyle": "none"}}
DOTTED = (0, (2, 2))
RISKS = {  # label, colour, line
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


def prediction_sets(findings: Findings) -> Section | None:
    """Return how often sets of classes hold the truth, by class and by age."""
    if not findings.on_test:
        return None
    sets, read = findings.decisions.conformal, findings.shown
    words = [
        f"Prediction sets aim to contain the true class of {sets.coverage:.0%} of the lesions: in "
        "each class (class-conditional), or over all classes (marginal), which may miss the aim "
        "in single classes. Their limits come from validation.",
    ]
    if sets.unbounded:
        names = ", ".join(sets.unbounded)
        it = "it" if len(sets.unbounded) == 1 else "they"
        words.append(f"Too few validation lesions of {names}: {it} can never be ruled out.")
    words += filter(None, [few_lesions_warning(findings.validation)])
    about = "Coverage and size of the sets"
    picture = draw_picture(findings, draw_coverage, about, sets, read=read)
    return Section("Prediction sets", words, [sets_table(run_coverage(read, sets))], [picture])


def sets_table(coverage: pd.DataFrame) -> Table:
    """Return one row a group: coverage and mean size of both kinds of set."""
    shown = {"coverage": "coverage", "set_size": "mean size"}
    keys = [(kind, metric) for kind in KINDS for metric in shown]
    columns = ["group", "lesions", *(f"{kind}: {shown[metric]}" for kind, metric in keys)]
    table = Table("Each lesion has weight 1", columns)
    for of, rows in coverage.groupby("of", sort=False):
        lesions, rows = int(rows["lesions"].iloc[0]), rows.set_index(["kind", "metric"])
        table.add(of, lesions, *(estimate(rows.loc[key]) for key in keys))
    return table


def draw_coverage(test: Interpretation, conformal: Conformal, folder: Path) -> Path:
    """Draw how often the sets hold the truth, and how large they are, for each group."""
    from matplotlib.ticker import PercentFormatter

    table = run_coverage(test, conformal)
    left_out = set(test.classes) - set(drawn_classes(test))
    table = table[(table["images"] > 0) & ~table["of"].isin(left_out)]
    lesions = table.groupby("of", sort=False)["lesions"].first()
    notes = "each lesion has weight 1", "bars: 95 % intervals", count_drawn(test)
    title = f"Prediction sets at a coverage of {conformal.coverage:g}"
    height = 0.42 * len(lesions) + 2.2
    figure = new_figure(11, height, title, subtitle(test, *notes, rule=False))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.3, 1))
    for shift, kind in ((-0.15, MARGINAL), (0.15, BY_CLASS)):
        for axis, metric in ((left, "coverage"), (right, "set_size")):
            rows = table[(table["kind"] == kind) & (table["metric"] == metric)]
            places, look = np.arange(len(rows)) + shift, {"label": kind, "markersize": 5.5}
            axis.errorbar(rows["value"], places, xerr=error_bars(rows), **look, **SET_LOOKS[kind])
    left.axvline(conformal.coverage, color="black", linewidth=1, linestyle=DOTTED)
    labels = [f"{full_name(of)}, {n} lesion{'s' * (n != 1)}" for of, n in lesions.items()]
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    style_axis(left, xlabel="sets that contain the true class (dotted: aim)", xlim=(-0.02, 1.02))
    style_axis(right, "right", xlabel="classes in a set, mean", xlim=(0, None))
    left.xaxis.set_major_formatter(PercentFormatter(1))
    return save(figure, folder / "coverage.png", test)


def run_coverage(test: Interpretation, conformal: Conformal) -> pd.DataFrame:
    """Return `coverage_table` of a run's predictions; without a column `age`, without age bands."""
    arrays = test.truth, test.probabilities, test.lesions, test.classes
    age = test.rows.get("age")
    return coverage_table(*arrays, conformal, age)


def referral(findings: Findings) -> Section | None:
    """Return what referring the least certain images to a dermatologist does."""
    if not findings.on_test:
        return None
    rule, read = findings.referral, findings.shown
    words = [
        "The least certain images are referred to a dermatologist: those whose most probable "
        f"class has a probability below {rule.threshold:.3f}, {rule.share:.0%} of the validation "
        "images. The table is about the most probable class of each image.",
    ]
    table = run_referral(read, rule)
    table["metric"] = table["metric"].map(lambda name: METRIC_NAMES.get(name, name))
    names = {"metric": "metric", "of": "class", "among": "among", "value": "value"}
    about = "Risk among the images kept"
    picture = draw_picture(findings, draw_risk_coverage, about, rule, read=read)
    return Section("Referral", words, [Table.from_frame(table, "Referral", names)], [picture])


def draw_risk_coverage(test: Interpretation, referral: Referral, folder: Path) -> Path:
    """Draw what is wrong among the images kept, the least confident referred first."""
    from matplotlib.ticker import PercentFormatter

    lesions, confidence = test.lesions, test.confidence
    data = (test.truth, test.decision, confidence, lesions)
    table, area = risk_coverage(*data, test.classes), aurc_table(*data).iloc[0]
    text = subtitle(test, f"AURC of the error {estimate(area)}")
    figure = new_figure(9.6, 5.4, "Risk among the images kept", text)
    axis = figure.subplots()
    for metric, rows in table[table["lesions"] >= FEWEST].groupby("metric", sort=False):
        label, color, line = RISKS[metric]
        look = {"color": color, "linestyle": line, "linewidth": 2}
        axis.plot(rows["kept"], rows["value"], label=label, **look)
        axis.fill_between(rows["kept"], rows["low"], rows["high"], color=color, alpha=0.13, lw=0)
    kept = float((~referral.referred(confidence)).mean())
    label = f"threshold of validation\n(refer {referral.share:.0%}): keeps {kept:.0%}"
    axis.axvline(kept, color=GREY, linewidth=1, linestyle=DOTTED, label=label)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    labels = {"xlabel": "images kept, the most confident first"}
    labels |= {"ylabel": "risk among them; band: 95 %"}
    style_axis(axis, "right", **labels, xlim=(0, 1.01), ylim=(0, None))
    return save(figure, folder / "risk_coverage.png", test)


def run_referral(test: Interpretation, referral: Referral) -> pd.DataFrame:
    """Return `referral_table` of a run's predictions.

    Raises `LesionfastError` if their rule is not the one that the threshold was chosen for.
    """
    if test.rule != referral.rule:
        raise LesionfastError(
            f"the referral is for the rule '{referral.rule}'; found decisions by "
            f"'{test.rule}'. Pass Decisions(run).show(test)."
        )
    arrays = test.truth, test.decision, referral.referred(test.confidence), test.lesions
    return referral_table(*arrays, test.classes)
