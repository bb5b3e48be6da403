"""The bytes of images: in files or zip members, read from many threads, known by content."""

import os
import re
import threading
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

MOST_BYTES = 2**28  # more in one picture is an error or an attack


def split_path(path: str) -> tuple[str, str | None]:
    """Return a zip file and its member for "<zip>/<member>", else the file and None."""
    for match in re.finditer(r"\.zip/", path, re.IGNORECASE):
        archive = path[: match.end() - 1]
        if os.path.isfile(archive):
            return archive, path[match.end() :]
    return path, None


def count_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class FileReader:
    """Reads files and zip members; each thread has zip files of its own, open until `close`."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._opened: list[zipfile.ZipFile] = []

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all zip files; call it when no thread reads any more."""
        while self._opened:
            self._opened.pop().close()

    def read(self, path: str) -> bytes:
        """Return the bytes of a file or zip member; raises `OSError`, `ValueError` and others."""
        file, member = split_path(path)
        if member is None:
            check_size(os.path.getsize(file))
            return Path(file).read_bytes()
        info = self._find(file, member)
        check_size(info.file_size)
        return self._archive(file).read(info)

    def content_key(self, path: str) -> str:
        """Return size and CRC-32, the same for a file and for a zip member of the same bytes.

        Of a zip file only the directory is read.
        """
        file, member = split_path(path)
        if member is None:
            data = self.read(file)
            return f"{len(data)}-{zlib.crc32(data):08x}"
        info = self._find(file, member)
        return f"{info.file_size}-{info.CRC:08x}"

    def _find(self, file: str, member: str) -> zipfile.ZipInfo:
        try:
            return self._archive(file).getinfo(member)
        except KeyError:
            raise FileNotFoundError(f"{file} has no member {member}") from None

    def _archive(self, file: str) -> zipfile.ZipFile:
        own = self._of_thread.__dict__
        if file not in own:
            own[file] = zipfile.ZipFile(file)
            self._opened.append(own[file])
        return own[file]


def check_size(size: int) -> None:
    """Raise `ValueError` for a number of bytes that no picture has."""
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    if size > MOST_BYTES:
        raise ValueError(f"it has {size / 2**20:.0f} MB, more than a picture should")


def content_keys(paths: Sequence[str]) -> list[str]:
    """Return the content key of each path, in order; one that nothing else has if unreadable."""

    def key_of(path: str) -> str:
        try:
            return reader.content_key(path)
        except Exception:  # decoding says what is wrong with it
            return f"unreadable {stamp(split_path(path)[0])}"

    with FileReader() as reader, ThreadPoolExecutor(count_threads()) as threads:
        return list(threads.map(key_of, paths))


def stamps(paths: Sequence[str]) -> list[str]:
    """Return size and times of every file or zip file, by which a change is seen unread."""
    return [stamp(file) for file in sorted({split_path(path)[0] for path in paths})]


def stamp(file: str) -> str:
    """Return path, size and times of a file as text; a missing file has none."""
    try:
        state = os.stat(file)
    except OSError:
        return f"{file} missing"
    return f"{os.path.abspath(file)} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
