"""A training on another device than the CPU, as far as that can be followed without one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.training.callbacks.inference import Borrowing
from lesionfast.training.callbacks.regularization import EMA
from lesionfast.training.callbacks.schedule import ProgressiveUnfreezing
from lesionfast.training.learner import lesion_learner
from lesionfast.training.losses import losses

ELSEWHERE = torch.device("meta")  # it holds no numbers, but refuses those of the CPU beside its own
TINY = TrainConfig(
    arch="test_resnet", weights="none", size=32, balance="weights", defer_weights=0.5
)
EPOCHS = 4


@pytest.fixture(scope="module")
def dls():
    df = load_dataset(TINY)
    dls = LesionDataLoaders.from_df(
        df.groupby(["split", "target"]).head(4).reset_index(drop=True), TINY
    )
    dls.device = ELSEWHERE
    return dls


@pytest.fixture
def learner(dls):
    made = []

    def make(**changes):
        made.append(lesion_learner(dls, config=replace(TINY, **changes)))
        return made[-1]

    yield make
    for learn in made:
        for cb in learn.cbs:
            if isinstance(cb, Borrowing):
                cb.clean_up()


def call(learn, event):
    """Call an event of all callbacks in their order, but those of fastai that need numbers."""
    for cb in sorted(learn.cbs, key=lambda each: each.order):
        if type(cb).__module__.startswith("lesionfast") or event == "before_fit":
            getattr(cb, event, lambda: None)()


def kept_by(owner):
    """Every tensor that an object or a module keeps, in lists and dicts as well."""
    if isinstance(owner, Tensor):
        yield owner
    elif isinstance(owner, nn.Module):
        yield from (*owner.parameters(), *owner.buffers())
    elif isinstance(owner, dict):
        yield from (each for value in owner.values() for each in kept_by(value))
    elif isinstance(owner, list | tuple):
        yield from (each for value in owner for each in kept_by(value))


def step(learn):
    """Return the loss of two rows, which fails if the loss keeps anything on another device."""
    logits = torch.zeros(2, len(learn.dls.vocab), device=ELSEWHERE)
    return learn.loss_func(logits, torch.zeros(2, dtype=torch.long, device=ELSEWHERE))


@pytest.mark.parametrize("loss", losses)
def test_what_losses_and_callbacks_keep_is_where_the_batches_are_in_every_epoch(
    learner, loss, monkeypatch
):
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())  # it has none
    learn = learner(loss=loss)
    learn.add_cbs([ProgressiveUnfreezing("two-step"), EMA(0.9)])
    learn.create_opt()
    learn.n_epoch, weighted = EPOCHS, []
    call(learn, "before_fit")
    for epoch in range(EPOCHS):
        learn.epoch = epoch
        for event in ("before_epoch", "before_train", "before_validate"):
            call(learn, event)
            assert {each.device for each in kept_by(learn.loss_func)} <= {ELSEWHERE}
            assert event == "before_epoch" or step(learn).device == ELSEWHERE
        weighted.append(learn.loss_func.weight is not None)
        assert {each.device for each in kept_by(learn.model)} == {ELSEWHERE}
    assert weighted == [False, False, True, True]
    kept = {cb.name: list(kept_by({k: v for k, v in vars(cb).items()})) for cb in learn.cbs}
    assert kept["weight_average"]
    for name in kept.keys() - {"apply_objective"}:
        assert {each.device for each in kept[name]} <= {ELSEWHERE}, name


def test_predictions_before_any_fit_find_the_loss_where_the_batches_are(learner):
    learn = learner(loss="ldam")
    call(learn, "before_validate")
    assert step(learn).device == ELSEWHERE
