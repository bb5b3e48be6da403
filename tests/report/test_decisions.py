"""The figures show the points, the intervals and the curves that the tables have."""

import numpy as np
from PIL import Image

from lesionfast.evaluation.decisions import Decisions, points_table
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report.decisions import NOTHING, draw_decision_curves, draw_operating


def test_points_sit_where_the_table_says(make_run, tmp_path, drawn):
    test = Interpretation.of(make_run())
    path = draw_operating(test, tmp_path)
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
    test = Interpretation.of(make_run())
    draw_decision_curves(test, test.probabilities, "uncalibrated", tmp_path)
    for axis in next(iter(drawn.values())).axes:
        assert len(axis.lines) == 3 and len(axis.collections) == 1
        assert axis.get_xlabel() and axis.get_ylabel() and axis.get_legend()


def test_other_classes_say_that_there_is_nothing(make_run, tmp_path, drawn):
    test = Interpretation.of(make_run(classes=("nv", "df"), n=40))
    draw_operating(test, tmp_path)
    draw_decision_curves(test, test.probabilities, "uncalibrated", tmp_path)
    for figure in drawn.values():
        assert all(NOTHING in [t.get_text() for t in axis.texts] for axis in figure.axes)
