"""Where the CSV and the images are: folders and zip files, looked through but never unpacked."""

import logging
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.sample import make_sample
from lesionfast.errors import LesionfastError
from lesionfast.files import readable_name, split_path, stamp

logger = logging.getLogger("lesionfast")

MOST_BYTES = 2**28  # more in one picture is an error or an attack


def count_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class FileReader:
    """Reads files and zip members; each thread has zip files of its own, open until `close`."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._opened: list[zipfile.ZipFile] = []

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all zip files; call it when no thread reads any more."""
        while self._opened:
            self._opened.pop().close()

    def read(self, path: str) -> bytes:
        """Return the bytes of a file or zip member; raises `OSError`, `ValueError` and others."""
        file, member = split_path(path)
        if member is None:
            check_size(os.path.getsize(file))
            return Path(file).read_bytes()
        info = self._find(file, member)
        check_size(info.file_size)
        return self._archive(file).read(info)

    def content_key(self, path: str) -> str:
        """Return size and CRC-32, the same for a file and for a zip member of the same bytes.

        Of a zip file only the directory is read.
        """
        file, member = split_path(path)
        if member is None:
            data = self.read(file)
            return f"{len(data)}-{zlib.crc32(data):08x}"
        info = self._find(file, member)
        return f"{info.file_size}-{info.CRC:08x}"

    def _find(self, file: str, member: str) -> zipfile.ZipInfo:
        try:
            return self._archive(file).getinfo(member)
        except KeyError:
            raise FileNotFoundError(f"{file} has no member {member}") from None

    def _archive(self, file: str) -> zipfile.ZipFile:
        own = self._of_thread.__dict__
        if file not in own:
            own[file] = zipfile.ZipFile(file)
            self._opened.append(own[file])
        return own[file]


def check_size(size: int) -> None:
    """Raise `ValueError` for a number of bytes that no picture has."""
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    if size > MOST_BYTES:
        raise ValueError(f"it has {size / 2**20:.0f} MB, more than a picture should")


def content_keys(paths: Sequence[str]) -> list[str]:
    """Return the content key of each path, in order; one that nothing else has if unreadable."""

    def key_of(path: str) -> str:
        try:
            return reader.content_key(path)
        except Exception:  # decoding says what is wrong with it
            return f"unreadable {stamp(split_path(path)[0])}"

    with FileReader() as reader, ThreadPoolExecutor(count_threads()) as threads:
        return list(threads.map(key_of, paths))


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
HIDDEN_PART = re.compile(r"(?:^|/)(?:\.|__MACOSX(?:/|$))")  # of a path with forward slashes


@dataclass(frozen=True)
class Source:
    """The metadata CSV, and the folders and zip files that hold its images."""

    csv: Path
    images: list[Path]


def find_source(config: DataConfig) -> Source:
    """Return where the data of a configuration is: --data, --csv with --images, or the sample.

    Raises `LesionfastError` if there is no such file or folder, or if it can't be told which
    file is the metadata.
    """
    for name in ("data", "csv", "images"):
        if getattr(config, name) == "":
            raise LesionfastError(f"--{name} is empty. Type a path, or leave the option out.")
    if config.data:
        if config.csv or config.images:
            raise LesionfastError(
                "--data came together with --csv or --images. "
                "Type either --data DIR, or --csv FILE and --images DIR."
            )
        return search_folder(Path(config.data).expanduser())
    if config.csv and config.images:
        return Source(Path(config.csv).expanduser(), [Path(config.images).expanduser()])
    if config.csv or config.images:
        raise LesionfastError(
            f"--{'csv' if config.csv else 'images'} came alone. --csv FILE and --images DIR go "
            "together; or type --data DIR for a folder that holds both."
        )
    logger.warning("no --data given: using the built-in SYNTHETIC sample (drawn, not patients)")
    return search_folder(make_sample())


def search_folder(folder: Path) -> Source:
    """Return the one metadata CSV in `folder`, or one level below, and `folder` for its images."""
    if not folder.is_dir():
        found = "is a file" if folder.is_file() else "does not exist"
        raise LesionfastError(
            f"--data {folder} {found}. Type the folder that holds the metadata CSV and the "
            "images, or --csv FILE and --images DIR."
        )
    below = sorted(each for each in folder.iterdir() if each.is_dir() and is_visible(each.name))
    tables = list_tables(folder) or [table for each in below for table in list_tables(each)]
    named = [each for each in tables if "metadata" in each.name.lower()]
    choice = named if len(named) == 1 else tables
    if len(choice) != 1:
        found = f"{len(choice)}: " + ", ".join(str(each) for each in choice[:5]) if choice else "no"
        raise LesionfastError(
            f"{folder} should hold one metadata CSV; found {found}. "
            "Type --csv FILE --images DIR instead of --data."
        )
    return Source(choice[0], [folder])


def list_tables(folder: Path) -> list[Path]:
    """Return the CSV files right in `folder`, sorted."""
    files = (each for each in folder.iterdir() if each.suffix.lower() in TABLE_SUFFIXES)
    return sorted(each for each in files if each.is_file() and is_visible(each.name))


def list_images(images: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """List image files under folders and zip files: columns `stem` and `path`, sorted by path.

    Folders are searched with all below, zip files in them included. Of a zip file only the
    directory is read; a member's path is "<zip>/<member>". Paths are absolute; hidden files are
    left out.
    """
    roots = [images] if isinstance(images, str | Path) else list(images)
    roots = [Path(os.path.abspath(Path(root).expanduser())) for root in roots]
    paths = with_readable_names(sorted({path for root in roots for path in find_images(root)}))
    files = pd.DataFrame({"path": pd.Series(paths, dtype="str")})
    stems = [path[path.rfind("/") + 1 : path.rfind(".")] for path in paths]
    return files.assign(stem=pd.Series(stems, dtype="str"))


def with_readable_names(paths: list[str]) -> list[str]:
    """Return the paths that are UTF-8: a table can't name others, which are counted."""
    readable = [path for path in paths if readable_name(path) == path]
    if len(readable) < len(paths):
        other = next(readable_name(path) for path in paths if readable_name(path) != path)
        logger.warning(
            "%d images left out: their names are not UTF-8. Rename them; the first is %s",
            len(paths) - len(readable), other,
        )  # fmt: skip
    return readable


def find_images(root: Path) -> Iterator[str]:
    """Yield the path of every image in a folder or zip file."""
    if root.is_dir():
        yield from find_images_in_folder(root)
    elif root.is_file():
        yield from find_images_in_zip(root)
    else:
        raise LesionfastError(f"there is no folder or zip file {root}. Name it with --images.")


def find_images_in_folder(
    folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, others: list[str] | None = None
) -> Iterator[str]:
    """Yield the images in a folder and below, and those in its zip files, in order.

    The names of other files go to `others`.
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
            if name.lower().endswith(suffixes):
                yield Path(parent, name).as_posix()
            elif name.lower().endswith(".zip"):
                yield from find_images_in_zip(Path(parent, name))
            else:
                others.append(name)


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


def find_images_in_zip(path: Path) -> Iterator[str]:
    """Yield "<zip>/<member>" for every image in a zip file; raises `LesionfastError` if broken."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise LesionfastError(
            f"{path} is no complete zip file ({error}). Download it again, or name the folder of "
            "images with --images."
        ) from None
    folder = path.as_posix()
    for member in members:
        if member.lower().endswith(IMAGE_SUFFIXES) and not HIDDEN_PART.search(member):
            yield f"{folder}/{member}"


def is_visible(name: str) -> bool:
    """Whether a file or folder is meant for people: not hidden, no resource fork of macOS."""
    return not HIDDEN_PART.match(name)
