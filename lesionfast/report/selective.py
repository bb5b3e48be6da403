"""The selective chapter: how often prediction sets hold the truth, and what referral is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.console import Table, estimate
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import few_lesions_warning
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report.calibration import AFTER, BEFORE, error_bars
from lesionfast.report.page import (
    GREY,
    METRIC_NAMES,
    Picture,
    Section,
    count_drawn,
    drawn_classes,
    new_figure,
    save,
    signature,
    style_axis,
    subtitle,
)
from lesionfast.stats.bootstrap import RESAMPLES
from lesionfast.stats.conformal import BY_CLASS, KINDS, MARGINAL, Conformal, coverage_table
from lesionfast.stats.selective import Referral, aurc_table, referral_table, risk_coverage

FEWEST = 5  # lesions: the risk of fewer is not drawn
LOOKS = {MARGINAL: BEFORE | {"linestyle": "none"}, BY_CLASS: AFTER | {"linestyle": "none"}}
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
    sets, read = findings.conformal, findings.interpretation
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
    picture = findings.drawn(draw_coverage, sets)
    return Section(
        "Prediction sets",
        words,
        [sets_table(run_coverage(read, sets))],
        [Picture.from_file(picture, "Coverage and size of the sets")],
    )


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
            axis.errorbar(rows["value"], places, xerr=error_bars(rows), **look, **LOOKS[kind])
    left.axvline(conformal.coverage, color="black", linewidth=1, linestyle=DOTTED)
    labels = [f"{full_name(of)}, {n} lesion{'s' * (n != 1)}" for of, n in lesions.items()]
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    style_axis(left, xlabel="sets that contain the true class (dotted: aim)", xlim=(-0.02, 1.02))
    style_axis(right, "right", xlabel="classes in a set, mean", xlim=(0, None))
    left.xaxis.set_major_formatter(PercentFormatter(1))
    return save(figure, folder / "coverage.png", signature(test))


def run_coverage(
    test: Interpretation, conformal: Conformal, *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Return `coverage_table` of a run's predictions; without a column `age`, without age bands."""
    arrays = test.truth, test.probabilities, test.lesions, test.classes
    age = test.rows.get("age")
    return coverage_table(*arrays, conformal, age, resamples=resamples, seed=seed)


def referral(findings: Findings) -> Section | None:
    """Return what referring the least certain images to a dermatologist does."""
    if not findings.on_test:
        return None
    rule, read = findings.referral, findings.interpretation
    words = [
        f"Images with a confidence below {rule.threshold:.3f} are referred to a dermatologist: "
        f"{rule.share:.0%} of the validation images.",
    ]
    table = run_referral(read, rule)
    table["metric"] = table["metric"].map(lambda name: METRIC_NAMES.get(name, name))
    names = {"metric": "metric", "of": "class", "among": "among", "value": "value"}
    picture = findings.drawn(draw_risk_coverage, rule)
    return Section(
        "Referral",
        words,
        [Table.from_frame(table, "Referral", names)],
        [Picture.from_file(picture, "Risk among the images kept")],
    )


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
    return save(figure, folder / "risk_coverage.png", signature(test))


def run_referral(
    test: Interpretation, referral: Referral, *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Return `referral_table` of a run's predictions.

    Raises `LesionfastError` if their rule is not the one that the threshold was chosen for.
    """
    if test.rule != referral.rule:
        raise LesionfastError(
            f"the referral is for the rule '{referral.rule}'; found decisions by "
            f"'{test.rule}'. Pass Decisions(run).referral_by('{test.rule}')."
        )
    arrays = test.truth, test.decision, referral.referred(test.confidence), test.lesions
    return referral_table(*arrays, test.classes, resamples=resamples, seed=seed)
