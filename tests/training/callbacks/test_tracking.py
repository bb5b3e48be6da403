import math

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException

from lesionfast.errors import LesionfastError
from lesionfast.training.callbacks.schedule import OneCycle, ProgressiveUnfreezing
from lesionfast.training.callbacks.tracking import EarlyStopping, KeepBest, StopOnNaN, WriteHistory


class Script(Callback):
    """Puts given values into the validation loss and marks the weights with the epoch."""

    order = 55

    def __init__(self, losses):
        self.losses, self.seen = losses, []

    def after_epoch(self):
        self.seen.append(self.epoch)
        self.recorder.values[-1][1] = self.losses[self.epoch]
        with torch.no_grad():
            self.model[2].bias.fill_(self.epoch)


def fit(learn, losses, *cbs):
    script = Script(losses)
    with learn.no_bar(), learn.no_logging():
        learn.fit(len(losses), cbs=[script, *cbs])
    return script


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_best_epoch_of_all_phases_is_what_remains(plain_learner, tmp_path, on_disk):
    keep = KeepBest("valid_loss", tmp_path / "best.safetensors" if on_disk else None)
    fit(plain_learner, [3.0, 1.0, 2.0, 2.5], ProgressiveUnfreezing(), OneCycle(), keep)
    assert keep.best_epoch == 1
    assert plain_learner.model[2].bias.tolist() == [1, 1]


@pytest.mark.parametrize("on_disk", [True, False])
def test_without_a_monitor_the_last_finished_epoch_is_what_remains(
    plain_learner, tmp_path, on_disk
):
    class Interrupt(Callback):
        order = 50

        def before_batch(self):
            if self.epoch == 3:
                raise CancelFitException

    keep = KeepBest(None, tmp_path / "last.safetensors" if on_disk else None)
    fit(plain_learner, [3.0, 1.0, 2.0, 0.0], ProgressiveUnfreezing(), keep, Interrupt())
    assert keep.best_epoch == 2
    assert plain_learner.model[2].bias.tolist() == [2, 2]


def test_early_stopping_counts_in_the_last_phase_alone(plain_learner):
    losses = [2.0, 1.0, 3.0, 3.0, 3.0, 0.0]
    script = fit(plain_learner, losses, ProgressiveUnfreezing(), EarlyStopping("valid_loss", 2))
    assert script.seen == [0, 1, 2, 3, 4]


def test_a_metric_is_better_when_larger(plain_learner):
    keep = KeepBest("accuracy")
    fit(plain_learner, [1.0, 1.0], keep)
    values = plain_learner.recorder.values
    assert keep.best == pytest.approx(max(float(v[2]) for v in values))


def test_an_unknown_monitor_names_the_columns(plain_learner):
    with pytest.raises(LesionfastError, match="--monitor is 'acuracy'.*Did you mean 'accuracy'"):
        fit(plain_learner, [1.0], KeepBest("acuracy"))


def test_a_loss_that_is_no_number_stops_the_training(plain_learner):
    plain_learner.loss_func = lambda pred, y: pred.sum() * math.nan
    with pytest.raises(LesionfastError, match="training loss became nan in epoch 1.*smaller --lr"):
        fit(plain_learner, [1.0, 1.0], StopOnNaN())


def test_history_has_one_line_an_epoch_with_phase_and_rate(plain_learner, tmp_path):
    path = tmp_path / "history.csv"
    fit(plain_learner, [2.0, 1.0], ProgressiveUnfreezing(), OneCycle(1e-2), WriteHistory(path))
    lines = path.read_text().splitlines()
    assert lines[0] == "epoch,phase,lr,train_loss,valid_loss,accuracy"
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["1", "head", "0.01"],
        ["2", "all", "0.01"],
    ]
    assert [line.split(",")[4] for line in lines[1:]] == ["2", "1"]
