"""Each loss against its formula in NumPy, float64, and against PyTorch where PyTorch has it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax

from lesionfast.training.losses import losses

N, K = 32, 7
RNG = np.random.default_rng(0)
LOGITS, TARGET = RNG.normal(size=(N, K)), np.arange(N) % K
WEIGHT = RNG.random(K) + 0.1
COUNTS = np.array([230, 360, 770, 80, 780, 4693, 99])
PRIOR = COUNTS / COUNTS.sum()
COSTS = np.zeros((K, K))
COSTS[4, 5], COSTS[1, 0] = 4, 2
GIVEN = {"prior": PRIOR, "counts": COUNTS, "costs": COSTS}
EVERY = np.arange(N)


def log_p(logits=LOGITS):
    return log_softmax(logits, axis=1)


def focal():
    p = np.exp(log_p()[EVERY, TARGET])
    return -((1 - p) ** 2) * np.log(p)


def asymmetric():
    p = np.exp(log_p())
    cost = [sum(COSTS[t, j] * p[i, j] for j in range(K)) for i, t in enumerate(TARGET)]
    return np.array(cost) - log_p()[EVERY, TARGET]


def ldam():
    margins = 0.5 * (COUNTS**-0.25) / (COUNTS.min() ** -0.25)
    moved = LOGITS.copy()
    for i, t in enumerate(TARGET):
        moved[i, t] -= margins[t]
    return -log_p(moved)[EVERY, TARGET]


REFERENCES = {
    "cross_entropy": lambda: -log_p()[EVERY, TARGET],
    "focal": focal,
    "asymmetric": asymmetric,
    "logit_adjusted": lambda: -log_p(LOGITS + np.log(PRIOR))[EVERY, TARGET],
    "balanced_softmax": lambda: (
        -np.log(
            COUNTS[TARGET] * np.exp(LOGITS[EVERY, TARGET]) / (COUNTS * np.exp(LOGITS)).sum(axis=1)
        )
    ),
    "ldam": ldam,
}


def tensors(dtype=torch.float64):
    return torch.tensor(LOGITS, dtype=dtype), torch.tensor(TARGET)


def test_every_loss_has_a_reference():
    assert set(REFERENCES) == set(losses)


@pytest.mark.parametrize("name", REFERENCES)
def test_each_is_its_formula_with_and_without_weights(name):
    each = REFERENCES[name]()
    loss = losses[name](**GIVEN)
    assert float(loss(*tensors())) == pytest.approx(each.mean(), rel=1e-6)
    weighted = losses[name](torch.tensor(WEIGHT), **GIVEN)
    w = WEIGHT[TARGET]
    assert float(weighted(*tensors())) == pytest.approx((w * each).sum() / w.sum(), rel=1e-6)
    weighted.reduction = "none"
    np.testing.assert_allclose(weighted(*tensors()).numpy(), w * each, rtol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_half_precision_is_computed_in_float32(name):
    loss = losses[name](**GIVEN)
    logits, target = tensors(torch.bfloat16)
    assert loss(logits, target).dtype == torch.float32
    torch.testing.assert_close(loss(logits, target), loss(logits.float(), target))


@pytest.mark.parametrize("name", REFERENCES)
def test_extreme_logits_have_finite_gradients(name):
    logits = torch.tensor(LOGITS).mul(1000).clamp(-100, 100).requires_grad_()
    losses[name](**GIVEN)(logits, torch.tensor(TARGET)).backward()
    assert logits.grad.isfinite().all()


def test_cross_entropy_is_pytorchs():
    logits, target = tensors()
    loss = losses["cross_entropy"](torch.tensor(WEIGHT), label_smoothing=0.1)(logits, target)
    theirs = F.cross_entropy(logits, target, torch.tensor(WEIGHT), label_smoothing=0.1)
    torch.testing.assert_close(loss, theirs)


def test_the_prior_that_is_left_for_the_decision():
    np.testing.assert_allclose(losses["cross_entropy"]().rule_prior(PRIOR), PRIOR)
    full = losses["logit_adjusted"](**GIVEN)
    np.testing.assert_allclose(full.rule_prior(PRIOR), 1 / K)
    half = losses["logit_adjusted"](**GIVEN, tau=0.5)
    np.testing.assert_allclose(half.rule_prior(PRIOR), PRIOR**0.5 / (PRIOR**0.5).sum())
    assert losses["balanced_softmax"](**GIVEN, tau=0.5).tau == 1


def test_the_largest_margin_is_a_half_and_of_the_rarest():
    margins = losses["ldam"](**GIVEN).offset.numpy()
    assert margins.max() == pytest.approx(0.5) and margins.argmax() == COUNTS.argmin()
