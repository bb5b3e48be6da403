"""Where the images are: folders and files of images, looked through but never unpacked."""

import ctypes
import logging
import os
import platform
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.data.formats.containers import open_container
from lesionfast.data.formats.dicom import find_tags
from lesionfast.data.formats.members import HIDDEN_PART, Container, content_key, is_image
from lesionfast.data.formats.pictures import HEAD, IMAGE_SUFFIXES, check_size
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.files import readable_name, split_path, stamp

logger = logging.getLogger("lesionfast")

PACKS = (".zip", ".tar")  # files of a folder that are looked into
CGROUP = Path("/sys/fs/cgroup")
PART = 8  # files that a thread reads one after the other


def is_visible(name: str) -> bool:
    """Whether a file or folder is meant for people: not hidden, no resource fork of macOS."""
    return not HIDDEN_PART.match(name)


def list_images(images: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """List images under folders, and in zip, tar, HDF5, Parquet and .npz files: `stem`, `path`.

    They are sorted by path. Folders are searched with all below, zip and tar files in them
    included, of which only the directory is read; a member's path is "<file>/<member>". Paths are
    absolute; hidden files are left out, and so are names that are not UTF-8, which no table can
    hold.
    """
    roots = [images] if isinstance(images, str | Path) else list(images)
    roots = [Path(os.path.abspath(Path(root).expanduser())) for root in roots]
    paths = sorted({path for root in roots for path in find_images(root)})
    unreadable = [path for path in paths if readable_name(path) != path]
    if unreadable:
        logger.warning(
            "Left out %s with a name that is not UTF-8, such as %s. Rename the file",
            pluralize(len(unreadable), "image"), readable_name(unreadable[0]),
        )  # fmt: skip
        paths = sorted({*paths} - {*unreadable})
    stems = list(map(image_stem, paths))
    return pd.DataFrame(
        {"path": pd.Series(paths, dtype="str"), "stem": pd.Series(stems, dtype="str")}
    )


def image_stem(path: str) -> str:
    """Return the name of an image without folders and without the suffix of an image."""
    return name_without_suffix(path[path.rfind("/") + 1 :])


def name_without_suffix(name: str) -> str:
    """Return the name of an image without .jpg or the like."""
    return name[: name.rfind(".")] if name.lower().endswith(IMAGE_SUFFIXES) else name


def find_images(root: Path) -> Iterator[str]:
    """Yield the path of every image in a folder, or in a file that holds images."""
    if root.is_dir():
        yield from find_images_in_folder(root)
    elif root.is_file():
        yield from list_members(root)
    else:
        raise LesionfastError(
            f"there is no folder or file of images {root}. Name it with --images."
        )


def list_members(file: str | Path) -> list[str]:
    """Return "<file>/<member>" of every image in a zip, tar, HDF5, Parquet or .npz file.

    Raises `LesionfastError` if the file is broken or holds no images.
    """
    path = Path(file)
    with open_container(str(path)) as container:
        return [f"{path.as_posix()}/{member}" for member in container.list_members()]


def find_images_in_folder(
    folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, others: list[str] | None = None
) -> Iterator[str]:
    """Yield the images in a folder and below, and those in its zip and tar files, in order.

    Files without a suffix are images if they begin like one. The names of other files are added to
    `others`.
    """
    seen, others = set(), [] if others is None else others
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder that was searched; it could go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_visible, folders))
        for name in sorted(filter(is_visible, names)):
            path = Path(parent, name).as_posix()
            if name.lower().endswith(suffixes) or is_image(path, read_head):
                yield path
            elif name.lower().endswith(PACKS) and os.path.isfile(path):
                yield from list_members(path)
            else:
                others.append(name)


def read_head(path: str, most: int = HEAD) -> bytes:
    """Return the first bytes of a regular file, which tell its kind; nothing of a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return b""
    with open(path, "rb") as file:
        return file.read(most)


def read_dicom_tags(path: str, reader: "FileReader | None" = None) -> dict[str, str]:
    """Return age (in years: "45", "1.5") and sex ("M", "F", "O") from the tags of a DICOM file.

    What is not known is left out, and no other tag is read. Pass a `reader` to read many. Raises
    `LesionfastError` if the file is no DICOM file, or pydicom is not installed.
    """
    try:
        with nullcontext(reader) if reader else FileReader() as opened:
            return find_tags(opened.read(path))
    except LesionfastError:
        raise
    except Exception as error:  # broken bytes raise anything
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LesionfastError(
            f"{path} has no DICOM tags ({why[:200].rstrip('.')}). Replace the file, or name "
            "a table of its age and sex with --csv."
        ) from None


def drop_copies(files: pd.DataFrame) -> pd.DataFrame:
    """Return images (stem, path), of those with one stem the first; their bytes must be the same.

    Raises `LesionfastError`, with two files, if they differ.
    """
    twins = files[files["stem"].duplicated(keep=False)]
    first = twins.sort_values("path").drop_duplicates("stem").set_index("stem")["path"]
    key = pd.Series(content_keys(twins["path"].tolist()), twins["path"])
    differ = twins[key[twins["path"]].to_numpy() != key[twins["stem"].map(first)].to_numpy()]
    if len(differ):
        stem, path = differ.iloc[0][["stem", "path"]]
        raise LesionfastError(f"two different images are named '{stem}': {first[stem]} and {path}")
    return files[~files["stem"].isin(first.index) | files["path"].isin(first)]


def content_keys(paths: Sequence[str]) -> list[str]:
    """Return the content key of each path, in order; a unique one if a file is unreadable."""

    def find_key(path: str, reader: FileReader) -> str:
        try:
            return reader.content_key(path)
        except Exception:  # decoding says what is wrong with it
            return f"unreadable {stamp(split_path(path)[0])}"

    return read_each(paths, find_key)


def read_each(paths: Sequence[str], read: Callable[[str, "FileReader"], Any]) -> list[Any]:
    """Return what `read(path, reader)` finds in each file, in the order of the paths."""
    order = storage_order(paths)
    parts = [order[start : start + PART] for start in range(0, len(paths), PART)]

    def read_part(part: Sequence[int]) -> list[Any]:
        return [read(paths[i], reader) for i in part]

    found: list[Any] = [None] * len(paths)
    with FileReader() as reader, ThreadPoolExecutor(count_threads()) as threads:
        for part, values in zip(parts, threads.map(read_part, parts), strict=True):
            for i, value in zip(part, values, strict=True):
                found[i] = value
    return found


def storage_order(paths: Sequence[str]) -> Sequence[int]:
    """Return the positions of paths in the order in which their files are best read.

    It is their own, unless some are rows of Parquet files, which are read a page at a time.
    """
    places = {i: split_path(path) for i, path in enumerate(paths) if ".parquet/" in path.lower()}
    rows = {i: int(row) for i, (_, row) in places.items() if row and row.isdecimal()}
    if not rows:
        return range(len(paths))
    return sorted(range(len(paths)), key=lambda i: (places.get(i, ("",))[0], rows.get(i, i)))


class FileReader(AbstractContextManager):
    """Reads images from files and from what holds many; those stay open until the end."""

    def __init__(self) -> None:
        self._opened: dict[str, Container] = {}
        self._lock = threading.Lock()

    def __exit__(self, *error: object) -> None:
        while self._opened:
            self._opened.popitem()[1].close()

    def read(self, path: str) -> bytes:
        """Return an encoded image: the bytes of a file, or what a member of a container holds.

        Raises `OSError`, `ValueError` and others.
        """
        file, member = split_path(path)
        if member is None:
            check_size(os.path.getsize(file))
            return Path(file).read_bytes()
        return self._open(file).read(member)

    def read_start(self, path: str, most: int) -> bytes:
        """Return the first bytes of an encoded image, `most` of them or more, as `read` does."""
        file, member = split_path(path)
        if member is not None:
            return self._open(file).read_start(member, most)
        return read_head(file, most)

    def content_key(self, path: str) -> str:
        """Return size and CRC-32, the same for a file and for a member of the same bytes.

        Of a zip file only the directory is read.
        """
        file, member = split_path(path)
        if member is None:
            return content_key(self.read(file))
        return self._open(file).content_key(member)

    def _open(self, file: str) -> Container:
        """Return the container that all threads read."""
        if file not in self._opened:
            with self._lock:
                if file not in self._opened:
                    self._opened[file] = open_container(file)
        return self._opened[file]


def count_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(limits: Path = CGROUP) -> int | None:
    """Return the bytes of memory that processes can still get, None if the system does not say.

    `limits` is the folder where Linux says what a container may use, and what it uses. Copies of
    files that it would give up count as free.
    """
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # "max" is no number: then the container has no limit
        most, used = (int((limits / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (limits / "memory.stat").read_text().splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        found.append(max(0, most - used + files))
    return min(found, default=None)


@cache
def find_glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc, which can be told to give up memory."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def return_memory() -> None:
    """Return memory that was freed to the system, where the C library keeps it for each thread."""
    if libc := find_glibc():
        libc.malloc_trim(0)  # a millisecond or two
