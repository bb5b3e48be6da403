"""The figures show the numbers of the tables, and say which classes and images they are about."""

import numpy as np
import pytest

from lesionfast.evaluation.decisions import CALIBRATION
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.calibration import draw_class_reliability, draw_reliability
from lesionfast.stats.calibration import Calibrator


def test_reliability_shows_both_sides_and_the_images_of_each_bin(
    splits, tmp_path, drawn, legend, check_figure
):
    test, valid = splits
    calibrator = CALIBRATION.fit(valid, method="temperature")
    check_figure(draw_reliability(test, calibrator, tmp_path), "reliability.png")
    figure = drawn["reliability"]
    assert "before and after temperature scaling\ntest, 400 images" in figure.get_suptitle()
    above, below = figure.axes
    assert [text.split("\n")[0] for text in legend(above)] == ["perfect", "before", "after"]
    assert all("ECE 0.0" in text and "[" in text for text in legend(above)[1:])
    counts = [sum(bar.get_height() for bar in group) for group in below.containers]
    assert counts == [400, 400]
    for axis in (above, below):
        assert axis.get_ylabel()
    side = above.containers[1].lines[0]
    p = calibrator.apply(test.probabilities)
    inside = p.max(axis=1) > 14 / 15
    assert side.get_xdata()[-1] == pytest.approx(p.max(axis=1)[inside].mean())
    right = p.argmax(axis=1) == test.truth
    assert side.get_ydata()[-1] == pytest.approx(right[inside].mean())


def test_a_run_that_needs_no_scaling_says_so(splits, tmp_path, drawn):
    test, _ = splits
    draw_reliability(test, Calibrator("none", {}, tuple(test.classes)), tmp_path)
    assert "validation chose no scaling" in drawn["reliability"].get_suptitle()


@pytest.mark.parametrize("classes", [("benign", "other"), ("akiec", "bcc", "mel", "nv")])
def test_each_class_has_its_panel(make_run, classes, tmp_path, drawn, legend, check_figure):
    run = make_run(classes=classes, n=150)
    calibrator = CALIBRATION.fit(Interpretation.from_run(run, "valid"), method="vector")
    test = Interpretation.from_run(run)
    check_figure(draw_class_reliability(test, calibrator, tmp_path), "reliability_by_class.png")
    titles = [axis.get_title(loc="left") for axis in drawn["reliability_by_class"].axes]
    counts = np.bincount(test.truth, minlength=len(classes))
    for title, name, n in zip(titles, classes, counts, strict=False):
        assert title.startswith(name) and title.endswith(f"n {n}")
    entries = [legend(axis) for axis in drawn["reliability_by_class"].axes if axis.get_legend()]
    assert entries == [["perfect", "before", "after"]]
