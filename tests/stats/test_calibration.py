"""Calibration errors against loops and a simulator that is calibrated; scaling against truth."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize_scalar
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import CALIBRATION, Decisions
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.calibration import before_and_after
from lesionfast.run import Run
from lesionfast.stats.calibration import (
    METHODS,
    Calibrator,
    assign_folds,
    build_objective,
    calibration_table,
    choose_methods,
    fit_calibrator,
    fit_scaling,
    reliability_bins,
    weighted_calibration,
    weighted_gap,
)
from lesionfast.stats.rules import DecisionRule

CLASSES = ("a", "b", "mel", "nv")


def draw(n, seed=0, temperature=1.0, bias=(0.0, 0.0, 0.0, 0.0)):
    """Truth drawn from its probabilities, and what a model says that is off by a known map."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.6, (n, 4))
    right = softmax(logits, axis=1)
    truth = (rng.random(n)[:, None] > right.cumsum(axis=1)).sum(axis=1)
    return truth, softmax(temperature * logits + np.array(bias), axis=1)


def loop_ece(scores, happened, edges):
    """The definition, one bin after the other."""
    total = 0.0
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = [j for j, s in enumerate(scores) if (low < s or i == 0) and s <= high]
        if inside:
            gap = abs(np.mean([scores[j] for j in inside]) - np.mean([happened[j] for j in inside]))
            total += gap * len(inside) / len(scores)
    return total


def test_every_measure_against_a_loop_and_scikit_learn():
    truth, p = draw(700, temperature=1.8)
    table = calibration_table(truth, p, np.arange(700), CLASSES, resamples=1000)
    value = table.set_index(["metric", "of"])["value"]
    top, right = p.max(axis=1), p.argmax(axis=1) == truth
    edges = np.linspace(0, 1, 16)
    assert value["ece", "all"] == pytest.approx(loop_ece(top, right, edges))
    mass = np.quantile(top, np.linspace(0, 1, 16))
    assert value["adaptive_ece", "all"] == pytest.approx(loop_ece(top, right, mass))
    each = [loop_ece(p[:, i], truth == i, edges) for i in range(4)]
    for name, expected in zip(CLASSES, each, strict=True):
        assert value["class_ece", name] == pytest.approx(expected)
    assert value["class_ece", "all"] == pytest.approx(np.mean(each))
    assert value["log_loss", "all"] == pytest.approx(log_loss(truth, p))
    briers = [brier_score_loss(truth == i, p[:, i]) for i in range(4)]
    assert value["brier", "all"] == pytest.approx(sum(briers))
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_weights_are_the_same_as_repeated_rows():
    truth, p = draw(200, temperature=2)
    weights = np.random.default_rng(3).integers(0, 4, 200)
    rows = np.repeat(np.arange(200), weights)
    found = weighted_calibration(truth, p, CLASSES)(weights[None].astype(float))
    repeated = weighted_calibration(truth[rows], p[rows], CLASSES)(np.ones((1, len(rows))))
    for key, value in found.items():
        if key[0] != "adaptive_ece" and "noise" not in key[0]:  # bins are those of the rows given
            assert value == pytest.approx(repeated[key])


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_bins_against_scikit_learn(strategy):
    truth, p = draw(900)
    scores, happened = p[:, 1], truth == 1
    table = reliability_bins(
        scores,
        happened,
        truth,
        np.arange(900),
        bins=10,
        adaptive=strategy == "quantile",
    )
    share, mean = calibration_curve(happened, scores, n_bins=10, strategy=strategy)
    assert table["score"].to_numpy() == pytest.approx(mean)
    assert table["value"].to_numpy() == pytest.approx(share)
    assert table["images"].sum() == 900
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_equal_scores_share_a_bin_and_one_class_has_no_images():
    truth, p = np.array([0, 0, 1, 1]), np.tile([0.5, 0.3, 0.2, 0.0], (4, 1))
    table = reliability_bins(p[:, 0], truth == 0, truth, np.arange(4), adaptive=True)
    assert table["images"].tolist() == [4] and table["value"].tolist() == [0.5]
    found = calibration_table(truth, p, np.arange(4), CLASSES, resamples=1000)
    value = found.set_index(["metric", "of"])["value"]
    assert value["class_ece", "mel"] == pytest.approx(0.2)
    assert value["adaptive_ece", "all"] == pytest.approx(0)


def test_a_calibrated_simulator_has_an_ece_near_zero_and_one_that_is_not_has_none():
    truth, p = draw(60_000)
    right = (p.argmax(axis=1) == truth).astype(float)
    everything = np.ones((1, 60_000))
    # Of n images and 15 bins noise makes an ECE of about sum(sqrt(2 n_b p (1 - p) / pi)) / n.
    noise = np.sqrt(2 / np.pi * 0.25 * 15 / 60_000)
    assert weighted_gap(p.max(axis=1), right)(everything)[0] < 1.5 * noise < 0.01
    assert weighted_gap(p.max(axis=1), right, adaptive=True)(everything)[0] < 1.5 * noise
    truth, p = draw(60_000, temperature=3)
    right = (p.argmax(axis=1) == truth).astype(float)
    assert weighted_gap(p.max(axis=1), right)(everything)[0] > 0.1


def test_intervals_of_ece_hold_the_true_one():
    def ece(truth, p):
        right = (p.argmax(axis=1) == truth).astype(float)
        return weighted_gap(p.max(axis=1), right)(np.ones((1, len(truth))))[0]

    true, held, free = ece(*draw(400_000, seed=99, temperature=2)), 0, 0
    for seed in range(60):
        truth, p = draw(600, seed, temperature=2)
        table = calibration_table(truth, p, np.arange(600), CLASSES, resamples=1000)
        row = table.iloc[0]
        held += row["low"] <= true <= row["high"]
        truth, p = draw(600, 1000 + seed)
        row = calibration_table(truth, p, np.arange(600), CLASSES, resamples=1000).iloc[0]
        free += row["low"] == 0  # calibrated: nothing but noise
    assert held >= 53 and free >= 53  # 60 draws of 0.95 are fewer in 1 of 100


@pytest.mark.parametrize("method", METHODS[1:])
def test_gradients_against_finite_differences(method):
    truth, p = draw(80)
    sizes = {"temperature": 1, "vector": 8, "dirichlet": 20}
    objective = build_objective(truth, np.log(p), method, 0.3)
    theta = np.random.default_rng(1).normal(1, 0.3, sizes[method])
    numeric = approx_fprime(theta, lambda x: objective(x)[0], 1e-7)
    assert objective(theta)[1] == pytest.approx(numeric, abs=1e-5)


def test_temperature_is_that_of_a_line_search_and_of_the_simulator():
    truth, p = draw(20_000, temperature=2.5)
    found = fit_scaling(truth, p, CLASSES, "temperature").parameters["temperature"]
    searched = minimize_scalar(
        lambda t: log_loss(truth, softmax(np.log(p) / t, axis=1)), bounds=(0.5, 5), method="bounded"
    ).x
    assert found == pytest.approx(searched, rel=1e-3)
    assert found == pytest.approx(2.5, rel=0.05)


def test_vector_and_dirichlet_undo_a_known_map():
    truth, p = draw(20_000, temperature=1.5, bias=(1, 0, -1, 0.5))
    right = draw(20_000)[1]
    for method in ("vector", "dirichlet"):
        after = fit_scaling(truth, p, CLASSES, method, 1e-5).apply(p)
        assert np.abs(after - right).mean() < 0.01 < np.abs(p - right).mean()


def test_penalties_hold_the_map_at_temperature_and_identity():
    truth, p = draw(2000, temperature=2)
    dirichlet = fit_scaling(truth, p, CLASSES, "dirichlet", 1e5)
    weight, bias = dirichlet.matrix()
    assert np.abs(weight - np.diag(np.diag(weight))).max() < 1e-3 and np.abs(bias).max() < 1e-3
    weight, _ = fit_scaling(truth, p, CLASSES, "vector", 1e5).matrix()
    assert np.diag(weight) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, {"none", "temperature"}), ({"temperature": 2.5}, {"temperature"})],
)
def test_the_choice_is_not_the_one_of_the_most_parameters(options, expected):
    truth, p = draw(1500, seed=5, **options)
    assert fit_calibrator(truth, p, np.arange(1500), CLASSES).method in expected


def test_a_bias_is_found_and_the_scores_are_those_of_held_out_lesions():
    truth, p = draw(1500, bias=(1.5, 0, -1.5, 0))
    chosen = fit_calibrator(truth, p, np.arange(1500), CLASSES)
    assert chosen.method in ("vector", "dirichlet")
    assert set(chosen.scores) == set(METHODS)
    assert chosen.scores["none"] == pytest.approx(log_loss(truth, p))
    assert min(chosen.scores, key=chosen.scores.get) == chosen.method
    assert chosen.scores["vector"] > log_loss(
        truth, fit_scaling(truth, p, CLASSES, "vector").apply(p)
    )


def test_copies_of_an_image_do_not_tempt_it_to_overfit():
    truth, p = draw(60, seed=8)
    copies = np.repeat(np.arange(60), 20)
    rows = fit_calibrator(truth[copies], p[copies], np.arange(1200), CLASSES, "vector")
    lesions = fit_calibrator(truth[copies], p[copies], copies, CLASSES, "vector")
    assert rows.scores["vector"] < lesions.scores["vector"]
    assert lesions.regularisation > rows.regularisation


def test_no_lesion_is_in_two_folds_and_classes_are_spread():
    rng = np.random.default_rng(0)
    lesions = rng.integers(0, 100, 300)
    truth = (lesions % 4).astype(np.int64)
    folds = assign_folds(truth, lesions, seed=1)
    for lesion in np.unique(lesions):
        assert len(set(folds[lesions == lesion])) == 1
    for number in range(4):
        of = {lesion: folds[lesions == lesion][0] for lesion in lesions[truth == number]}
        counts = np.bincount(list(of.values()), minlength=5)
        assert counts.max() - counts.min() <= 1
    assert set(assign_folds(np.array([0, 0, 1]), ["x", "y", "z"], 0)) == {0, 1, 2}


def test_zeros_and_a_class_that_validation_lacks_are_no_trouble():
    truth, p = draw(300)
    p[truth == 3], truth[truth == 3] = p[0], truth[0] if truth[0] != 3 else 0
    p[:5] = [1, 0, 0, 0]
    for method in METHODS:
        after = fit_calibrator(truth, p, np.arange(300), CLASSES, method).apply(p)
        assert np.isfinite(after).all() and after.sum(axis=1) == pytest.approx(1)


def test_errors_say_what_to_type():
    truth, p = draw(50)
    with pytest.raises(LesionfastError, match="no calibration 'temprature'. Did you mean 'temper"):
        fit_calibrator(truth, p, np.arange(50), CLASSES, "temprature")
    with pytest.raises(LesionfastError, match="found 1 lesion in validation"):
        fit_calibrator(truth, p, np.zeros(50), CLASSES)
    with pytest.raises(LesionfastError, match="of 4 classes; found probabilities of 3"):
        Calibrator("none", {}, CLASSES).apply(p[:, :3])


def test_a_run_keeps_its_calibration_and_refuses_another(make_run):
    run = make_run()
    assert CALIBRATION.read(run) is None
    fitted = CALIBRATION.fit(Interpretation.from_run(run, "valid"), method="dirichlet")
    path = CALIBRATION.write(run, fitted)
    kept = CALIBRATION.read(run)
    p = Interpretation.from_run(run).probabilities
    assert kept == fitted and (kept.apply(p) == fitted.apply(p)).all()
    told = json.loads(path.read_text())
    for wrong in ({"fitted_on": "test"}, {"classes": ["a", "b"]}):
        path.write_text(json.dumps(told | wrong))
        with pytest.raises(LesionfastError, match="Remove the file, and it is fitted again"):
            CALIBRATION.read(run)


def test_nothing_of_test_reaches_a_calibration(make_run):
    run = make_run()
    assert Decisions(run).calibrator
    path = run.path / "calibration.json"
    before = path.read_text()
    table = run.predictions
    chosen = table["split"] == "test"
    table.loc[chosen, "target"] = "nv"
    table.to_csv(run.path / "predictions.csv", index=False)
    path.unlink()
    assert Decisions(Run(run.path)).calibrator and path.read_text() == before
    with pytest.raises(LesionfastError, match="calibration on the split 'valid'; found 'test'"):
        CALIBRATION.fit(Interpretation.from_run(run, "test"))
    valid = Interpretation.from_run(run, "valid")
    with pytest.raises(LesionfastError, match="nothing was fitted on; found 'valid'"):
        before_and_after(valid, valid)


def test_before_and_after_against_each_metric_alone(make_run):
    run = make_run(n=300)
    valid, test = Interpretation.from_run(run, "valid"), Interpretation.from_run(run)
    table = before_and_after(valid, test)
    rows = table.set_index(["method", "metric"])
    assert set(table["method"]) == set(METHODS) and table.groupby("method").size().eq(7).all()
    assert (rows.loc["none", ["difference", "difference_low", "difference_high"]] == 0).all(None)
    for method in METHODS:
        after = CALIBRATION.fit(valid, method=method).apply(test.probabilities)
        shares = np.bincount(valid.truth, minlength=7) / len(valid.truth)
        prior = run.model["prior"] if method == "none" else shares
        decision = DecisionRule("balanced", prior).decide(after)
        mel = test.truth == run.classes.index("mel")
        found = (decision[mel] == run.classes.index("mel")).mean()
        assert rows.loc[(method, "sensitivity"), "value"] == pytest.approx(found)
        assert rows.loc[(method, "log_loss"), "value"] == pytest.approx(log_loss(test.truth, after))
    best = CALIBRATION.fit(valid).method
    assert table.loc[table["chosen"], "method"].unique().tolist() == [best]
    log = rows.xs("log_loss", level="metric")
    assert log["difference"].to_numpy() == pytest.approx(log["value"] - log.loc["none", "value"])
    assert (rows["difference_low"] <= rows["difference_high"]).all()


def test_without_melanomas_their_sensitivity_is_left_out(make_run):
    run = make_run(classes=("benign", "malignant"), n=120)
    table = before_and_after(Interpretation.from_run(run, "valid"), Interpretation.from_run(run))
    assert "sensitivity" not in set(table["metric"]) and len(table) == 4 * 6


def test_dirichlet_is_not_tried_on_fewer_images_than_it_has_parameters():
    assert choose_methods(np.ones((56, 7))) == METHODS
    assert choose_methods(np.ones((55, 7))) == METHODS[:3]
