"""What a killed training needs to go on: one safetensors file an epoch, no pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lesionfast.files import damage_explained, write_atomically
from lesionfast.shapes import check_shape


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
