"""What can be made again is kept on disk: arrays and notes with a checksum, known by a key.

Damage to a file is noticed when it is opened, and logged; the file is made again.
"""

import errno
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from numpy.lib import format as npy

from lesionfast.files import (
    LOCKED,
    disk_errors,
    free_bytes,
    only_process,
    write_atomically,
    write_json,
)

logger = logging.getLogger("lesionfast")

CHECKSUM = hashlib.sha256().digest_size  # bytes at the end of an array's file
BLOCK = 2**23  # bytes that a thread checks at once
UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # by some file systems
Append = Callable[..., None]  # of a block of rows and, if it is not the next, their places


def cache_folder() -> Path:
    """Return the folder for what can be made again: LESIONFAST_CACHE, or the user's cache."""
    chosen = os.environ.get("LESIONFAST_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("lesionfast")


def cache_errors(folder: Path, needed: int | None = None) -> AbstractContextManager:
    """Turn a full disk and the like into a `LesionfastError` that says what to do."""
    advice = "Set LESIONFAST_CACHE to another folder, or train with --no-cache."
    return disk_errors(folder, needed, advice)


def only_builder(target: Path) -> AbstractContextManager:
    """Let one process at a time build a file or folder of the cache; the others wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = "waiting for another process that works on the same images"
    return only_process(target.with_name(f"{LOCKED}{target.name}"), waiting, wait=True)


def find_or_build(target: Path, find: Callable[[], Any], build: Callable[[], Any]) -> Any:
    """Return what `find` finds in the cache, else what `build` makes: one process, others wait."""
    found = find()
    if found is None:
        with only_builder(target):
            found = find()
            return build() if found is None else found
    return found


def kept_array(file: Path, rows: int, build: Callable[[Append], Any]) -> np.memmap:
    """Map an array of the cache; `build(append)` makes it of `rows` rows if it is missing.

    One process builds, the others wait for it. Raises `LesionfastError` if the disk is full.
    """

    def make() -> np.memmap | None:
        write_atomically(file, partial(write_array, rows=rows, build=build))
        return open_array(file, "c")

    with cache_errors(file.parent):
        array = find_or_build(file, partial(open_array, file, "c"), make)
    assert array is not None
    return array


def open_array(file: Path, mode: str = "r") -> np.memmap | None:
    """Map an array of the cache; None if it is missing or damaged, which is logged.

    A file is checked once in a process. Mode 'r' is read-only, 'c' copies what is written to.
    """
    try:
        state = file.stat()
    except FileNotFoundError:
        return None
    if is_sound(file, state.st_ino, state.st_size, state.st_mtime_ns):
        return npy.open_memmap(file, mode)
    return None


@cache
def is_sound(file: Path, inode: int, size: int, modified: int) -> bool:
    """Return whether a file ends with its checksum; if not, it is logged."""
    with file.open("rb") as source:
        source.seek(max(0, size - CHECKSUM))
        sound = source.read() == checksum(file, size - CHECKSUM)
    if not sound:
        log_damage(file)
    return sound


def log_damage(file: Path) -> None:
    """Warn that a file of the cache is damaged."""
    logger.warning("%s is damaged: its checksum is wrong. It will be rebuilt", file)


def checksum(file: Path, size: int) -> bytes:
    """Return the checksum of the first `size` bytes of a file: a SHA-256 of the CRCs of its blocks.

    A CRC-32 finds what disks and copies do to a block, in a third of the time of a hash.
    """

    def check_block(start: int) -> bytes:
        with file.open("rb") as source:
            source.seek(start)
            return zlib.crc32(source.read(min(BLOCK, size - start))).to_bytes(4, "little")

    with ThreadPoolExecutor() as threads:
        return hashlib.sha256(b"".join(threads.map(check_block, range(0, size, BLOCK)))).digest()


def write_array(file: Path, rows: int, build: Callable[[Append], Any]) -> None:
    """Write an array of `rows` rows as .npy with its checksum, on the disk when it returns.

    `build(append)` calls `append` with block after block, or with the places of a block's rows,
    which lie anywhere. The first one reserves the disk space for all, so that a full disk is
    noticed at once.
    """
    with file.open("w+b") as out:
        start = 0

        def append(block: np.ndarray, places: Sequence[int] | None = None) -> None:
            nonlocal start
            if not start:
                begin_array(out, (rows, *block.shape[1:]), block.dtype)
                start = out.tell()
            if places is None:
                out.write(np.ascontiguousarray(block).data)
            else:
                for place, row in zip(places, block, strict=True):
                    out.seek(start + place * row.nbytes)
                    out.write(np.ascontiguousarray(row).data)
                out.seek(start + rows * block[0].nbytes)

        build(append)
        out.flush()
        out.write(checksum(file, out.tell()))
        out.flush()
        os.fsync(out.fileno())


def begin_array(out: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write the header of an array, and reserve the space for the rest."""
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(out, header)
    needed = out.tell() + prod(shape) * dtype.itemsize + CHECKSUM
    with cache_errors(Path(out.name).parent, needed):
        reserve(out, needed)


def reserve(out: BinaryIO, size: int) -> None:
    """Reserve `size` bytes on the disk for an open file; raises `OSError` if it has less room.

    A mapped file without reserved space would end the process when the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(out.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    check_room(Path(out.name).parent, size)


def check_room(folder: Path, size: int) -> None:
    """Raise `OSError` if fewer than `size` bytes are free on the disk of a folder."""
    if free_bytes(folder) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_note(file: Path) -> Any:
    """Return what `write_note` wrote; None if it is missing or damaged, which is logged."""
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        if note["sha256"] == hash_lines([json.dumps(note["value"])]):
            return note["value"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    log_damage(file)
    return None


def write_note(file: Path, value: Any) -> None:
    """Write a value of JSON with its checksum."""
    write_json(file, {"value": value, "sha256": hash_lines([json.dumps(value)])})


def hash_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of text in hexadecimal."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
