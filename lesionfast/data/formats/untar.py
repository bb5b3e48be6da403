"""Reads where the files of a tar file lie, whatever its headers say about themselves.

`tarfile` calls itself for each header about a header, reads as many bytes as one of them says that
it has, and ends at a damaged one as if the rest were not there.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
MOST_ABOUT = 2**20  # bytes that tell of one file: a name, its owner, what a system adds
MOST_NAME = 2**12  # characters of the name of a file
MOST_DIGITS = 20  # of a size: that of no disk has more
LONG_NAMES, PAX = (b"L",), (b"x", b"X")
ABOUT = (*LONG_NAMES, b"K", *PAX, b"g")  # types of headers that tell of the file after them
SPARSE = b"S"
MORE, MORE_AFTER = 482, 504  # where a header of a sparse file, and one after it, says "one more"
NOT_STORED = -1  # size of a file that lies there in parts


@dataclass
class About:
    """What headers told of the file after them."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


def read_headers(path: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and size of each regular file; of a sparse one the size is `NOT_STORED`.

    Raises `tarfile.ReadError` for a damaged tar file. Memory does not depend on what it says.
    """
    end = os.path.getsize(path)
    with open(path, "rb") as file:
        at, about = 0, About()
        while block := read_block(file, at, end):
            info = parse(block, at)
            start, size = skip_sparse(file, info, at, end), info.size
            if info.type in ABOUT:
                note(about, info.type, read_about(file, info, start, end))
            else:
                name, size = about.name or info.name, size if about.size is None else about.size
                if len(name) > MOST_NAME:
                    raise tarfile.ReadError(f"a name in it has {len(name):,} characters")
                if info.isreg():
                    sparse = about.sparse or info.type == SPARSE
                    yield name, start, NOT_STORED if sparse else size
                elif info.type in tarfile.SUPPORTED_TYPES:
                    size = 0  # such as a folder or a link
                about = About()
            if size < 0:
                raise tarfile.ReadError("a size in it is negative")
            if start + size > end:
                raise tarfile.ReadError("unexpected end of data")
            at = start + size + -size % BLOCK
    if not end:
        raise tarfile.ReadError("empty file")


def read_block(file: BinaryIO, at: int, end: int) -> bytes:
    """Return the block at a place; b"" at the end of the file, or if it is all zeros."""
    if at >= end:
        return b""
    file.seek(at)
    block = file.read(BLOCK)
    return block if any(block) else b""


def parse(block: bytes, at: int) -> tarfile.TarInfo:
    """Return what a header says."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        raise tarfile.ReadError(f"its header at byte {at:,} is damaged") from None


def skip_sparse(file: BinaryIO, info: tarfile.TarInfo, at: int, end: int) -> int:
    """Return where what belongs to a header begins: after it, and after more of a sparse file."""
    start, more = at + BLOCK, MORE
    while info.type == SPARSE and file.seek(start - BLOCK + more) < end and file.read(1) != b"\0":
        start, more = start + BLOCK, MORE_AFTER
    return start


def read_about(file: BinaryIO, info: tarfile.TarInfo, start: int, end: int) -> bytes:
    """Return what a header holds that tells of the file after it."""
    if info.size > MOST_ABOUT:
        raise tarfile.ReadError(f"a header in it has {info.size:,} bytes")
    if info.size < 0 or start + info.size > end:
        return b""  # which the caller tells
    file.seek(start)
    return file.read(info.size)


def note(about: About, kind: bytes, data: bytes) -> None:
    """Add what a header tells of the file after it."""
    if kind in LONG_NAMES:
        about.name = read_text(data.partition(b"\0")[0])
    for key, value in read_pax(data) if kind in PAX else ():
        if key == b"path":
            about.name = read_text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > MOST_DIGITS:
                raise tarfile.ReadError("a size in it is not a number")
            about.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            about.sparse = True


def read_pax(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each line of a header, such as b"16 path=a/b.jpg"."""
    at = 0
    while at < len(data) and data[at]:
        digits = data[at : at + MOST_DIGITS].partition(b" ")[0]
        line = data[at : at + int(digits)] if digits.isdigit() else b""
        key, equals, value = line[len(digits) + 1 : -1].partition(b"=")
        if not equals or line[-1:] != b"\n":
            raise tarfile.ReadError("a header in it is damaged")
        yield key, value
        at += len(line)


def read_text(data: bytes) -> str:
    """Return a name; bytes that are not UTF-8 are kept."""
    return data.decode("utf-8", "surrogateescape")
