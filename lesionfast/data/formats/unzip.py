"""Reads the members of zip files a part at a time, whatever they say about their sizes.

`zipfile` does so for deflate, but unpacks bzip2 and LZMA, as 7-Zip can write, without a limit.
"""

import bz2
import lzma
import struct
import zipfile
import zlib
from copy import copy
from io import BufferedReader, RawIOBase
from typing import IO, Any

BLOCK = 2**16  # packed bytes that are read together
MOST_DICTIONARY = 2**28  # bytes that LZMA may look back
METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "a password (AES)"}
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
READ = (*PLAIN, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def name_method(method: int) -> str:
    """Return the name of a method that packs members of zip files."""
    return METHODS.get(method) or zipfile.compressor_names.get(method, f"method {method}")


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member; `ValueError` if it is packed in a way that is not read."""
    if info.compress_type not in READ:
        raise ValueError(
            f"it is packed with {name_method(info.compress_type)}, which is not read; write the "
            "zip file again with deflate"
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
