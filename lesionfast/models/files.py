"""Tensors from files: safetensors or PyTorch, without running a pickle."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lesionfast.data.lineage import weights_file
from lesionfast.errors import LesionfastError
from lesionfast.manifest import Manifest

WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
OWN_PREFIXES = ("backbone.body.net.", "backbone.body.")  # of a run's weights.safetensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, a PyTorch file, a run or an exported folder.

    Wrappers such as {"state_dict": …} and prefixes such as "module." are taken off. Raises
    `LesionfastError` if the file is missing, cut short, or needs more than tensors.
    """
    path = weights_file(path)
    if not path.is_file():
        raise LesionfastError(
            f"there is no weights file {path}. Type --weights FILE, or --weights auto or none."
        )
    if path.name == "weights.safetensors":
        Manifest(path.parent).require(path.name, f"Copy {path.parent} again, or name others.")
    try:
        return without_prefixes(unwrap(load(path), path))
    except pickle.UnpicklingError as error:
        inside = re.search(r"GLOBAL (\S+)", str(error))
        raise LesionfastError(
            f"{path} is no file of tensors alone: it holds {inside[1] if inside else 'something'} "
            f"that could run code, so it was not opened. Where you trust it, save its state dict "
            f"with torch.save(model.state_dict(), FILE), and type --weights FILE."
        ) from None


def load(path: Path) -> Any:
    """Return what the file holds; raises `LesionfastError` if it is broken."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
    except PermissionError:
        raise LesionfastError(f"{path} may not be read. Type chmod u+r {path}") from None
    except Exception as error:  # what a broken file raises is anything
        raise LesionfastError(
            f"{path} can't be read as weights: it is cut short or no weights file "
            f"({first_line(error)}). Copy it again, or type --weights with another file."
        ) from None


def first_line(error: BaseException) -> str:
    """Return the first sentence of an error, as a reason in brackets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:120]


def unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside what a file held."""
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise LesionfastError(
            f"{path} holds a {type(found).__name__} that is no state dict. "
            f"Save it with torch.save(model.state_dict(), FILE) and type --weights FILE."
        )
    return dict(found)


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of the model alone; of a run, its backbone's only."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    for prefix in OWN_PREFIXES:
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        tensors = own or tensors
    return tensors
