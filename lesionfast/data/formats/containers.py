"""Files that hold many images: zip, tar, HDF5, Parquet and .npz; listed and read, never unpacked.

The path of an image in one is "<file>/<member>": the member of a zip or tar file, the name of an
HDF5 dataset, the number of a Parquet row, the array and the position in it of an .npz file.
"""

import os
import threading
import zipfile
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from lzma import LZMAError
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lesionfast.cache import BROKEN_HEADER
from lesionfast.data.formats.hdf5 import Hdf5
from lesionfast.data.formats.members import (
    HIDDEN_PART,
    Container,
    encode_pixels,
    is_image,
    is_picture,
    plain_name,
)
from lesionfast.data.formats.pictures import HEAD, check_size
from lesionfast.data.formats.untar import Tar
from lesionfast.data.formats.unzip import (
    STEP,
    check_overlap,
    name_unread,
    open_member,
    whole_member,
)
from lesionfast.errors import LesionfastError, import_extra, list_first
from lesionfast.files import disk_errors, temporary_folder

IN_MEMORY_BYTES = 2**27  # of an array of an .npz file: a larger one is unpacked to a temporary file
BATCH_ROWS = 16  # of a Parquet file, read together
KEPT_BYTES = 2**26  # of a Parquet file, kept for threads that are a little behind
MOST_RATIO = 1100  # by which deflate makes zeros smaller, at most


class Zip(Container):
    """A zip file; of its members, those that `is_image` takes and that are not hidden.

    All threads share its directory, of which a million members take a gigabyte.
    """

    kind = "zip"

    def __init__(self, file: str) -> None:
        super().__init__(file)
        with ExitStack() as opened:  # closes it if it is broken
            with self.explained(zipfile.BadZipFile, NotImplementedError, ValueError):
                # `ZipFile` locks each read, but counts who reads without a lock, and closes at 0
                # what it opened itself.
                self._opened = opened.enter_context(open(file, "rb"))
                self._archive = zipfile.ZipFile(self._opened)
                check_overlap(self._archive)
            opened.pop_all()
        names = self._archive.namelist()
        self._written = {plain_name(name): name for name in names if plain_name(name) != name}

    def close(self) -> None:
        self._archive.close()
        self._opened.close()

    def list_members(self) -> list[str]:
        names = dict.fromkeys(map(plain_name, self._archive.namelist()))
        names = (name for name in names if not HIDDEN_PART.search(name))
        found = [name for name in names if is_image(name, partial(self.read_start, most=HEAD))]
        methods = {name_unread(self._find(name)) for name in found}
        if methods and "" not in methods:
            raise LesionfastError(
                f"No image in {self.file} can be read: they are packed with "
                f"{list_first(sorted(methods), 3)}. Unpack the file and name the folder of "
                "images, or write it again with deflate."
            )
        return found

    def read(self, member: str) -> bytes:
        info = self._find(member)
        check_size(info.file_size)
        return self.read_start(member, info.file_size)

    def content_key(self, member: str) -> str:
        info = self._find(member)
        return f"{info.file_size}-{info.CRC:08x}"  # as `content_key`, from the directory alone

    def read_start(self, member: str, most: int) -> bytes:
        info, parts = self._find(member), []
        with whole_member(), open_member(self._archive, info) as file:
            while most > 0 and (part := file.read(min(most, STEP))):
                parts.append(part)
                most -= len(part)
        return b"".join(parts)

    def _find(self, member: str) -> zipfile.ZipInfo:
        try:
            return self._archive.getinfo(self._written.get(member, member))
        except KeyError:
            raise self.missing(member) from None


class Parquet(Container):
    """A Parquet file with the bytes of an image in each row, read a page at a time.

    They are in a column of structs with a field `bytes` (as Hugging Face writes them) or of
    bytes: the column `image` if it is one, else the only one.
    """

    kind = "Parquet"

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._pyarrow = pyarrow = import_extra("pyarrow", "parquet", f"{file} can't be read")
        parquet = import_extra("pyarrow.parquet", "parquet", f"{file} can't be read")
        self._lock = threading.Lock()
        with self.explained(pyarrow.ArrowException, ValueError):
            self._file = parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            groups = self._file.metadata
            sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=int)]).tolist()
        if self._starts[-1] > os.path.getsize(file):
            raise LesionfastError(
                f"{file} says that it has {self._starts[-1]:,} rows, more than it has bytes. "
                "Download it again, or name the folder of images with --images."
            )
        self._column, self._in_struct = self._find_column(pyarrow.types)
        self._check_bytes()
        self._kept: OrderedDict[int, Any] = OrderedDict()  # first row -> rows, from one batch
        self._walk: Iterator[tuple[int, Any]] = iter(())
        self._group, self._next = -1, 0  # of `_walk`: its row group, the first row not given yet

    def close(self) -> None:
        self._walk = iter(())
        self._kept.clear()
        self._file.close()
        self._pyarrow.default_memory_pool().release_unused()

    def list_members(self) -> list[str]:
        return list(map(str, range(self._starts[-1])))

    def read(self, member: str) -> bytes:
        row = int(member) if member.isdecimal() else -1
        if not 0 <= row < self._starts[-1]:
            raise self.missing(member)
        with self._lock:
            value = self._read_row(row)
        if value is None:
            raise ValueError(f"the row has no bytes in column '{self._column}'")
        check_size(len(value))
        return value

    def _find_column(self, types: Any) -> tuple[str, bool]:
        """Return the path of the column of images and whether it is in a struct: image.bytes."""

        def is_bytes(kind: Any) -> bool:
            return types.is_binary(kind) or types.is_large_binary(kind)

        found, schema = {}, self._file.schema_arrow
        for column in schema:
            if is_bytes(column.type):
                found[column.name] = (column.name, False)
            elif types.is_struct(column.type):
                field = column.type.get_field_index("bytes")
                if field >= 0 and is_bytes(column.type.field(field).type):
                    found[column.name] = (f"{column.name}.bytes", True)
        if "image" in found:
            return found["image"]
        if len(found) == 1:
            return next(iter(found.values()))
        problem = f"{len(found)} columns of bytes: {list_first(found, 5)}" if found else "none"
        columns = list_first((f"{column.name} {column.type}" for column in schema), 10)
        raise LesionfastError(
            f"{self.file} needs one column with the bytes of images; it has {problem}. Its columns "
            f"are: {columns}. Rename the column of images to 'image'."
        )

    def _check_bytes(self) -> None:
        """Raise `LesionfastError` if the file says that its column of images is empty."""
        metadata, empty = self._file.metadata, 0
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            chunks = map(group.column, range(group.num_columns))
            column = next(c for c in chunks if c.path_in_schema == self._column)
            statistics = column.statistics
            if statistics is not None and statistics.has_null_count:
                empty += statistics.null_count
        if empty == self._starts[-1]:
            raise LesionfastError(
                f"{self.file} holds no images: none of its {empty:,} rows has bytes in column "
                f"'{self._column}'. Download the images too, and name their folder with --images."
            )

    def _read_row(self, row: int) -> bytes | None:
        """Return the bytes of a row, from what is kept, or read on to it."""
        for start, rows in self._kept.items():
            if start <= row < start + len(rows):
                self._kept.move_to_end(start)
                return rows[row - start].as_py()
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._next:
            self._group, self._walk = group, self._read_group(group)
        for start, rows in self._walk:
            self._next = start + len(rows)
            self._kept[start] = rows
            while len(self._kept) > 2 and sum(r.nbytes for r in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            if row < self._next:
                return rows[row - start].as_py()
        raise OSError(f"the file ends before row {row}")

    def _read_group(self, group: int) -> Iterator[tuple[int, Any]]:
        """Yield first row and bytes of each batch of a row group."""
        start = self._starts[group]
        for batch in self._file.iter_batches(BATCH_ROWS, [group], [self._column]):
            column = batch.column(0)
            yield start, column.field(0) if self._in_struct else column
            start += batch.num_rows


class Npz(Container):
    """An .npz file with arrays of images, uint8 (n, H, W) or (n, H, W, 3), as MedMNIST has them.

    The member "train_images/17" is the 18th of an array, encoded as BMP. Pickled objects are
    never loaded.
    """

    kind = ".npz"

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._lock, self._unpacked = threading.Lock(), ExitStack()
        self._arrays: dict[str, np.ndarray] = {}
        with self.explained(zipfile.BadZipFile, RuntimeError, LZMAError, *BROKEN_HEADER):
            self._archive = zipfile.ZipFile(file)
            names = [name for name in self._archive.namelist() if name.endswith(".npy")]
            self.headers = {name.removesuffix(".npy"): self._read_header(name) for name in names}
            for name, header in self.headers.items():
                self._check_size(f"{name}.npy", *header)

    def close(self) -> None:
        self._arrays.clear()
        self._archive.close()
        self._unpacked.close()

    def list_members(self) -> list[str]:
        names = [name for name, header in self.headers.items() if self._holds_images(*header)]
        wrong = [name for name in self.headers if "image" in name and name not in names]
        if wrong or not names:
            found = (f"{name} {kind} {shape}" for name, (shape, kind) in self.headers.items())
            problem = f"'{wrong[0]}' is no array of images" if wrong else "it has no such array"
            raise LesionfastError(
                f"{self.file} needs images as uint8 (n, height, width) or (n, height, width, 3), "
                f"but {problem}; it has: {list_first(found, 10)}. Write the array again with "
                "numpy.savez_compressed."
            )
        rows = sum(self.headers[name][0][0] for name in names)
        if rows > os.path.getsize(self.file):
            raise LesionfastError(
                f"{self.file} says that it has {rows:,} images, more than it has bytes. Download "
                "it again, or name the folder of images with --images."
            )
        return [f"{name}/{i}" for name in names for i in range(self.headers[name][0][0])]

    def read(self, member: str) -> bytes:
        name, _, row = member.rpartition("/")
        shape, kind = self.headers.get(name, ((), None))
        if not self._holds_images(shape, kind) or not row.isdecimal() or int(row) >= shape[0]:
            raise self.missing(member)
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = self.read_array(name)
        return encode_pixels(self._arrays[name][int(row)])

    def read_array(self, name: str) -> np.ndarray:
        """Return an array, such as `train_labels`; one of more than 128 MB as a memory map."""
        shape, kind = self.headers[name]
        if kind.hasobject:
            raise LesionfastError(
                f"'{name}' in {self.file} holds pickled Python objects, which are never loaded. "
                "Write it again as numbers or text with numpy.savez_compressed."
            )
        errors = (zipfile.BadZipFile, ValueError, zlib.error, LZMAError, EOFError)
        info = self._archive.getinfo(f"{name}.npy")
        with self.explained(*errors), open_member(self._archive, info) as source:
            if prod(shape) * kind.itemsize <= IN_MEMORY_BYTES:
                return np.lib.format.read_array(source, allow_pickle=False)
            return self._unpack(name, source)

    def _unpack(self, name: str, source: Any) -> np.ndarray:
        """Return a memory map of an array, in a temporary file that is gone after closing."""
        folder = self._unpacked.enter_context(temporary_folder())
        target = Path(folder, f"{len(self._arrays)}.npy")
        info = self._archive.getinfo(f"{name}.npy")
        with disk_errors(target, info.file_size), target.open("wb") as file:
            while block := source.read(2**22):
                file.write(block)
        return np.load(target, mmap_mode="r", allow_pickle=False)

    def _read_header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and type of an array."""
        with open_member(self._archive, self._archive.getinfo(name)) as file:
            formats = np.lib.format
            old = formats.read_magic(file) == (1, 0)
            shape, _, kind = (
                formats.read_array_header_1_0(file) if old else formats.read_array_header_2_0(file)
            )
        return shape, kind

    def _check_size(self, name: str, shape: tuple[int, ...], kind: np.dtype) -> None:
        """Raise `ValueError` for an array that is not as large as it says."""
        if kind.hasobject:  # it is never read
            return
        info, size = self._archive.getinfo(name), prod(shape) * kind.itemsize
        most = MOST_RATIO * min(info.compress_size, os.path.getsize(self.file)) + STEP
        if min(shape, default=0) < 0 or size > info.file_size or info.file_size > most:
            raise ValueError(f"{name} says that it is {kind} {shape}, and is not that large")

    @staticmethod
    def _holds_images(shape: tuple[int, ...], kind: np.dtype | None) -> bool:
        return kind == np.uint8 and len(shape) > 2 and is_picture(shape[1:])


CONTAINERS: dict[str, type[Container]] = {
    ".zip": Zip,
    ".tar": Tar,
    ".hdf5": Hdf5,
    ".h5": Hdf5,
    ".parquet": Parquet,
    ".npz": Npz,
}


def require_file(file: str) -> None:
    """Raise `LesionfastError` for a pipe or a device, of which reading may never end."""
    if os.path.exists(file) and not os.path.isfile(file):
        raise LesionfastError(
            f"{file} is not a regular file, so it is not read. Name a file or folder of images."
        )


def open_container(file: str) -> Container:
    """Open a file that holds images; raises `LesionfastError` if it is broken or of no such kind.

    It is closed at the end of a `with` block.
    """
    kind = CONTAINERS.get(Path(file).suffix.lower())
    if kind is None:
        raise LesionfastError(
            f"{file} is no file of images; these are read: {', '.join(CONTAINERS)}. Name one of "
            "them, or a folder of images, with --images."
        )
    require_file(file)
    return kind(file)
