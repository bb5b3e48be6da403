"""Figures of points, curves, prediction sets and referral show the numbers of the tables."""

import numpy as np
import pytest
from PIL import Image

from lesionfast.evaluation.decisions import REFERRAL, SETS, Decisions, points_table
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.decisions import (
    NOTHING,
    draw_coverage,
    draw_decision_curves,
    draw_operating,
    draw_risk_coverage,
    run_coverage,
)
from lesionfast.stats.conformal import BY_CLASS, MARGINAL
from lesionfast.stats.selective import risk_coverage


def test_points_sit_where_the_table_says(make_run, tmp_path, drawn):
    test = Interpretation.from_run(make_run())
    decisions = Decisions(test.run)
    path = draw_operating(decisions.show(test), decisions, tmp_path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 900
    assert path.with_suffix(".svg").is_file()
    table, points = points_table(test), Decisions(test.run).points
    marks = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for axis in next(iter(drawn.values())).axes
        for line in axis.lines
        if len(line.get_xdata()) == 1 and line.get_marker() in "os"
    ]
    chosen = [(1 - point.specificity, point.sensitivity) for point in points]
    reached = list(zip(1 - table["specificity"], table["sensitivity"], strict=True))
    expected = [each for pair in zip(chosen, reached, strict=True) for each in pair]
    np.testing.assert_allclose(sorted(marks), sorted(expected))


def test_decision_curves_have_three_lines_and_a_band(make_run, tmp_path, drawn):
    test = Interpretation.from_run(make_run())
    draw_decision_curves(test, "uncalibrated", tmp_path)
    for axis in next(iter(drawn.values())).axes:
        assert len(axis.lines) == 3 and len(axis.collections) == 1
        assert axis.get_xlabel() and axis.get_ylabel() and axis.get_legend()


def test_other_classes_say_that_there_is_nothing(make_run, tmp_path, drawn):
    test = Interpretation.from_run(make_run(classes=("nv", "df"), n=40))
    draw_operating(test, Decisions(test.run), tmp_path)
    draw_decision_curves(test, "uncalibrated", tmp_path)
    for figure in drawn.values():
        assert all(NOTHING in [t.get_text() for t in axis.texts] for axis in figure.axes)


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
