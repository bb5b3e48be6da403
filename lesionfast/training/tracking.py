"""fastai callbacks that watch the validation: keep the best, stop early, write the history."""

import logging
import math
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from torch import Tensor

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import damage_explained, write_atomically, write_text
from lesionfast.training.checkpoint import load_tensors, save_tensors

logger = logging.getLogger("lesionfast")


def history_columns(learn: Learner) -> list[str]:
    """Return the names of what fastai records an epoch: losses and metrics, not the time."""
    names = list(learn.recorder.metric_names)[1:]
    return names[:-1] if learn.recorder.add_time else names


class StopOnNaN(Callback):
    """Stop with an error when the loss is no number any more."""

    order = 60

    def after_epoch(self) -> None:
        """Raise `LesionfastError` if the training loss of the epoch is not finite."""
        if not math.isfinite(self.recorder.values[-1][0]):
            raise LesionfastError(
                f"the training loss was {self.recorder.values[-1][0]} in epoch {self.epoch + 1}. "
                f"Type a smaller --lr, or --lr auto."
            )


class Monitor(Callback):
    """Base of callbacks that watch one column of the history; larger is better but for losses.

    Without a column every epoch is better than the one before.
    """

    def __init__(self, monitor: str | None) -> None:
        self.monitor, self.sign = monitor, -1 if (monitor or "").endswith("loss") else 1
        self.best, self.best_epoch = -math.inf, -1

    def before_fit(self) -> None:
        """Raise `LesionfastError` if there is no such column."""
        names = history_columns(self.learn)
        if self.monitor is None:
            return
        if self.monitor not in names:
            raise LesionfastError(
                f"--monitor is '{self.monitor}', which is no column of the history."
                f"{did_you_mean(self.monitor, names)} It has: {', '.join(names)}."
            )
        self.column = names.index(self.monitor)

    def improved(self) -> bool:
        """Return whether the last epoch is the best so far, and note it."""
        if self.monitor is None:
            self.best_epoch = self.epoch
            return True
        value = self.sign * float(self.recorder.values[-1][self.column])
        if math.isnan(value):
            raise LesionfastError(
                f"--monitor {self.monitor} is undefined in epoch {self.epoch + 1}: validation may "
                f"lack a class. Type another --monitor, such as valid_loss, or another --split."
            )
        if not value > self.best:
            return False
        self.best, self.best_epoch = value, self.epoch
        return True

    def state(self) -> dict[str, Any]:
        """Return what a resumed training must know."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]


class KeepBest(Monitor):
    """Keep the weights of the best epoch, across all phases, and load them when the fit ends.

    With a `path` they are a safetensors file with the JSON `header`, without one a copy in memory.
    Without a `monitor` the last epoch is the best: which one has the highest metric on a few
    hundred validation images is mostly chance, and one before the end of a cycle has not settled.
    """

    order = 61

    def __init__(
        self, monitor: str | None = "valid_loss", path: Path | None = None, header: Any = None
    ) -> None:
        super().__init__(monitor)
        self.path, self.header, self.kept = path, header, None

    def after_epoch(self) -> None:
        """Keep the weights if they are the best so far."""
        if not self.improved():
            return
        if self.path is None:
            self.kept = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        else:
            tensors = self.model.state_dict()
            write_atomically(self.path, lambda aside: save_tensors(tensors, aside, self.header))

    def after_fit(self) -> None:
        """Load the best weights, if an epoch ended."""
        if self.best_epoch >= 0:
            self.model.load_state_dict(self.kept if self.path is None else self._read())

    def _read(self) -> dict[str, Tensor]:
        with damage_explained(self.path, "Train it again."):
            return load_tensors(self.path)[0]


class EarlyStopping(Monitor):
    """End the fit after `patience` epochs in a row without a new best, in its last phase alone."""

    order = 63

    def __init__(self, monitor: str = "valid_loss", patience: int = 5) -> None:
        super().__init__(monitor)
        self.patience = patience

    def before_epoch(self) -> None:
        """End the fit if the patience is at its end; start counting where the last phase starts."""
        unfreezing = getattr(self.learn, "progressive_unfreezing", None)
        if unfreezing is not None and self.epoch <= unfreezing.phases[-1].first:
            self.best, self.best_epoch = -math.inf, -1
        if self.best_epoch >= 0 and self.epoch - self.best_epoch > self.patience:
            logger.info("no better epoch since epoch %d: stopped early", self.best_epoch + 1)
            raise CancelFitException

    def after_epoch(self) -> None:
        """Note whether the epoch was the best."""
        self.improved()


class WriteHistory(Callback):
    """Append one line an epoch to a CSV file."""

    order = 62

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []

    def before_train(self) -> None:
        """Start fastai's smoothed training loss anew, so that a line tells of its epoch alone."""
        self.recorder.smooth_loss.reset()

    def after_epoch(self) -> None:
        """Write the line of this epoch."""
        names = ["epoch", "phase", "lr", *history_columns(self.learn)]
        phase, lr = self.progressive_unfreezing.phase, self.one_cycle.highest
        values = [self.epoch + 1, phase.name, f"{lr:.6g}"]
        values += [f"{each:.6g}" for each in self.recorder.values[-1]]
        self.lines = [*(self.lines or [",".join(names)]), ",".join(map(str, values))]
        write_text(self.path, "\n".join(self.lines) + "\n")

    def state(self) -> dict[str, Any]:
        """Return the lines so far."""
        return {"lines": self.lines}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned, and make the file say the same."""
        self.lines = state["lines"]
        write_text(self.path, "\n".join(self.lines) + "\n")
