"""What a stopped training needs to go on: its state in one safetensors file, written each epoch."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lesionfast.files import check_shape, damage_explained, write_atomically


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
        again = f"Start it again: lesionfast train --config {self.path.parents[1] / 'config.json'}"
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
        header = json.loads((file.metadata() or {}).get("header", "null")) or {}
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
