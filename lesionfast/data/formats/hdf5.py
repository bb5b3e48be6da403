"""HDF5 files: a dataset an image, which never leads to another file nor unpacks without end."""

import os
import threading
from math import prod
from typing import Any

import numpy as np

from lesionfast.data.formats.members import Container, encode_pixels
from lesionfast.data.formats.pictures import check_size
from lesionfast.data.formats.unzip import STEP, inflates_beyond, lzf_goes_beyond
from lesionfast.errors import LesionfastError, import_extra

MOST_DEPTH = 100  # groups of an HDF5 file in one another
MOST_CHUNKS = 2**15  # of one picture in an HDF5 file: to look for each takes a moment
CHECKSUM = 2**10  # bytes that the checksum after a chunk of an HDF5 file may seem to unpack to
ELSEWHERE = "it lies in another file, which is not read; copy the picture into this one"


class Hdf5(Container):
    """An HDF5 file with a dataset an image: the bytes of a file, or pixels uint8 (H, W[, 3])."""

    kind = "HDF5"

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._h5py = import_extra("h5py", "hdf5", f"{file} can't be read")
        self._lock, h5z = threading.Lock(), self._h5py.h5z
        self._packers = {h5z.FILTER_DEFLATE: inflates_beyond, h5z.FILTER_LZF: lzf_goes_beyond}
        self._harmless = (h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)
        with self.explained():
            try:
                self._file = self._h5py.File(file, "r")
            except OSError as error:
                if "lock" not in str(error):
                    raise
                self._file = self._h5py.File(file, "r", locking=False)  # as on some network disks
        self._bytes = os.open(file, os.O_RDONLY)
        self._at_once = hasattr(os, "pread") and not self._file.userblock_size

    def close(self) -> None:
        self._file.close()
        os.close(self._bytes)

    def list_members(self) -> list[str]:
        found: list[bytes] = []
        with self._lock, self.explained(RuntimeError, ValueError, SystemError):
            # It opens no dataset: 2 s for 400,000. Each level takes of the stack of this thread.
            if self._file.id.links.visit(lambda name: keep_shallow(found, name)):
                raise ValueError(f"its groups are more than {MOST_DEPTH} deep")
        names = [name.decode(errors="surrogateescape") for name in found]
        groups = {name.rpartition("/")[0] for name in names}
        members = [name for name in names if name not in groups]
        if not members:
            raise LesionfastError(
                f"{self.file} holds no images: it has no datasets. Name the file or folder of "
                "images with --images."
            )
        return members

    def read(self, member: str) -> bytes:
        name = member.encode("utf-8", "surrogateescape")
        self._require_own(name)
        place = self._find(name) if self._at_once else None
        if place:
            check_size(place[0])
            return self._read_at(*place)
        with self._lock:  # h5py has one lock for all; waiting for this one is faster
            dataset = self._file.get(name)
            if not isinstance(dataset, self._h5py.Dataset):
                raise self.missing(member)
            layout = dataset.id.get_create_plist()
            if layout.get_external_count() or layout.get_layout() == self._h5py.h5d.VIRTUAL:
                raise ValueError(ELSEWHERE)
            check_size(dataset.nbytes)
            self._check_storage(dataset, layout)
            value = dataset[()]
        return self._encode(value, dataset.shape)

    def _require_own(self, member: bytes, most: int = 8) -> None:
        """Raise `ValueError` if a link leads to another file, before that is opened."""
        parts = list(filter(None, member.split(b"/")))
        if len(parts) > MOST_DEPTH:
            raise ValueError(f"it is more than {MOST_DEPTH} groups deep")
        links, kinds = self._file.id.links, self._h5py.h5l
        for end in range(1, len(parts) + 1):
            place = b"/".join(parts[:end])
            try:
                kind = links.get_info(place).type
            except (KeyError, RuntimeError):  # it is missing, as opening it says
                return
            if kind == kinds.TYPE_EXTERNAL:
                raise ValueError(ELSEWHERE)
            if kind == kinds.TYPE_SOFT and not most:
                raise ValueError("it is a link that leads from link to link, maybe in a circle")
            if kind == kinds.TYPE_SOFT:
                target = links.get_val(place)
                start = [] if target.startswith(b"/") else parts[: end - 1]
                self._require_own(b"/".join([*start, target, *parts[end:]]), most - 1)
                return

    def _find(self, name: bytes) -> tuple[int, int] | None:
        """Return size and place in the file of a dataset of bytes that lie there as they are.

        Reading them there lets threads read at once, about as fast as files.
        """
        h5d, h5t = self._h5py.h5d, self._h5py.h5t
        try:
            dataset = h5d.open(self._file.id, name)
        except (KeyError, TypeError):
            return None
        kind = dataset.get_type()
        plain = kind.get_class() == h5t.OPAQUE or kind.equal(h5t.NATIVE_UINT8)
        place = dataset.get_offset() if plain and dataset.rank < 2 else None
        return None if place is None else (dataset.get_storage_size(), place)

    def _check_storage(self, dataset: Any, plist: Any) -> None:
        """Raise `ValueError` for data that unpack to more than they should."""
        if dataset.dtype.hasobject:
            self._check_object(dataset, plist)
        if not dataset.chunks:
            return
        size = prod(dataset.chunks) * dataset.dtype.itemsize
        check_size(size)
        full = prod(-(-n // k) for n, k in zip(dataset.shape, dataset.chunks, strict=True))
        count = max(full, dataset.id.get_num_chunks())
        if count > MOST_CHUNKS:
            raise ValueError(f"it is cut into {count:,} chunks; write it again in larger ones")
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        packed = [place for place, kind in enumerate(filters) if kind in self._packers]
        if len(packed) > 1 or {*filters} - {*self._packers, *self._harmless}:
            raise ValueError("it is packed in a way that is not read; write it again with gzip")
        chunks: list[Any] = []
        dataset.id.chunk_iter(chunks.append)  # by its number, each takes as long as all
        for chunk in chunks:
            if chunk.size > size + STEP:
                raise ValueError("a chunk of its dataset is larger than what it holds")
            if packed and not chunk.filter_mask >> packed[0] & 1:
                _, data = dataset.id.read_direct_chunk(chunk.chunk_offset)
                if self._packers[filters[packed[0]]](data, size + CHECKSUM):
                    raise ValueError("a chunk of its dataset unpacks to more than it should")

    def _check_object(self, dataset: Any, plist: Any) -> None:
        """Raise `ValueError` unless a dataset holds one value of variable, bounded length."""
        if dataset.size > 1:
            raise ValueError(
                f"its dataset holds {dataset.size:,} values, not the bytes of an image"
            )
        kind = self._h5py.check_vlen_dtype(dataset.dtype)
        is_bytes = kind in (np.uint8, np.int8)
        if not is_bytes and self._h5py.check_string_dtype(dataset.dtype) is None:
            raise ValueError("its dataset holds values that are not the bytes of an image")
        check_size(self._read_length(dataset, plist))

    def _read_length(self, dataset: Any, plist: Any) -> int:
        """Return the length of a value of variable length, which HDF5 keeps in its place."""
        place = dataset.id.get_offset()
        if place is not None:
            start = self._read_at(4, place)
        elif not dataset.id.get_storage_size():
            start = b""
        elif dataset.chunks and not plist.get_nfilters():
            _, start = dataset.id.read_direct_chunk((0,) * len(dataset.shape))
        else:
            raise ValueError("it is of variable length and packed; write it as an array of uint8")
        return int.from_bytes(start[:4], "little")

    def _read_at(self, size: int, place: int) -> bytes:
        """Return bytes of the file; without `pread` by one thread at a time."""
        if hasattr(os, "pread"):
            return os.pread(self._bytes, size, place)
        os.lseek(self._bytes, place, os.SEEK_SET)
        return os.read(self._bytes, size)

    @staticmethod
    def _encode(value: Any, shape: tuple[int, ...]) -> bytes:
        """Return the value of a dataset as an encoded image."""
        if isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
            value = value.item()
        if isinstance(value, bytes):
            data = value
        elif isinstance(value, np.void) or (isinstance(value, np.ndarray) and value.ndim == 1):
            if value.dtype.kind not in "VSui" or value.dtype.itemsize > 1 < value.size:
                raise ValueError(f"its dataset holds {value.dtype}, not the bytes of an image")
            data = value.tobytes()
        elif isinstance(value, np.ndarray):
            return encode_pixels(value)
        else:
            raise ValueError(
                f"its dataset holds {type(value).__name__} of shape {shape}, not the bytes of an "
                "image"
            )
        check_size(len(data))
        return data


def keep_shallow(found: list[bytes], name: bytes) -> bool | None:
    """Add the name of a link in an HDF5 file; True, which stops, if it is too deep in groups."""
    if name.count(b"/") >= MOST_DEPTH:
        return True
    found.append(name)
    return None
