"""The selective chapter: how often prediction sets hold the truth, and what referral is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.console import Table, estimate
from lesionfast.diagnoses import Classes, full_name
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
from lesionfast.stats.bootstrap import RESAMPLES, Found, interval, resampled, share_interval
from lesionfast.stats.conformal import BY_CLASS, KINDS, MARGINAL, Conformal, lesion_weights
from lesionfast.stats.metrics import ALL, as_codes, as_probabilities, check_shapes, ratio
from lesionfast.stats.selective import Referral, aurc_table, risk_coverage, weighted_risks

BANDS = {"under 40": (0, 40), "40-59": (40, 60), "60+": (60, np.inf)}  # years
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
KEPT_RIGHT = {  # a risk -> the metric that is 1 less it
    "error": "accuracy",
    "balanced_error": "balanced_accuracy",
    "mel_missed": "sensitivity",
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


def sets_table(found: pd.DataFrame) -> Table:
    """Return one row a group: coverage and mean size of both kinds of set."""
    shown = {"coverage": "coverage", "set_size": "mean size"}
    keys = [(kind, metric) for kind in KINDS for metric in shown]
    columns = ["of", "lesions", *(f"{kind}: {shown[metric]}" for kind, metric in keys)]
    table = Table("Each lesion weighs 1", columns)
    for of, rows in found.groupby("of", sort=False):
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
    notes = "each lesion weighs 1", "bars: 95 % intervals", count_drawn(test)
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


def coverage_table(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    conformal: Conformal,
    age: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return kind, of, images, lesions, metric, value, low, high, both kinds of set beside it.

    `truth` (n,), `probabilities` (n, k), `lesions` (n,), `age` (n,) in years or NaN. The metrics:
    coverage, set_size (mean classes), singletons and empty (shares of sets). `of` is 'all', a
    class, 'malignant' or it with an age band ('malignant, age unknown' where there is no age). Each
    lesion weighs 1, as in the promise. NaN for a group of no images.
    """
    probabilities, truth = as_probabilities(probabilities), as_codes(truth, len(classes))
    check_shapes(truth, probabilities, classes)
    lesions, groups = np.asarray(lesions), patient_groups(truth, classes, age)
    facts = {kind: set_facts(conformal.sets(probabilities, kind), truth) for kind in KINDS}
    member = np.stack(list(groups.values()), axis=1) * lesion_weights(lesions)[:, None]

    def find(weights: np.ndarray) -> Found:
        total = weights @ member
        return {
            (kind, of, metric): column
            for kind, metrics in facts.items()
            for metric, fact in metrics.items()
            for of, column in zip(
                groups, ratio(weights @ (member * fact[:, None]), total).T, strict=True
            )
        }

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    counts = {of: (int(m.sum()), len(np.unique(lesions[m]))) for of, m in groups.items()}
    rows = []
    for (kind, of, metric), value in values.items():
        draws = drawn[kind, of, metric]
        is_size = metric == "set_size"
        ends = interval(draws) if is_size else share_interval(value, draws, counts[of][1])
        rows.append((kind, of, *counts[of], metric, value, *ends))
    columns = ["kind", "of", "images", "lesions", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def set_facts(sets: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is counted of each set (n, k), (n,) each."""
    size = sets.sum(axis=1)
    return {
        "coverage": sets[np.arange(len(truth)), truth].astype(np.float64),
        "set_size": size.astype(np.float64),
        "singletons": (size == 1).astype(np.float64),
        "empty": (size == 0).astype(np.float64),
    }


def patient_groups(
    truth: np.ndarray, classes: Sequence[str], age: ArrayLike | None
) -> dict[str, np.ndarray]:
    """Return the images (n,) bool of each group of the table, by its name."""
    groups = {ALL: np.ones(len(truth), bool)}
    groups |= {name: truth == number for number, name in enumerate(classes)}
    classes = Classes.of(classes)
    if classes.cancer is None:
        return groups
    cancer = np.asarray(classes.members(classes.cancer))[truth]
    groups[classes.cancer] = cancer
    if age is None:
        return groups
    years = pd.to_numeric(pd.Series(age), errors="coerce").to_numpy(np.float64)
    for name, (low, high) in BANDS.items():
        groups[f"{classes.cancer}, {name}"] = cancer & (years >= low) & (years < high)
    groups[f"{classes.cancer}, age unknown"] = cancer & np.isnan(years)
    return groups


def referral(findings: Findings) -> Section | None:
    """Return what referring the least certain images to a dermatologist does."""
    if not findings.on_test:
        return None
    rule, read = findings.referral, findings.interpretation
    words = [
        f"Images with a confidence below {rule.threshold:.3f} are referred to a dermatologist: "
        f"{rule.share:.0%} of the validation images.",
    ]
    found = run_referral(read, rule)
    found["metric"] = found["metric"].map(lambda name: METRIC_NAMES.get(name, name))
    names = {name: name for name in ("metric", "of", "among", "value")}
    picture = findings.drawn(draw_risk_coverage, rule)
    return Section(
        "Referral",
        words,
        [Table.from_frame(found, "Referral", names)],
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


def referral_table(
    truth: np.ndarray,
    decision: np.ndarray,
    referred: np.ndarray,
    lesions: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return metric, of, among, value, low, high: the share referred, and what is left.

    `truth` and `decision` (n,) are class numbers, `referred` (n,) bool. Accuracy, balanced accuracy
    and melanoma sensitivity are among 'all' and among the 'kept'; 'referred' among the 'missed'
    is the share of the misclassified melanomas that a dermatologist sees. Without melanoma
    what is about it is left out. NaN where undefined.
    """
    melanoma = Classes.of(classes).melanoma
    members, asked = {ALL: np.ones(len(truth), bool)}, [(ALL, "all")]
    if melanoma:
        members[melanoma] = truth == list(classes).index(melanoma)
        asked += [(melanoma, "all"), (melanoma, "missed")]
    sides = {"all": members[ALL], "kept": ~referred, "missed": decision != truth}
    risks = weighted_risks(truth, decision, classes)

    def find(weights: np.ndarray) -> Found:
        found = {}
        for of, among in asked:
            side = members[of] & sides[among]
            found["referred", of, among] = ratio(weights @ (side * referred), weights @ side)
        for among in ("all", "kept"):
            for risk, value in risks(weights * sides[among]).items():
                of = melanoma if risk == "mel_missed" else ALL
                found[KEPT_RIGHT[risk], of, among] = 1 - value
        return found

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = []
    for (metric, of, among), value in values.items():
        n = len(np.unique(np.asarray(lesions)[members[of] & sides[among]]))
        draws, is_share = drawn[metric, of, among], metric != "balanced_accuracy"
        ends = share_interval(value, draws, n) if is_share else interval(draws)
        rows.append((metric, of, among, n, value, *ends))
    columns = ["metric", "of", "among", "lesions", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
