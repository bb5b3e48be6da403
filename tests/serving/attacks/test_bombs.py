"""Files that are built to take minutes or gigabytes from who reads them, and what they cost.

Each is read in a process of its own, of which processor time and memory are measured. The long part
has files of the largest size that the page takes.
"""

import io
import os
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.columns.values import is_date, read_number
from lesionfast.data.images import BadImage, read_picture
from lesionfast.data.layouts.recognise import recognise
from lesionfast.data.sources import FileReader
from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import find_items
from lesionfast.serving.web.uploads import MOST_BYTES, NoImage, check_limits

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SMALL, LARGE = 3 * 10**6, MOST_BYTES - 10**6  # bytes of a bomb
SECONDS, GIGABYTE = 10, 2**30  # of processor time, of memory: what one picture may cost


@dataclass
class Cost:
    """What came of some work, its seconds of processor time, and the bytes of memory it added."""

    outcome: str
    seconds: float
    memory: int


def measure(work: Callable[[], object]) -> Cost:
    """Do some work in a process of its own, which is ended after a minute of processor time."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        try:
            outcome = f"done: {work()}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(writer, outcome.encode()[:2000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        outcome = file.read().decode()
    _, status, used = os.wait4(pid, 0)
    assert status == 0, f"it ended with signal {os.WTERMSIG(status)}"
    return Cost(outcome, used.ru_utime + used.ru_stime, max(0, used.ru_maxrss * 1024 - before))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fill(part: bytes, size: int) -> bytes:
    """Return a part as often as it fits."""
    return part * (size // len(part))


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", pixels: bytes = b"", after: bytes = b"") -> bytes:
    """Return a PNG of 64 x 64 pixels with more chunks."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(64 * 193)))
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + body + after + chunk(b"IEND")


def jpeg(segments: bytes = b"", mode: str = "RGB", **options) -> bytes:
    """Return a JPEG of 64 x 64 pixels with more segments."""
    data = encode(Image.new(mode, (64, 64)), "JPEG", **options)
    return data[:2] + segments + data[2:]


def gif(blocks: bytes) -> bytes:
    """Return a GIF of 64 x 64 pixels with more blocks before it."""
    data = encode(Image.new("P", (64, 64)), "GIF")
    start = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 128 else 0)
    return data[:start] + blocks + data[start:]


def overlapping_tags(size: int, number: int = 1000) -> bytes:
    """Return EXIF of tags that all name the same bytes."""
    tags = b"".join(struct.pack("<HHLL", 1000 + i, 7, size, 8) for i in range(number))
    return b"II*\0" + struct.pack("<LH", 8, number) + tags + bytes(4 + size)


def tiff(*more: tuple[int, int, bytes], start: bytes = b"II*\0") -> bytes:
    """Return a TIFF of 100 x 100 pixels with more tags: number, type and its values."""
    usual = [(256, 100), (257, 100), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    tags = [(tag, 4, struct.pack("<L", value)) for tag, value in usual]
    tags = sorted([tag for tag in tags if tag[0] not in {one[0] for one in more}] + [*more])
    place, listed, values = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, kind, value in tags:
        count = len(value) // {3: 2, 4: 4, 5: 8, 7: 1}[kind]
        listed += struct.pack("<HHL", tag, kind, count)
        listed += (
            value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<L", place + len(values))
        )
        values += value if len(value) > 4 else b""
    return start + struct.pack("<LH", 8, len(tags)) + listed + bytes(4) + values + bytes(20_000)


def tiled(side: int) -> bytes:
    """Return a TIFF of 100 x 100 pixels in one tile of many, compressed to next to nothing."""
    long = struct.Struct("<L").pack
    data = tiff((259, 4, long(8)), (322, 4, long(side)), (323, 4, long(side)), (324, 4, long(9)))
    pixels = zlib.compressobj(1)
    packed = b"".join(pixels.compress(bytes(side)) for _ in range(side)) + pixels.flush()
    found = data.find(struct.pack("<HHL", 324, 4, 1)) + 8
    data = data[:found] + long(len(data)) + data[found + 4 :]
    return data + packed


def scans(number: int, side: int = 2000) -> bytes:
    """Return a progressive JPEG whose last pass over the pixels is there many times."""
    data = encode(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * number + data[-2:]


def dicom(tags: bytes = b"", syntax: bytes = b"1.2.840.10008.1.2.1", size: int = 64) -> bytes:
    """Return a DICOM file that says it has a picture of so many pixels a side."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        length = (
            struct.pack("<HL", 0, len(value)) if kind == b"OB" else struct.pack("<H", len(value))
        )
        return struct.pack("<HH", group, number) + kind + length + value

    about = element(2, 0x10, b"UI", syntax)
    short = struct.Struct("<H").pack
    numbers = {0x10: size, 0x11: size, 0x100: 8, 0x101: 8, 0x102: 7, 0x103: 0}
    picture = element(0x28, 2, b"US", short(1)) + element(0x28, 4, b"CS", b"MONOCHROME2 ")
    picture += b"".join(element(0x28, tag, b"US", short(value)) for tag, value in numbers.items())
    start = bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<L", len(about))) + about
    return start + tags + picture + element(0x7FE0, 0x10, b"OB", bytes(64 * 64))


def deflated(size: int, part: bytes = b"\0") -> bytes:
    """Return a DICOM file that unpacks to a thousand times as much, or to many parts."""
    whole = dicom(syntax=b"1.2.840.10008.1.2.1.99")
    packed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    number = size // 30_000 if part == b"\0" else 10
    parts = b"".join(packed.compress(fill(part, 10**6)) for _ in range(number))
    return whole[: whole.find(struct.pack("<HH", 0x28, 2))] + parts + packed.flush()


def folders(size: int) -> bytes:
    """Return a TIFF whose tags lead to places where thousands of the same tags begin."""
    lead = struct.pack("<HHLL", 0x14A, 4, 50, 22)
    places = struct.pack("<50L", *range(300, 900, 12))
    return b"II*\0" + struct.pack("<LH", 8, 1) + lead + places + fill(b"\xff\x7f", size)


def undefined(number: int) -> bytes:
    """Return the begin of so many sequences in one another, of a DICOM file."""
    begin = struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, 2**32 - 1)
    return (begin + struct.pack("<HHL", 0xFFFE, 0xE000, 2**32 - 1)) * number


SOLID = {"deflate": zlib.compress(bytes(2 * 10**7)), "text": zlib.compress(bytes(10**6))}
XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
EMPTY_TAG = struct.pack("<HH2sH", 9, 1, b"LO", 0)
PICTURES: dict[str, tuple[Callable[[int], bytes], str]] = {  # of a size -> bytes; why it is refused
    "PNG chunks": (lambda n: png(fill(chunk(b"abCd"), n)), "thousands of chunks"),
    "PNG chunks of no pixels": (
        lambda n: png(pixels=fill(chunk(b"IDAT"), n)),
        "thousands of chunks",
    ),
    "PNG chunks at the end": (lambda n: png(after=fill(chunk(b"abCd"), n)), "thousands of chunks"),
    "PNG profile": (lambda n: png(chunk(b"iCCP", b"a\0\0" + SOLID["deflate"])), "too large"),
    "PNG zTXt": (lambda n: png(chunk(b"zTXt", b"a\0\0" + SOLID["deflate"])), "too large"),
    "PNG zTXts": (
        lambda n: png(b"".join(chunk(b"zTXt", b"%d\0\0" % i + SOLID["text"]) for i in range(99))),
        "Too much memory",
    ),
    "PNG iTXt": (
        lambda n: png(chunk(b"iTXt", XMP[:18] + b"\1\0\0\0" + SOLID["deflate"])),
        "too large",
    ),
    "PNG orientations": (
        lambda n: png(chunk(b"iTXt", XMP + fill(b'tiff:Orientation="', n))),
        "",
    ),
    "PNG EXIF": (lambda n: png(chunk(b"eXIf", overlapping_tags(n))), "its tags hold"),
    "PNG EXIF, again and again": (
        lambda n: png(chunk(b"eXIf", fill(b"Exif\0\0", n))),
        "its EXIF begins again",
    ),
    "PNG EXIF as text": (
        lambda n: png(
            chunk(
                b"tEXt",
                b"Raw profile type exif\0\n\n\n" + overlapping_tags(n // 2).hex().encode(),
            )
        ),
        "its tags hold",
    ),
    "PNG frames": (lambda n: png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))), "animation"),
    "JPEG segments": (lambda n: jpeg(fill(b"\xff\xec\0\2", n)), "thousands of segments"),
    "JPEG segments after an end": (
        lambda n: jpeg(b"\xff\xd9" + fill(b"\xff\xec\0\2", n)),
        "thousands of segments",
    ),
    "JPEG EXIF segments": (
        lambda n: jpeg(fill(b"\xff\xe1\0\x09Exif\0\0a", n)),
        "thousands of segments",
    ),
    "JPEG EXIF": (
        lambda n: jpeg(exif=b"Exif\0\0" + overlapping_tags(20_000, 3000)),
        "its tags hold",
    ),
    "JPEG filled": (lambda n: jpeg(b"\xff" * n), "64 KB between its segments"),
    "JPEG of filling alone": (
        lambda n: PHOTO[: PHOTO.find(b"\xff\xda")] + b"\xff" * n,
        "64 KB between its segments",
    ),
    "JPEG escapes": (lambda n: jpeg(fill(b"\xff\0", n)), "64 KB between its segments"),
    "JPEG tables": (
        lambda n: jpeg(fill(b"\xff\xdb\0\x43\0" + bytes([1] * 64), n)),
        "thousands of segments",
    ),
    "JPEG scans": (lambda n: scans(300), "more than 100 scans"),
    "GIF comment": (
        lambda n: gif(b"!\xfe" + fill(b"\xff" + bytes([65] * 255), n) + b"\0"),
        "comments",
    ),
    "GIF comments": (lambda n: gif(fill(b"!\xfe\1a\0", n)), "thousands of blocks"),
    "GIF frames": (
        lambda n: gif(fill(b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0", n)),
        "thousands of blocks",
    ),
    "WebP EXIF": (
        lambda n: encode(Image.new("RGB", (64, 64)), "WEBP", exif=overlapping_tags(n)),
        "its tags hold",
    ),
    "TIFF tags": (lambda n: overlapping_tags(n), "its tags hold"),
    "TIFF tags, with the bytes swapped": (
        lambda n: b"II\0*" + overlapping_tags(n)[4:],
        "its tags hold",
    ),
    "TIFF folders": (folders, " tags, maybe"),
    "TIFF strips": (
        lambda n: tiff((273, 4, fill(struct.pack("<L", 5000), n))),
        "its tag 273 has",
    ),
    "TIFF tiles": (
        lambda n: tiff(
            (322, 4, struct.pack("<L", 1)),
            (323, 4, struct.pack("<L", 1)),
            (324, 4, fill(struct.pack("<L", 5000), n)),
        ),
        "its tag 324 has",
    ),
    "TIFF tile": (lambda n: tiled(20_000), "one tile of it has 400,000,000 pixels"),
    "TIFF resolution": (
        lambda n: tiff((282, 5, fill(struct.pack("<LL", 1, 1), n))),
        "its tag 282 has",
    ),
    "TIFF pages": (
        lambda n: encode(
            Image.new("L", (64, 64)),
            "TIFF",
            save_all=True,
            append_images=[Image.new("L", (1, 1))] * 500,
        ),
        "",
    ),
    "DICOM deflated": (deflated, "it unpacks to more than"),
    "DICOM deflated, its tags damaged": (
        lambda n: deflated(n).replace(b"DICM", b"DICM" + struct.pack("<HH2sHL", 2, 1, b"SQ", 0, 0)),
        "damaged",
    ),
    "DICOM tags, deflated": (lambda n: deflated(n, EMPTY_TAG), "it has too many tags"),
    "DICOM tags": (lambda n: dicom(fill(EMPTY_TAG, n)), "it has too many tags"),
    "DICOM sequences": (lambda n: dicom(undefined(n // 20)), "recursion"),
    "DICOM size": (lambda n: dicom(size=65535), "maybe a decompression bomb"),
}
LIBRARIES = {"WebP": "PIL._webp", "DICOM": "pydicom"}


def read_twice(data: bytes) -> object:
    """Read a picture as the page does, then as `predict` does."""
    try:
        check_limits(data)
    finally:
        size = read_picture(data, 224).size
    return size


@pytest.mark.parametrize("size", [SMALL, pytest.param(LARGE, marks=pytest.mark.attack)])
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_costs_no_more_than_others(name, size):
    if library := LIBRARIES.get(name.split()[0]):
        pytest.importorskip(library)
    make, words = PICTURES[name]
    data = make(size)
    cost = measure(lambda: read_twice(data))
    if words:
        assert cost.outcome.startswith("BadImage: ") and words in cost.outcome
    else:
        assert cost.outcome == "done: (64, 64)"
    assert cost.seconds < SECONDS / 3 and cost.memory < GIGABYTE / 4


def test_a_refusal_does_not_hold_what_was_unpacked():
    with pytest.raises(NoImage) as caught:
        check_limits(PICTURES["PNG zTXts"][0](0))
    assert caught.value.__context__ is None


def large_png(side: int, depth: int, kind: int, size: int) -> bytes:
    """Return a white PNG of `size` bytes a pixel, without the memory of a picture."""
    packed, row = zlib.compressobj(1), b"\0" + b"\xff" * size * side
    body = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND")


@pytest.mark.parametrize("side", [3000, pytest.param(13_300, marks=pytest.mark.attack)])
@pytest.mark.parametrize(
    ("about", "most"), [((8, 6, 4), 9.5), ((16, 0, 2), 7.5)], ids=["RGBA", "16 bits of grey"]
)
def test_a_large_picture_takes_its_pixels_and_those_of_the_result(about, most, side, memory):
    """Bytes a pixel: 4 of RGB, 4 or 2 of the file, and little more."""
    data = large_png(side, *about)
    with memory(int(most * side**2)):
        assert read_picture(data, 224).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.attack
@pytest.mark.parametrize("name", PICTURES)
def test_the_page_answers_others_while_it_gets_such_a_picture(unharmed, name):
    if library := LIBRARIES.get(name.split()[0]):
        pytest.importorskip(library)
    make, words = PICTURES[name]
    data = make(LARGE)
    memory = unharmed.read_status("VmRSS")
    with ThreadPoolExecutor(16) as pool:
        found = [pool.submit(unharmed.post, data[: MOST_BYTES - 1000]) for _ in range(16)]
        assert unharmed.seconds() < 1
        answers = [one.result() for one in found]
    for status, answer in answers:
        assert status in ((200, 503) if not words else (413, 415, 422, 503)) and len(answer) < 5000
    assert unharmed.read_status("VmHWM") - memory < 2 * GIGABYTE


PHOTO = jpeg()


def zipped(path: Path, method: int, size: int) -> None:
    """Write a zip file with a member that is far larger than its header says, and a picture."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("bomb.png", bytes(size))
        archive.writestr("good.jpg", PHOTO, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for sign, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = data.find(sign) + place
        data[start : start + 4] = struct.pack("<L", 1000)
    path.write_bytes(data)


def tarred(path: Path, name: str, size: int) -> None:
    """Write a tar file with a picture of some name, whose header says that it has some size."""
    info = tarfile.TarInfo(name)
    info.size = len(PHOTO)
    head = bytearray(info.tobuf(tarfile.PAX_FORMAT))
    field = len(head) - 512 + 124
    if size != len(PHOTO):
        head[field : field + 12] = b"\xff" * 4 + struct.pack(">q", size)
        head[field + 24 : field + 32] = b" " * 8
        head[field + 24 : field + 32] = b"%06o\0 " % sum(head[-512:])
    path.write_bytes(bytes(head) + PHOTO + bytes(-len(PHOTO) % 512) + bytes(1024))


def arrays(path: Path, shape: tuple[int, ...], kind: str = "|u1") -> None:
    """Write an .npz file with an array of images that says it has some shape."""
    file, about = io.BytesIO(), {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", file.getvalue() + bytes(1000))


def hdf5(path: Path, add: Callable[[Any, Any], None]) -> None:
    """Write an HDF5 file with a picture, and what `add` adds."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["good"] = np.frombuffer(PHOTO, np.uint8)
        add(file, h5py)


def add_chunk(file: Any, h5py: Any) -> None:
    options = {"maxshape": (None, None, 3), "compression": "gzip", "chunks": (20_000, 20_000, 3)}
    file.create_dataset("bomb", (64, 64, 3), np.uint8, **options)


def add_deflated(file: Any, h5py: Any) -> None:
    made = file.create_dataset("bomb", (64, 64, 3), np.uint8, chunks=True, compression="gzip")
    made.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(3 * 10**8)))


def add_outside(file: Any, h5py: Any) -> None:
    outside = [("/dev/zero", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("bomb", (64, 64, 3), np.uint8, external=outside)


def add_link(file: Any, h5py: Any) -> None:
    file["bomb"] = h5py.ExternalLink(file.filename, "good")


def add_virtual(file: Any, h5py: Any) -> None:
    layout = h5py.VirtualLayout((64, 64, 3), np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "a", (64, 64, 3))
    file.create_virtual_dataset("bomb", layout)


def rows_of_one_picture(path: Path, rows: int) -> None:
    arrow, parquet = import_parquet()
    coded = arrow.DictionaryArray.from_arrays(np.zeros(rows, np.int8), arrow.array([PHOTO]))
    parquet.write_table(arrow.table({"image": coded}), path, store_schema=False)


def rows_of_one_text(path: Path, rows: int, extra: bool) -> None:
    arrow, parquet = import_parquet()
    text = "x" * (10**6 if extra else 10**5)  # a table has no longer fields
    coded = arrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), arrow.array([text]))
    columns = {"image_id": arrow.array(["a"] * rows), "dx": coded}
    if extra:
        columns["image"] = arrow.array([PHOTO] * rows)
    parquet.write_table(arrow.table(columns), path, store_schema=False)


def import_parquet() -> tuple[Any, Any]:
    return pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


HELD: dict[str, tuple[Callable[[Path], None], str]] = {  # file: how it is made, why it is refused
    "size.zip": (lambda path: zipped(path, zipfile.ZIP_DEFLATED, 6 * 10**8), "damaged in the zip"),
    "bzip2.zip": (lambda path: zipped(path, zipfile.ZIP_BZIP2, 6 * 10**8), "damaged in the zip"),
    "lzma.zip": (lambda path: zipped(path, zipfile.ZIP_LZMA, 10**8), "bomb.png"),
    "name.tar": (lambda path: tarred(path, "a" * 10**7, len(PHOTO)), "a header in it has 10,000"),
    "negative.tar": (lambda path: tarred(path, "a.jpg", -1024), "tar file"),
    "shape.npz": (lambda path: arrays(path, (10**10, 28, 28, 3)), "is not that large"),
    "overflow.npz": (lambda path: arrays(path, (2**32, 2**31, 2)), "is not that large"),
    "negative.npz": (lambda path: arrays(path, (-5, 28, 28)), ""),
    "text.npz": (lambda path: arrays(path, (1000,), "<U1000000"), "is not that large"),
    "chunk.h5": (lambda path: hdf5(path, add_chunk), "at most 256 MB"),
    "deflated.h5": (lambda path: hdf5(path, add_deflated), "unpacks to more"),
    "outside.h5": (lambda path: hdf5(path, add_outside), "it lies in another file"),
    "link.h5": (lambda path: hdf5(path, add_link), "it lies in another file"),
    "virtual.h5": (lambda path: hdf5(path, add_virtual), "it lies in another file"),
    "rows.parquet": (lambda path: rows_of_one_picture(path, 10**6), "more than it has bytes"),
    "text.parquet": (lambda path: rows_of_one_text(path, 10**4, False), "MB of text"),
    "labels.parquet": (lambda path: rows_of_one_text(path, 600, True), "MB of text"),
}


def read_held(path: Path) -> str:
    """Return what `predict` gets of each picture in a file, and what `train` says of the file."""
    found = []
    with FileReader() as reader:
        for item in find_items([str(path)]):
            try:
                read_picture(item.path, 64, reader)
                found.append("read")
            except BadImage as error:
                found.append(f"{item.name}: {error}")
    try:
        recognise(path, DataConfig())
    except LesionfastError as error:
        found.append(str(error))
    return "; ".join(dict.fromkeys(found))


@pytest.mark.parametrize("name", HELD)
def test_a_file_of_pictures_or_a_table_costs_no_more_than_others(name, tmp_path):
    make, words = HELD[name]
    path = tmp_path / name
    make(path)
    cost = measure(lambda: read_held(path))
    assert cost.outcome.startswith(("done: ", "LesionfastError: ")) and words in cost.outcome
    if path.suffix in (".zip", ".h5"):
        assert "; read" in cost.outcome or "done: read" in cost.outcome  # the other one is not lost
    assert cost.seconds < SECONDS and cost.memory < GIGABYTE / 2


NUMBERS = {
    "letters": "1.a",
    "spaces": "1 ",
    "digits": "9",
    "points": "1.",
    "signs": "1-",
    "dates": "1.1.",
    "months": "jan ",
    "commas": "1,",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_long_value_takes_no_longer_than_its_letters(name):
    """Patterns that try each way to divide a text take hours for the longest field of a CSV."""
    text = (NUMBERS[name] * 131_000)[:131_000] + "!"
    cost = measure(lambda: (read_number(text), is_date(text)))
    assert cost.outcome == "done: (None, False)" and cost.seconds < 1
