"""From the bytes of a picture to upright RGB pixels, whatever its mode."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from lesionfast.data.files import FileReader, count_threads
from lesionfast.errors import LesionfastError

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
