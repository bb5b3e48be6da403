"""Sections of a report on the probabilities: calibration, prediction sets, referral."""

import pandas as pd

from lesionfast.evaluation.calibration import before_and_after
from lesionfast.evaluation.calibration_figures import (
    draw_class_reliability,
    draw_coverage,
    draw_reliability,
    draw_risk_coverage,
)
from lesionfast.evaluation.coverage import coverage_of
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.fitted import few_words
from lesionfast.evaluation.page import Section, Table, picture_of, table_of
from lesionfast.evaluation.referrals import referral_on

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
    return Section("Calibration", words, [calibration_table(table)], pictures)


def warned(findings: Findings) -> list[str]:
    """Return the warning of classes of few validation lesions as a list of one, or of none."""
    return list(filter(None, [few_words(findings.validation)]))


def calibration_table(found: pd.DataFrame) -> Table:
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
