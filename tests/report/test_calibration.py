"""The figures show the tables' numbers, and say which classes and images they are about."""

import numpy as np
import pytest
from PIL import Image

from lesionfast.evaluation.decisions import CALIBRATION, REFERRAL, SETS
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report.calibration import draw_class_reliability, draw_reliability
from lesionfast.report.selective import draw_coverage, draw_risk_coverage, run_coverage
from lesionfast.stats.calibration import Calibrator
from lesionfast.stats.conformal import BY_CLASS, MARGINAL
from lesionfast.stats.selective import risk_coverage


@pytest.fixture
def splits(make_run):
    """Test and validation of a run."""
    run = make_run(n=400)
    return Interpretation.of(run), Interpretation.of(run, "valid")


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def check(path, name):
    """A PNG with something on it, and an SVG beside it."""
    assert path.name == name
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    assert 0.005 < (grey < 200).mean() < 0.9
    assert "<svg" in path.with_suffix(".svg").read_text()[:1000]


def test_reliability_shows_both_sides_and_the_images_of_each_bin(splits, tmp_path, drawn):
    test, valid = splits
    calibrator = CALIBRATION.fit(valid, method="temperature")
    check(draw_reliability(test, calibrator, tmp_path), "reliability.png")
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
def test_each_class_has_its_panel(make_run, classes, tmp_path, drawn):
    run = make_run(classes=classes, n=150)
    calibrator = CALIBRATION.fit(Interpretation.of(run, "valid"), method="vector")
    test = Interpretation.of(run)
    check(draw_class_reliability(test, calibrator, tmp_path), "reliability_by_class.png")
    titles = [axis.get_title(loc="left") for axis in drawn["reliability_by_class"].axes]
    counts = np.bincount(test.truth, minlength=len(classes))
    for title, name, n in zip(titles, classes, counts, strict=False):
        assert title.startswith(name) and title.endswith(f"n {n}")
    entries = [legend(axis) for axis in drawn["reliability_by_class"].axes if axis.get_legend()]
    assert entries == [["perfect", "before", "after"]]


def test_coverage_dots_are_the_table(splits, tmp_path, drawn):
    test, valid = splits
    conformal = SETS.fit(valid)
    check(draw_coverage(test, conformal, tmp_path), "coverage.png")
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


def test_risk_lines_are_the_table_and_the_threshold_is_marked(splits, tmp_path, drawn):
    test, valid = splits
    referral = REFERRAL.fit(valid, share=0.3)
    check(draw_risk_coverage(test, referral, tmp_path), "risk_coverage.png")
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
