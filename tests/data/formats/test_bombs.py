"""Pictures as honest people have them are no bombs: large, damaged or of rare programs."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from lesionfast.data.formats.bombs import MOST_VALUES, check_tags
from lesionfast.data.formats.pictures import decode, picture_size


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def noise():
    """A picture that no program makes smaller."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def exif(*tags, order="<"):
    """Return EXIF of tags: number, type, count, value or place."""
    listed = b"".join(struct.pack(f"{order}HHLL", *tag) for tag in tags)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + start + struct.pack(f"{order}LH", 8, len(tags)) + listed + bytes(4)


def test_a_large_gif_is_read():
    pixels = np.random.default_rng(0).integers(0, 255, (1800, 1800), np.uint8)
    data = encode(Image.fromarray(pixels), "GIF")
    assert len(data) > 4 * 10**6
    assert (np.asarray(decode(data))[..., 0] == pixels).all()


DAMAGED = {
    "unknown type": [(0x9999, 60_000, 4_000_000_000, 8)],
    "more values than the file has": [(0x9999, 3, 4_000_000_000, 8)],
    "beyond the file": [(0x9999, 4, 200_000, 4_000_000_000)],
    "filled with ones": [(0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)] * 20,
    "many beyond the file": [(0x9000 + i, 5, 100_000_000, 8) for i in range(500)],
    "place of more tags": [(0x8769, 7, 100, 8)],
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tags", DAMAGED.values(), ids=DAMAGED)
def test_a_photograph_with_damaged_exif_is_read(noise, tags, order):
    data = encode(
        noise,
        "JPEG",
        exif=exif((0x112, 3, 1, 1 << (16 if order == ">" else 0)), *tags, order=order),
    )
    assert decode(data).size == noise.size


def test_tags_that_are_there_are_still_counted():
    large = exif((0x9999, 3, MOST_VALUES + 1, 8))[6:]
    check_tags(large)
    with pytest.raises(ValueError, match="its tag 39321 has 100,001 values"):
        check_tags(large + bytes(3 * MOST_VALUES))


def pyramid(levels, big):
    """Return a TIFF whose levels are named by one tag, as OME and QuPath write them."""
    image = Image.fromarray(np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8))
    given = TiffImagePlugin.ImageFileDirectory_v2()
    given[330], given.tagtype[330] = tuple([10**6 + i for i in range(levels)]), 13
    data = encode(image, "TIFF", tiffinfo=given, big_tiff=big)
    places = struct.pack(f"<{levels}L", *range(10**6, 10**6 + levels))
    level = len(data) + len(data) % 2
    assert places in data or levels == 1
    now = struct.pack(f"<{levels}L", *[level] * levels)
    body = data.replace(places, now).ljust(level, b"\0")
    listed = struct.pack("<Q", 0) if big else struct.pack("<H", 0)
    return body + listed + bytes(8) + b"\xff" * 5000


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_several_levels_is_read(big):
    data = pyramid(5, big)
    assert picture_size(data) == decode(data).size == (64, 64)


def test_filling_between_the_segments_of_a_jpeg_is_read(noise):
    data = encode(noise, "JPEG")
    filled = data[:2] + b"\xff" * 30_000 + data[2:]
    assert decode(filled).tobytes() == decode(data).tobytes()
