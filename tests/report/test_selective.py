"""The figures of prediction sets and of referral show the numbers of the tables."""

import pytest

from lesionfast.evaluation.decisions import REFERRAL, SETS
from lesionfast.report.selective import draw_coverage, draw_risk_coverage, run_coverage
from lesionfast.stats.conformal import BY_CLASS, MARGINAL
from lesionfast.stats.selective import risk_coverage


def test_coverage_dots_are_the_table(splits, tmp_path, drawn, legend, check_figure):
    test, valid = splits
    conformal = SETS.fit(valid)
    check_figure(draw_coverage(test, conformal, tmp_path), "coverage.png")
    left, right = drawn["coverage"].axes
    table = run_coverage(test, conformal)
    table = table[table["images"] > 0]
    for kind, dots in zip((MARGINAL, BY_CLASS), left.containers, strict=True):
        chosen = table[(table["kind"] == kind) & (table["metric"] == "coverage")]
        assert dots.lines[0].get_xdata() == pytest.approx(chosen["value"].to_numpy())
    assert legend(right) == [MARGINAL, BY_CLASS]
    nominal = [line for line in left.lines if list(line.get_xdata()) == [0.9, 0.9]]
    assert len(nominal) == 1
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels[0] == "all, 400 lesions" and "malignant, under 40" in " ".join(labels)


def test_risk_lines_are_the_table_and_the_threshold_is_marked(
    splits, tmp_path, drawn, legend, check_figure
):
    test, valid = splits
    referral = REFERRAL.fit(valid, share=0.3)
    check_figure(draw_risk_coverage(test, referral, tmp_path), "risk_coverage.png")
    axis = drawn["risk_coverage"].axes[0]
    confidence, lesions = test.confidence, test.rows["group"]
    table = risk_coverage(test.truth, test.decision, confidence, lesions, test.classes)
    error = table[table["metric"] == "error"]
    shown = error[error["lesions"] >= 5]
    assert axis.lines[0].get_ydata() == pytest.approx(shown["value"].to_numpy())
    kept = (confidence >= referral.threshold).mean()
    assert axis.lines[-1].get_xdata()[0] == pytest.approx(kept)
    assert "AURC of the error" in drawn["risk_coverage"].get_suptitle()
    assert "refer 30%" in legend(axis)[-1] and "melanomas missed" in " ".join(legend(axis))
