"""Tar files: where their files lie, whatever the headers say about themselves, is read once.

`tarfile` calls itself for each header about a header, reads as many bytes as one of them says that
it has, and ends at a damaged one as if the rest were not there.
"""

import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np

from lesionfast.cache import cache_folder, hash_lines, read_note, write_note
from lesionfast.data.formats.members import (
    COMPRESSED,
    HIDDEN_PART,
    Container,
    is_image,
    plain_name,
)
from lesionfast.data.formats.pictures import HEAD, check_size
from lesionfast.errors import LesionfastError
from lesionfast.files import stamp

BLOCK = tarfile.BLOCKSIZE
MOST_ABOUT = 2**20  # bytes that tell of one file: a name, its owner, what a system adds
MOST_NAME = 2**12  # characters of the name of a file
MOST_DIGITS = 20  # of a size: that of no disk has more
LONG_NAMES, PAX = (b"L",), (b"x", b"X")
ABOUT = (*LONG_NAMES, b"K", *PAX, b"g")  # types of headers that tell of the file after them
SPARSE = b"S"
MORE, MORE_AFTER = 482, 504  # where a header of a sparse file, and one after it, says "one more"
NOT_STORED = -1  # size of a file that lies there in parts
TAR_VERSION = 5  # part of the key of a tar file's index: raise it when that changes
PLACE = range(2**62)  # of a file in a tar file, in bytes
INDEX = {"names": [str], "starts": [PLACE], "sizes": [PLACE]}


class Tar(Container):
    """A tar file that is not compressed, such as a WebDataset shard; `names` are all its files.

    Its headers are read once, and where its files lie is kept in the cache. Then each is read by
    itself, in any order and by any number of threads and processes. The package `webdataset` reads
    shards from start to end: that allows neither a split by lesions, nor class balancing, nor
    predictions in the order of the table.
    """

    kind = "tar"

    def __init__(self, file: str) -> None:
        super().__init__(file)
        note = (
            cache_folder() / "images" / f"{hash_lines([str(TAR_VERSION), stamp(file)])[:32]}.json"
        )
        index = read_note(note, INDEX, os.path.getsize(file) // BLOCK)
        if index is None or len(set(map(len, index.values()))) > 1:
            index = dict(zip(("names", "starts", "sizes"), self._read_headers(), strict=True))
            with suppress(LesionfastError, OSError):  # a cache that can't be written is no problem
                write_note(note, index)
        self.names: list[str] = index["names"]
        self._order = np.array(  # arrays take a tenth of the memory of a dict
            sorted(range(len(self.names)), key=self.names.__getitem__), np.int64
        )
        self._starts = np.array(index["starts"], np.int64)
        self._sizes = np.array(index["sizes"], np.int64)

    def list_members(self) -> list[str]:
        names = (name for name in dict.fromkeys(self.names) if not HIDDEN_PART.search(name))
        return [name for name in names if is_image(name, partial(self.read_start, most=HEAD))]

    def read(self, member: str) -> bytes:
        start, size = self._find(member)
        check_size(size)
        return self._read_at(start, size)

    def read_start(self, member: str, most: int) -> bytes:
        start, size = self._find(member)
        return self._read_at(start, min(size, most))

    def read_all(self, members: Sequence[str]) -> Iterator[bytes]:
        """Yield what files hold; faster than `read` for many small ones."""
        with open(self.file, "rb") as file:
            for member in members:
                start, size = self._find(member)
                check_size(size)
                file.seek(start)
                yield file.read(size)

    def _read_at(self, start: int, size: int) -> bytes:
        """Return some bytes of the file, which is not kept open: there may be thousands."""
        with open(self.file, "rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise OSError("the tar file has become shorter")
        return data

    def _find(self, member: str) -> tuple[int, int]:
        """Return start and size of a file; of several with one name the last, as tar does."""
        place = bisect_right(self._order, member, key=self.names.__getitem__) - 1
        if place < 0 or self.names[found := self._order[place]] != member:
            raise self.missing(member)
        if self._sizes[found] == NOT_STORED:
            raise ValueError(
                "it is stored as a sparse file, in parts; write it into the tar file as a plain one"
            )
        return int(self._starts[found]), int(self._sizes[found])

    def _read_headers(self) -> tuple[list[str], list[int], list[int]]:
        """Return name, start and size of each file in it; raises `LesionfastError` if broken."""
        with open(self.file, "rb") as file:
            if file.read(HEAD).startswith(COMPRESSED):
                raise LesionfastError(
                    f"{self.file} is compressed, so no image in it can be read by itself. Write it "
                    "again as a plain tar file; images are compressed already."
                )
        names, starts, sizes = [], [], []
        with self.explained(tarfile.TarError):
            for name, start, size in read_headers(self.file):
                names.append(plain_name(name))
                starts.append(start)
                sizes.append(size)
        return names, starts, sizes


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
