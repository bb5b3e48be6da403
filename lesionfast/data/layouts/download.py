"""Download public datasets from the Dataverse that publishes them: resumed, and checked."""

import hashlib
import http
import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lesionfast.cache import check_room
from lesionfast.errors import LesionfastError, did_you_mean, pluralize
from lesionfast.files import MOST_JSON, disk_errors, parse_json

logger = logging.getLogger("lesionfast")

SERVER = "https://dataverse.harvard.edu"
HAM10000 = "doi:10.7910/DVN/DBW86T"  # holds the test set of ISIC 2018 as well
CHUNK = 2**20  # bytes read at a time
SECONDS = 60  # to wait for an answer
NETWORK = (OSError, http.client.HTTPException)  # URLError, TimeoutError and the like are OSErrors
SAFE = re.compile(r"[\w.()-][\w .()-]*")


@dataclass(frozen=True)
class Public:
    """A public dataset: where it is published, which files there belong to it, its terms."""

    persistent_id: str
    files: re.Pattern[str]
    terms: str


TERMS = "CC BY-NC 4.0 (Tschandl, Rosendahl, Kittler 2018, doi:10.7910/DVN/DBW86T)"
PUBLIC = {
    "ham10000": Public(HAM10000, re.compile(r"HAM10000_(metadata|images)", re.IGNORECASE), TERMS),
    "isic2018-test": Public(HAM10000, re.compile(r"ISIC2018_Task3_Test", re.IGNORECASE), TERMS),
}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a Dataverse: its name, address, size in bytes (None: unknown) and checksum."""

    name: str
    url: str
    size: int | None
    kind: str  # of the checksum, as hashlib calls it
    checksum: str


def download(
    name: str,
    to: Path,
    server: str = SERVER,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Download the files of a public dataset into a folder, and return their paths.

    Files that are there and whole are kept, and what was interrupted goes on where it stopped.
    `progress` is called with the bytes that are there, and with those of all files. Raises
    `LesionfastError` for an unknown name, a server that does not answer, and a file whose checksum
    is not that of the publisher.
    """
    if name not in PUBLIC:
        raise LesionfastError(
            f"there is no public dataset '{name}'.{did_you_mean(name, PUBLIC)} Type one of: "
            f"{', '.join(PUBLIC)}."
        )
    if not server.startswith(("https://", "http://")):
        raise LesionfastError(f"--server {server} is not a web address. Type https://….")
    public, server = PUBLIC[name], server.rstrip("/")
    logger.info("The licence of %s is %s", name, public.terms)
    files = list_files(public, server)
    total, done = sum(file.size or 0 for file in files), 0
    with disk_errors(to, total):
        to.mkdir(parents=True, exist_ok=True)
        for file in files:
            fetch(file, to, lambda size, start=done: progress and progress(start + size, total))
            done += file.size or 0
    return [to / file.name for file in files]


def list_files(public: Public, server: str) -> list[RemoteFile]:
    """Return the files of a dataset that its server lists (the Dataverse native API).

    A table that the server has converted is taken as it was uploaded: its checksum is of that.
    """
    dataset = quote(public.persistent_id, safe="")
    url = f"{server}/api/datasets/:persistentId/versions/:latest/files?persistentId={dataset}"
    by_hand = f"Download the files by hand: https://doi.org/{public.persistent_id[4:]}"
    try:
        with urllib.request.urlopen(ask(url), timeout=SECONDS) as answer:  # noqa: S310 - see `ask`
            entries = parse_json(answer.read(MOST_JSON))["data"]
        files = [read_entry(entry, server) for entry in entries]
    except NETWORK as error:
        reason = getattr(error, "reason", None) or error
        raise LesionfastError(f"{server} can't be reached ({reason}). {by_hand}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LesionfastError(
            f"the answer of {server} can't be read ({type(error).__name__}: {error}). {by_hand}"
        ) from None
    chosen = [file for file in files if public.files.match(file.name)]
    if not chosen:
        raise LesionfastError(
            f"{server} lists {pluralize(len(files), 'file')}, and none of them is named like "
            f"{public.files.pattern}. {by_hand}"
        )
    return chosen


def read_entry(entry: dict[str, Any], server: str) -> RemoteFile:
    """Return a file of a server's list; raises `ValueError` for a name that is not a plain one."""
    about = entry["dataFile"]
    is_converted = "originalFileFormat" in about
    name = about.get("originalFileName") or entry["label"] if is_converted else entry["label"]
    if not SAFE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a file")
    size = about.get("originalFileSize") if is_converted else about["filesize"]
    query = "?format=original" if is_converted else ""
    checksum = about.get("checksum") or {"type": "MD5", "value": about["md5"]}
    kind = checksum["type"].replace("-", "").lower()
    hashlib.new(kind)  # raises ValueError if there is no such
    url = f"{server}/api/access/datafile/{int(about['id'])}{query}"
    return RemoteFile(name, url, size and int(size), kind, checksum["value"].lower())


def ask(url: str, start: int = 0) -> urllib.request.Request:
    """Return the request of a file from byte `start` on; raises `ValueError` unless by HTTP."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url[:80]!r} is not an address on the web")
    headers = {"User-Agent": "lesionfast"} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.Request(url, headers=headers)  # noqa: S310 - it has just been checked


def fetch(file: RemoteFile, to: Path, report: Callable[[int], object]) -> None:
    """Download a file beside its name, go on if that was begun, check it and rename it."""
    target, part = to / file.name, to / f"{file.name}.part"
    if target.is_file() and hash_file(target, file.kind) == file.checksum:
        logger.info("%s is there and whole", target)
        return
    start = part.stat().st_size if part.is_file() else 0
    check_room(to, max((file.size or 0) - start, 0))
    try:
        read_into(part, file, start, report)
    except NETWORK as error:
        have = part.stat().st_size if part.is_file() else 0
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise LesionfastError(
            f"the download of {file.name} stopped after {have / 2**20:.1f} MB ({reason}). Type the "
            "same command again: it goes on from there."
        ) from None
    if (found := hash_file(part, file.kind)) != file.checksum:
        part.unlink()
        raise LesionfastError(
            f"{file.name} was damaged on the way: its {file.kind.upper()} is {found}, not "
            f"{file.checksum}. It is removed; type the same command again."
        )
    part.replace(target)


def read_into(part: Path, file: RemoteFile, start: int, report: Callable[[int], object]) -> None:
    """Append the rest of a file to what is there; a server that knows no ranges starts again."""
    try:
        request = ask(file.url, start)
        answer = urllib.request.urlopen(request, timeout=SECONDS)  # noqa: S310 - see `ask`
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # all of it is there; its checksum will tell
        raise
    with answer:
        has_range = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if has_range else "wb") as out:
            end = out.tell() + int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                report(out.tell())
            if out.tell() < end:
                raise ConnectionError("the connection was closed")


def hash_file(path: Path, kind: str) -> str:
    """Return the checksum of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
