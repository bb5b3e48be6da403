"""From the files of a dataset to one array of squares, decoded once and mapped from the cache.

Where the array has no room, `SourcePixels` takes its place, and decodes what is read from it.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError, features

from lesionfast.cache import (
    Append,
    cache_errors,
    cache_folder,
    describe_room,
    find_or_build,
    has_room,
    hash_lines,
    open_array,
    put_array,
    read_note,
    write_array,
    write_note,
)
from lesionfast.config import TrainConfig
from lesionfast.data.formats.pictures import (
    BITS,
    NOT_A_PICTURE,
    check_size,
    decode,
    picture_size,
    to_rgb,
)
from lesionfast.data.sources import (
    FileReader,
    content_keys,
    count_threads,
    free_memory,
    read_each,
    storage_order,
)
from lesionfast.errors import LesionfastError, list_first, pluralize
from lesionfast.files import format_bytes, stamps, workspace

logger = logging.getLogger("lesionfast")

VERSION = 2  # part of every key: raise it when decoding or resizing changes
RESIZES = ("squish", "crop")
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in luminance (ITU-R BT.601)
HEADER = 2**15  # bytes of a file that have the size of the picture in them, but for a few
BLOCK = 256  # images decoded before they are passed on: bounds the memory
HEADERS = 2**12  # bytes that a file of the cache has besides its pixels, or fewer
OPENING = threading.Lock()
DIGEST = re.compile("[0-9a-f]{64}")
CODECS = ("pil", "libjpeg_turbo", "jpg", "webp", "libtiff")  # what pixels depend on

Progress = Callable[[int, int], None]  # of how many images are done, and of how many


class SourcePixels:
    """Stands in for the array of decoded images uint8 (n, size, size, 3) where it has no room.

    A position, an array of them or a slice of it is decoded when it is read, as often as it is
    read, by as many threads as there are processors; of a bad image the pixels are 0. Processes
    that are forked or get a copy open the files for themselves. `filename` is that of the array
    which it stands for, None without a cache. Raises `LesionfastError` for an image that can't be
    read any more.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, task: "Task", bad: Iterable[int] = (), filename: Path | None = None) -> None:
        self.task, self.bad, self.filename = task, frozenset(bad), filename
        self._process = 0  # that opened the files

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.task.shape

    def __len__(self) -> int:
        return len(self.task.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {"task": self.task, "bad": self.bad, "filename": self.filename, "_process": 0}

    def __iter__(self) -> Iterator[np.ndarray]:
        return iterate_rows(self, range(len(self)))

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            return self._decode(np.arange(*rows.indices(len(self))))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        places, back = np.unique(rows, return_inverse=True)  # in the order of the source
        return self._decode(places)[back.reshape(rows.shape)]

    def take(self, rows: Any, axis: int = 0, **kwargs: Any) -> np.ndarray:
        """Return the images at some positions, as `np.take` asks for them."""
        return self[rows]

    def choose(self, rows: Sequence[int]) -> "SourcePixels":
        """Return what stands in for the array of some of the images."""
        paths = [self.task.paths[row] for row in rows]
        bad = [place for place, row in enumerate(rows) if row in self.bad]
        return SourcePixels(replace(self.task, paths=paths, progress=None), bad)

    def _decode(self, places: np.ndarray) -> np.ndarray:
        """Return the images at places (k,)."""
        with OPENING:
            if self._process != os.getpid():
                self._process, self._reader = os.getpid(), FileReader()
                self._threads = ThreadPoolExecutor(count_threads())
        pixels = np.zeros((len(places), *self.shape[1:]), np.uint8)
        good = [i for i, place in enumerate(places) if place not in self.bad]
        paths = [self.task.paths[places[i]] for i in good]
        decode_one = partial(fill, resize=self.task.resize, reader=self._reader)
        run = map if len(good) == 1 else self._threads.map
        reasons = run(decode_one, [pixels[i] for i in good], paths)
        bad = {i: why for i, why in enumerate(reasons) if why}
        if bad:
            raise LesionfastError(
                f"{describe_bad(paths, bad)}. They could be read before: put them back as they "
                "were, and run it again."
            )
        return pixels


Pixels = np.ndarray | SourcePixels  # read alike, by positions


def iterate_rows(pixels: Pixels, rows: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield images uint8 (size, size, 3) at some positions, read a block at a time."""
    for start in range(0, len(rows), BLOCK):
        yield from pixels[np.asarray(rows[start : start + BLOCK], int)]


@dataclass(frozen=True)
class Images:
    """Decoded images: `pixels` uint8 (n, size, size, 3) RGB, `bad` position -> reason.

    The pixels of a bad image are 0.
    """

    pixels: Pixels
    bad: dict[int, str] = field(default_factory=dict)


class BadImage(Exception):
    """A file that gives no picture; the message is the reason."""


@dataclass(frozen=True)
class Task:
    """Which images to decode, how, and what to call with the progress."""

    paths: list[str]
    size: int
    resize: str = "squish"
    progress: Progress | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the pixels: (n, size, size, 3)."""
        return (len(self.paths), self.size, self.size, 3)

    @property
    def nbytes(self) -> int:
        """The bytes of a file of the pixels."""
        return prod(self.shape) + HEADERS


def open_images(
    paths: Sequence[str | Path],
    size: int,
    *,
    resize: str = "squish",
    cache: bool = True,
    skip_bad: bool = False,
    report: bool = True,
    progress: Progress | None = None,
) -> Images:
    """Return images as squares of `size` pixels, decoded now or mapped from the cache.

    `resize` is 'squish' (the whole picture) or 'crop' (its centre square). The cache is keyed by
    the bytes of the images, wherever they lie. Where their array has no room in it, or without a
    cache in half of the free memory, they are tried once and decoded whenever they are read
    (`SourcePixels`). `progress(done, total)` is called while decoding.

    Raises `LesionfastError` for bad images, unless `skip_bad`; then they are counted in the log,
    unless `report` is off.
    """
    if size < 1 or resize not in RESIZES:
        raise LesionfastError(
            f"images can't be resized to size {size} by '{resize}'. "
            f"Type a --size of 1 or more and --resize {' or '.join(RESIZES)}."
        )
    task = Task([Path(path).as_posix() for path in paths], size, resize, progress)
    images = open_cached(task, skip_bad) if cache and task.paths else decode_all(task)
    if report or not skip_bad:
        check_bad(task.paths, images.bad, skip_bad)
    return images


def open_dataset_images(
    df: pd.DataFrame, config: TrainConfig, progress: Progress | None = None
) -> Images:
    """Return the images of a table as a training sees them; see `open_images`."""
    return open_images(
        df["path"].tolist(),
        config.size,
        resize=config.resize,
        cache=config.cache,
        skip_bad=config.skip_bad,
        progress=progress,
    )


def check_bad(paths: Sequence[str], bad: dict[int, str], skip_bad: bool) -> None:
    """Raise `LesionfastError` for bad images, or count them in the log if they may be skipped."""
    if not bad:
        return
    problem = describe_bad(paths, bad)
    if not skip_bad:
        raise LesionfastError(f"{problem}. Replace them, or leave them out with --skip-bad.")
    if len(bad) == len(paths):
        raise LesionfastError(f"{problem}. Replace them.")
    logger.warning("%s. They are left out (--skip-bad)", problem)


def describe_bad(paths: Sequence[object], bad: dict[int, str]) -> str:
    """Return how many images can't be read, and why the first of them can't."""
    reasons = list_first((f"{paths[i]}: {why}" for i, why in sorted(bad.items())), 5)
    return f"{len(bad)} of {pluralize(len(paths), 'image')} can't be read: {reasons}"


def decode_all(task: Task) -> Images:
    """Decode all images into a plain array, if there is memory for it."""
    free = free_memory()
    if free is not None and task.nbytes > free / 2:
        return open_sources(task, f"{format_bytes(free)} of free memory")
    pixels, bad = np.zeros(task.shape, np.uint8), {}
    for places, block, bad_of_block in decode_blocks(task):
        pixels[places] = block
        bad.update(bad_of_block)
    return Images(pixels, bad)


def open_sources(task: Task, room: str, note: Path | None = None) -> Images:
    """Return images that are decoded whenever they are read; each is tried once before.

    `room` is what there is for the array of all, in words. The note remembers what was bad.
    """
    logger.info(
        "%s decoded to %d x %d pixels take %s, and there is room for %s: they are decoded "
        "whenever they are read",
        pluralize(len(task.paths), "image"), task.size, task.size, format_bytes(task.nbytes), room,
    )  # fmt: skip
    if any(".parquet/" in path.lower() for path in task.paths[:1] + task.paths[-1:]):
        logger.warning(
            "A row of a Parquet file can't be read without those before it in its row group, which "
            "slows training down. `lesionfast data convert` writes files that are read one by one"
        )
    contents = read_contents(task.paths, note) if note else {}
    if contents.get("tried"):
        bad = try_again(task, contents["bad"])
    else:
        logger.info("Trying to decode each of them, once")
        bad = {}
        for _, _, bad_of_block in decode_blocks(task):
            bad.update(bad_of_block)
    if note is None:
        return Images(SourcePixels(task, bad), bad)
    write_note(note, {"digest": contents["digest"], "bad": sorted(bad), "tried": True})
    file = find_array(task, note.parent, contents["digest"], bad)
    return Images(SourcePixels(task, bad, file), bad)


def is_cached(paths: Sequence[str | Path], size: int, resize: str = "squish") -> bool:
    """Return whether these images are decoded already."""
    task = Task([Path(path).as_posix() for path in paths], size, resize)
    return look_up(task, find_note(task.paths)) is not None


def can_be_kept(count: int, size: int) -> bool:
    """Return whether the array of so many images has room in the cache."""
    return has_room(count * size * size * 3 + HEADERS)


def content_digest(paths: Sequence[str]) -> str:
    """Return the SHA-256 of what the files hold, in order; unchanged files are not read again."""
    return read_contents(paths, find_note(paths))["digest"]


def open_cached(task: Task, skip_bad: bool) -> Images:
    """Map images from the cache, decoding them into it first if they are not there."""
    folder, note = cache_folder() / "images", find_note(task.paths)
    with cache_errors(folder):
        target = folder / read_contents(task.paths, note)["digest"][:32]
        make = partial(build, task, note, skip_bad)
        return find_or_build(target, partial(look_up, task, note), make)


def find_note(paths: Sequence[str]) -> Path:
    """Return the file of the cache that notes what these files hold, as they are now."""
    key = hash_lines([str(VERSION), *stamps(paths), *paths])
    return cache_folder() / "images" / f"{key[:32]}.json"


def read_contents(paths: Sequence[str], note: Path) -> dict:
    """Return the SHA-256 of the files' bytes (digest) and the positions that were bad (bad).

    They are in the note beside the cache, or the files are read.
    """
    shape = {"digest": str, "bad": [range(len(paths))], "tried?": bool}
    contents = read_note(note, shape, len(paths))
    if contents is None or not DIGEST.fullmatch(contents["digest"]):
        contents = {"digest": hash_lines(content_keys(paths)), "bad": []}
        write_note(note, contents)
    return contents


def find_array(task: Task, folder: Path, digest: str, bad: Iterable[int]) -> Path:
    """Return the name for the pixels of a content; with bad images it has a name of its own."""
    codecs = [str(VERSION), list_codecs(), str(task.size), task.resize]
    return folder / f"{hash_lines([*codecs, digest, str(sorted(bad))])[:32]}.npy"


def list_codecs() -> str:
    """Return the versions of what turns bytes into pixels."""
    return ", ".join(f"{name} {features.version(name)}" for name in CODECS)


def look_up(task: Task, note: Path) -> Images | None:
    """Return the images if the cache has them; files that were bad are tried once more."""
    contents = read_contents(task.paths, note)
    bad = try_again(task, contents["bad"])
    file = find_array(task, note.parent, contents["digest"], bad)
    pixels = open_array(file, shape=task.shape)
    return None if pixels is None else Images(pixels, bad)


def try_again(task: Task, bad: Sequence[int]) -> dict[int, str]:
    """Return which images at some positions are still bad, and why."""
    with FileReader() as reader:
        scratch = np.zeros(task.shape[1:], np.uint8)
        tried = {i: fill(scratch, task.paths[i], task.resize, reader) for i in bad}
    return {i: why for i, why in tried.items() if why}


def build(task: Task, note: Path, skip_bad: bool) -> Images:
    """Decode all images into a new file of the cache; only one process may do so."""
    if not has_room(task.nbytes):
        return open_sources(task, describe_room(), note)
    digest, bad = read_contents(task.paths, note)["digest"], {}
    images = pluralize(len(task.paths), "image")
    logger.info("Decoding %s to %d x %d pixels, once", images, task.size, task.size)

    def decode_to(append: Append) -> None:
        for places, block, bad_of_block in decode_blocks(task):
            append(block, None if isinstance(places, range) else places)
            bad.update(bad_of_block)

    with workspace(note.parent) as folder:
        write_array(folder / "pixels.npy", len(task.paths), decode_to)
        if not skip_bad:
            check_bad(task.paths, bad, skip_bad)
        if find_note(task.paths) != note:
            raise LesionfastError(
                "images changed while they were being decoded. Wait until nothing writes to their "
                "folder or file, and run it again."
            )
        write_note(note, {"digest": digest, "bad": sorted(bad)})
        file = find_array(task, note.parent, digest, bad)
        pixels = put_array(folder / "pixels.npy", file)
    logger.info("Cached %.0f MB in %s", pixels.nbytes / 2**20, file)
    return Images(pixels, bad)


def decode_blocks(task: Task) -> Iterator[tuple[Sequence[int], np.ndarray, dict[int, str]]]:
    """Decode in parallel; yield places, pixels (k, size, size, 3) and bad ones of each block."""
    total, stretched, order = len(task.paths), [], storage_order(task.paths)
    with FileReader() as reader, ThreadPoolExecutor(count_threads()) as threads:
        decode_one = partial(fill, resize=task.resize, reader=reader, stretched=stretched)
        for start in range(0, total, BLOCK):
            places = order[start : start + BLOCK]
            block = np.zeros((len(places), *task.shape[1:]), np.uint8)
            reasons = threads.map(decode_one, block, [task.paths[i] for i in places])
            bad = {i: why for i, why in zip(places, reasons, strict=True) if why}
            yield places, block, bad
            if task.progress:
                task.progress(start + len(places), total)
    if stretched:
        logger.warning(
            "Stretched %d of %s that use only 8 or 12 of their 16 bits to the full range: %s",
            len(stretched), pluralize(total, "image"), list_first(sorted(stretched)),
        )  # fmt: skip


def fill(
    out: np.ndarray, path: str, resize: str, reader: FileReader, stretched: list[str] | None = None
) -> str:
    """Decode one image into uint8 (size, size, 3); return why it is bad, or ''.

    The path of an image that uses few of its 16 bits is added to `stretched`.
    """
    try:
        picture = read_picture(path, len(out), reader)
        out[:] = np.asarray(fit_square(picture, len(out), resize))
    except BadImage as bad:
        return str(bad)
    if BITS in picture.info and stretched is not None:
        stretched.append(path)
    return ""


def fit_square(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Resize to a square: 'squish' takes the whole picture, 'crop' its centre square."""
    width, height = image.size
    box = (0.0, 0.0, width, height)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def find_sizes(paths: Sequence[str]) -> np.ndarray:
    """Return width and height in pixels of each image, int (n, 2), by the header of its file.

    They are 0 for an image that can't be read.
    """

    def find_size(path: str, reader: FileReader) -> tuple[int, int]:
        for read in (partial(reader.read_start, most=HEADER), reader.read):
            with suppress(Exception):  # the header is longer, or the bytes are broken
                return picture_size(read(path))
        return 0, 0

    return np.array(read_each(paths, find_size), int).reshape(-1, 2)


def read_image(path: str, reader: FileReader | None = None) -> Image.Image:
    """Return the picture in a file or a container ("<file>/<member>") as upright RGB, full size.

    EXIF orientation is applied, transparency laid over white, 16 bits scaled to 8. Pass a `reader`
    to read many: it keeps containers open. Raises `LesionfastError` with the file and the reason if
    there is no picture in it.
    """
    try:
        return read_picture(path, reader=reader)
    except BadImage as bad:
        raise LesionfastError(f"{path} can't be read: {bad}. Replace the file.") from None


def read_picture(
    source: str | bytes | Image.Image | np.ndarray,
    size: int | None = None,
    reader: FileReader | None = None,
) -> Image.Image:
    """Return an upright RGB picture of at least `size` pixels a side; raises `BadImage`.

    `source` is a path, encoded bytes, an open image, or uint8 (H, W, 3).
    """
    try:
        if isinstance(source, str):
            with nullcontext(reader) if reader else FileReader() as opened:
                source = opened.read(source)
        if isinstance(source, bytes):
            check_size(len(source))
            return decode(source, size)
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        image.load()  # a file that is cut off is found here
        return to_rgb(image)
    except UnidentifiedImageError:
        raise BadImage(f"it is {NOT_A_PICTURE}") from None
    except FileNotFoundError:
        raise BadImage("there is no such file") from None
    except Exception as error:  # decoders raise anything on broken bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(reason.strip().splitlines()[0].rstrip(".")) from error
