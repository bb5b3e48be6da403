"""Pictures of every kind that people have become upright RGB, or say why not."""

import io
import logging
import os
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from lesionfast.data.formats.pictures import IMAGE_SUFFIXES, ROWS, decode, find_kind, picture_size
from lesionfast.data.images import open_images, read_image
from lesionfast.data.sources import list_images
from lesionfast.errors import LesionfastError

RED = (200, 40, 30)


@pytest.fixture
def picture():
    """A smooth picture of 64 x 48 pixels whose upper left corner is red."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
    image.paste(RED, (0, 0, 16, 16))
    return image


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(image, data):
    """Return the mean absolute difference between a picture and what is decoded."""
    return np.abs(np.asarray(image, int) - np.asarray(decode(data), int)).mean()


def png(values, colour):
    """Return 16-bit values (H, W[, C]) as PNG of a colour type; Pillow writes no such colours."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    data = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    for name, part in ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        crc = zlib.crc32(name + part)
        data += struct.pack(">I", len(part)) + name + part + struct.pack(">I", crc)
    return data


def tiff(values):
    """Return 16-bit RGB (H, W, 3) as TIFF, not compressed."""
    height, width, _ = values.shape
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, 3), (259, 3, 1), (262, 3, 2),
        (273, 4, 200), (277, 3, 3), (278, 4, height), (279, 4, values.size * 2),
    ]  # fmt: skip
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, value in entries:
        count, value = (3, 150) if tag == 258 else (1, value)
        data += struct.pack("<HHII", tag, kind, count, value)
    data = data.ljust(150, b"\0") + struct.pack("<3H", 16, 16, 16)
    return data.ljust(200, b"\0") + values.astype("<u2").tobytes()


SCENE = np.random.default_rng(1).integers(0, 4096, (9, 11, 3)).astype(np.uint16)
SCENE[0, 0] = (4095, 2000, 0)
DEEP = {
    "RGB as PNG": (png(SCENE, 2), SCENE, 4095),
    "RGB as TIFF": (tiff(SCENE), SCENE, 4095),
    "grey as PNG": (png(SCENE[..., 0], 0), SCENE[..., :1], 4095),
    "grey as TIFF": (encode(Image.fromarray(SCENE[..., 0]), "TIFF"), SCENE[..., :1], 4095),
    "8 bits stored in 16": (png(SCENE // 16, 2), SCENE // 16, 255),
}


@pytest.mark.parametrize(("data", "values", "most"), DEEP.values(), ids=DEEP)
def test_12_bits_stored_in_16_are_stretched_and_said(data, values, most, tmp_path, caplog):
    read = np.asarray(decode(data), float)
    assert np.abs(read - values * (255 / most)).max() <= 0.51
    paths = [tmp_path / "deep.png", tmp_path / "usual.png"]
    paths[0].write_bytes(data)
    paths[1].write_bytes(encode(Image.new("RGB", (9, 9), RED), "PNG"))
    open_images(paths, 8, cache=False)
    assert "Stretched 1 of 2 images that use only 8 or 12 of their 16 bits" in caplog.text
    assert str(paths[0]) in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("data", [png(SCENE * 16, 2), tiff(SCENE * 16), png(SCENE[..., 0] * 16, 0)])
def test_16_bits_that_are_used_are_not_stretched(data, tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(data)
    open_images([tmp_path / "a.png"], 8, cache=False)
    assert not caplog.records
    assert np.abs(np.asarray(decode(data), float)[..., 0] - SCENE[..., 0] / 16.06).max() <= 1


def test_a_black_picture_of_16_bits_stays_black():
    for data in (png(np.zeros((4, 4, 3)), 2), png(np.zeros((4, 4)), 0)):
        assert np.asarray(decode(data)).max() == 0


def test_16_bits_with_alpha_are_stretched_without_the_alpha():
    opaque = np.full((9, 11, 1), 65535, np.uint16)
    read = np.asarray(decode(png(np.dstack([SCENE, opaque]), 6)), float)
    assert np.abs(read - SCENE * (255 / 4095)).max() <= 0.51
    with pytest.raises(ValueError, match="few of its 16 bits .*save it with 8 bits"):
        decode(png(np.dstack([SCENE[..., :1], opaque]), 4))


def test_of_the_two_pictures_of_a_phone_the_first_is_taken(picture):
    second = Image.new("RGB", (64, 48), "blue")
    exif = Image.Exif()
    exif[274] = 6
    data = encode(picture, "MPO", save_all=True, append_images=[second], quality=95, exif=exif)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    assert difference(turned, data) < 4
    assert decode(data, 8).size == (24, 32)  # a large JPEG is decoded at a fraction


def test_cmyk_and_ycck_give_the_printed_colours(picture):
    cmyk = encode(picture.convert("CMYK"), "JPEG", quality=95)
    assert difference(picture, cmyk) < 5
    ycc = np.asarray(ImageOps.invert(picture).convert("YCbCr"))
    planes = np.dstack([ycc, np.full(ycc.shape[:2], 255, np.uint8)])  # inverted, as Adobe has them
    stored = Image.fromarray(255 - planes, "CMYK")
    data = encode(stored, "JPEG", quality=95)
    marker = data.index(b"Adobe")
    ycck = data[: marker + 11] + b"\2" + data[marker + 12 :]
    assert Image.open(io.BytesIO(ycck)).mode == "CMYK"
    assert difference(picture, ycck) < 5


def test_transparency_of_grey_and_of_palettes_is_laid_over_white():
    grey = Image.new("LA", (2, 1), (100, 255))
    grey.putpixel((1, 0), (100, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for data, expected in {
        encode(grey, "PNG"): [[100] * 3, [255] * 3],
        encode(grey, "TIFF"): [[100] * 3, [255] * 3],
        encode(palette, "PNG", transparency=b"\x00\xff"): [[255] * 3, [200, 100, 50]],
        encode(palette, "PNG", transparency=b"\xff\x33"): [[10, 20, 30], [244, 224, 214]],
        encode(palette, "GIF", transparency=1): [[10, 20, 30], [255] * 3],
    }.items():
        assert np.asarray(decode(data))[0].tolist() == expected


def test_rows_that_are_converted_by_and_by_have_the_pixels_of_all_at_once():
    pixels = np.random.default_rng(0).integers(0, 256, (2 * ROWS + 9, 7, 4), dtype=np.uint8)
    opaque = pixels.copy()
    opaque[..., 3] = 255
    palette = Image.fromarray(pixels[..., :3]).quantize(64)
    for image in (
        *map(Image.fromarray, (pixels, opaque)),
        Image.fromarray(pixels[..., :2], "LA"),
        Image.open(io.BytesIO(encode(palette, "PNG", transparency=bytes(range(0, 256, 4))))),
    ):
        whole = image.convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), whole)
        found = decode(encode(image, "PNG"))
        assert (np.asarray(found) == np.asarray(expected)[..., :3]).all()
    assert (np.asarray(decode(encode(Image.fromarray(opaque), "PNG"))) == opaque[..., :3]).all()
    grey = 16 * pixels[..., 0].astype(np.uint16)  # the largest value may be in any part
    for image in (Image.fromarray(grey), Image.fromarray(grey[::-1])):
        scaled = (np.asarray(image).astype(int) * 255 + 2047) // 4095
        assert (np.asarray(decode(encode(image, "PNG")))[..., 0] == scaled).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animations_are_refused(kind, picture):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    other = Image.new("RGB", picture.size, "blue")
    data = encode(picture, kind, save_all=True, append_images=[other])
    with pytest.raises(ValueError, match="an animation of 2 frames; save one of them"):
        decode(data)


@pytest.fixture
def heic(picture):
    """A picture as an iPhone writes it, in parts by name."""
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")

    def write(**options):
        file = io.BytesIO()
        heif.from_pillow(picture).save(file, quality=90, **options)
        return file.getvalue()

    return write


def test_heic_is_read_upright(heic, picture, tmp_path):
    assert find_kind(heic()[:132]) == "HEIC" and picture_size(heic()) == (64, 48)
    assert difference(picture, heic()) < 6
    exif = Image.Exif()
    exif[274] = 6
    turned = decode(heic(exif=exif.tobytes()))
    expected = picture.transpose(Image.Transpose.ROTATE_270)
    assert turned.size == (48, 64)
    assert np.abs(np.asarray(turned, int) - np.asarray(expected, int)).mean() < 6
    (tmp_path / "IMG_1.HEIC").write_bytes(heic())
    assert list_images(tmp_path)["stem"].tolist() == ["IMG_1"]
    assert open_images([tmp_path / "IMG_1.HEIC"], 16, cache=False).bad == {}


def test_without_its_package_a_heic_picture_says_what_to_install(heic, tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(heic())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    words = r"HEIC picture: pillow-heif is not installed. Type: pip install 'lesionfast\[heic\]'"
    with pytest.raises(LesionfastError, match=f"a.heic can't be read: it is a {words}"):
        read_image(str(tmp_path / "a.heic"))
    with pytest.raises(LesionfastError, match=words):
        open_images([tmp_path / "a.heic"], 8, cache=False)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_if_pillow_reads_it(picture, tmp_path, monkeypatch):
    data = encode(picture, "AVIF", quality=95)
    assert find_kind(data[:132]) == "AVIF" and difference(picture, data) < 6
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ValueError, match=r"AVIF picture: .*pip install 'lesionfast\[heic\]'"):
        decode(data)


def test_files_without_a_suffix_are_images_if_they_begin_like_one(picture, tmp_path):
    kinds = ["JPEG", "PNG", "TIFF", "BMP", "WEBP", *(["AVIF"] if features.check("avif") else [])]
    files = {kind: encode(picture, kind) for kind in kinds} | {
        "1.2.840.113619.2": bytes(128) + b"DICM" + bytes(90),
        **{"DICOMDIR": bytes(128) + b"DICM", "text": b"BM is how it begins", "empty": b""},
        **{"a.txt": encode(picture, "JPEG"), ".hidden": encode(picture, "JPEG")},
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"sub/{name}", data)
        archive.writestr("folder/", b"")
    listed = list_images(tmp_path)
    expected = sorted([*kinds, "1.2.840.113619.2"])
    assert sorted(listed["stem"]) == sorted(expected * 2)
    assert all(
        path.endswith(stem) for path, stem in zip(listed["path"], listed["stem"], strict=True)
    )


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".mpo", ".heif", ".avif", ".dcm", ".DICOM"])
def test_images_of_every_suffix_are_listed_by_their_stem(suffix, tmp_path):
    (tmp_path / f"a.b{suffix}").write_bytes(b"-")
    assert suffix.lower() in IMAGE_SUFFIXES
    assert list_images(tmp_path)["stem"].tolist() == ["a.b"]


BROKEN = {
    "text": b"Page not found",
    "JPEG of 3 bytes": b"\xff\xd8\xff",
    "HEIC cut off": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF cut off": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
    "DICOM cut off": bytes(128) + b"DICM\x02\0\0\0UL\4\0",
    "PNG of 16 bits cut off": png(SCENE, 2)[:-300],
    "TIFF of 16 bits cut off": tiff(SCENE)[:-100],
    "MPO cut off": b"\xff\xd8\xff\xe2\0\x10MPF\0II*\0" + bytes(8),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_pictures_are_an_error_with_a_way_on(data, tmp_path):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(LesionfastError, match="can't be read: .*Replace the file"):
        read_image(str(tmp_path / "a.jpg"))


def test_the_pixels_of_usual_pictures_are_those_of_pillow(picture, caplog):
    with caplog.at_level(logging.WARNING):
        for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
            data = encode(picture, kind)
            assert (np.asarray(decode(data)) == np.asarray(Image.open(io.BytesIO(data)))).all()
    assert not caplog.records
