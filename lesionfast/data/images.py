"""From the bytes of a picture to upright RGB pixels, whatever its mode."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

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
from lesionfast.data.sources import FileReader, content_keys, count_threads
from lesionfast.errors import LesionfastError
from lesionfast.files import stamps, workspace

logger = logging.getLogger("lesionfast")

CODECS = ("pil", "libjpeg_turbo", "jpg", "webp", "libtiff")  # what pixels depend on
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # no format that runs a program
MOVING = ("GIF", "WEBP", "PNG")  # formats of animations
BLOCK = 256  # images decoded before they are passed on: bounds the memory
SPARE = 2.0  # how far above the wanted size a JPEG is decoded, so that resizing stays smooth


class BadImage(Exception):
    """A file that gives no picture; the message is the reason."""


def read_image(path: str, reader: FileReader | None = None) -> Image.Image:
    """Return the picture in a file or a zip member ("<zip>/<member>") as upright RGB, full size.

    EXIF orientation is applied, transparency laid over white, 16 bits scaled to 8. Who reads many
    passes a `reader`, which keeps zip files open. Raises `LesionfastError` with the file and the
    reason if there is no picture in it.
    """
    try:
        with nullcontext(reader) if reader else FileReader() as opened:
            return read_with(opened, path)
    except BadImage as bad:
        raise LesionfastError(
            f"{path} can't be read: {bad}. Replace the file, or leave it out with --skip-bad."
        ) from None


def read_square(reader: FileReader, path: str, size: int, resize: str) -> np.ndarray:
    """Return a picture as uint8 (size, size, 3); raises `BadImage`."""
    return np.asarray(fit_square(read_with(reader, path, size), size, resize))


def read_with(reader: FileReader, path: str, size: int | None = None) -> Image.Image:
    """Return an upright RGB picture of at least `size` pixels a side; raises `BadImage`."""
    try:
        return decode(reader.read(path), size)
    except UnidentifiedImageError:
        raise BadImage(f"it is no picture in a format that is read ({known_formats()})") from None
    except FileNotFoundError:
        raise BadImage("there is no such file") from None
    except Exception as error:  # decoders raise anything on broken bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(reason.rstrip(".")) from error


def codecs() -> str:
    """Return the versions of what turns bytes into pixels."""
    return ", ".join(f"{name} {features.version(name)}" for name in CODECS)


def known_formats() -> str:
    """Return the names of the formats, for messages."""
    return ", ".join(FORMATS)


def decode(data: bytes, size: int | None = None) -> Image.Image:
    """Return encoded bytes as upright RGB; a JPEG much larger than `size` at a half, quarter, …"""
    image = Image.open(BytesIO(data), formats=FORMATS)
    if image.format in MOVING and getattr(image, "is_animated", False):
        raise ValueError(f"it is an animation of {image.n_frames} pictures; save one of them")
    if size is not None:
        image.draft(None, (round(SPARE * size), round(SPARE * size)))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as RGB, 8 bits a channel."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def from_16_bits(image: Image.Image) -> Image.Image:
    """Scale grey values 0 to 65535 to 0 to 255; raises `ValueError` for what is beyond."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have 32 bits; save it with 8 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def fit_square(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Resize to a square: 'squish' takes the whole picture, 'crop' its centre square."""
    width, height = image.size
    box = (0.0, 0.0, width, height)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


@dataclass(frozen=True)
class Task:
    """Which images to decode, how, and whom to tell how far it is."""

    paths: list[str]
    size: int
    resize: str
    progress: Callable[[int, int], None] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the pixels: (n, size, size, 3)."""
        return (len(self.paths), self.size, self.size, 3)


def decode_blocks(task: Task) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Decode in parallel; yield position, pixels (k, size, size, 3) and bad ones of each block."""
    total = len(task.paths)
    with FileReader() as reader, ThreadPoolExecutor(count_threads()) as threads:
        for start in range(0, total, BLOCK):
            positions = range(start, min(start + BLOCK, total))
            block = np.zeros((len(positions), *task.shape[1:]), np.uint8)
            reasons = list(
                threads.map(lambda i, b=block, s=start: fill(b, i - s, reader, task, i), positions)
            )
            yield start, block, {i: why for i, why in zip(positions, reasons, strict=True) if why}
            if task.progress:
                task.progress(positions.stop, total)


def fill(block: np.ndarray, row: int, reader: FileReader, task: Task, position: int) -> str:
    """Decode one image into a row of a block; return why it is bad, or ''."""
    try:
        block[row] = read_square(reader, task.paths[position], task.size, task.resize)
    except BadImage as bad:
        return str(bad)
    return ""


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
