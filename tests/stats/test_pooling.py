"""Opinion pools: means, priors, and the weights that fit best."""

import numpy as np
import pytest

from lesionfast.stats.metrics import decide, losses
from lesionfast.stats.pooling import average, best_weights, common_prior, move_prior


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_fitted_weights_are_the_best_on_the_simplex(mean):
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 400, p=[0.2, 0.3, 0.5])
    logits = rng.normal(size=(3, 400, 3))
    logits[np.arange(3)[:, None], np.arange(400), truth] += np.array([[1.0], [1.2], [0.1]])
    votes = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    prior = np.bincount(truth) / 400
    weights = best_weights(votes, truth, prior, mean)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()

    def loss(each):
        return losses(truth, average(votes, each, mean)).mean()

    grid = [
        (a, b, 1 - a - b) for a in np.arange(0, 1.01, 0.05) for b in np.arange(0, 1.01 - a, 0.05)
    ]
    assert loss(weights) <= min(map(loss, np.clip(grid, 0, 1))) + 1e-9
    assert weights[:2].min() > weights[2]


def test_a_moved_prior_keeps_the_balanced_decision_and_comes_back():
    rng = np.random.default_rng(0)
    probabilities, before, after = rng.dirichlet([1, 1, 1], 50), [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]
    moved = move_prior(probabilities, before, after)
    np.testing.assert_allclose(moved.sum(axis=1), 1)
    np.testing.assert_array_equal(
        decide(moved, "balanced", after), decide(probabilities, "balanced", before)
    )
    np.testing.assert_allclose(move_prior(moved, after, before), probabilities)
    assert move_prior(probabilities, before, before) is probabilities


def test_a_class_that_a_prior_lacks_gets_no_probability():
    moved = move_prior(np.array([[0.5, 0.5, 0.0]]), [0.5, 0.5, 0.0], [1 / 3] * 3)
    np.testing.assert_allclose(moved, [[0.5, 0.5, 0.0]])


def test_the_common_prior_is_that_of_all_or_uniform():
    assert common_prior([[0.9, 0.1], [0.9, 0.1]])[1]
    prior, shared = common_prior([[0.9, 0.1], [0.8, 0.2]])
    assert not shared and prior.tolist() == [0.5, 0.5]
