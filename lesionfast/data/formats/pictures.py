"""From the encoded bytes of one picture, of whatever kind people have, to upright RGB."""

import sys
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, features

from lesionfast.data.formats.bombs import check_build, check_tags
from lesionfast.data.formats.dicom import DICOM_SUFFIXES, dicom_size, is_dicom, open_dicom
from lesionfast.data.formats.heic import HEIC_BRANDS, open_heic

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp"),
    *(".heic", ".heif", ".avif", *DICOM_SUFFIXES),
)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # no format that runs a program
MOVING = ("GIF", "WEBP", "PNG", "AVIF")  # formats of animations
SUPPORTED = (*FORMATS, "AVIF", "HEIC", "DICOM")
NOT_A_PICTURE = f"not a picture in a supported format ({', '.join(SUPPORTED)})"
MOST_BYTES = 2**28  # more in one picture is an error or an attack
HEAD = 132  # bytes that tell the kind of a picture
STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
AVIF_BRANDS = {b"avif", b"avis"}
JPEGS = ("JPEG", "MPO")  # an MPO file is a JPEG file with a second picture, such as a depth map
SPARE = 2.0  # how far above the wanted size a JPEG is decoded, so that resizing stays smooth
BITS = "bits used of 16"  # key of `Image.info`, where fewer than 16 were stretched
ROWS = 256  # of pixels that are scaled together
DEPTHS = (8, 12)  # bits that cameras store in 16
OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def check_size(size: int) -> None:
    """Raise `ValueError` for a number of bytes that no picture has."""
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    if size > MOST_BYTES:
        raise ValueError(f"it has {size / 2**20:.0f} MB; at most {MOST_BYTES >> 20} MB are read")


def find_kind(head: bytes) -> str:
    """Return the kind of picture that begins with these bytes, at least 132; '' if unknown."""
    if is_dicom(head):
        return "DICOM"
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, end, 4))}
        return "AVIF" if brands & AVIF_BRANDS else "HEIC" if brands & HEIC_BRANDS else ""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    return next((kind for start, kind in STARTS.items() if head.startswith(start)), "")


def decode(data: bytes, size: int | None = None) -> Image.Image:
    """Return encoded bytes as upright RGB; a JPEG much larger than `size` at a half, quarter, …

    If only 8 or 12 of 16 bits are used, they are stretched, and `info[BITS]` of the picture says
    so. Decoders raise anything on broken bytes.
    """
    image = open_encoded(data)
    if image.format in MOVING and getattr(image, "is_animated", False):
        raise ValueError(f"it is an animation of {image.n_frames} frames; save one of them")
    if size is not None and image.format in JPEGS:
        image.draft(None, (round(SPARE * size), round(SPARE * size)))
    deep = ";16" in find_raw_mode(image) and image.mode.startswith("RGB")
    image.load()
    if deep:
        image = stretch_colours(image, data)
    check_exif(image)
    ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def check_exif(image: Image.Image) -> None:
    """Raise `ValueError` for EXIF of tags that overlap: reading one reads all of them."""
    given = image.info.get("exif") or b""
    if text := image.info.get("Raw profile type exif"):
        given = given or bytes.fromhex("".join(text.split("\n")[3:]))
    check_tags(given)


def picture_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels as the header has them; decoders raise anything."""
    kind = find_kind(data[:HEAD])
    if kind == "DICOM":
        check_build(data, kind)
        return dicom_size(data)
    if kind == "HEIC":
        check_build(data, kind)
        return open_heic(data, decode=False).size
    return open_encoded(data).size


def open_encoded(data: bytes) -> Image.Image:
    """Open a picture without decoding it, if its kind allows; `UnidentifiedImageError` if none."""
    kind = find_kind(data[:HEAD])
    check_build(data, kind)
    if kind == "DICOM":
        return open_dicom(data)
    if kind == "HEIC":
        return open_heic(data)
    if kind == "AVIF" and not features.check("avif"):
        raise ValueError(
            "it is an AVIF picture: this version of Pillow does not read it. Type: pip install "
            "'lesionfast[heic]'"
        )
    return Image.open(BytesIO(data), formats=("AVIF",) if kind == "AVIF" else FORMATS)


def find_raw_mode(image: Image.Image) -> str:
    """Return how the pixels lie in a file that is opened but not decoded, such as "RGB;16B"."""
    tiles = getattr(image, "tile", None)
    given = tiles[0][3] if tiles else ""
    return str(given[0] if isinstance(given, tuple) and given else given)


def stretch_colours(image: Image.Image, data: bytes) -> Image.Image:
    """Return a colour picture of 16 bits a channel, of which Pillow keeps the upper 8.

    If they hold next to nothing, the file is decoded once more for the lower 8.
    """
    high = np.asarray(image)
    if high[..., :3].max() >= 2 ** (max(DEPTHS) - 8):
        return image
    lower = Image.open(BytesIO(data), formats=FORMATS)
    raw = find_raw_mode(lower)
    if raw[:-1] not in ("RGB;16", "RGBA;16", "RGBX;16"):
        raise ValueError(f"it uses few of its 16 bits ({raw}); save it with 8 bits per channel")
    other = raw[:-1] + OTHER_BYTE[raw[-1]]
    lower.tile = [tile._replace(args=replace_mode(tile.args, other)) for tile in lower.tile]
    low = np.asarray(lower)
    values = high[..., :3].astype(np.uint16)
    values <<= 8
    values |= low[..., :3]
    scaled, bits = to_8_bits(values)
    if high.shape[2] == 4:
        scaled = np.dstack([scaled, high[..., 3]])
    stretched = Image.fromarray(scaled)
    stretched.info = {**image.info, BITS: bits}
    return stretched


def replace_mode(given: object, mode: str) -> object:
    """Return the arguments of a decoder with another raw mode."""
    return (mode, *given[1:]) if isinstance(given, tuple) else mode


def to_8_bits(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return 16-bit values as uint8, and how many bits were used: 8, 12 or 16."""
    bits, scaled = count_bits(int(values.max(initial=0))), np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):  # a large picture would take gigabytes at once
        scaled[start : start + ROWS] = scale_to_8_bits(values[start : start + ROWS], bits)
    return scaled, bits


def count_bits(most: int) -> int:
    """Return how many bits the values of a picture use whose largest is `most`: 8, 12 or 16."""
    return next((depth for depth in DEPTHS if 0 < most < 2**depth), 16)


def scale_to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Return values of so many bits as uint8, rounded."""
    scale = 2**bits - 1
    return ((values.astype(np.uint32) * 255 + scale // 2) // scale).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as RGB, 8 bits a channel; 16 bits of grey are scaled."""
    bits = image.info.get(BITS, 16)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        most = max(int(np.asarray(rows).max()) for rows in cut_rows(image))
        if most > 65535 or min(int(np.asarray(rows).min()) for rows in cut_rows(image)) < 0:
            raise ValueError("its pixels have 32 bits; save it with 8 bits per channel")
        bits = count_bits(most)
        image = convert_rows(
            image, lambda rows: Image.fromarray(scale_to_8_bits(np.asarray(rows), bits))
        )
    elif image.has_transparency_data:
        image = convert_rows(image, lay_over_white)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if bits < 16:
        image.info[BITS] = bits
    return image


def lay_over_white(image: Image.Image) -> Image.Image:
    """Return a picture with transparent pixels on a white ground."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def cut_rows(image: Image.Image) -> Iterator[Image.Image]:
    """Yield a picture in parts of some rows each, from the top."""
    for top in range(0, image.height, ROWS):
        yield image.crop((0, top, image.width, min(top + ROWS, image.height)))


def convert_rows(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return a picture as RGB, some rows at a time: the copies of a large one take gigabytes."""
    converted, top = Image.new("RGB", image.size), 0
    for rows in cut_rows(image):
        converted.paste(convert(rows).convert("RGB"), (0, top))
        top += rows.height
    return converted
