"""Files that hold many images: zip, tar, HDF5, Parquet and .npz; listed and read, never unpacked.

The path of an image in one is "<file>/<member>": the member of a zip or tar file, the name of an
HDF5 dataset, the number of a Parquet row, the array and the position in it of an .npz file.
"""

import os
import re
import tarfile
import threading
import zipfile
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from io import BytesIO
from lzma import LZMAError
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lesionfast.cache import cache_folder, hash_lines, read_note, write_note
from lesionfast.data.formats import untar
from lesionfast.data.formats.pictures import HEAD, IMAGE_SUFFIXES, check_size, find_kind
from lesionfast.data.formats.unzip import (
    STEP,
    check_overlap,
    inflates_beyond,
    lzf_goes_beyond,
    name_unread,
    open_member,
)
from lesionfast.errors import LesionfastError, import_extra, list_first
from lesionfast.files import disk_errors, stamp, temporary_folder

HIDDEN_PART = re.compile(r"(?:^|/)(?:\.(?!/)|__MACOSX(?:/|$))")  # of a path; "./" is none
HERE = re.compile(r"(?:(?<=/)|^)(?:\./)+")
IN_MEMORY_BYTES = 2**27  # of an array of an .npz file: a larger one is unpacked to a temporary file
BATCH_ROWS = 16  # of a Parquet file, read together
KEPT_BYTES = 2**26  # of a Parquet file, kept for threads that are a little behind
TAR_VERSION = 5  # part of the key of a tar file's index: raise it when that changes
PLACE = range(2**62)  # of a file in a tar file, in bytes
INDEX = {"names": [str], "starts": [PLACE], "sizes": [PLACE]}
MOST_RATIO = 1100  # by which deflate makes zeros smaller, at most
MOST_DEPTH = 100  # groups of an HDF5 file in one another
MOST_CHUNKS = 2**15  # of one picture in an HDF5 file: to look for each takes a moment
CHECKSUM = 2**10  # bytes that the checksum after a chunk of an HDF5 file may seem to unpack to
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
ELSEWHERE = "it lies in another file, which is not read; copy the picture into this one"


def plain_name(name: str) -> str:
    """Return the name of a member as a path would have it: without "./", "//" and a first "/".

    `tar cf FILE .` writes "./" before each name, and other programs the rest.
    """
    if "./" not in name and "//" not in name and not name.startswith("/"):
        return name
    return re.sub("/+", "/", HERE.sub("", name)).lstrip("/")


def content_key(data: bytes) -> str:
    """Return size and CRC-32 of an encoded image: the same wherever the same bytes lie."""
    return f"{len(data)}-{zlib.crc32(data):08x}"


def encode_pixels(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W), (H, W, 1) or (H, W, 3) as BMP, in a tenth of the time of PNG."""
    if pixels.dtype != np.uint8 or not is_picture(pixels.shape):
        raise ValueError(
            f"it is {pixels.dtype} of shape {pixels.shape}; uint8 of shape (height, width) or "
            "(height, width, 3) is read"
        )
    check_size(pixels.size)
    file = BytesIO()
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "BMP")
    return file.getvalue()


def is_picture(shape: tuple[int, ...]) -> bool:
    """Return whether an array of this shape can be one grey or RGB picture."""
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


def is_image(path: str, read_head: Callable[[str], bytes]) -> bool:
    """Return whether a path names an image: by its suffix, or if it has none by its first bytes."""
    if path.lower().endswith(IMAGE_SUFFIXES):
        return True
    name = path[path.rfind("/") + 1 :]
    if not name or name == "DICOMDIR" or ("." in name and not name.replace(".", "").isdecimal()):
        return False  # numbers with dots are names of DICOM files, not suffixes
    try:
        return bool(find_kind(read_head(path)))
    except Exception:  # a name without a suffix promises nothing
        return False


class Container(AbstractContextManager):
    """A file that holds images, each by the name of its member; `LesionfastError` if it is broken.

    `read` may be called by several threads, unless `per_thread`: then each opens the file.
    """

    kind: ClassVar[str]
    per_thread: ClassVar[bool] = False

    def __init__(self, file: str) -> None:
        self.file = file

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""

    def list_members(self) -> list[str]:
        """Return the members that are images, in the order of the file."""
        raise NotImplementedError

    def read(self, member: str) -> bytes:
        """Return an encoded image; raises `OSError`, `ValueError` and others."""
        raise NotImplementedError

    def read_start(self, member: str, most: int) -> bytes:
        """Return the first bytes of an encoded image, `most` of them or more."""
        return self.read(member)

    def content_key(self, member: str) -> str:
        """Return the `content_key` of an image."""
        return content_key(self.read(member))

    def missing(self, member: str) -> FileNotFoundError:
        """Return the error about a member that is not there."""
        return FileNotFoundError(f"{self.file} has no member {member}")

    @contextmanager
    def explained(self, *errors: type[Exception]) -> Iterator[None]:
        """Turn errors of opening and listing into a `LesionfastError` that names the file."""
        try:
            yield
        except LesionfastError:
            raise
        except (OSError, *errors) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LesionfastError(
                f"{self.file} is not a complete {self.kind} file ({why[:200].rstrip('.')}). "
                "Download it again, or name the folder of images with --images."
            ) from None


class Zip(Container):
    """A zip file; of its members, those that `is_image` takes and that are not hidden."""

    kind, per_thread = "zip", True

    def __init__(self, file: str) -> None:
        super().__init__(file)
        with self.explained(zipfile.BadZipFile, NotImplementedError, ValueError):
            self._archive = zipfile.ZipFile(file)
            check_overlap(self._archive)
        names = self._archive.namelist()
        self._written = {plain_name(name): name for name in names if plain_name(name) != name}

    def close(self) -> None:
        self._archive.close()

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
        with open_member(self._archive, info) as file:
            while most > 0 and (part := file.read(min(most, STEP))):
                parts.append(part)
                most -= len(part)
        return b"".join(parts)

    def _find(self, member: str) -> zipfile.ZipInfo:
        try:
            return self._archive.getinfo(self._written.get(member, member))
        except KeyError:
            raise self.missing(member) from None


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
        index = read_note(note, INDEX)
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
        found = self._order[place]
        if place < 0 or self.names[found] != member:
            raise self.missing(member)
        if self._sizes[found] == untar.NOT_STORED:
            raise ValueError(
                "it is stored as a sparse file, in parts; write it into the tar file as a plain one"
            )
        return int(self._starts[found]), int(self._sizes[found])

    def _read_headers(self) -> tuple[list[str], list[int], list[int]]:
        """Return name, start and size of each file in it; raises `LesionfastError` if broken."""
        with open(self.file, "rb") as file:
            if file.read(8).startswith(COMPRESSED):
                raise LesionfastError(
                    f"{self.file} is compressed, so no image in it can be read by itself. Write it "
                    "again as a plain tar file; images are compressed already."
                )
        names, starts, sizes = [], [], []
        with self.explained(tarfile.TarError):
            for name, start, size in untar.read_headers(self.file):
                names.append(plain_name(name))
                starts.append(start)
                sizes.append(size)
        return names, starts, sizes


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
            return os.pread(self._bytes, *place)
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
            self._check_object(dataset)
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

    def _check_object(self, dataset: Any) -> None:
        """Raise `ValueError` unless a dataset of variable length holds one value of bounded size.

        What HDF5 keeps of it in its place begins with its length.
        """
        if dataset.size > 1:
            raise ValueError(
                f"its dataset holds {dataset.size:,} values, not the bytes of an image"
            )
        place = dataset.id.get_offset()
        if place is None:
            raise ValueError("it is of variable length in chunks; write it as an array of uint8")
        if self._at_once:
            check_size(int.from_bytes(os.pread(self._bytes, 4, place), "little"))

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
        broken = (TokenError, SyntaxError, RecursionError, MemoryError)  # of headers in Python
        with self.explained(zipfile.BadZipFile, ValueError, LZMAError, *broken):
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
