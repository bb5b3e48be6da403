"""Opinion pools: means, priors, and the weights that fit best."""

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

from lesionfast.stats.metrics import losses
from lesionfast.stats.pooling import average, best_weights, common_prior


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


@pytest.mark.parametrize("better", [True, False])
def test_a_search_that_ends_early_gives_no_worse_than_equal_weights(monkeypatch, caplog, better):
    truth = np.array([0, 1] * 20)
    votes = np.stack([np.where(np.eye(2)[truth] > 0, sure, 1 - sure) for sure in (0.9, 0.6)])
    last = np.array([0.8, 0.2] if better else [0.2, 0.8])
    ended = OptimizeResult(x=last, success=False, message="Positive directional derivative")
    monkeypatch.setattr("scipy.optimize.minimize", lambda *given, **options: ended)
    weights = best_weights(votes, truth, np.array([0.5, 0.5]), "arithmetic")
    np.testing.assert_allclose(weights, last if better else [0.5, 0.5])
    assert ("all models count the same" in caplog.text) is not better


def test_the_common_prior_is_that_of_all_or_uniform():
    assert common_prior([[0.9, 0.1], [0.9, 0.1]])[1]
    prior, shared = common_prior([[0.9, 0.1], [0.8, 0.2]])
    assert not shared and prior.tolist() == [0.5, 0.5]
