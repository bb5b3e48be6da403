import pytest
import torch
import torch.nn.functional as F

from lesionfast.training.losses import losses


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 7, generator=generator, dtype=torch.float64)
    return logits, torch.arange(32) % 7, torch.rand(7, generator=generator) + 0.1


def test_cross_entropy_is_pytorchs(batch):
    logits, target, weight = batch
    loss = losses["cross_entropy"](weight, 0.1)(logits, target)
    reference = F.cross_entropy(logits.float(), target, weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(loss, reference)


def test_focal_is_equation_5_with_weights_after_focusing(batch):
    logits, target, weight = batch
    p = logits.softmax(1)[torch.arange(32), target]
    reference = (weight[target] * -((1 - p) ** 2) * p.log()).sum() / weight[target].sum()
    torch.testing.assert_close(losses["focal"](weight)(logits, target).double(), reference)


def test_focal_without_focusing_would_be_cross_entropy(batch):
    logits, target, weight = batch
    loss = losses["focal"](weight)
    loss.gamma = 0.0
    torch.testing.assert_close(
        loss(logits, target), losses["cross_entropy"](weight)(logits, target)
    )


@pytest.mark.parametrize("name", list(losses))
def test_every_loss_can_be_left_unreduced(name, batch):
    logits, target, _ = batch
    loss = losses[name]()
    loss.reduction = "none"
    each = loss(logits, target)
    assert each.shape == (32,)
    loss.reduction = "mean"
    torch.testing.assert_close(loss(logits, target), each.mean())
