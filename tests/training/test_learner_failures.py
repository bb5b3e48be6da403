"""Whatever a fit, a validation or a prediction dies of, the Learner and the process are whole."""

import signal
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from fastai.callback import mixup
from fastai.callback.core import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CancelValidException,
    event,
)
from fastai.learner import load_learner

from lesionfast.config import TrainConfig
from lesionfast.data.augment import augmentations
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.training.callbacks.cached_features import CachedFeatures
from lesionfast.training.callbacks.progress import EpochBar, EpochLines, StopOnInterrupt
from lesionfast.training.callbacks.regularization import EMA, MixUp
from lesionfast.training.callbacks.schedule import (
    OneCycle,
    ProgressiveResizing,
    ProgressiveUnfreezing,
)
from lesionfast.training.callbacks.tracking import (
    Checkpoint,
    EarlyStopping,
    KeepBest,
    StopOnNaN,
    WriteHistory,
)
from lesionfast.training.learner import HalfPrecision, lesion_learner
from lesionfast.training.objective import OHEM, ApplyObjective

TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    batch_size=32,
    augment="rotate",
    balance="weights",
    defer_weights=0.9,
    precision="bfloat16",
)
EVENTS = [
    name
    for name in vars(event)
    if name.startswith(("before_", "after_")) and "cancel" not in name and name != "after_create"
]


class Raiser(Callback):
    """Raises at the first call of one event, in training or in validation, and at no later one."""

    def __init__(self, when, error, training=None, order=0):
        self.when, self.error, self.wanted, self.order = when, error, training, order

    def __call__(self, event_name):
        fits = self.wanted is None or self.wanted == getattr(self, "training", None)
        if event_name == self.when and fits and self.error is not None:
            error, self.error = self.error, None
            raise error


class Broken(Callback):
    """Gives the model what is no picture, so that it raises in the middle of a forward pass."""

    order = 200

    def __init__(self, training):
        self.wanted = training

    def before_batch(self):
        if self.training == self.wanted:
            self.learn.xb = (self.xb[0].flatten(1), *self.xb[1:])


@pytest.fixture(scope="module")
def dls():
    df = load_dataset(TINY)
    few = df.groupby(["split", "target"]).head(8).reset_index(drop=True)
    return LesionDataLoaders.from_df(few, TINY)


@pytest.fixture
def learn(dls, tmp_path):
    learn = lesion_learner(dls, config=TINY)
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        yield learn


def every_callback(learn, folder):
    """All callbacks of a training that can go together, in one fit."""
    loss = learn.loss_func
    return [
        ProgressiveUnfreezing("two-step", 1),
        OneCycle(1e-3),
        StopOnNaN(),
        WriteHistory(folder / "history.csv"),
        Checkpoint(folder / "last.safetensors"),
        EpochBar(),
        StopOnInterrupt(),
        KeepBest("valid_loss", folder / "weights.safetensors"),
        EpochLines(),
        EMA(0.9),
        CachedFeatures(augmentations["rotate"](), 1, 0),
        ProgressiveResizing(32),
        EarlyStopping("valid_loss", 5),
        OHEM(0.5),
        ApplyObjective(loss, loss, (learn.prior, learn.prior)),
    ]


def state_of(learn):
    """What a fit may change for a while, and must give back."""
    return {
        "model": id(learn.model),
        "loss": id(learn.loss_func),
        "weights of classes": id(learn.loss_func.weight),
        "loaders": id(learn.dls),
        "resumed maps": learn.model.backbone.resume,
        "learns": [each.requires_grad for each in learn.model.parameters()],
        "SIGINT": signal.getsignal(signal.SIGINT),
        "inference mode": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "callbacks": [type(each) for each in learn.cbs],
    }


def assert_whole(learn, before):
    """The learner is as before, and fits, predicts and exports."""
    assert state_of(learn) == before
    learn.fit(1)
    assert torch.isfinite(torch.tensor(learn.recorder.values[-1])).all()
    assert learn.recorder.values[-1][0] > 0  # it did train
    probabilities = learn.predict(learn.dls.rows.iloc[0])[2]
    learn.export()
    again = load_learner(learn.path / "export.pkl").predict(learn.dls.rows.iloc[0])[2]
    torch.testing.assert_close(again, probabilities)


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("name", EVENTS)
def test_an_error_in_any_event_leaves_a_learner_that_fits_again(learn, tmp_path, name, training):
    if name == "before_validate" and training:
        pytest.skip("there is no such event in training")
    before = state_of(learn)
    inner = name.endswith(("batch", "pred", "loss", "backward", "step"))
    wanted = training if inner else None
    if inner and not training and name.endswith(("backward", "step")):
        pytest.skip("there is no such event in validation")
    raiser = Raiser(name, KeyboardInterrupt("here"), wanted, order=54.5 if training else 200)
    with pytest.raises(KeyboardInterrupt, match="here"):
        learn.fit(3, cbs=[*every_callback(learn, tmp_path), raiser])
    assert_whole(learn, before)


@pytest.mark.parametrize("index", range(15))
def test_an_error_in_the_last_event_of_any_callback_leaves_a_learner_that_fits_again(
    learn, tmp_path, index, monkeypatch
):
    cbs = every_callback(learn, tmp_path)
    assert len(cbs) == 15
    handled = [each for each in EVENTS if hasattr(type(cbs[index]), each)]
    before = state_of(learn)

    def fail():
        raise RuntimeError("here")

    monkeypatch.setattr(cbs[index], handled[-1], fail)
    with pytest.raises(RuntimeError, match="here"):
        learn.fit(3, cbs=cbs)
    assert_whole(learn, before)


@pytest.mark.parametrize(
    "error",
    [
        CancelBatchException,
        CancelTrainException,
        CancelValidException,
        CancelEpochException,
        CancelFitException,
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_a_cancelled_part_leaves_a_learner_that_fits_again(learn, tmp_path, error, training):
    if error is (CancelValidException if training else CancelTrainException):
        pytest.skip("fastai catches that in the other part alone")
    before = state_of(learn)
    cbs = [ProgressiveUnfreezing("two-step", 1), OneCycle(1e-3), StopOnInterrupt()]
    cbs += [EMA(0.9), CachedFeatures(augmentations["rotate"](), 1, 0)]
    learn.fit(2, cbs=[*cbs, Raiser("after_pred", error(), training, order=200)])
    assert_whole(learn, before)


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_a_model_that_raises_leaves_a_learner_that_fits_again(learn, training):
    before = state_of(learn)
    with pytest.raises(RuntimeError):
        learn.fit(1, cbs=[MixUp(0.4), Broken(training)])
    assert_whole(learn, before)


@pytest.mark.parametrize("mix", [mixup.MixUp, mixup.CutMix])
@pytest.mark.parametrize("name", ["before_train", "after_pred", "after_loss", "after_train"])
def test_an_error_within_the_mixing_of_fastai_leaves_a_learner_that_fits_again(learn, mix, name):
    before = state_of(learn)
    with pytest.raises(RuntimeError, match="here"):
        learn.fit(1, cbs=[mix(), Raiser(name, RuntimeError("here"), True, order=200)])
    assert_whole(learn, before)


@pytest.mark.parametrize("name", [e for e in EVENTS if "backward" not in e and "step" not in e])
def test_an_error_in_any_event_of_a_validation_leaves_a_learner_that_fits_again(learn, name):
    before = state_of(learn)
    for run in (learn.validate, learn.get_preds, learn.tta):
        raiser = Raiser(name, RuntimeError("here"), order=200)
        with suppress(RuntimeError), learn.added_cbs(raiser):
            run()
        assert state_of(learn) == before
    assert_whole(learn, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, CancelFitException])
def test_after_an_interrupted_prediction_a_notebook_goes_on(learn, error):
    before = state_of(learn)
    expected = learn.get_preds()[0]
    for when in ("after_pred", "before_batch", "after_batch"):
        with pytest.raises(error):
            learn.get_preds(cbs=Raiser(when, error("here"), order=200))
        assert state_of(learn) == before
    assert torch.equal(learn.get_preds()[0], expected)
    assert_whole(learn, before)


def test_an_export_that_fails_leaves_the_data(learn):
    dls = learn.dls
    with pytest.raises(RuntimeError, match="no/such/folder"):
        learn.export("no/such/folder/model.pkl")
    assert learn.dls is dls
    assert_whole(learn, state_of(learn))


def test_the_lr_finder_gives_weights_and_folder_back_after_an_error(learn):
    from lesionfast.training.learner import find_lr

    before, path = state_of(learn), learn.path
    weights = {name: each.clone() for name, each in learn.model.state_dict().items()}
    learn.add_cb(Raiser("after_backward", KeyboardInterrupt("here"), order=200))
    with pytest.raises(KeyboardInterrupt):
        find_lr(learn, freeze=True)
    learn.remove_cb(learn.raiser)
    assert learn.path == path
    for name, value in learn.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert_whole(learn, before)


def test_float16_switches_autocast_off_after_an_error(dls, tmp_path):
    learn = lesion_learner(dls, config=replace(TINY, precision="float32"))
    half = HalfPrecision()
    learn.add_cb(half)
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError):
        learn.fit(1, cbs=[Broken(True)])
    assert not half.inside
    assert torch.is_autocast_enabled("cuda") is False
