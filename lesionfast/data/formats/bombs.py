"""Refuses pictures that are built to take minutes or gigabytes, by a look at how they are built.

Decoders follow whatever a file says: a JPEG of a million empty segments, ten thousand scans over
the same pixels, tags that all name the same 20 MB. Each check reads a file once, and decodes none.
"""

import re
import struct
from collections.abc import Callable, Iterator

MOST_PARTS = 2_000  # segments of a JPEG, chunks of a PNG, blocks of a GIF, beside the pixels
PART = 500  # bytes of pixels that a chunk of a PNG has, or more
GIF_PART = 100  # the same of a block of a GIF, which has 255 at most
MOST_FILLING = 2**16  # bytes between the segments of a JPEG
MOST_SCANS = 100  # passes over the pixels of a progressive JPEG: usual are about ten
MOST_COMMENT = 2**20  # bytes of comments in a GIF
MOST_VALUES = 100_000  # of one tag, such as the strips of a TIFF
MOST_STARTS = 4  # of EXIF that some cameras begin twice
MOST_FOLDERS = 100  # places in a file where tags may begin
MOST_TAGS = 100_000  # of all of them, and where they lead to
MOST_TILE = 2**26  # pixels of one tile of a TIFF
SPARE = 2**16  # bytes of tags that are counted twice in files that are no attack

MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG, but for those in the pixels
EXIF = b"Exif\0\0"
TIFF = re.compile(rb"II[*+]\0|II\0[*+]|MM\0[*+]|MM[*+]\0")  # as Pillow takes it
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}
BYTES = (1, 2, 7)  # types of tags that stay bytes
COMPRESSION, TILE_WIDTH, TILE_LENGTH, STRIPS = 259, 322, 323, (273, 279, 324, 325)
PLACES = {4: "L", 13: "L", 16: "Q", 18: "Q"}  # types of tags that say where something lies
FOLDERS = (0x8769, 0x8825, 0xA005, 0x14A)  # tags that lead to more tags
JPEG_IN_DICOM = b"1.2.840.10008.1.2.4."
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


def check_build(data: bytes, kind: str) -> None:
    """Raise `ValueError` for the bytes of a picture that is built to exhaust who decodes it.

    `kind` is AVIF, HEIC or DICOM, or what other kinds are called: those are told by their start.
    """
    found = (check for start, check in STARTS.items() if data.startswith(start))
    if check := KINDS.get(kind) or next(found, check_tiff if TIFF.match(data) else None):
        check(data)


def refuse(what: str) -> ValueError:
    """Return the error about a picture that is an attack, or as good as one."""
    return ValueError(f"{what}, maybe a decompression bomb; save it again as a plain picture")


def check_jpeg(data: bytes) -> None:
    """Raise `ValueError` for a JPEG of very many segments or scans, or of tags that overlap."""
    at, parts, filling, scans, exif = 2, 0, 0, 0, bytearray()
    while match := MARKER.search(data, at):
        parts += 1
        filling += 0 if scans else match.start() - at
        at, marker = match.end(), data[match.start() + 1]
        if marker == 0xD9 and scans:
            break
        if marker in (0x01, 0xD8, 0xD9):
            continue
        length = max(int.from_bytes(data[at : at + 2], "big"), 2)
        if marker == 0xE1 and data.startswith(EXIF, at + 2):
            exif += data[at + 2 + len(EXIF) : at + length]
        elif marker == 0xE2 and data.startswith(b"MPF\0", at + 2):
            check_tags(data[at + 6 : at + length])
        scans += marker == 0xDA
        at += length
        if parts > MOST_PARTS:
            raise refuse("it is made of thousands of segments")
        if scans > MOST_SCANS:
            raise refuse(f"it has more than {MOST_SCANS} scans")
    filling += 0 if scans else max(0, len(data) - at)
    if filling > MOST_FILLING:
        raise refuse(f"it has more than {MOST_FILLING >> 10} KB between its segments")
    check_tags(bytes(exif))


def check_png(data: bytes) -> None:
    """Raise `ValueError` for a PNG of very many chunks, or of tags that overlap."""
    at, parts, most = 8, 0, MOST_PARTS + len(data) // PART
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        parts += 1
        if parts > most:
            raise refuse("it is made of thousands of chunks")
        if kind == b"eXIf":
            check_tags(data[at + 8 : at + 8 + size])
        if kind == b"IEND":
            break
        at += 12 + size


def check_gif(data: bytes) -> None:
    """Raise `ValueError` for a GIF of very many blocks or long comments, or of several frames."""
    frames, comment, most = 0, 0, MOST_PARTS + len(data) // GIF_PART
    for parts, (label, size) in enumerate(walk_gif(data)):
        frames += label == "frame"
        comment += size if label == "comment" else 0
        if parts > most:
            raise refuse("it is made of thousands of blocks")
        if comment > MOST_COMMENT:
            raise refuse("it has comments of more than a megabyte")
    if frames > 1:
        raise ValueError(f"it is an animation of {frames} frames; save one of them")


def walk_gif(data: bytes) -> Iterator[tuple[str, int]]:
    """Yield what each block of a GIF is ("frame", "comment" or "other"), and its bytes."""
    at = 13 + colours_of(data, 10)
    while at + 1 < len(data):
        kind, label = data[at : at + 1], "other"
        if kind == b"!":
            label = "comment" if data[at + 1] == 0xFE else "other"
            at += 2
        elif kind == b",":
            yield "frame", 0
            at += 11 + colours_of(data, at + 9)
        else:
            yield label, 1
            if kind == b";":
                return
            at += 1
            continue
        yield label, 0
        while at < len(data) and data[at]:
            yield label, data[at]
            at += 1 + data[at]
        at += 1


def colours_of(data: bytes, at: int) -> int:
    """Return the bytes of the colours that the flags at a place of a GIF announce."""
    flags = data[at] if at < len(data) else 0
    return 3 * (2 << (flags & 7)) if flags & 128 else 0


def check_tiff(data: bytes) -> None:
    """Raise `ValueError` for a TIFF of huge tiles, of very many scans, or of tags that overlap."""
    tags = check_tags(data)
    tile = tags.get(TILE_WIDTH, (0, 1))[1] * tags.get(TILE_LENGTH, (0, 1))[1]
    if tile > MOST_TILE:
        raise refuse(f"one tile of it has {tile:,} pixels")
    strips = max((tags[tag][0] for tag in STRIPS if tag in tags), default=0)
    if tags.get(COMPRESSION, (0, 0))[1] in (6, 7):
        check_scans(data, strips)


def check_scans(data: bytes, strips: int = 1) -> None:
    """Raise `ValueError` if JPEG pictures, one a strip, have very many scans."""
    if data.count(b"\xff\xda") > MOST_SCANS + strips:
        raise refuse(f"it has more than {MOST_SCANS} scans")


def check_tags(data: bytes | memoryview) -> dict[int, tuple[int, int]]:
    """Return how many values each tag of a TIFF file or of EXIF has, and the first if it is short.

    Raises `ValueError` if the values of all tags together are larger than the file.
    """
    view = memoryview(data)
    for _ in range(MOST_STARTS):
        if bytes(view[: len(EXIF)]) == EXIF:
            view = view[len(EXIF) :]
    if bytes(view[: len(EXIF)]) == EXIF:
        raise refuse("its EXIF begins again and again")
    start = bytes(view[:4])
    if not TIFF.match(start):
        return {}
    order = "<" if start[:1] == b"I" else ">"
    tags: dict[int, tuple[int, int]] = {}
    for big in {start[2:3] == b"+", b"+" in start}:
        place = view[8:16] if big else view[4:8]
        tags |= walk_tags(
            view, int.from_bytes(place, "little" if order == "<" else "big"), order, big
        )
    return tags


def walk_tags(view: memoryview, start: int, order: str, big: bool) -> dict[int, tuple[int, int]]:
    """Return what `check_tags` does of the tags at a place, and look at those that they lead to."""
    layout = struct.Struct(f"{order}HHQQ" if big else f"{order}HHLL")
    counter, inline = struct.Struct(f"{order}Q" if big else f"{order}H"), 8 if big else 4
    places, seen, total, number, first = [start], set(), 0, 0, {}
    while places:
        at = places.pop()
        if at in seen or at + counter.size > len(view):
            continue
        seen.add(at)
        tags: dict[int, tuple[int, int]] = {}
        leads: dict[int, tuple[int, ...]] = {}
        end = at + counter.size + counter.unpack_from(view, at)[0] * layout.size
        listed = range(at + counter.size, min(end, len(view) - layout.size + 1), layout.size)
        number += len(listed)
        if number > MOST_TAGS:
            raise refuse(f"it has {number:,} tags")
        for place in listed:
            tag, kind, count, value = layout.unpack_from(view, place)
            size = SIZES.get(kind, 0) * count
            if not size or (size > inline and value + size > len(view)):
                continue  # decoders skip what is damaged
            if kind not in BYTES and count > MOST_VALUES:
                raise refuse(f"its tag {tag} has {count:,} values")
            total += size if size > inline else 0
            if size <= inline:  # the first value, of which there may be several
                unit = 8 * SIZES[kind]
                value = value % 2**unit if order == "<" else value >> (8 * inline - unit)
                leads[tag] = (value,)
            elif tag in FOLDERS and kind in PLACES:  # such as the levels of a pyramid
                form = f"{order}{min(count, MOST_FOLDERS)}{PLACES[kind]}"
                leads[tag] = struct.unpack_from(form, view, value)
            tags[tag] = count, value
        if total > 2 * len(view) + SPARE:
            raise refuse(f"its tags hold {total / 2**20:,.0f} MB")
        first = first or tags
        found = [place for tag in FOLDERS for place in leads.get(tag, ())]
        places += found
        number += len(found)
    return first


def check_boxes(data: bytes) -> None:
    """Raise `ValueError` for an AVIF or HEIC picture with tags that overlap."""
    view = memoryview(data)
    for number, match in enumerate(TIFF.finditer(data), 1):
        if number > MOST_FOLDERS:
            raise refuse("it has thousands of places where tags begin")
        check_tags(view[match.start() :])


def check_dicom(data: bytes) -> None:
    """Raise `ValueError` for a DICOM file of very many scans."""
    if JPEG_IN_DICOM in data[: meta_end(data)]:
        check_scans(data)


def meta_end(data: bytes) -> int:
    """Return where the tags of a DICOM file end that say how it is written (group 2).

    That is the end of the file if they are damaged.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\2\0":
        kind = data[at + 4 : at + 6]
        if not kind.isalpha() or kind == b"SQ":
            return len(data)
        place, size = (at + 8, 4) if kind in LONG else (at + 6, 2)
        length = int.from_bytes(data[place : place + size], "little")
        at = place + size + length
        if length == 2**32 - 1 or at > len(data):
            return len(data)
    return at


STARTS: dict[bytes, Callable[[bytes], None]] = {
    b"\xff\xd8\xff": check_jpeg,
    b"\x89PNG": check_png,
    b"GIF8": check_gif,
}
KINDS: dict[str, Callable[[bytes], None]] = {
    "AVIF": check_boxes,
    "HEIC": check_boxes,
    "DICOM": check_dicom,
}
