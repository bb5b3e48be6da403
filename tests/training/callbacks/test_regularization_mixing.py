"""Mixing on a plain fastai Learner, computed by hand for one batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback

from lesionfast.training.callbacks.regularization import mixes


class Watch(Callback):
    """Keep inputs, targets, predictions and loss of every training step."""

    order = 90

    def __init__(self) -> None:
        self.steps = []

    def after_loss(self) -> None:
        if self.training:
            self.steps.append((self.xb, self.yb, self.pred.detach(), self.loss_grad.item()))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_inputs_and_losses_are_mixed_with_one_share(two_input_learner, name):
    mix, watch = mixes[name](0.4, 7), Watch()
    two_input_learner.fit(1, cbs=[mix, watch])
    (image, metadata), (target,), predicted, loss = watch.steps[0]
    own, others = two_input_learner.plain, mix.others
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
def test_a_picture_that_is_not_mixed_keeps_its_own_label(two_input_learner, name, monkeypatch):
    """So the posteriors of unmixed pictures, which are all that is predicted, are not moved."""
    mix, watch = mixes[name](0.4, 7), Watch()
    monkeypatch.setattr(mix, "before_epoch", lambda: setattr(mix, "rng", Whole()))
    two_input_learner.fit(1, cbs=[mix, watch])
    (image, metadata), (target,), predicted, loss = watch.steps[0]
    for mixed, own in zip((image, metadata, target), two_input_learner.plain, strict=True):
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


def test_validation_is_not_mixed_and_the_seed_repeats_the_draws(two_input_learner):
    shares = []
    for seed in (1, 1, 2):
        mix = mixes["mixup"](0.4, seed)
        two_input_learner.fit(2, cbs=mix)
        shares.append(mix.share)
    assert shares[0] == shares[1] != shares[2]
    predicted, target = two_input_learner.get_preds()
    assert torch.equal(target, two_input_learner.plain[2])
    torch.testing.assert_close(
        predicted, two_input_learner.model(*two_input_learner.plain[:2]).detach()
    )
