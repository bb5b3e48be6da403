"""What is tracked epoch by epoch: keep the best weights, stop early, write the history."""

import logging
import math
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from torch import Tensor

from lesionfast.config import check_choice
from lesionfast.errors import LesionfastError
from lesionfast.files import damage_explained, write_atomically, write_text
from lesionfast.training.callbacks.checkpoint import Resumable, load_tensors, save_tensors
from lesionfast.training.callbacks.schedule import current_phase

logger = logging.getLogger("lesionfast")


def history_columns(learn: Learner) -> list[str]:
    """Return the names of what fastai records each epoch: losses and metrics, not the time."""
    names = list(learn.recorder.metric_names)[1:]
    return names[:-1] if learn.recorder.add_time else names


def history_header(learn: Learner) -> str:
    """Return the first line of history.csv."""
    return ",".join(["epoch", "phase", "lr", *history_columns(learn)])


def history_line(epoch: int, phase: str, lr: float | None, values: list[float]) -> str:
    """Return the line of one epoch, counted from 1, of history.csv."""
    numbers = [f"{value:.6g}" for value in values]
    return ",".join([str(epoch), phase, "" if lr is None else f"{lr:.6g}", *numbers])


class WriteHistory(Resumable):
    """Append one line per epoch to a CSV file."""

    order, resumed = 62, ("lines",)

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []

    def before_train(self) -> None:
        """Restart fastai's smoothed training loss, so that it is that of this epoch alone."""
        self.recorder.smooth_loss.reset()

    def after_epoch(self) -> None:
        phase, lr = current_phase(self.learn), self.one_cycle.highest
        line = history_line(self.epoch + 1, phase.name, lr, self.recorder.values[-1])
        self.lines = [*(self.lines or [history_header(self.learn)]), line]
        self.write()

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.write()

    def write(self) -> None:
        write_text(self.path, "\n".join(self.lines) + "\n")


class StopOnNaN(Callback):
    """Stop with an error when the training loss becomes NaN or infinite."""

    order = 60

    def after_epoch(self) -> None:
        if not math.isfinite(loss := self.recorder.values[-1][0]):
            raise LesionfastError(
                f"the training loss became {loss} in epoch {self.epoch + 1}. "
                "Type a smaller --lr, or --lr auto."
            )


class Monitor(Resumable):
    """Base of callbacks that watch one column of the history: a loss falls, a metric rises.

    Without a column every epoch is better than the one before.
    """

    resumed = ("best", "best_epoch")

    def __init__(self, monitor: str | None) -> None:
        self.monitor, self.sign = monitor, -1 if (monitor or "").endswith("loss") else 1
        self.best, self.best_epoch = -math.inf, -1

    def before_fit(self) -> None:
        """Raise `LesionfastError` if there is no such column."""
        if self.monitor is not None:
            names = history_columns(self.learn)
            check_choice("monitor", self.monitor, tuple(names))
            self.column = names.index(self.monitor)

    def improved(self) -> bool:
        """Return whether the last epoch is the best so far, and remember it if so."""
        if self.monitor is None:
            self.best_epoch = self.epoch
            return True
        value = self.sign * float(self.recorder.values[-1][self.column])
        if math.isnan(value):
            raise LesionfastError(
                f"--monitor {self.monitor} is undefined in epoch {self.epoch + 1}: a class may be "
                "missing from validation. Type another --monitor, such as valid_loss, or another "
                "--split."
            )
        if not value > self.best:
            return False
        self.best, self.best_epoch = value, self.epoch
        return True


class KeepBest(Monitor):
    """Keep the weights of the best epoch, across all phases, and load them when the fit ends.

    With a `path` they are a safetensors file with the JSON `header`, without one a copy in memory.
    Without a `monitor` the last epoch counts as the best: which one has the highest metric on a few
    hundred validation images is mostly chance, and one before the end of a cycle has not settled.
    """

    order = 61

    def __init__(
        self, monitor: str | None = "valid_loss", path: Path | None = None, header: Any = None
    ) -> None:
        super().__init__(monitor)
        self.path, self.header, self.kept = path, header, None

    def after_epoch(self) -> None:
        if not self.improved():
            return
        tensors = self.model.state_dict()
        if self.path is None:
            self.kept = {name: value.detach().clone() for name, value in tensors.items()}
        else:
            write_atomically(self.path, lambda aside: save_tensors(tensors, aside, self.header))

    def after_fit(self) -> None:
        """Load the best weights, if an epoch has ended."""
        if self.best_epoch >= 0:
            self.model.load_state_dict(self.kept if self.path is None else self.read())

    def read(self) -> dict[str, Tensor]:
        """Return the weights in the file."""
        with damage_explained(self.path, "Train it again."):
            return load_tensors(self.path)[0]


class EarlyStopping(Monitor):
    """End the fit after `patience` epochs without improvement, counted in its last phase alone."""

    order = 63

    def __init__(self, monitor: str = "valid_loss", patience: int = 5) -> None:
        super().__init__(monitor)
        self.patience = patience

    def before_epoch(self) -> None:
        phase = current_phase(self.learn)
        if phase.end < self.n_epoch or self.epoch == phase.first:
            self.best, self.best_epoch = -math.inf, -1
        if self.best_epoch >= 0 and self.epoch - self.best_epoch > self.patience:
            logger.info("stopped early: no improvement since epoch %d", self.best_epoch + 1)
            raise CancelFitException

    def after_epoch(self) -> None:
        self.improved()
