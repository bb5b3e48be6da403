from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from lesionfast.errors import LesionfastError
from lesionfast.training.callbacks.regularization import EMA
from lesionfast.training.callbacks.schedule import (
    FrozenEval,
    OneCycle,
    ProgressiveResizing,
    ProgressiveUnfreezing,
    SeedEpochs,
    discriminative_lrs,
    plan_phases,
)


@pytest.mark.parametrize("how", ["fresh", "fresh:2", "gradual", "two-step", "last:2", "none"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("n_groups", [3, 6])
def test_phases_cover_every_epoch_once_and_only_thaw(how, epochs, n_groups):
    phases = plan_phases(how, n_groups, epochs)
    covered = [epoch for phase in phases for epoch in range(phase.first, phase.end)]
    assert covered == list(range(epochs))
    groups = [phase.groups for phase in phases]
    assert groups == sorted(set(groups))
    assert groups[-1] == (3 if how.endswith(":2") else n_groups)


def test_gradual_thaws_one_stage_an_epoch_and_gives_half_to_all():
    phases = plan_phases("gradual", 6, 6)
    assert [(p.groups, p.epochs) for p in phases] == [(1, 1), (2, 1), (3, 1), (6, 3)]
    assert [p.name for p in phases] == [
        "head",
        "head + last 1 stage",
        "head + last 2 stages",
        "all",
    ]


def test_two_step_is_head_then_all():
    assert [(p.groups, p.epochs) for p in plan_phases("two-step", 6, 5)] == [(1, 1), (6, 4)]


@pytest.mark.parametrize("how", ["gradul", "last:0", "fresh:6", "last:x", ""])
def test_wrong_unfreeze_says_what_to_type(how):
    with pytest.raises(LesionfastError, match=r"two-step, last:N, head, none.*from 1 to 5"):
        plan_phases(how, 6, 4)


def test_discriminative_rates_fall_towards_the_stem():
    assert discriminative_lrs(1e-2, 0.5, 3) == [2.5e-3, 5e-3, 1e-2]


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


@pytest.mark.parametrize("average", [False, True])
def test_a_fresh_head_starts_anew_when_the_backbone_learns(plain_learner, average):
    class Begun(Callback):
        def before_fit(self):
            self.heads = [self.head()]

        def before_batch(self):
            if self.training and self.iter == 0:
                self.heads.append(self.head())

        def head(self):
            return self.model[-1].weight.detach().clone()

    for how, anew in (("fresh", True), ("fresh:1", True), ("two-step", False)):
        begun = Begun()
        cbs = [EMA(0.9)] if average else []
        fit(plain_learner, 4, ProgressiveUnfreezing(how, 2), OneCycle(1e-2), begun, *cbs)
        first, _, second, third, fourth = begun.heads
        assert not torch.equal(second, first) and not torch.equal(fourth, first)
        assert torch.equal(third, first) == anew


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

    cycle = OneCycle(1e-2)
    cycle.div_final = 1e5
    ours = fit(plain_learner, 3, cycle)
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


class Sides(Callback):
    """Note the sides of the pictures that the model sees."""

    order = 90

    def before_batch(self):
        self.seen = [*getattr(self, "seen", []), (self.training, self.xb[0].shape[-1])]


def test_pictures_grow_to_their_full_size_and_validation_is_never_small(picture_learner):
    sides = Sides()
    fit(picture_learner, 4, ProgressiveResizing(32), sides)
    trained = [side for training, side in sides.seen if training]
    assert trained == sorted(trained) and trained[0] == 32 and trained[-1] == 96
    assert 64 in trained and {side for training, side in sides.seen if not training} == {96}


@pytest.mark.parametrize("size", [80, 96, 100, 144, 208])
@pytest.mark.parametrize("start", [32, 48, 64])
def test_pictures_reach_their_full_size_whatever_it_is(start, size):
    growing = ProgressiveResizing(start)
    sides = [growing.side(size, step / 100) for step in range(100)]
    assert sides[0] == start and sides == sorted(sides)
    assert set(sides[60:]) == {size}


def test_feature_maps_are_no_pictures_that_could_grow(picture_learner):
    picture_learner.model.__dict__["backbone"] = SimpleNamespace(resume=nn.Identity())
    sides = Sides()
    fit(picture_learner, 1, ProgressiveResizing(32), sides)
    assert {side for _, side in sides.seen} == {96}


def test_the_head_alone_learns_at_its_own_rate(plain_learner):
    one_cycle = OneCycle([1e-4, 1e-3, 1e-2], head_lr=0.05)
    spy = fit(plain_learner, 4, ProgressiveUnfreezing("two-step"), one_cycle)
    steps = len(plain_learner.dls.train)
    head = [rates[-1] for rates in spy.rates]
    assert max(head[:steps]) == pytest.approx(0.05, rel=0.05)
    assert max(head[steps:]) == pytest.approx(0.01, rel=0.05)
    assert max(rates[0] for rates in spy.rates[steps:]) == pytest.approx(1e-4, rel=0.05)
