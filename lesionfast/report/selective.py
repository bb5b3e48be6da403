"""How often prediction sets hold the truth: by class, and for malignant lesions by age."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from lesionfast.console import with_interval
from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report.calibration import (
    FEWEST,
    counted,
    draw_dots,
    finish,
    images,
    labelled,
    warned,
)
from lesionfast.report.page import (
    GREY,
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
from lesionfast.stats.bootstrap import RESAMPLES, Found, interval, resampled, share_interval
from lesionfast.stats.conformal import BY_CLASS, KINDS, MARGINAL, Conformal, lesion_weights
from lesionfast.stats.metrics import ALL, as_codes, as_probabilities, check_shapes, ratio
from lesionfast.stats.selective import Referral, aurc_table, risk_coverage, weighted_risks

BANDS = {"under 40": (0, 40), "40-59": (40, 60), "60+": (60, np.inf)}  # years


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
    lesions, groups = np.asarray(lesions), groups_of(truth, classes, age)
    told = {kind: facts_of(conformal.sets(probabilities, kind), truth) for kind in KINDS}
    weight = lesion_weights(lesions)
    member = np.stack(list(groups.values()), axis=1) * weight[:, None]

    def find(weights: np.ndarray) -> Found:
        total = weights @ member
        return {
            (kind, of, metric): column
            for kind, facts in told.items()
            for metric, fact in facts.items()
            for of, column in zip(
                groups, ratio(weights @ (member * fact[:, None]), total).T, strict=True
            )
        }

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    counts = {of: (int(m.sum()), len(np.unique(lesions[m]))) for of, m in groups.items()}
    rows = []
    for (kind, of, metric), value in values.items():
        each = drawn[kind, of, metric]
        size = metric == "set_size"
        ends = interval(each) if size else share_interval(value, each, counts[of][1])
        rows.append((kind, of, *counts[of], metric, value, *ends))
    columns = ["kind", "of", "images", "lesions", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def facts_of(sets: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is counted of each set (n, k), (n,) each."""
    size = sets.sum(axis=1)
    return {
        "coverage": sets[np.arange(len(truth)), truth].astype(np.float64),
        "set_size": size.astype(np.float64),
        "singletons": (size == 1).astype(np.float64),
        "empty": (size == 0).astype(np.float64),
    }


def groups_of(
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


def coverage_of(
    test: Interpretation, conformal: Conformal, *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Return `coverage_table` of a run's predictions; without a column `age`, without age bands."""
    age = test.rows.get("age")
    return coverage_table(
        test.truth,
        test.probabilities,
        test.lesions,
        test.classes,
        conformal,
        age,
        resamples=resamples,
        seed=seed,
    )


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


def draw_risk_coverage(test: Interpretation, referral: Referral, folder: Path) -> Path:
    """Draw what is wrong among the images kept, the least confident referred first."""
    lesions, confidence = test.lesions, test.confidence
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


NAMES = {"error": "accuracy", "balanced_error": "balanced_accuracy", "mel_missed": "sensitivity"}


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
    is the share of the melanomas decided otherwise that a dermatologist sees. Without melanoma
    what is about it is left out. NaN where undefined.
    """
    melanoma = Classes.of(classes).melanoma
    over = sides_of(truth, decision, referred, classes)
    risks = weighted_risks(truth, decision, classes)

    def find(weights: np.ndarray) -> Found:
        found = {
            ("referred", of, among): ratio(weights @ (side * referred), weights @ side)
            for (metric, of, among), side in over.items()
            if metric == "referred"
        }
        for among, mask in (("all", np.ones(len(truth))), ("kept", ~referred)):
            for risk, value in risks(weights * mask).items():
                of = melanoma if risk == "mel_missed" else "all"
                found[NAMES[risk], of, among] = 1 - value
        return found

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = []
    for key, value in values.items():
        lesions_of_it = len(
            np.unique(np.asarray(lesions)[over.get(key, over["referred", "all", "all"])])
        )
        plain = key[0] != "balanced_accuracy"
        ends = share_interval(value, drawn[key], lesions_of_it) if plain else interval(drawn[key])
        rows.append((*key, lesions_of_it, value, *ends))
    columns = ["metric", "of", "among", "lesions", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def sides_of(
    truth: np.ndarray, decision: np.ndarray, referred: np.ndarray, classes: Sequence[str]
) -> dict[tuple[str, str, str], np.ndarray]:
    """Return the images (n,) bool that each share is taken over."""
    everything = np.ones(len(truth), bool)
    over = {("referred", "all", "all"): everything}
    over |= {
        ("accuracy", "all", "kept"): ~referred,
        ("balanced_accuracy", "all", "kept"): ~referred,
    }
    if melanoma := Classes.of(classes).melanoma:
        mel = truth == list(classes).index(melanoma)
        over["referred", melanoma, "all"] = over["sensitivity", melanoma, "all"] = mel
        over["referred", melanoma, "missed"] = mel & (decision != truth)
        over["sensitivity", melanoma, "kept"] = mel & ~referred
    return over


def referral_on(
    test: Interpretation, referral: Referral, *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Return `referral_table` of a run's predictions.

    Raises `LesionfastError` if they are decided by another rule than the threshold is of.
    """
    if test.rule != referral.rule:
        raise LesionfastError(
            f"the referral is for the rule '{referral.rule}'; found decisions by '{test.rule}'. "
            f"Pass Decisions(run).referral_by('{test.rule}')."
        )
    referred = referral.referred(test.confidence)
    return referral_table(
        test.truth,
        test.decision,
        referred,
        test.lesions,
        test.classes,
        resamples=resamples,
        seed=seed,
    )


def prediction_sets(findings: Findings) -> Section | None:
    """Return how often sets of classes hold the truth, by class and by age."""
    if not findings.on_test:
        return None
    sets = findings.conformal
    words = [
        f"Sets of classes that hold the truth of {sets.coverage:.0%} of the lesions of each class "
        "(class-conditional), and of all classes together (marginal), which hides the classes that "
        "it fails. Their limits come from validation.",
    ]
    if sets.unbounded:
        words.append(
            f"Too few validation lesions, so these are in every set: {', '.join(sets.unbounded)}."
        )
    words += warned(findings)
    picture = picture_of(findings.drawn(draw_coverage, sets), "Coverage and size of the sets")
    table = coverage_of(findings.interpretation, sets)
    return Section("Prediction sets", words, [coverage_wide(table)], [picture])


def coverage_wide(found: pd.DataFrame) -> Table:
    """Return one row a group: coverage and mean size of both kinds of set."""
    rows = []
    for of in dict.fromkeys(found["of"]):
        chosen = found[(found["of"] == of) & found["metric"].isin(["coverage", "set_size"])]
        row: dict[str, object] = {"of": of, "lesions": int(chosen["lesions"].iloc[0])}
        for each in chosen.itertuples():
            name = f"{each.kind}: {'mean size' if each.metric == 'set_size' else each.metric}"
            row |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
        rows.append(row)
    return table_of(pd.DataFrame(rows), "Each lesion weighs 1")


def referral(findings: Findings) -> Section | None:
    """Return what referring the least certain images to a dermatologist does."""
    if not findings.on_test:
        return None
    rule, read = findings.referral, findings.interpretation
    words = [
        f"The images of least confidence go to a dermatologist: those below {rule.threshold:.3f}, "
        f"which is a share of {rule.share:.0%} of the validation images.",
    ]
    found = referral_on(read, rule)
    names = {"metric": "metric", "of": "of", "among": "among", "value": "value"}
    picture = picture_of(findings.drawn(draw_risk_coverage, rule), "Risk among the images kept")
    table = table_of(found.assign(metric=found["metric"].str.replace("_", " ")), "Referral", names)
    return Section("Referral", words, [table], [picture])
