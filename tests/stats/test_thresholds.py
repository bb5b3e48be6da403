"""Thresholds against scikit-learn's ROC curve, net benefit and costs against loops; the file."""

import json
import logging

import numpy as np
import pytest
from sklearn import metrics as sk

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import Decisions, points_table
from lesionfast.evaluation.findings import Findings, read_cost_matrix
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run
from lesionfast.stats.thresholds import (
    apply_points,
    choose_point,
    choose_points,
    cost_decision,
    cost_table,
    decision_curve,
    net_benefit,
    positive_and_score,
)

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def simulate(n=700, seed=0, classes=7):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    odds = np.exp(rng.normal(size=(n, classes)) + 1.3 * np.eye(classes)[truth])
    return truth, odds / odds.sum(axis=1, keepdims=True), rng.integers(0, n // 2, n)


@pytest.mark.parametrize("digits", [12, 1])
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_of_scikit_learns_curve_is_better(seed, digits):
    truth, probabilities, _ = simulate(seed=seed)
    probabilities = probabilities.round(digits)
    points = choose_points(truth, probabilities, CLASSES)
    assert [(p.of, p.goal) for p in points] == [
        (of, goal) for of in ("mel", "malignant") for goal in ("specificity", "sensitivity")
    ]
    for point in points:
        positive, score = positive_and_score(point.of, truth, probabilities, CLASSES)
        alarms, hits, cuts = sk.roc_curve(positive, score, drop_intermediate=False)
        shares = {"specificity": 1 - alarms, "sensitivity": hits}
        fits = shares[point.goal] >= point.level - 1e-12
        other = "sensitivity" if point.goal == "specificity" else "specificity"
        assert getattr(point, other) == pytest.approx(shares[other][fits].max())
        cut = cuts[fits].min() if point.goal == "specificity" else cuts[fits].max()
        assert point.threshold == cut
        flagged = score >= point.threshold
        assert point.sensitivity == pytest.approx(sk.recall_score(positive, flagged))
        assert point.specificity == pytest.approx(sk.recall_score(~positive, ~flagged))
        assert getattr(point, point.goal) >= point.level


def test_a_single_score_flags_all_or_nothing():
    positive, score = np.array([True, False, False]), np.full(3, 0.4)
    none = choose_point("mel", "specificity", positive, score)
    every = choose_point("mel", "sensitivity", positive, score)
    assert (none.sensitivity, none.specificity) == (0, 1) and none.threshold > 0.4
    assert (every.sensitivity, every.specificity, every.threshold) == (1, 0, 0.4)


def test_what_is_missing_is_left_out_and_said(caplog):
    truth, probabilities, _ = simulate(classes=2)
    with caplog.at_level(logging.WARNING, logger="lesionfast"):
        assert choose_points(truth, probabilities, ["nv", "df"]) == []
    assert "no operating points of melanoma: there is no such class" in caplog.text
    with caplog.at_level(logging.WARNING, logger="lesionfast"):
        found = choose_points(truth, probabilities, ["bcc", "nv"])
        assert {point.of for point in found} == {"malignant"}
        assert choose_points(truth * 0, probabilities, ["nv", "mel"]) == []
        assert choose_points(truth * 0, probabilities, ["mel", "nv"]) == []
    assert "no positive image" in caplog.text and "no negative image" in caplog.text
    with pytest.raises(LesionfastError, match="there is no class 'mle'.*Did you mean.*Name one of"):
        positive_and_score("mle", truth, probabilities, ["mel", "nv"])


def test_applied_points_are_scikit_learns_with_intervals():
    points = choose_points(*simulate(seed=1)[:2], CLASSES)
    truth, probabilities, lesions = simulate(seed=2)
    table = apply_points(points, truth, probabilities, lesions, CLASSES)
    for point, (_, row) in zip(points, table.iterrows(), strict=True):
        positive, score = positive_and_score(point.of, truth, probabilities, CLASSES)
        flagged = score >= point.threshold
        assert row["sensitivity"] == pytest.approx(sk.recall_score(positive, flagged))
        assert row["specificity"] == pytest.approx(sk.recall_score(~positive, ~flagged))
        assert row["precision"] == pytest.approx(sk.precision_score(positive, flagged))
        assert row["flagged"] == pytest.approx(flagged.mean())
        assert (row["n_positive"], row["n_negative"]) == (positive.sum(), (~positive).sum())
        for name in ("sensitivity", "specificity", "precision", "flagged"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_all_found_has_wilsons_interval_and_nothing_is_undefined():
    truth, probabilities = np.repeat([0, 1], [13, 40]), np.repeat(np.eye(2), [13, 40], axis=0)
    points = choose_points(truth, probabilities, ["mel", "nv"])
    row = apply_points(points, truth, probabilities, np.arange(53), ["mel", "nv"]).iloc[0]
    assert row["sensitivity_low"] == pytest.approx(0.7719, abs=1e-4)
    row = apply_points(points, truth * 0 + 1, probabilities, np.arange(53), ["mel", "nv"]).iloc[0]
    assert np.isnan(row[["sensitivity", "sensitivity_low", "sensitivity_high"]].astype(float)).all()
    assert len(apply_points([], truth, probabilities, np.arange(53), ["nv", "df"])) == 0


def test_the_file_is_of_validation_whatever_the_test_rows_say(make_run):
    run = make_run()
    assert Decisions(run).points
    path = run.path / "operating.json"
    before = path.read_bytes()
    table = run.predictions
    columns = [f"p_{name}" for name in run.classes]
    test = table["split"] == "test"
    table.loc[test, columns] = np.roll(table.loc[test, columns].to_numpy(), 1, axis=1)
    table.to_csv(run.path / "predictions.csv", index=False)
    path.unlink()
    assert Decisions(Run(run.path)).points and path.read_bytes() == before
    assert json.loads(before)["fitted_on"] == "valid"
    shown = Decisions(run).shown
    assert shown.split == "valid" and shown.rule == "argmax"
    assert Decisions(run).points == choose_points(shown.truth, shown.probabilities, shown.classes)


def test_points_of_the_models_own_probabilities_are_chosen_again(make_run):
    run = make_run()
    expected, path = Decisions(run).points, run.path / "operating.json"
    told = json.loads(path.read_text())
    assert told.pop("of") == "shown probabilities"
    told["points"][0]["threshold"] = 0.123  # by an earlier version
    path.write_text(json.dumps(told))
    assert Decisions(Run(run.path)).points == expected
    assert json.loads(path.read_text())["of"] == "shown probabilities"


def test_points_are_read_or_chosen_and_never_reported_on_validation(make_run):
    run = make_run()
    points = Decisions(run).points
    assert (run.path / "operating.json").is_file() and len(points) == 4
    assert points_table(Interpretation.from_run(run))["threshold"].tolist() == [
        point.threshold for point in points
    ]
    with pytest.raises(LesionfastError, match="nothing was fitted on; found 'valid'"):
        points_table(Interpretation.from_run(run, "valid"))


def test_without_validation_there_is_nothing_to_choose_on(make_run):
    run = make_run()
    table = run.predictions
    table[table["split"] == "test"].to_csv(run.path / "predictions.csv", index=False)
    with pytest.raises(LesionfastError, match="no predictions of the split 'valid'; it has: test"):
        _ = Decisions(Run(run.path)).points


THREE = ["bkl", "mel", "nv"]


def simulate_calibrated(n=400, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), n)
    truth = np.array([rng.choice(3, p=row) for row in probabilities])
    return truth, probabilities, rng.integers(0, n // 2, n)


def test_net_benefit_is_that_of_a_loop():
    truth, probabilities, lesions = simulate_calibrated()
    table = decision_curve(truth, probabilities, lesions, THREE, "mel")
    for _, row in table.iterrows():
        t, hits, alarms = row["threshold"], 0, 0
        for label, score in zip(truth, probabilities[:, 1], strict=True):
            hits += score >= t and label == 1
            alarms += score >= t and label != 1
        assert row["net_benefit"] == pytest.approx((hits - alarms * t / (1 - t)) / len(truth))
    share = (truth == 1).mean()
    odds = table["threshold"] / (1 - table["threshold"])
    np.testing.assert_allclose(table["all"], share - (1 - share) * odds)
    assert table["none"].eq(0).all()
    inside = (table["low"] <= table["net_benefit"]) & (table["net_benefit"] <= table["high"])
    assert inside.mean() > 0.95


def test_a_perfect_score_is_worth_the_share_of_positives():
    positive = np.array([True, False, False, False])
    np.testing.assert_allclose(net_benefit(positive, positive * 1.0, [0.1, 0.5, 0.9]), 0.25)
    with pytest.raises(LesionfastError, match="from 0 to below 1; found 0.5 to 1"):
        net_benefit(positive, positive * 1.0, [0.5, 1])


def test_the_rule_costs_least_of_all_decisions():
    _, probabilities, _ = simulate_calibrated()
    costs = np.random.default_rng(1).random((3, 3)) * (1 - np.eye(3))
    for row, decision in zip(probabilities, cost_decision(probabilities, costs), strict=True):
        expected = [sum(row[i] * costs[i, j] for i in range(3)) for j in range(3)]
        assert expected[decision] == pytest.approx(min(expected))


def test_equal_costs_give_the_most_probable_class_and_the_first_of_ties():
    _, probabilities, _ = simulate_calibrated()
    even = read_cost_matrix(None, THREE)
    assert (cost_decision(probabilities, even) == probabilities.argmax(axis=1)).all()
    assert cost_decision([[0.1, 0.45, 0.45], [0.3, 0.3, 0.4]], even).tolist() == [1, 2]


def test_an_error_costs_one_unless_said():
    costs = read_cost_matrix("mel:nv=10,bkl:mel=0.5", THREE)
    assert costs.tolist() == [[0, 0.5, 1], [1, 0, 10], [1, 1, 0]]
    assert cost_decision([[0.0, 0.1, 0.9]], costs).tolist() == [1]
    with pytest.raises(LesionfastError, match="must be 2 by 2"):
        cost_decision([[0.5, 0.5]], costs)


def test_the_table_has_the_mean_cost_of_each_rule():
    truth, probabilities, lesions = simulate_calibrated()
    costs = read_cost_matrix("mel:nv=10", THREE)
    rules = {"argmax": probabilities.argmax(axis=1), "cost": cost_decision(probabilities, costs)}
    table = cost_table(truth, rules, costs, lesions).set_index("rule")
    for name, decision in rules.items():
        paid = [costs[i, j] for i, j in zip(truth, decision, strict=True)]
        assert table.loc[name, "value"] == pytest.approx(np.mean(paid))
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()
    assert table.loc["cost", "value"] < table.loc["argmax", "value"]


def test_expected_costs_and_decision_curves_are_of_calibrated_probabilities(make_run):
    run = make_run()
    table = run.predictions.copy()
    columns = [f"p_{name}" for name in run.classes]
    skewed = table[columns].to_numpy() * np.where(np.array(run.classes) == "nv", 0.02, 1)
    table[columns] = skewed / skewed.sum(axis=1, keepdims=True)  # as class weights leave them
    run.write("predictions.csv", lambda path: table.to_csv(path, index=False))
    findings = Findings.from_run(Run(run.path), cost="mel:nv=10")
    read = findings.interpretation
    np.testing.assert_array_equal(
        findings.chances, findings.decisions.calibrator.apply(read.probabilities)
    )
    costs = findings.mean_costs.set_index("rule")["value"]
    naive = cost_decision(read.probabilities, findings.costs)
    raw = cost_table(read.truth, {"raw": naive}, findings.costs, read.lesions)
    assert costs["least expected cost"] < raw["value"].item()
    assert costs["least expected cost"] <= costs[["argmax", "balanced"]].min()
