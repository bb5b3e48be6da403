"""fastai callbacks that watch the validation: keep the best, stop early, write the history."""

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
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import check_shape, damage_explained, write_atomically, write_text

logger = logging.getLogger("lesionfast")


class Checkpoint(Callback):
    """After each epoch, write all that a resumed training needs; before a fit, go on from it.

    Needs a Learner whose optimizer wraps one of torch's, and that starts at `first_epoch`.
    """

    order = 64

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path, self.resume = path, resume

    def before_fit(self) -> None:
        """Bring the Learner to where the file was written, if it is there and wanted."""
        self.learn.first_epoch = 0
        if self.resume and self.path.exists():
            self.learn.first_epoch = self._restore()

    def after_epoch(self) -> None:
        """Write weights, optimizer state, and state and tensors of other callbacks, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for index, state in self.opt.opt.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        for cb in self.learn.cbs:
            if hasattr(cb, "load_tensors"):
                tensors |= {f"{cb.name}.{k}": v for k, v in cb.tensors().items()}
        states = {cb.name: cb.state() for cb in self.learn.cbs if hasattr(cb, "load_state")}
        header = {"epochs_done": self.epoch + 1, "callbacks": states}
        write_atomically(self.path, lambda aside: save_tensors(tensors, aside, header))

    def _restore(self) -> int:
        again = f"Start it again: lesionfast train --config {self.path.parents[1] / 'config.json'}"
        with damage_explained(self.path, f"The run can't go on. {again}"):
            tensors, header = load_tensors(self.path)
            check_shape(header, {"epochs_done": int, "callbacks": {str: object}})
        self.model.load_state_dict(named(tensors, "model"))
        load_optimizer(self.opt.opt, tensors)
        for cb in self.learn.cbs:
            if cb.name in header["callbacks"]:
                cb.load_state(header["callbacks"][cb.name])
            if hasattr(cb, "load_tensors"):
                cb.load_tensors(named(tensors, cb.name))
        return header["epochs_done"]


def named(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return the tensors named `<owner>.<key>` by their keys."""
    start = f"{owner}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def save_tensors(tensors: dict[str, Tensor], path: Path, header: Any = None) -> None:
    """Write tensors of any memory format, and a JSON object as header, as one safetensors file.

    The header has the SHA-256 of the tensors too, so that the file can vouch for itself.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    signed = {**(header or {}), "sha256": digest_of(plain)}
    save_file(plain, path, metadata={"header": json.dumps(signed)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the header that `save_tensors` wrote.

    Raises `ValueError` if the tensors are others, and what safetensors raises.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads((file.metadata() or {}).get("header", "null")) or {}
    digest = header.pop("sha256", None)
    if digest is not None and digest != digest_of(tensors):
        raise ValueError("its tensors are not what was written")
    return tensors, header


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU and their names, in whatever order."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        found.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the tensors named `optimizer.<index>.<key>` back, laid out in memory as the weights."""
    state: dict[int, dict[str, Tensor]] = {}
    for name in tensors:
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensors[name]
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)


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


class WeightAverage(Callback):
    """Validate and keep an exponential moving average of the weights while others are trained.

    Batch norm's statistics are averaged too. The average starts anew with each phase, and its
    decay rises with the steps n of the phase as 1 - n^(-2/3), up to `decay`: timm's ModelEmaV3.
    (Polyak and Juditsky 1992, doi:10.1137/0330046, of plain averages.) After the fit the model is
    the average.
    """

    order = -16  # after ProgressiveUnfreezing and Checkpoint's restoring, before a step

    def __init__(self, decay: float) -> None:
        self.decay, self.steps, self.own = decay, 0, None

    def before_fit(self) -> None:
        """Make room for the average; what an earlier fit put aside is forgotten."""
        self.own = None
        model = self.model.to(self.dls.device)  # where fastai moves it only after this event
        self.average = ModelEmaV3(model, decay=self.decay, use_warmup=True)

    def before_epoch(self) -> None:
        """Go on with the trained weights."""
        if self.own is not None:
            self.model.load_state_dict(self.own)
            self.own = None

    def before_train(self) -> None:
        """Start a new average where a phase starts."""
        unfreezing = getattr(self.learn, "progressive_unfreezing", None)
        first = 0 if unfreezing is None else unfreezing.phase.first
        if self.epoch == first:
            self.average.set(self.model)
            self.steps = 0
        both = self.average.module.state_dict(), self.model.state_dict()  # slow to ask for
        self.mean, self.trained = [
            [v for v in each.values() if v.is_floating_point()] for each in both
        ]

    def after_batch(self) -> None:
        """Take the weights after a training step into the average."""
        if self.training:
            self.steps += 1
            update = get_ema_multi_avg_fn(self.average.get_decay(self.steps))
            update(self.mean, self.trained, None)

    def before_validate(self) -> None:
        """Put the average into the model, the trained weights aside."""
        self.own = {name: each.clone() for name, each in self.model.state_dict().items()}
        for own, mean in zip(self.trained, self.mean, strict=True):
            own.copy_(mean)

    def state(self) -> dict[str, Any]:
        """Return what a resumed training must know."""
        return {"steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.steps = state["steps"]

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained weights; the average is in the model."""
        return self.own

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` returned, and the average from the model."""
        self.own = tensors
        self.average.set(self.model)
