"""What can be made again is kept on disk: arrays and notes with a checksum, known by a key.

Damage to a file is noticed when it is opened, and logged; the file is made again. If a new array
would exceed LESIONFAST_CACHE_SIZE, the least recently used ones are removed first. The access time
of an array's file is when it was last used; a lock keeps it while a process has it open.
"""

import errno
import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from math import ceil, prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from numpy.lib import format as npy

from lesionfast.errors import LesionfastError, pluralize
from lesionfast.files import (
    LOCKED,
    check_shape,
    check_target,
    disk_errors,
    format_bytes,
    free_bytes,
    load_json,
    only_process,
    put_in_place,
    sweep,
    workspace,
    write_json,
)

try:
    import fcntl
except ImportError:  # on Windows, where a file that is mapped can't be removed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("lesionfast")

CHECKSUM = hashlib.sha256().digest_size  # bytes at the end of an array's file
MOST_NOTE, NOTE_OF_ONE = 2**22, 200  # bytes of a note, and more for each thing that it is about
BROKEN_HEADER = (  # what NumPy raises for a header, which it parses as Python
    *(ValueError, TypeError, SyntaxError, TokenError),
    *(RecursionError, MemoryError),
)
BLOCK = 2**23  # bytes that a thread checks at once
KINDS = ("images", "features", "duplicates")  # folders; the built-in sample has one of its own
LIMIT = "LESIONFAST_CACHE_SIZE"
SHARE = 0.9  # of the free disk space that an array may take which is not needed
UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # by some file systems
Append = Callable[..., None]  # of a block of rows and, if it is not the next, their places


def cache_folder() -> Path:
    """Return the folder for what can be made again: LESIONFAST_CACHE, or the user's cache."""
    chosen = os.environ.get("LESIONFAST_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("lesionfast")


def cache_errors(folder: Path, needed: int | None = None) -> AbstractContextManager:
    """Turn a full disk and the like into a `LesionfastError` that says what to do."""
    advice = (
        "Set LESIONFAST_CACHE to another folder, clear it with `lesionfast cache clear`, or train "
        "with --no-cache."
    )
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


def kept_array(file: Path, rows: int, build: Callable[[Append], Any], *shape: int) -> np.memmap:
    """Map an array of the cache; `build(append)` makes it of `rows` rows if it is missing.

    One whose rows are not of a shape, where that is given, is made again.
    One process builds, the others wait for it. Raises `LesionfastError` if the disk is full.
    """

    def make() -> np.memmap:
        check_target(file)
        with workspace(file.parent) as folder:
            write_array(folder / file.name, rows, build)
            return put_array(folder / file.name, file, "c")

    with cache_errors(file.parent):
        return find_or_build(file, partial(open_array, file, "c", (rows, *shape)), make)


def put_array(aside: Path, file: Path, mode: str = "r") -> np.memmap:
    """Rename an array that `write_array` wrote to its place in the cache, and map it."""
    with aside.open("rb") if fcntl else nullcontext() as source:
        if source:
            hold(source)  # or another process might remove it before it is mapped
        put_in_place(aside, file)
        array = open_array(file, mode)
    assert array is not None
    return array


def open_array(file: Path, mode: str = "r", shape: tuple[int, ...] = ()) -> np.memmap | None:
    """Map an array of the cache; None if it is missing or damaged, which is logged.

    Its shape has to begin with `shape`. A file is checked once in a process. Mode 'r' is read-only,
    'c' copies what is written to. As long as the array is there, no process removes its file.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        log_damage(file)
        return None
    try:
        source = open(file, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        return None
    with source:
        hold(source)
        state = os.fstat(source.fileno())
        removed = not state.st_nlink  # between opening and holding it
        if removed or not is_sound(file, state.st_ino, state.st_size, state.st_mtime_ns):
            return None
        note_use(source, time.time_ns())
        if (header := read_numbers(source, state.st_size, shape)) is None:
            log_damage(file)
            return None
        return np.memmap(source, header[1], mode, source.tell(), header[0])


def read_numbers(
    source: BinaryIO, size: int, begin: tuple[int, ...]
) -> tuple[tuple[int, ...], np.dtype] | None:
    """Return shape and dtype of an array file; None unless it holds just such numbers.

    An array of objects would be mapped too, and its bytes taken for addresses in memory.
    """
    try:
        shape, fortran, dtype = read_header(source)
    except BROKEN_HEADER:
        return None
    whole = source.tell() + prod(shape) * dtype.itemsize + CHECKSUM == size
    plain = dtype.kind in "biuf" and not fortran and min(shape, default=0) >= 0
    return (shape, dtype) if whole and plain and shape[: len(begin)] == begin else None


def note_use(opened: BinaryIO, used: int) -> None:
    """Set when an open file of the cache was last used, in nanoseconds since 1970."""
    target = opened.fileno() if os.utime in os.supports_fd else opened.name
    with suppress(OSError):  # the cache is read-only
        os.utime(target, ns=(used, os.fstat(opened.fileno()).st_mtime_ns))


def read_header(source: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, Fortran order and dtype of an array file, read up to its first number.

    Raises one of `BROKEN_HEADER` for what is none.
    """
    version = npy.read_magic(source)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(source)


def hold(opened: BinaryIO) -> None:
    """Lock an open file against `remove_unused`, until it and the last map of it are closed."""
    if fcntl:
        with suppress(OSError):  # the file system has no locks: then nothing is removed from it
            fcntl.flock(opened, fcntl.LOCK_SH)


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
    logger.warning("%s is damaged. It will be rebuilt", file)


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
    file = Path(out.name)
    with cache_errors(file.parent, needed), making_room(file, needed):
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


def read_note(file: Path, shape: Any = object, count: int = 0) -> Any:
    """Return what `write_note` wrote; None if it is missing or damaged, which is logged.

    `shape` is what it must look like, as for `check_shape`, and `count` how many things it is
    about: a far larger one is not parsed, as its objects may take 30 times the memory.
    """
    try:
        note = load_json(file, MOST_NOTE + count * NOTE_OF_ONE)
        if note["sha256"] == hash_lines([json.dumps(note["value"])]):
            check_shape(note["value"], shape)
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


@dataclass(frozen=True)
class Entry:
    """An array of the cache: its file, bytes on the disk, and when it was last used (a time)."""

    file: Path
    size: int
    used: float

    @property
    def in_use(self) -> bool:
        """Whether a process has it open, this one included."""
        return not remove_unused(self.file, keep=True)

    def describe(self) -> str:
        """Return what it holds, such as "10,015 images of 112 x 112 pixels"."""
        try:
            with self.file.open("rb") as source:
                used = os.fstat(source.fileno()).st_atime_ns
                shape = read_header(source)[0]
                note_use(source, used)  # to be listed is not to be used
        except (OSError, *BROKEN_HEADER):
            return "a damaged file"
        rows, *rest = shape
        sizes = " x ".join(map(str, rest))
        if self.file.parent.name == KINDS[0]:
            return f"{pluralize(rows, 'image')} of {' x '.join(map(str, rest[:2]))} pixels"
        return f"features of {pluralize(rows, 'image')}, {sizes} numbers each"


def list_entries() -> list[Entry]:
    """Return the arrays of the cache, the least recently used first."""
    entries = []
    for file in (file for kind in KINDS for file in (cache_folder() / kind).glob("*.npy")):
        with suppress(FileNotFoundError):  # another process has just removed it
            state = file.stat()
            entries.append(Entry(file, state.st_size, max(state.st_atime, state.st_mtime)))
    return sorted(entries, key=lambda entry: (entry.used, entry.file))


def measure_cache() -> int:
    """Return the bytes of all arrays and notes, those that are being written included."""
    total = 0
    for file in (file for kind in KINDS for file in (cache_folder() / kind).rglob("*")):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def size_limit() -> int | None:
    """Return the most bytes that the cache may have, None if it has no limit.

    Raises `LesionfastError` if LESIONFAST_CACHE_SIZE is not a size.
    """
    typed = os.environ.get(LIMIT, "").strip()
    if not typed:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(I?)B?", typed.upper())
    number, unit, binary = found.groups() if found else ("0", "K", "")
    size = float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(unit))
    if not size:
        raise LesionfastError(
            f"{LIMIT} is '{typed}', which is not a size. Set it to a number with K, M, G or T, "
            f"such as {LIMIT}=20G, or leave it out for no limit."
        )
    return int(size)


@contextmanager
def making_room(file: Path, needed: int) -> Iterator[None]:
    """Remove the least recently used arrays until a new file fits into the limit of the cache.

    No other process makes room meanwhile. Raises `LesionfastError`, and removes nothing, if the
    arrays that are not in use take too little space.
    """
    limit, root = size_limit(), cache_folder().absolute()
    if limit is None or root not in file.absolute().parents:
        yield
        return
    waiting = "waiting for another process that makes room in the cache"
    with only_process(root / f"{LOCKED}{LIMIT}", waiting, wait=True):
        going = choose_entries(limit, needed)
        if going is None:
            raise LesionfastError(describe_limit(limit, needed))
        gone = [entry for entry in going if remove_unused(entry.file)]
        if gone:
            size = format_bytes(sum(entry.size for entry in gone))
            logger.info(
                "Removed %s (%s) from the cache, least recently used first, to stay within %s (%s)",
                pluralize(len(gone), "array"), size, format_bytes(limit), LIMIT,
            )  # fmt: skip
        yield


def choose_entries(limit: int, needed: int) -> list[Entry] | None:
    """Return the arrays to remove so that `needed` more bytes fit into the limit and on the disk.

    Return None if they can't fit into the limit, because too much is in use; return nothing to
    remove if only the disk is too full, which writing will find.
    """
    over = measure_cache() + needed - limit
    wanted = max(over, needed - free_bytes(cache_folder()))
    chosen, freed = [], 0
    for entry in list_entries() if needed <= limit else []:
        if freed >= wanted:
            break
        if not entry.in_use:
            chosen.append(entry)
            freed += entry.size
    if freed >= wanted:
        return chosen
    return None if freed < over else []


def fits(needed: int) -> bool:
    """Return whether the cache can make room for `needed` bytes within its limit, if it has one."""
    limit = size_limit()
    return limit is None or choose_entries(limit, needed) is not None


def has_room(needed: int) -> bool:
    """Return whether `needed` bytes fit into the limit of the cache, and into its free disk space.

    A tenth of that space stays free: a training writes more than arrays.
    """
    limit = size_limit()
    going = [] if limit is None else choose_entries(limit, needed)
    if going is None:
        return False
    return needed <= SHARE * (free_bytes(cache_folder()) + sum(entry.size for entry in going))


def describe_room() -> str:
    """Return what bounds a new array of the cache: "20.0 GB (LESIONFAST_CACHE_SIZE)"."""
    limit, free = size_limit(), free_bytes(cache_folder())
    if limit is not None and limit < free:
        return f"at most {format_bytes(limit)} ({LIMIT})"
    return f"{format_bytes(free)} of free disk space"


def describe_limit(limit: int, needed: int) -> str:
    """Return why an array has no room in the cache, and what to type."""
    used = sum(entry.size for entry in list_entries() if entry.in_use)
    in_use = f", of which {format_bytes(used)} are in use" if used else ""
    enough = ceil((needed + used) * 1.05 / 10**6)
    size = f"{enough}M" if enough < 1000 else f"{ceil(enough / 1000)}G"
    return (
        f"the cache in {cache_folder()} is limited to {format_bytes(limit)} ({LIMIT}){in_use}; "
        f"the new array needs {format_bytes(needed)}. Set {LIMIT}={size}, or train with --no-cache."
    )


def clear_cache(older: float = 0, kind: str | None = None) -> tuple[list[Entry], list[Entry]]:
    """Remove arrays that were not used for `older` seconds; return what is gone and what stays.

    What a process is using stays. With a `kind` only arrays of that kind go; without `kind` and
    `older`, the notes go too.
    """
    cleared: tuple[list[Entry], list[Entry]] = ([], [])
    with cache_errors(cache_folder()):
        for entry in list_entries():
            if entry.used <= time.time() - older and kind in (None, entry.file.parent.name):
                cleared[not remove_unused(entry.file)].append(entry)
        for folder in (cache_folder() / name for name in KINDS):
            sweep(folder)
            for note in folder.glob("*.json") if not (older or kind) else []:
                note.unlink(missing_ok=True)
    return cleared


def remove_unused(file: Path, keep: bool = False) -> bool:
    """Remove a file of the cache unless a process has it open; return whether it is gone.

    With `keep` it is left there; then return whether it could be removed.
    """
    try:
        with file.open("rb+") as opened:  # for writing, as locks on a network may demand it
            if fcntl:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True) if not keep else None
        if not (fcntl or keep):
            file.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError as error:
        in_use = BlockingIOError if fcntl else PermissionError
        if keep or isinstance(error, in_use) or error.errno in (*UNSUPPORTED, errno.ENOLCK):
            return False
        raise
    return True
