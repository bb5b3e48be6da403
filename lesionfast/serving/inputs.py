"""What to predict: images, folders, globs, zip files and tables, each image with its metadata."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.encoder import (
    MetadataEncoder,
    UnseenValue,
    describe_missing,
    read_value,
)
from lesionfast.data.formats.containers import CONTAINERS
from lesionfast.data.sources import (
    IMAGE_SUFFIXES,
    drop_copies,
    find_images_in_folder,
    list_images,
    list_members,
)
from lesionfast.data.table import SEPARATORS, TABLE_SUFFIXES, CsvFile, find_separator
from lesionfast.errors import LesionfastError, did_you_mean, list_first
from lesionfast.files import readable_name, sha256

logger = logging.getLogger("lesionfast")

FOREIGN = (".gif", ".jp2")  # images that may not be readable
ID_COLUMNS = ("image_id", "image", "path", "file")


@dataclass(frozen=True)
class Item:
    """One image: its name in the output, its path (None: see `problem`), and its metadata."""

    name: str
    path: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def find_items(
    inputs: Sequence[str],
    *,
    images: Path | None = None,
    metadata: dict[str, Any] | None = None,
    image_column: str = "image_id",
    columns: Sequence[str] = (),
    separator: str | None = None,
) -> Iterator[Item]:
    """Yield the images of files, folders, globs, zip files and tables, in order.

    `images` is the folder or zip file of the images that a table names, unless they are beside
    it; `metadata` holds for every image whose table does not say otherwise; a table should have
    `columns`; its `separator` is found unless given. Raises `LesionfastError`, before the first
    image, for an input that does not exist, and before the first image of a table that can't be
    read.
    """
    roots = [root for pattern in inputs for root in expand(pattern)]
    for root in roots:
        if not Path(root).exists():
            raise LesionfastError(
                f"there is no file, folder or pattern '{readable_name(root)}'. "
                "Name images, a folder, a zip file or a CSV file."
            )
    tables = Tables(images, metadata or {}, image_column, columns, separator)
    return (item for root in roots for item in read_input(Path(root), tables))


def expand(pattern: str) -> list[str]:
    """Return the paths that a glob matches, sorted; anything else as it is."""
    path = os.path.expanduser(pattern)
    return [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True)) or [path]


def read_input(root: Path, tables: "Tables") -> Iterator[Item]:
    """Yield the images of one input; the other files of a folder are counted."""
    suffix, others = root.suffix.lower(), []
    if root.is_dir():
        paths = find_images_in_folder(root, (*IMAGE_SUFFIXES, *FOREIGN), others)
    elif suffix in CONTAINERS:
        paths = iter(list_members(root))
    elif suffix in TABLE_SUFFIXES:
        yield from tables.read(root)
        return
    else:
        paths = iter([root.as_posix()])
    yield from (Item(readable_name(path), path, tables.metadata) for path in paths)
    if others:
        logger.warning("%s: skipped %d other files: %s", root, len(others), list_first(others))


def hash_tables(inputs: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of the tables among the inputs, whose metadata the predictions need."""
    paths = [Path(path) for pattern in inputs for path in expand(pattern)]
    tables = [path for path in paths if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    return {path.name: sha256(path)[:12] for path in tables}


@dataclass(frozen=True)
class Tables:
    """Reads tables of images; the fields are the options of `find_items`."""

    images: Path | None
    metadata: dict[str, Any]
    image_column: str
    columns: Sequence[str]
    separator: str | None

    def read(self, path: Path) -> Iterator[Item]:
        """Yield the images that a table names, with the values of its other columns.

        All rows are read once before, so that an error is raised before the first image.
        """
        table = self._open(path)
        names = (self.image_column, *ID_COLUMNS)
        column = next((name for name in names if name in table.header), self.image_column)
        table.require({column: ""})
        for _ in table.read_chunks():
            pass
        for name in self.columns:
            if name not in table.header and name not in self.metadata:
                logger.warning(
                    "%s has no column '%s', so it is missing for all images.%s",
                    path.name, name, did_you_mean(name, table.header),
                )  # fmt: skip
        places = Places(self.images or path.parent)
        for rows in table.read_chunks(report=False):
            for row in rows.to_dict("records"):
                name = row.pop(column)
                values = {key: value for key, value in row.items() if value != ""}
                yield places.find(name, self.metadata | values)

    def _open(self, path: Path) -> CsvFile:
        """Return a table with its separator: as given, else the one that finds the columns."""
        if self.separator is not None:
            return CsvFile(path, self.separator, "")
        usual = "," if path.suffix.lower() == ".csv" else "\t"
        found = find_separator(path, (self.image_column, *ID_COLUMNS, *self.columns), usual)
        if found != usual:
            logger.warning("%s: the fields are separated by '%s'", path.name, SEPARATORS[found])
        return CsvFile(path, found, "")


class Places:
    """Finds the images of a table in a folder or zip file: by their path, or by their stem."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, name: str, metadata: dict[str, Any]) -> Item:
        """Return the image of a row, without a path if there is none or there are two."""
        try:
            return Item(name, self._find_path(name), metadata)
        except LesionfastError as error:
            return Item(name, None, metadata, f"{error}. Remove one of them")

    def _find_path(self, name: str) -> str | None:
        beside = self.root / name
        with suppress(OSError):  # the name is too long for a file
            if name and beside.suffix and beside.is_file():
                return beside.as_posix()
        stem = name.rsplit("/", 1)[-1]
        if stem.lower().endswith((*IMAGE_SUFFIXES, *FOREIGN)):
            stem = stem.rsplit(".", 1)[0]
        paths = self._paths_by_stem.get(stem, [])
        if len(paths) < 2:
            return paths[0] if paths else None
        return drop_copies(pd.DataFrame({"stem": stem, "path": paths}))["path"].iloc[0]

    @cached_property
    def _paths_by_stem(self) -> dict[str, list[str]]:
        """The paths of all images below the root; files of the same stem are reported."""
        files = list_images(self.root)
        found = files.groupby("stem", sort=False)["path"].agg(list).to_dict()
        twins = [paths[0] for paths in found.values() if len(paths) > 1]
        if twins:
            logger.warning(
                "%d image names belong to several files; of identical files one is used: %s",
                len(twins), list_first(twins, 1),
            )  # fmt: skip
        return found


class MetadataReader:
    """Reads the metadata of images for the model, and counts the values that are missing.

    `find_caution` returns a caution about predicting without metadata, '' if there is none.
    """

    def __init__(self, encoder: MetadataEncoder, find_caution: Callable[[], str] = str) -> None:
        self.encoder, self._find_caution, self._warned = encoder, find_caution, False
        self.missing, self.unseen, self.images = Counter(), Counter(), 0
        self._lock = Lock()  # images are prepared in threads

    def read(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the value of each column of the model, NaN if missing or never seen in training.

        Raises `BadValue` for what a column can't have, such as an age of 999.
        """
        row = {}
        with self._lock:
            self.images += 1
            for learned in self.encoder.learned:
                name, value = learned["name"], metadata.get(learned["name"])
                try:
                    row[name] = read_value(name, value, learned)
                except UnseenValue:
                    self.unseen[f"{name} {str(value).strip()}"] += 1
                    row[name] = np.nan
            self.missing.update(name for name, value in row.items() if pd.isna(value))
        return row

    def encode(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return rows that were read as float32 (n, width)."""
        table = pd.DataFrame(list(rows), columns=self.encoder.columns)
        kinds = {"number": float, "text": object}
        types = {learned["name"]: kinds[learned["kind"]] for learned in self.encoder.learned}
        return self.encoder.transform(table.astype(types))

    @cached_property
    def caution(self) -> str:
        """A caution about predicting without metadata, '' if there is none."""
        return self._find_caution()

    def warn(self) -> None:
        """Give the caution once, if a value was missing."""
        if self.missing and not self._warned and self.caution:
            logger.warning("%s", self.caution)
            self._warned = True

    def report(self) -> None:
        """Say how many values were missing, and which ones training never saw."""
        self.warn()
        for name, count in self.missing.items():
            logger.warning("%s", describe_missing(name, count, self.images))
        if self.unseen:
            values = ", ".join(f"{value} ({n})" for value, n in self.unseen.most_common(5))
            logger.warning("values that training never saw count as missing: %s", values)
