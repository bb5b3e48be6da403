from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from torch.utils.data import TensorDataset

from lesionfast.training.callbacks.inference import (
    Autocast,
    ChannelsLast,
    FastInference,
    InferenceMode,
    PlainTensors,
    Turned,
)
from lesionfast.training.callbacks.schedule import (
    FrozenEval,
    OneCycle,
    ProgressiveResizing,
    ProgressiveUnfreezing,
    SeedEpochs,
)
from lesionfast.training.callbacks.tracking import WeightAverage


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

    for how, anew in (("fresh", True), ("two-step", False)):
        begun = Begun()
        cbs = [WeightAverage(0.9)] if average else []
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


def test_only_validation_and_prediction_run_in_inference_mode(plain_learner):
    class Modes(Callback):
        def before_fit(self):
            self.found = {True: set(), False: set()}

        def after_pred(self):
            self.found[self.training].add(torch.is_inference_mode_enabled())

    modes = Modes()
    fit(plain_learner, 1, InferenceMode(), modes)
    assert modes.found == {True: {False}, False: {True}}
    assert not torch.is_inference_mode_enabled()


def test_autocast_computes_in_bfloat16_and_gives_back_float32(plain_learner):
    inside, outside = [], []
    plain_learner.model[2].register_forward_hook(lambda m, x, y: inside.append(y.dtype))
    plain_learner.loss_func = lambda pred, y: (
        outside.append(pred.dtype) or torch.nn.functional.cross_entropy(pred, y)
    )
    fit(plain_learner, 1, Autocast(torch.device("cpu")))
    assert set(inside) == {torch.bfloat16} and set(outside) == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("event", ["before_fit", "before_validate"])
def test_convolutions_become_channels_last(event, plain_learner):
    plain_learner.model = torch.nn.Conv2d(3, 4, 3)
    callback = ChannelsLast()
    callback.learn = plain_learner
    getattr(callback, event)()
    assert plain_learner.model.weight.is_contiguous(memory_format=torch.channels_last)


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


def test_a_turned_prediction_is_that_of_the_turned_picture(picture_learner):
    pictures = picture_learner.dls.valid_ds.tensors[0]
    expected = picture_learner.model.eval()(pictures.rot90(1, (2, 3)).flip(3))
    with picture_learner.no_bar():
        found, _ = picture_learner.get_preds(cbs=Turned(5), act=lambda each: each)
    torch.testing.assert_close(found, expected.detach())


@pytest.fixture
def picture_learner(tmp_path):
    """A plain Learner over 24 pictures of 96 pixels, that tells where they are bright."""
    torch.manual_seed(0)
    dataset = TensorDataset(torch.rand(24, 3, 96, 96), torch.arange(24) % 2)
    train = DataLoader(dataset, bs=8, shuffle=True, drop_last=True, num_workers=0)
    valid = DataLoader(dataset, bs=8, num_workers=0)
    body = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(3)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(36, 2))
    dls = DataLoaders(train, valid, device=torch.device("cpu"))
    return Learner(dls, model, CrossEntropyLossFlat(), lr=1e-3, path=tmp_path)


def test_the_head_alone_learns_at_its_own_rate(plain_learner):
    one_cycle = OneCycle([1e-4, 1e-3, 1e-2], head_lr=0.05)
    spy = fit(plain_learner, 4, ProgressiveUnfreezing("two-step"), one_cycle)
    steps = len(plain_learner.dls.train)
    head = [rates[-1] for rates in spy.rates]
    assert max(head[:steps]) == pytest.approx(0.05, rel=0.05)
    assert max(head[steps:]) == pytest.approx(0.01, rel=0.05)
    assert max(rates[0] for rates in spy.rates[steps:]) == pytest.approx(1e-4, rel=0.05)


class NoteModel(Callback):
    """Notes which model each batch is given to."""

    order = 60

    def before_fit(self):
        self.training_models, self.validation_models = set(), set()

    def before_batch(self):
        (self.training_models if self.training else self.validation_models).add(self.model)


def test_validation_runs_on_a_folded_copy_and_training_on_the_model(picture_learner):
    own, seen = picture_learner.model, NoteModel()
    with picture_learner.no_bar(), picture_learner.no_logging():
        picture_learner.fit(1, 1e-3, cbs=[FastInference(), seen])
        plain = picture_learner.get_preds()[0]
        faster = picture_learner.get_preds(cbs=FastInference())[0]
    assert picture_learner.model is own
    assert seen.training_models == {own}
    assert len(seen.validation_models) == 1
    assert seen.validation_models != seen.training_models
    torch.testing.assert_close(faster, plain, rtol=0, atol=1e-5)


def test_the_model_is_back_after_a_broken_validation(picture_learner):
    class Broken(Callback):
        order = 70

        def before_batch(self):
            raise RuntimeError("broken")

    own = picture_learner.model
    picture_learner.add_cbs([FastInference(), Broken()])
    with picture_learner.no_bar(), pytest.raises(RuntimeError, match="broken"):
        picture_learner.validate()
    assert picture_learner.model is own


def test_one_copy_serves_all_views_of_the_same_weights(picture_learner):
    fast, seen = FastInference(), NoteModel()
    picture_learner.add_cb(fast)
    with picture_learner.no_bar(), picture_learner.no_logging():
        apart = [picture_learner.get_preds(cbs=Turned(view))[0] for view in range(3)]
        seen.validation_models = set()
        with fast.same_weights():
            found = [picture_learner.get_preds(cbs=[Turned(view), seen])[0] for view in range(3)]
            assert len(seen.validation_models) == 1
        for parameter in picture_learner.model.parameters():
            torch.nn.init.zeros_(parameter)
        zeroed = picture_learner.get_preds()[0]
    assert all(map(torch.equal, found, apart))
    assert not torch.equal(zeroed, found[0])  # a copy of earlier weights is not kept
