"""Net benefit and costs against loops, and where the answer is known."""

import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings, read_cost_matrix
from lesionfast.runs import Run
from lesionfast.stats.thresholds import cost_decision, cost_table, decision_curve, net_benefit

CLASSES = ["bkl", "mel", "nv"]


def simulate(n=400, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), n)
    truth = np.array([rng.choice(3, p=row) for row in probabilities])
    return truth, probabilities, rng.integers(0, n // 2, n)


def test_net_benefit_is_that_of_a_loop():
    truth, probabilities, lesions = simulate()
    table = decision_curve(truth, probabilities, lesions, CLASSES, "mel")
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
    _, probabilities, _ = simulate()
    costs = np.random.default_rng(1).random((3, 3)) * (1 - np.eye(3))
    for row, decision in zip(probabilities, cost_decision(probabilities, costs), strict=True):
        expected = [sum(row[i] * costs[i, j] for i in range(3)) for j in range(3)]
        assert expected[decision] == pytest.approx(min(expected))


def test_equal_costs_give_the_most_probable_class_and_the_first_of_ties():
    _, probabilities, _ = simulate()
    even = read_cost_matrix(None, CLASSES)
    assert (cost_decision(probabilities, even) == probabilities.argmax(axis=1)).all()
    assert cost_decision([[0.1, 0.45, 0.45], [0.3, 0.3, 0.4]], even).tolist() == [1, 2]


def test_an_error_costs_one_unless_said():
    costs = read_cost_matrix("mel:nv=10,bkl:mel=0.5", CLASSES)
    assert costs.tolist() == [[0, 0.5, 1], [1, 0, 10], [1, 1, 0]]
    assert cost_decision([[0.0, 0.1, 0.9]], costs).tolist() == [1]
    with pytest.raises(LesionfastError, match="must be 2 by 2"):
        cost_decision([[0.5, 0.5]], costs)


def test_the_table_has_the_mean_cost_of_each_rule():
    truth, probabilities, lesions = simulate()
    costs = read_cost_matrix("mel:nv=10", CLASSES)
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
    findings = Findings.of(Run(run.path), cost="mel:nv=10")
    read = findings.interpretation
    np.testing.assert_array_equal(
        findings.chances, findings.decisions.calibrator.apply(read.probabilities)
    )
    costs = findings.mean_costs.set_index("rule")["value"]
    naive = cost_decision(read.probabilities, findings.costs)
    raw = cost_table(read.truth, {"raw": naive}, findings.costs, read.lesions)
    assert costs["least expected cost"] < raw["value"].item()
    assert costs["least expected cost"] <= costs[["argmax", "balanced"]].min()
