"""Decode images once, and keep them as one memory-mapped array of pixels, indexed by row."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from numpy.lib import format as npy

from lesionfast.data.decoding import Task, decode_blocks, fill, read_image
from lesionfast.data.files import FileReader, content_keys, stamps
from lesionfast.errors import LesionfastError
from lesionfast.files import write_json

__all__ = ["Images", "cache_folder", "open_images", "read_image"]

logger = logging.getLogger("lesionfast")

VERSION = 1  # part of every key: raise it when decoding or resizing changes
RESIZES = ("squish", "crop")


@dataclass(frozen=True)
class Images:
    """Decoded images: `pixels` uint8 (n, size, size, 3) RGB, `bad` position -> reason.

    The pixels of a bad image are 0.
    """

    pixels: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What a list of files holds: a hash of their bytes, and the positions that were bad."""

    digest: str
    bad: list[int]


def cache_folder() -> Path:
    """Return the folder for what can be made again: LESIONFAST_CACHE, or the user's cache."""
    chosen = os.environ.get("LESIONFAST_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("lesionfast")


def open_images(
    paths: Sequence[str | Path],
    size: int,
    *,
    resize: str = "squish",
    cache: bool = True,
    skip_bad: bool = False,
    report: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Return images as squares of `size` pixels, decoded now or mapped from the cache.

    `resize` is 'squish' (the whole picture) or 'crop' (its centre square). The cache is keyed by
    the bytes of the images, wherever they lie. `progress(done, total)` is called while decoding.
    Raises `LesionfastError` for bad images, unless `skip_bad`; then they are counted in the log,
    unless `report` is off.
    """
    if size < 1 or resize not in RESIZES:
        raise LesionfastError(
            f"images can't be resized to size {size} by '{resize}'. "
            f"Type a --size of 1 or more and --resize {' or '.join(RESIZES)}."
        )
    task = Task([Path(p).as_posix() for p in paths], size, resize, progress)
    images = open_cached(task, skip_bad) if cache and task.paths else decode_to_memory(task)
    if report or not skip_bad:
        check_bad(task.paths, images.bad, skip_bad)
    return images


def decode_to_memory(task: Task) -> Images:
    """Decode all images into a plain array."""
    pixels, bad = np.zeros(task.shape, np.uint8), {}
    for start, block, bad_of_block in decode_blocks(task):
        pixels[start : start + len(block)] = block
        bad.update(bad_of_block)
    return Images(pixels, bad)


def check_bad(paths: Sequence[str], bad: dict[int, str], skip_bad: bool) -> None:
    """Raise `LesionfastError` for bad images, or count them in the log if they may be skipped."""
    if not bad:
        return
    first = "; ".join(f"{paths[i]}: {why}" for i, why in sorted(bad.items())[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    found = f"{len(bad)} of {len(paths)} images can't be read: {first}{more}"
    if skip_bad and len(bad) < len(paths):
        logger.warning("%s. Left out (--skip-bad)", found)
        return
    hint = "Replace them" + (", or leave them out with --skip-bad." if not skip_bad else ".")
    raise LesionfastError(f"{found}. {hint}")


def open_cached(task: Task, skip_bad: bool) -> Images:
    """Map images from the cache, decoding them into it first if they are not there."""
    folder, note = cache_folder() / "images", note_file(task.paths)
    with cache_errors(folder, megabytes=int(np.prod(task.shape)) / 2**20):
        found = look_up(task, note)
        if found is None:
            with only_builder(folder / f"{read_contents(task.paths, note).digest[:32]}.lock"):
                found = look_up(task, note) or build(task, note, skip_bad)
        return found


@contextmanager
def cache_errors(folder: Path, megabytes: float) -> Iterator[None]:
    """Turn an `OSError` of the cache into a `LesionfastError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise LesionfastError(
            f"the cache can't be kept in {folder}: {error.strerror or error}. Set LESIONFAST_CACHE "
            f"to a folder with {megabytes:.0f} MB free, or type --no-cache."
        ) from error


def is_cached(paths: Sequence[str | Path], size: int, resize: str = "squish") -> bool:
    """Return whether these images need not be decoded any more."""
    task = Task([Path(p).as_posix() for p in paths], size, resize)
    return look_up(task, note_file(task.paths)) is not None


def content_digest(paths: Sequence[str]) -> str:
    """Return the SHA-256 of what the files hold, in order; unchanged files are not read again."""
    return read_contents(paths, note_file(paths)).digest


def note_file(paths: Sequence[str]) -> Path:
    """Return the file of the cache that notes what these files hold, as they are now."""
    return cache_folder() / "images" / f"{digest_of([*stamps(paths), *paths])[:32]}.json"


def look_up(task: Task, note: Path) -> Images | None:
    """Return the images if the cache has them; files that were bad are tried once more."""
    contents = read_contents(task.paths, note)
    with FileReader() as reader:
        scratch = np.zeros((1, *task.shape[1:]), np.uint8)
        tried = {i: fill(scratch, 0, reader, task, i) for i in contents.bad}
    bad = {i: why for i, why in tried.items() if why}
    pixels = map_array(array_file(task, note.parent, contents.digest, bad), task.shape)
    return None if pixels is None else Images(pixels, bad)


def read_contents(paths: Sequence[str], note: Path) -> Contents:
    """Return what the files hold, from the note beside the cache or by reading them."""
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
        return Contents(str(kept["digest"]), [int(i) for i in kept["bad"]])
    except (OSError, ValueError, KeyError, TypeError):
        contents = Contents(digest_of(content_keys(paths)), [])
        write_json(note, vars(contents))
        return contents


def build(task: Task, note: Path, skip_bad: bool) -> Images:
    """Decode all images into a new file of the cache; only one process may do so."""
    contents = read_contents(task.paths, note)
    need = int(np.prod(task.shape))
    if shutil.disk_usage(note.parent).free < need:
        raise OSError("the disk is full")
    logger.info("decoding %d images to %d pixels, once", len(task.paths), task.size)
    aside = note.with_name(f"{contents.digest[:32]}.partial")
    try:
        bad = write_array(task, aside)
        if not skip_bad:
            check_bad(task.paths, bad, skip_bad)
        check_unchanged(task.paths, note)
        write_json(note, vars(Contents(contents.digest, sorted(bad))))
        file = array_file(task, note.parent, contents.digest, bad)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    logger.info("kept %.0f MB in %s", need / 2**20, file)
    pixels = map_array(file, task.shape)
    assert pixels is not None
    return Images(pixels, bad)


def check_unchanged(paths: Sequence[str], note: Path) -> None:
    """Raise `LesionfastError` if a file is not what it was when its content was noted."""
    if note_file(paths) != note:
        raise LesionfastError(
            "images changed while they were being decoded. Wait until nothing writes to their "
            "folder or zip file, and run it again."
        )


def write_array(task: Task, file: Path) -> dict[int, str]:
    """Write the pixels as .npy and return the bad ones; the file is on disk when it returns."""
    bad = {}
    with file.open("wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": task.shape}
        npy.write_array_header_1_0(out, header)
        for _, block, bad_of_block in decode_blocks(task):
            out.write(block.data)
            bad.update(bad_of_block)
        out.flush()
        os.fsync(out.fileno())
    return bad


def map_array(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map an array read-only; None if there is no file, or one that is not whole and ours."""
    try:
        array = npy.open_memmap(file, mode="r")
        whole = array.offset + array.nbytes == file.stat().st_size
        if whole and (array.shape, array.dtype) == (shape, np.uint8):
            return array
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        pass
    logger.warning("%s is broken or foreign, so it is built again", file)
    return None


def array_file(task: Task, folder: Path, digest: str, bad: Iterable[int]) -> Path:
    """Return the name for the pixels of a content; with bad images it has a name of its own."""
    key = digest_of([str(VERSION), str(task.size), task.resize, digest, str(sorted(bad))])
    return folder / f"{key[:32]}.npy"


def digest_of(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of text in hexadecimal."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def only_builder(file: Path) -> Iterator[None]:
    """Hold a lock that one process at a time can have; it goes when the process dies."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that decodes the same images")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
