"""Mixing and hard rows on a plain fastai Learner, by hand for one batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from torch.utils.data import TensorDataset

from lesionfast.training.callbacks.batches import DeferredWeights, HardNegatives, mixes


class Watch(Callback):
    """Keep inputs, targets, predictions and loss of every training step."""

    order = 90

    def __init__(self) -> None:
        self.steps = []

    def after_loss(self) -> None:
        if self.training:
            self.steps.append((self.xb, self.yb, self.pred.detach(), self.loss_grad.item()))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 + 2, 4)

    def forward(self, image, metadata):
        return self.layer(torch.cat([image.mean((2, 3)), metadata], dim=1))


@pytest.fixture
def learner():
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(8, 3, 10, 10), torch.rand(8, 2), torch.arange(8) % 4)
    loaders = [DataLoader(data, bs=8, num_workers=0) for _ in range(2)]
    for each in loaders:
        each.n_inp = 2
    dls = DataLoaders(*loaders, device=torch.device("cpu"))
    learn = Learner(dls, TwoInputs(), nn.CrossEntropyLoss(), lr=1e-3)
    learn.plain = data.tensors
    return learn


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_inputs_and_losses_are_mixed_with_one_share(learner, name):
    mix, watch = mixes[name](0.4, 7), Watch()
    learner.fit(1, cbs=[mix, watch])
    (image, metadata), (target,), predicted, loss = watch.steps[0]
    own, others = learner.plain, mix.others
    expected = mix.share * own[1] + (1 - mix.share) * own[1][others]
    if name == "mixup":
        torch.testing.assert_close(metadata, expected)
        torch.testing.assert_close(image, mix.share * own[0] + (1 - mix.share) * own[0][others])
    else:
        from_other = (image != own[0]).any(dim=1)  # (B, H, W), where the others differ
        pasted, origin = (each.movedim(1, -1)[from_other] for each in (image, own[0][others]))
        assert torch.equal(pasted, origin)
        moved = from_other[torch.tensor(others) != torch.arange(8)]
        assert moved.float().mean().item() == pytest.approx(1 - mix.share, abs=1e-6)
        torch.testing.assert_close(metadata, expected, atol=1e-5, rtol=0)
    both = [F.cross_entropy(predicted, each).item() for each in (target, target[others])]
    assert loss == pytest.approx(mix.share * both[0] + (1 - mix.share) * both[1], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in mixes if name != "none"])
def test_a_picture_that_is_not_mixed_keeps_its_own_label(learner, name, monkeypatch):
    """So the posteriors of unmixed pictures, which are all that is predicted, are not moved."""
    mix, watch = mixes[name](0.4, 7), Watch()
    monkeypatch.setattr(mix, "before_epoch", lambda: setattr(mix, "rng", Whole()))
    learner.fit(1, cbs=[mix, watch])
    (image, metadata), (target,), predicted, loss = watch.steps[0]
    for mixed, own in zip((image, metadata, target), learner.plain, strict=True):
        assert torch.equal(mixed, own)
    assert loss == pytest.approx(F.cross_entropy(predicted, target).item(), rel=1e-6)


class Whole:
    """Draws a share of 1 for the picture itself."""

    def beta(self, a, b):
        return 1.0

    def permutation(self, n):
        return np.arange(n)[::-1]

    def random(self, n):
        return np.full(n, 0.5)


def test_validation_is_not_mixed_and_the_seed_repeats_the_draws(learner):
    shares = []
    for seed in (1, 1, 2):
        mix = mixes["mixup"](0.4, seed)
        learner.fit(2, cbs=mix)
        shares.append(mix.share)
    assert shares[0] == shares[1] != shares[2]
    predicted, target = learner.get_preds()
    assert torch.equal(target, learner.plain[2])
    torch.testing.assert_close(predicted, learner.model(*learner.plain[:2]).detach())


def test_only_the_hardest_rows_count(learner):
    watch = Watch()
    learner.fit(1, cbs=[HardNegatives(0.25), watch])
    _, (target,), predicted, loss = watch.steps[0]
    each = F.cross_entropy(predicted, target, reduction="none")
    assert loss == pytest.approx(np.sort(each.numpy())[-2:].mean(), rel=1e-6)
    assert learner.loss_func.reduction == "mean"


def test_deferred_weights_come_on_in_the_last_epochs(learner):
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    learner.loss_func = nn.CrossEntropyLoss(weight)
    watch = Watch()
    learner.fit(4, cbs=[DeferredWeights(0.5, learner.loss_func), watch])
    for epoch, (_, (target,), predicted, loss) in enumerate(watch.steps):
        used = weight if epoch >= 2 else None
        assert loss == pytest.approx(F.cross_entropy(predicted, target, used).item(), rel=1e-6)
