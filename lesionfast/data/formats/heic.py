"""HEIC pictures, as phones store them: only what HEVC coded is given to the decoder."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

from lesionfast.data.formats.dicom import check_pixels
from lesionfast.errors import import_extra, list_first

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
DECODED = {  # item types: HEVC, JPEG (thumbnails), what arranges pictures, what describes them
    *(b"hvc1", b"jpeg", b"grid", b"iovl", b"iden", b"tmap"),
    *(b"Exif", b"mime", b"uri "),
}


def open_heic(data: bytes, decode: bool = True) -> Any:
    """Return a HEIC picture, or without `decode` what has its `size`."""
    heif = import_extra("pillow_heif", "heic", "it is a HEIC picture")
    try:
        check_items(data)
        file = heif.open_heif(BytesIO(data))
        check_pixels(*file.size)
        return file.to_pillow() if decode else file
    except Exception as error:  # broken bytes raise anything
        raise ValueError(f"it is a HEIC picture that can't be decoded ({error})") from None


def check_items(data: bytes) -> None:
    """Raise `ValueError` for items of another codec than HEVC (or JPEG, of thumbnails).

    No camera writes them under the brands of HEIC, and most known holes of libheif are in its
    decoders of AV1, AVC, VVC and uncompressed pixels. The tracks of a sequence are not decoded.
    """
    others = sorted(set(item_types(data)) - DECODED)
    if others:
        names = list_first([name.decode("ascii", "backslashreplace") for name in others])
        raise ValueError(f"it holds {names}, and only HEVC is decoded; save it as JPEG or PNG")


def item_types(data: bytes) -> Iterator[bytes]:
    """Yield the type of each item, such as b"hvc1" (ISO/IEC 14496-12, 8.11.6)."""
    for kind, meta in boxes(data):
        if kind == b"mini":  # holds a picture as well, and no list of items
            yield kind
        if kind != b"meta":
            continue
        for kind, table in boxes(meta[4:]):
            if kind == b"iinf":
                start = 6 if table[:1] == b"\0" else 8
                yield from filter(None, (item_type(entry) for _, entry in boxes(table[start:])))


def item_type(entry: memoryview) -> bytes:
    """Return the type of an item; entries of other versions than 2 and 3 have none."""
    start = {2: 8, 3: 10}.get(entry[0] if len(entry) else 0, len(entry))
    return bytes(entry[start : start + 4])


def boxes(data: bytes | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield type and content of each box of the ISO base media format, as far as they go."""
    view, start = memoryview(data), 0
    while start + 8 <= len(view):
        size, header = int.from_bytes(view[start : start + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(view[start + 8 : start + 16], "big"), 16
        end = len(view) if size == 0 else start + size
        if end < start + header:
            raise ValueError("a box in it is smaller than its header")
        yield bytes(view[start + 4 : start + 8]), view[start + header : end]
        start = end
