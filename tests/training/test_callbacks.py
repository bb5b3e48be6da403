import numpy as np
import pytest
import torch
from fastai.callback.core import Callback

from lesionfast.training.callbacks import (
    Autocast,
    ChannelsLast,
    FrozenEval,
    OneCycle,
    PlainTensors,
    ProgressiveUnfreezing,
    SeedEpochs,
)


class Spy(Callback):
    """Notes what learns and at which rate, at every training step."""

    order, run_valid = 100, False

    def __init__(self):
        self.learning, self.rates, self.norms = [], [], []

    def before_batch(self):
        groups = self.opt.param_lists
        self.learning.append([all(p.requires_grad for p in group) for group in groups])
        self.rates.append([h["lr"] for h in self.opt.hypers])
        self.norms.append([m.training for m in self.model.modules() if hasattr(m, "running_mean")])


def fit(learn, epochs, *cbs):
    spy = Spy()
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, cbs=[*cbs, spy])
    return spy


def test_unfreezing_thaws_from_the_head_on_a_plain_learner(plain_learner):
    spy = fit(plain_learner, 6, ProgressiveUnfreezing(), OneCycle())
    by_epoch = [spy.learning[i] for i in range(0, len(spy.learning), 6)]
    assert by_epoch == [
        [False, False, True],
        [False, True, True],
        *[[True, True, True]] * 4,
    ]


def test_frozen_weights_stay_and_thawed_ones_move(plain_learner):
    before = [p.detach().clone() for p in plain_learner.model.parameters()]
    fit(plain_learner, 2, ProgressiveUnfreezing("last:1"), OneCycle())
    moved = [
        not torch.equal(a, b) for a, b in zip(before, plain_learner.model.parameters(), strict=True)
    ]
    assert moved == [False] * 4 + [True] * 6


def test_one_cycle_rises_and_falls_once_in_each_phase(plain_learner):
    spy = fit(plain_learner, 4, ProgressiveUnfreezing("two-step"), OneCycle([1e-4, 1e-3, 1e-2]))
    head = np.array([rates[-1] for rates in spy.rates])
    for phase in (head[:6], head[6:]):
        peak = phase.argmax()
        assert (np.diff(phase[: peak + 1]) > 0).all() and (np.diff(phase[peak:]) < 0).all()
        assert 0 < peak < len(phase) - 1 and phase[peak] > 0.9e-2
    np.testing.assert_allclose([r[0] / r[2] for r in spy.rates], 1e-2, rtol=1e-6)


def test_one_cycle_alone_is_fastais_own_curve(plain_learner):
    import fastai.callback.schedule  # noqa: F401  gives Learner its fit_one_cycle

    ours = fit(plain_learner, 3, OneCycle(1e-2, div_final=1e5))
    plain_learner.opt = None
    spy = Spy()
    with plain_learner.no_bar(), plain_learner.no_logging():
        plain_learner.fit_one_cycle(3, 1e-2, cbs=[spy])
    np.testing.assert_allclose(ours.rates, spy.rates, rtol=1e-4)


def test_frozen_batch_norm_keeps_its_statistics(plain_learner):
    norms = [m for m in plain_learner.model.modules() if hasattr(m, "running_mean")]
    before = [norm.running_mean.clone() for norm in norms]
    spy = fit(plain_learner, 2, ProgressiveUnfreezing("last:1"), FrozenEval())
    assert spy.norms[0] == [False, False] and spy.norms[-1] == [False, True]
    assert torch.equal(norms[0].running_mean, before[0])
    assert not torch.equal(norms[1].running_mean, before[1])


def test_without_the_callback_frozen_statistics_drift(plain_learner):
    norm = plain_learner.model[0][1]
    before = norm.running_mean.clone()
    fit(plain_learner, 1, ProgressiveUnfreezing("two-step"))
    assert not torch.equal(norm.running_mean, before)


def test_the_seed_decides_order_and_dropout(plain_learner):
    state = {k: v.clone() for k, v in plain_learner.model.state_dict().items()}
    ends = []
    for seed in (1, 1, 2):
        plain_learner.model.load_state_dict(state)
        plain_learner.opt = None
        plain_learner.dls.train.reseed = lambda s: setattr(
            plain_learner.dls.train, "rng", __import__("random").Random(s)
        )
        fit(plain_learner, 2, SeedEpochs(seed))
        ends.append(plain_learner.model[2].weight.detach().clone())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_plain_tensors_reach_the_model(plain_learner):
    kinds = []
    plain_learner.model.register_forward_pre_hook(lambda m, x: kinds.append(type(x[0])))
    fit(plain_learner, 1, PlainTensors())
    assert set(kinds) == {torch.Tensor}


def test_autocast_computes_in_bfloat16_and_gives_back_float32(plain_learner):
    inside, outside = [], []
    plain_learner.model[2].register_forward_hook(lambda m, x, y: inside.append(y.dtype))
    plain_learner.loss_func = lambda pred, y: (
        outside.append(pred.dtype) or torch.nn.functional.cross_entropy(pred, y)
    )
    fit(plain_learner, 1, Autocast("cpu"))
    assert set(inside) == {torch.bfloat16} and set(outside) == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("event", ["before_fit", "before_validate"])
def test_convolutions_become_channels_last(event, plain_learner):
    plain_learner.model = torch.nn.Conv2d(3, 4, 3)
    callback = ChannelsLast()
    callback.learn = plain_learner
    getattr(callback, event)()
    assert plain_learner.model.weight.is_contiguous(memory_format=torch.channels_last)
