"""A rule decides what it says; a weight on melanoma trades specificity for sensitivity."""

from dataclasses import replace

import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.stats.metrics import balanced_accuracy, decision_metrics
from lesionfast.stats.rules import DecisionRule, fit_weight

CLASSES = ["bkl", "mel", "nv", "vasc"]
PRIOR = [0.2, 0.1, 0.65, 0.05]
BASES = [DecisionRule("argmax", PRIOR, 1), DecisionRule("balanced", PRIOR, 1)]


def draw(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Truth (n,) and probabilities (n, 4) that are right about it, two decimals: with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, n, p=PRIOR)
    odds = PRIOR * np.exp(rng.normal(size=(n, 4)) + np.eye(4)[truth])
    return truth, (odds / odds.sum(axis=1, keepdims=True)).round(2)


def test_balanced_divides_by_the_prior():
    probabilities = [[0.30, 0.70], [0.05, 0.95]]
    assert DecisionRule("argmax", [0.1, 0.9]).decide(probabilities).tolist() == [1, 1]
    assert DecisionRule("balanced", [0.1, 0.9]).decide(probabilities).tolist() == [0, 1]
    assert DecisionRule("balanced", [9, 81]).decide(probabilities).tolist() == [0, 1]


def test_balanced_maximises_balanced_accuracy_of_right_probabilities():
    rng = np.random.default_rng(0)
    prior = np.array([0.05, 0.15, 0.8])
    truth = rng.choice(3, 20_000, p=prior)
    signal = rng.normal(size=(20_000, 3))
    signal[np.arange(20_000), truth] += 1
    posterior = prior * np.exp(signal)  # of unit normals whose mean is 1 at the truth
    posterior /= posterior.sum(axis=1, keepdims=True)
    scores = {
        rule: balanced_accuracy(truth, DecisionRule(rule, prior).decide(posterior), 3)
        for rule in ("argmax", "balanced")
    }
    assert scores["balanced"] > scores["argmax"] + 0.1
    for tilt in ([1.5, 1, 1], [1, 1.5, 1], [1, 1, 1.5]):
        other = balanced_accuracy(
            truth, DecisionRule("balanced", prior * tilt).decide(posterior), 3
        )
        assert scores["balanced"] > other - 0.01


def test_a_class_that_was_never_learned_is_never_decided():
    assert DecisionRule("balanced", [0, 0.5, 0.5]).decide([[0.6, 0.3, 0.1]]).tolist() == [1]
    assert DecisionRule("balanced", [0, 0.5, 0.5]).decide([[1.0, 0.0, 0.0]]).tolist() == [1]


def test_ties_go_to_the_first_class():
    assert DecisionRule("argmax", [1, 1, 1]).decide([[0.4, 0.4, 0.2]]).tolist() == [0]
    assert DecisionRule("balanced", [0.2, 0.4, 0.4]).decide([[0.2, 0.4, 0.4]]).tolist() == [0]


@pytest.mark.parametrize("rule", BASES, ids=lambda rule: rule.base)
def test_sensitivity_does_not_fall_and_specificity_does_not_rise_with_the_weight(rule):
    truth, probabilities = draw(1)
    found = [
        decision_metrics(truth, replace(rule, weight=weight).decide(probabilities), CLASSES)
        for weight in np.geomspace(1, 1000, 60)
    ]
    sensitivity = [metrics["sensitivity"]["mel"] for metrics in found]
    specificity = [metrics["specificity"]["mel"] for metrics in found]
    assert (np.diff(sensitivity) >= 0).all() and sensitivity[-1] > sensitivity[0]
    assert (np.diff(specificity) <= 0).all() and specificity[-1] < specificity[0]


@pytest.mark.parametrize("rule", BASES, ids=lambda rule: rule.base)
@pytest.mark.parametrize("target", [0.01, 0.5, 0.7, 0.8, 0.93, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_weight_that_reaches_the_target_is_fitted(rule, target, seed):
    truth, probabilities = draw(seed)
    probabilities = np.maximum(probabilities, 0.001)

    def sensitivity(one: DecisionRule) -> float:
        return (one.decide(probabilities)[truth == 1] == 1).mean()

    fitted = fit_weight(rule, truth, probabilities, target)
    assert fitted.plain == rule and sensitivity(fitted) >= target
    if fitted.weight > 1:
        assert sensitivity(rule) < target
        assert sensitivity(replace(rule, weight=max(1, fitted.weight * 0.998))) < target
        assert fitted.weight == float(f"{fitted.weight:.4g}")
    else:
        assert fitted == rule and sensitivity(rule) >= target


def test_a_fit_begins_with_the_plain_rule():
    truth, probabilities = draw(2)
    first = fit_weight(BASES[1], truth, probabilities, 0.9)
    assert first.weight > 1
    assert fit_weight(first, truth, probabilities, 0.9) == first
    assert fit_weight(first, truth, probabilities, 0) == BASES[1]


def test_a_weight_is_in_the_name_and_the_words():
    rule = DecisionRule("balanced", PRIOR, 1, 2.13)
    assert rule.name == "balanced (melanoma x 2.13)" and rule.plain.name == "balanced"
    assert rule.in_words.endswith("melanoma times 2.13") and "2.13" not in rule.plain.in_words


def test_the_confidence_is_the_share_of_the_weighted_score():
    rule = DecisionRule("argmax", PRIOR, 1, 3.0)
    assert rule.confidence([[0.1, 0.15, 0.65, 0.1]]) == pytest.approx([0.65 / 1.3])
    assert rule.confidence([[0.1, 0.3, 0.5, 0.1]]) == pytest.approx([0.9 / 1.6])
    assert rule.decide([[0.1, 0.15, 0.65, 0.1], [0.1, 0.3, 0.5, 0.1]]).tolist() == [2, 1]


def test_a_rule_is_read_from_a_model_and_an_old_model_has_weight_1():
    model = {"classes": CLASSES, "prior": PRIOR, "rule": "balanced"}
    assert DecisionRule.of_model(model) == BASES[1]
    weighted = model | {"melanoma_weight": 2.5}
    assert DecisionRule.of_model(weighted) == replace(BASES[1], weight=2.5)
    assert DecisionRule.of_model(weighted, "balanced") == BASES[1]
    assert DecisionRule.of_model(model | {"melanoma": None}).melanoma is None


def none_possible() -> tuple[list[int], list[list[float]]]:
    return [1] * 4 + [2], [[0, p, 1 - p, 0] for p in (0.6, 0.4, 0.3, 0.0, 0.1)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DecisionRule("balance", [1, 1]).decide([[0.5, 0.5]]), "Did you mean 'balanced'"),
        (lambda: DecisionRule("balanced", [1, 1, 1]).decide([[0.5, 0.5]]), "2 shares"),
        (lambda: DecisionRule("balanced", [0, 0]).decide([[0.5, 0.5]]), "2 shares"),
        (lambda: DecisionRule("argmax", [1, 1]).decide([[np.nan, 0.5]]), "1 of 1 rows.*lower --lr"),
        (lambda: DecisionRule("argmax", [1, 1]).decide([[3.0, -2.0]]), "softmax"),
        (lambda: DecisionRule("argmax", [1, 1]).decide([0.5, 0.5]), r"shape \(2,\)"),
        (lambda: DecisionRule("argmax", [1, 1], 0, 0.5), "weight on melanoma is 0.5"),
        (lambda: DecisionRule("argmax", [1, 1], None, 2.0), "takes a class of melanoma"),
        (lambda: fit_weight(BASES[0], *none_possible(), 1.5), "between 0 and 1; found 1.5"),
        (lambda: fit_weight(BASES[0], *none_possible(), 0.8), "to 1 of them.* 0.75 or less"),
        (lambda: fit_weight(BASES[0], [2], [[0, 0, 1, 0]], 0.8), "no melanoma.*larger --val"),
        (
            lambda: fit_weight(DecisionRule("argmax"), [0], [[0.5, 0.5]], 0.8),
            "no class of melanoma.*with --melanoma",
        ),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(LesionfastError, match=message):
        call()
