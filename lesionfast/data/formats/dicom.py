"""DICOM files of visible light: their pixels, and age and sex from their tags, nothing else."""

import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from lesionfast.data.formats.bombs import meta_end
from lesionfast.data.formats.unzip import inflates_beyond
from lesionfast.errors import import_extra

DICOM_SUFFIXES = (".dcm", ".dicom")
MOST_READS = 100_000  # of a file: a tag takes a few
MOST_INFLATED = 2**28  # bytes of a file that is deflated as a whole
MOST_RATIO, SPARE = 5, 2**26  # by which it grows, beside bytes that harm nobody
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1"  # transfer syntaxes
OLDEST = 120  # years; more is a code for unknown
DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}  # in a unit of PatientAge


def is_dicom(head: bytes) -> bool:
    """Return whether a file begins as DICOM does, at least 132 bytes, or without its preamble."""
    bare = head[:2] in (b"\x02\0", b"\x08\0") and head[4:6].isalpha() and head[4:6].isupper()
    return head[128:132] == b"DICM" or bare


def open_dicom(data: bytes) -> Image.Image:
    """Return the picture in a DICOM file as 8-bit RGB or grey.

    Colours may be RGB, YBR or a palette, also JPEG-compressed; grey of more than 8 bits is scaled.
    Raises `ValueError` for files without pixels or with several frames.
    """
    pydicom, dataset = read_dataset(data)
    check_pixels(*dicom_size(data, dataset))
    colours = str(dataset.get("PhotometricInterpretation", ""))
    bits = int(dataset.BitsStored)
    with quiet():
        try:
            pixels = dataset.pixel_array
        except RuntimeError:  # pydicom's own words are a list of packages
            name = dataset.file_meta.TransferSyntaxUID.name
            raise ValueError(f"pydicom can't decompress its pixels ({name})") from None
        if colours == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
            bits = 8 * pixels.dtype.itemsize
    if pixels.min() < 0:
        raise ValueError("its pixels are signed numbers; save it with 8 bits per channel")
    if bits > 8:
        most = 2**bits - 1
        pixels = (pixels.astype(np.int64) * 255 + most // 2) // most
    pixels = np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8))
    return Image.fromarray(255 - pixels if colours == "MONOCHROME1" else pixels)


def dicom_size(data: bytes, dataset: Any = None) -> tuple[int, int]:
    """Return width and height in pixels; `ValueError` unless there is one picture."""
    dataset = dataset or read_dataset(data)[1]
    if "PixelData" not in dataset:
        raise ValueError("it is a DICOM file without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it is a DICOM file of {frames} frames; save one of them")
    return int(dataset.Columns), int(dataset.Rows)


def read_dataset(data: bytes, **options: Any) -> tuple[Any, Any]:
    """Return the module `pydicom` and the dataset in a DICOM file."""
    pydicom = import_extra("pydicom", "dicom", "it is a DICOM file")
    if not is_dicom(data):
        raise ValueError("it does not begin like a DICOM file")
    with quiet():
        return pydicom, pydicom.dcmread(CountedFile(inflate(data)), force=True, **options)


def inflate(data: bytes) -> bytes:
    """Return a DICOM file that is deflated as the plain one that it was, any other as it is.

    Raises `ValueError` if it unpacks to far more than pictures do.
    """
    end = meta_end(data)
    meta = data[:end]
    if DEFLATED not in meta or end == len(data):
        return data
    most = min(MOST_INFLATED, SPARE + MOST_RATIO * len(data))
    if inflates_beyond(memoryview(data)[end:], most, -zlib.MAX_WBITS):
        raise ValueError(
            f"it unpacks to more than {most >> 20} MB, maybe a decompression bomb; save it as "
            "plain DICOM"
        )
    whole = zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(data)[end:])
    return meta.replace(DEFLATED, EXPLICIT.ljust(len(DEFLATED), b"\0")) + whole


class CountedFile(BytesIO):
    """Bytes that are read a bounded number of times: a DICOM file may be millions of empty tags."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes as any file does; raises `ValueError` beyond `MOST_READS`.

        All that is left is read only to inflate it without a limit, which `inflate` has done.
        """
        self.reads += 1
        if size is None or size < 0:
            raise ValueError("the tags that say how it is written are damaged; save it again")
        if self.reads > MOST_READS:
            raise ValueError("it has too many tags, maybe an attack; save the picture alone")
        return super().read(size)


@contextmanager
def quiet() -> Iterator[None]:
    """Give no warnings, which are about tags that don't matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_pixels(width: int, height: int) -> None:
    """Raise `ValueError` for a picture too large to decode, by the same limit as Pillow's."""
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"it has {width:,} x {height:,} pixels, maybe a decompression bomb")


def find_tags(data: bytes) -> dict[str, str]:
    """Return age (in years, such as "45" or "1.5") and sex ("M", "F" or "O") where they are known.

    No other tag is read. Raises `ValueError` for other files, and what `pydicom` raises for
    broken ones.
    """
    wanted = ["PatientAge", "PatientSex"]
    _, dataset = read_dataset(data, stop_before_pixels=True, specific_tags=wanted)
    with quiet():
        age, sex = (str(dataset.get(name) or "").strip().upper() for name in wanted)
    tags = {}
    match = re.fullmatch(r"(\d{1,4})([DWMY])", age)
    years = int(match[1]) * DAYS[match[2]] / DAYS["Y"] if match else None
    if years is not None and years <= OLDEST:
        tags["age"] = f"{round(years, 2):g}"
    if sex in ("M", "F", "O"):
        tags["sex"] = sex
    return tags
