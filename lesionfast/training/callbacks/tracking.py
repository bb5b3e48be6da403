"""What a training keeps: its history, the best weights, a checkpoint from which it can go on."""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lesionfast.config import check_choice
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.files import (
    check_shape,
    damage_explained,
    parse_json,
    write_atomically,
    write_text,
)
from lesionfast.training.callbacks.schedule import current_phase

logger = logging.getLogger("lesionfast")


class Resumable(Callback):
    """Base of callbacks that a checkpoint restores: the attributes named in `resumed`, as JSON.

    A callback may have `tensors` and `load_tensors` too.
    """

    resumed: tuple[str, ...] = ()

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.resumed}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in self.resumed:
            setattr(self, name, state[name])


BY_RULE = " (rule"  # in the name of a metric, before that of the decision rule


def history_columns(learn: Learner) -> list[str]:
    """Return the columns of what fastai records each epoch: losses and metrics, not the time.

    The decision rule, which is one of the options, is not in their names.
    """
    names = [name.split(BY_RULE)[0] for name in learn.recorder.metric_names][1:]
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
        if self.best_epoch < 0:
            return
        best = self.kept
        if self.path is not None:
            with damage_explained(self.path, "Train it again."):
                best, _ = load_tensors(self.path)
        self.model.load_state_dict(best)


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


class Checkpoint(Callback):
    """After each epoch, write all that a resumed training needs; before a fit, restore it.

    Needs a Learner whose optimizer wraps one of torch's, and that starts at `first_epoch`.
    """

    order = 64

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path, self.resume = path, resume

    def before_fit(self) -> None:
        self.learn.first_epoch = self.restore() if self.resume and self.path.exists() else 0

    def after_epoch(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for index, state in self.opt.opt.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        for cb in self.learn.cbs:
            if hasattr(cb, "load_tensors"):
                tensors |= {f"{cb.name}.{k}": v for k, v in cb.tensors().items()}
        states = {cb.name: cb.state() for cb in self.learn.cbs if isinstance(cb, Resumable)}
        header = {"epochs_done": self.epoch + 1, "callbacks": states}
        write_atomically(self.path, lambda aside: save_tensors(tensors, aside, header))

    def restore(self) -> int:
        """Put back what the file holds; return the number of epochs done."""
        config = self.path.parents[1] / "config.json"
        again = f"Start it again: lesionfast train --config {shell_quote(config)}"
        with damage_explained(self.path, f"The run can't be resumed. {again}"):
            tensors, header = load_tensors(self.path)
            check_shape(header, {"epochs_done": int, "callbacks": {str: object}})
        self.model.load_state_dict(with_prefix(tensors, "model"))
        load_optimizer(self.opt.opt, with_prefix(tensors, "optimizer"))
        for cb in self.learn.cbs:
            if cb.name in header["callbacks"]:
                cb.load_state(header["callbacks"][cb.name])
            if hasattr(cb, "load_tensors"):
                cb.load_tensors(with_prefix(tensors, cb.name))
        return header["epochs_done"]


def with_prefix(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return the tensors named `<owner>.<key>`, by key."""
    start = f"{owner}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the state tensors `<index>.<key>`, laid out in memory as the weights are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)


def save_tensors(tensors: dict[str, Tensor], path: Path, header: Any = None) -> None:
    """Write tensors of any memory format, and a JSON object as header, as one safetensors file.

    The header also holds the SHA-256 of the tensors, by which `load_tensors` notices damage.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    signed = {**(header or {}), "sha256": hash_tensors(plain)}
    save_file(plain, path, metadata={"header": json.dumps(signed)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the header that `save_tensors` wrote.

    Raises `ValueError` if the tensors have changed, and whatever safetensors raises.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = parse_json((file.metadata() or {}).get("header", "null")) or {}
    digest = header.pop("sha256", None)
    if digest is not None and digest != hash_tensors(tensors):
        raise ValueError("its tensors have changed since they were written")
    return tensors, header


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU and their names, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
