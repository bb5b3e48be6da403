"""Decode images once, and keep them as one memory-mapped array of pixels, indexed by row."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lesionfast.cache import (
    Append,
    cache_errors,
    cache_folder,
    digest_of,
    only_builder,
    open_array,
    read_note,
    write_array,
    write_note,
)
from lesionfast.data.decoding import Task, codecs, decode_blocks, fill, read_image
from lesionfast.data.files import FileReader, content_keys, stamps
from lesionfast.errors import LesionfastError
from lesionfast.files import workspace

__all__ = ["Images", "open_images", "read_image"]

logger = logging.getLogger("lesionfast")

VERSION = 2  # part of every key: raise it when decoding or resizing changes
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
    with cache_errors(folder):
        found = look_up(task, note)
        if found is None:
            with only_builder(folder / f"{read_contents(task.paths, note).digest[:32]}.lock"):
                found = look_up(task, note) or build(task, note, skip_bad)
        return found


def is_cached(paths: Sequence[str | Path], size: int, resize: str = "squish") -> bool:
    """Return whether these images need not be decoded any more."""
    task = Task([Path(p).as_posix() for p in paths], size, resize)
    return look_up(task, note_file(task.paths)) is not None


def content_digest(paths: Sequence[str]) -> str:
    """Return the SHA-256 of what the files hold, in order; unchanged files are not read again."""
    return read_contents(paths, note_file(paths)).digest


def note_file(paths: Sequence[str]) -> Path:
    """Return the file of the cache that notes what these files hold, as they are now."""
    key = digest_of([str(VERSION), *stamps(paths), *paths])
    return cache_folder() / "images" / f"{key[:32]}.json"


def look_up(task: Task, note: Path) -> Images | None:
    """Return the images if the cache has them; files that were bad are tried once more."""
    contents = read_contents(task.paths, note)
    with FileReader() as reader:
        scratch = np.zeros((1, *task.shape[1:]), np.uint8)
        tried = {i: fill(scratch, 0, reader, task, i) for i in contents.bad}
    bad = {i: why for i, why in tried.items() if why}
    pixels = open_array(array_file(task, note.parent, contents.digest, bad))
    return None if pixels is None else Images(pixels, bad)


def read_contents(paths: Sequence[str], note: Path) -> Contents:
    """Return what the files hold, from the note beside the cache or by reading them."""
    kept = read_note(note)
    if kept is not None:
        return Contents(**kept)
    contents = Contents(digest_of(content_keys(paths)), [])
    write_note(note, vars(contents))
    return contents


def build(task: Task, note: Path, skip_bad: bool) -> Images:
    """Decode all images into a new file of the cache; only one process may do so."""
    contents, bad = read_contents(task.paths, note), {}
    logger.info("decoding %d images to %d pixels, once", len(task.paths), task.size)

    def decode(append: Append) -> None:
        for _, block, bad_of_block in decode_blocks(task):
            append(block)
            bad.update(bad_of_block)

    with workspace(note.parent) as folder:
        write_array(folder / "pixels.npy", len(task.paths), decode)
        if not skip_bad:
            check_bad(task.paths, bad, skip_bad)
        check_unchanged(task.paths, note)
        write_note(note, vars(Contents(contents.digest, sorted(bad))))
        file = array_file(task, note.parent, contents.digest, bad)
        os.replace(folder / "pixels.npy", file)
    logger.info("kept %.0f MB in %s", file.stat().st_size / 2**20, file)
    pixels = open_array(file)
    assert pixels is not None
    return Images(pixels, bad)


def check_unchanged(paths: Sequence[str], note: Path) -> None:
    """Raise `LesionfastError` if a file is not what it was when its content was noted."""
    if note_file(paths) != note:
        raise LesionfastError(
            "images changed while they were being decoded. Wait until nothing writes to their "
            "folder or zip file, and run it again."
        )


def array_file(task: Task, folder: Path, digest: str, bad: Iterable[int]) -> Path:
    """Return the name for the pixels of a content; with bad images it has a name of its own."""
    made = [str(VERSION), codecs(), str(task.size), task.resize]
    return folder / f"{digest_of([*made, digest, str(sorted(bad))])[:32]}.npy"
