"""Reads the members of zip files a part at a time, whatever they say about their sizes.

`zipfile` does so for deflate, but unpacks bzip2 and LZMA, as 7-Zip can write, without a limit.
"""

import bz2
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from errno import EINVAL
from io import BufferedReader, RawIOBase
from itertools import pairwise
from typing import IO, Any

BLOCK, STEP = 2**16, 2**20  # packed bytes that are read, and come of it, together
MOST_DICTIONARY = 2**28  # bytes that LZMA may look back
METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "a password (AES)"}
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGED = "it is damaged in the zip file; download that again, or write it again"
ENCRYPTED = 1  # in the flags of a member
HEADER = 30  # bytes before the name of a member, or more
READ = (*PLAIN, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def name_unread(info: zipfile.ZipInfo) -> str:
    """Return the name of the way in which a member is packed, '' if it is read."""
    if info.flag_bits & ENCRYPTED:
        return "a password"
    known = zipfile.compressor_names | METHODS
    method = info.compress_type
    return "" if method in READ else known.get(method, f"method {method}")


def check_overlap(archive: zipfile.ZipFile) -> None:
    """Raise `BadZipFile` if members have bytes in common: the same pixels may be there for each."""
    members = archive.filelist  # a member may be listed twice, but not under two names
    places = {(info.header_offset, info.compress_size, info.filename) for info in members}
    for (start, size, _), (following, *_) in pairwise(sorted(places)):
        if start + HEADER + size > following:
            raise zipfile.BadZipFile("its files overlap, maybe a decompression bomb")


@contextmanager
def whole_member() -> Iterator[None]:
    """Turn what Python says of a member that is damaged into `ValueError`."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error) as error:
        raise ValueError(DAMAGED) from error
    except (EOFError, OSError, OverflowError, NotImplementedError, RuntimeError) as error:
        if getattr(error, "errno", None) not in (None, EINVAL):  # which the disk says
            raise
        raise ValueError(DAMAGED) from error


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member; `ValueError` if it is packed in a way that is not read."""
    if unread := name_unread(info):
        raise ValueError(
            f"it is packed with {unread}, which is not read; write the zip file again with deflate"
        )
    return (
        archive.open(info)
        if info.compress_type in PLAIN
        else BufferedReader(Unpacked(archive, info))
    )


class Unpacked(RawIOBase):
    """What is packed with bzip2 or LZMA; `BadZipFile` at the end if its checksum is wrong."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        super().__init__()
        packed = copy(info)
        packed.compress_type, packed.file_size = zipfile.ZIP_STORED, info.compress_size
        del packed.CRC  # it is that of the unpacked bytes
        self._info, self._left, self._sum = info, info.file_size, 0
        self._file = archive.open(packed)
        bzip2 = info.compress_type == zipfile.ZIP_BZIP2
        self._unpacker: Any = bz2.BZ2Decompressor() if bzip2 else self._start_lzma()

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def close(self) -> None:
        """Close the member, not the zip file."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any, /) -> int:
        """Unpack no more than fits, and no more than the zip file says that there is."""
        data = self._unpack(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        self._sum = zlib.crc32(data, self._sum)
        if (not data or not self._left) and len(buffer) and self._sum != self._info.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {self._info.filename!r}")
        return len(data)

    def _unpack(self, most: int) -> bytes:
        """Return some bytes; none at the end."""
        while most and not self._unpacker.eof:
            block = self._file.read(BLOCK) if self._unpacker.needs_input else b""
            if self._unpacker.needs_input and not block:
                break
            if data := self._unpacker.decompress(block, most):
                return data
        return b""

    def _start_lzma(self) -> lzma.LZMADecompressor:
        """Return what unpacks a member of LZMA, by the header that it begins with."""
        head = self._file.read(9)
        if len(head) < 9 or head[2:4] != b"\5\0":
            raise zipfile.BadZipFile("its LZMA header is damaged")
        flags, size = struct.unpack("<BL", head[4:])
        most = max(min(size, self._left, MOST_DICTIONARY), 4096)  # nothing lies further back
        rule = {"lc": flags % 9, "lp": flags // 9 % 5, "pb": flags // 45, "dict_size": most}
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, **rule}])


def inflates_beyond(data: bytes | memoryview, most: int, bits: int = zlib.MAX_WBITS) -> bool:
    """Return whether deflated bytes unpack to more, without keeping what they unpack to."""
    stream, left = zlib.decompressobj(bits), most
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        while block and left >= 0:  # a part at a time, of which none is kept
            left -= len(stream.decompress(block, STEP))
            block = stream.unconsumed_tail
    return left < 0


def lzf_goes_beyond(data: bytes, most: int) -> bool:
    """Return whether bytes that LZF packed, as h5py does, unpack to more."""
    at, size, end = 0, 0, len(data) - 1
    while at < end and size <= most:
        code = data[at]
        if code < 32:  # so many bytes and one more follow
            size += code + 1
            at += code + 2
        elif code < 224:  # a copy of what came before
            size += (code >> 5) + 2
            at += 2
        else:
            size += data[at + 1] + 9
            at += 3
    return size > most
