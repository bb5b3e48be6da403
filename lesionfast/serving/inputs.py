"""What is to be predicted: images, folders, globs, zip files and tables, one item at a time."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.encoder import (
    BadValue,
    MetadataEncoder,
    UnseenValue,
    describe_missing,
    read_value,
)
from lesionfast.data.sources import (
    IMAGE_SUFFIXES,
    TABLE_SUFFIXES,
    drop_copies,
    find_images_in_folder,
    find_images_in_zip,
    list_images,
)
from lesionfast.data.table import SEPARATORS, CsvFile, find_separator
from lesionfast.errors import LesionfastError, did_you_mean, list_first
from lesionfast.files import readable_name, sha256

logger = logging.getLogger("lesionfast")

FOREIGN = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jp2")  # pictures too, perhaps not read
ID_COLUMNS = ("image_id", "image", "path", "file")
GLOB = "*?["


@dataclass(frozen=True)
class Item:
    """One image: its name in the output, where it is (None: see `problem`), what is known of it."""

    name: str
    path: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def why_no_path(self) -> str:
        """Return why there is no path."""
        return self.problem or f"there is no image '{self.name}'"


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
    it; `metadata` is said of every image that no table says it of; a table should have `columns`;
    its `separator` is found unless given. Raises `LesionfastError`, before the first image, for an
    input that is not there, and before the first image of a table that can't be read.
    """
    roots = [root for each in inputs for root in expanded(each)]
    for root in roots:
        if not Path(root).exists():
            raise LesionfastError(
                f"there is no file, folder or pattern '{readable_name(root)}'. "
                "Name images, a folder, a zip file or a CSV file."
            )
    told = metadata or {}
    tables = Tables(images, told, image_column, columns, separator)
    return (item for root in roots for item in items_of(Path(root), told, tables))


def expanded(given: str) -> list[str]:
    """Return the paths that a glob stands for, sorted; anything else as it is."""
    path = os.path.expanduser(given)
    if os.path.exists(path) or not any(each in path for each in GLOB):
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def items_of(root: Path, metadata: dict[str, Any], tables: "Tables") -> Iterator[Item]:
    """Yield the images of one input."""
    if root.is_dir():
        found = images_below(root)
    elif root.suffix.lower() == ".zip":
        found = find_images_in_zip(root)
    elif root.suffix.lower() in TABLE_SUFFIXES:
        yield from tables.rows_of(root)
        return
    else:
        found = iter([root.as_posix()])
    yield from (Item(readable_name(path), path, metadata) for path in found)


def tables_among(inputs: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of the tables among inputs, which say what is known of the images."""
    paths = [Path(path) for each in inputs for path in expanded(each)]
    tables = [path for path in paths if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    return {path.name: sha256(path)[:12] for path in tables}


def images_below(folder: Path) -> Iterator[str]:
    """Yield the images in a folder and below, and in its zip files; other files are counted."""
    others: list[str] = []
    yield from find_images_in_folder(folder, (*IMAGE_SUFFIXES, *FOREIGN), others)
    if others:
        logger.warning("%s: %d other files left out: %s", folder, len(others), list_first(others))


@dataclass(frozen=True)
class Tables:
    """How tables are read; the fields are the options of `find_items`."""

    images: Path | None
    metadata: dict[str, Any]
    image_column: str
    columns: Sequence[str]
    separator: str | None

    def rows_of(self, table: Path) -> Iterator[Item]:
        """Yield the images that a table names, with what its other columns say of them.

        All rows are read once before, so that what is wrong is told before the first image.
        """
        opened = self.open(table)
        names = (self.image_column, *ID_COLUMNS)
        column = next((name for name in names if name in opened.header), self.image_column)
        opened.require({column: ""})
        for _ in opened.read_chunks():
            pass
        self.warn_of_missing(table, opened.header)
        places = Places(self.images or table.parent)
        for rows in opened.read_chunks(report=False):
            for values in zip(*(rows[name] for name in rows), strict=True):
                told = dict(zip(rows, values, strict=True))
                name = told.pop(column)
                yield places.find(name, self.metadata | known(told))

    def open(self, table: Path) -> CsvFile:
        """Return a table with its separator: as given, else as its column names tell."""
        if self.separator is not None:
            return CsvFile(table, self.separator, "")
        usual = "," if table.suffix.lower() == ".csv" else "\t"
        found = find_separator(table, (self.image_column, *ID_COLUMNS, *self.columns), usual)
        if found != usual:
            logger.warning("%s: the fields are separated by '%s'", table.name, SEPARATORS[found])
        return CsvFile(table, found, "")

    def warn_of_missing(self, table: Path, header: list[str]) -> None:
        """Say which columns of the model a table does not have."""
        for name in self.columns:
            if name not in header and name not in self.metadata:
                near = did_you_mean(name, header)
                logger.warning(
                    "%s has no column '%s', so it is missing for all images.%s",
                    table.name,
                    name,
                    near,
                )


def known(told: dict[str, Any]) -> dict[str, Any]:
    """Return what a row says, without its empty cells."""
    return {name: value for name, value in told.items() if value not in ("", None)}


class Places:
    """Where the images of a table are: as it names them, or by the stem of the file's name."""

    def __init__(self, root: Path) -> None:
        self.root, self._of_stem = root, None

    def find(self, name: str, metadata: dict[str, Any]) -> Item:
        """Return the image of a row, without a path if it is not there or there are two."""
        try:
            return Item(name, self.path_of(name), metadata)
        except LesionfastError as error:
            return Item(name, None, metadata, f"{error}. Remove one of them")

    def path_of(self, name: str) -> str | None:
        """Return the path of an image, None if it is not there; `LesionfastError` if two are."""
        beside = self.root / name
        if name and beside.suffix and is_file(beside):
            return beside.as_posix()
        stem = name.rsplit("/", 1)[-1]
        suffix = stem.lower().endswith((*IMAGE_SUFFIXES, *FOREIGN))
        paths = self.of_stem.get(stem.rsplit(".", 1)[0] if suffix else stem, [])
        if len(paths) < 2:
            return paths[0] if paths else None
        return drop_copies(pd.DataFrame({"stem": stem, "path": paths}))["path"].iloc[0]

    @property
    def of_stem(self) -> dict[str, list[str]]:
        """Return the paths of all images below by their stem."""
        if self._of_stem is None:
            self._of_stem = {}
            files = list_images(self.root)
            for stem, path in zip(files["stem"], files["path"], strict=True):
                self._of_stem.setdefault(stem, []).append(path)
            self.report_twins()
        return self._of_stem

    def report_twins(self) -> None:
        """Say that files have one stem."""
        twins = [paths[0] for paths in self._of_stem.values() if len(paths) > 1]
        if twins:
            logger.warning(
                "%d images are there more than once; of the same bytes one is taken: %s",
                len(twins), list_first(twins, 1),
            )  # fmt: skip


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a name that is too long for one is none."""
    try:
        return path.is_file()
    except OSError:
        return False


class Known:
    """Cleans the metadata of images and counts what they do not say.

    `find_caution` returns what to know before the model predicts without metadata.
    """

    def __init__(self, encoder: MetadataEncoder, find_caution: Callable[[], str] = str) -> None:
        self.encoder, self._find_caution, self._warned = encoder, find_caution, False
        self.missing, self.unseen, self.images = Counter(), Counter(), 0
        self._lock = Lock()  # images are prepared in threads

    def clean(self, told: dict[str, Any]) -> dict[str, Any]:
        """Return the value of each column of the model, NaN if not known or never seen in training.

        Raises `BadValue` for what a column can't have, such as an age of 999.
        """
        with self._lock:
            self.images += 1
            row = {column["name"]: self.value(column, told) for column in self.encoder.learned}
            self.missing.update(name for name, value in row.items() if pd.isna(value))
        return row

    def value(self, learned: dict[str, Any], told: dict[str, Any]) -> Any:
        """Return one column's value; what training never saw is counted."""
        name = learned["name"]
        try:
            return read_value(name, told.get(name), learned)
        except UnseenValue:
            self.unseen[f"{name} {str(told[name]).strip()}"] += 1
            return np.nan

    def check(self, told: dict[str, Any]) -> None:
        """Raise `LesionfastError` for what a column can't have, and for what training never saw.

        In a table, one image may have such a value; what a person types is a slip of the pen.
        """
        for learned in self.encoder.learned:
            name = learned["name"]
            try:
                read_value(name, told.get(name), learned)
            except BadValue as bad:
                raise LesionfastError(f"{bad}.{what_to_type(learned, told[name])}") from None

    def encode(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return cleaned rows as float32 (n, width)."""
        columns = self.encoder.columns
        table = pd.DataFrame({name: [row[name] for row in rows] for name in columns})
        for each in self.encoder.learned:
            kind = float if each["kind"] == "number" else object
            table[each["name"]] = table[each["name"]].astype(kind)
        if not columns:
            return np.zeros((len(rows), 0), np.float32)
        return self.encoder.transform(table)

    @cached_property
    def caution(self) -> str:
        """What to know before the model predicts without metadata, '' if nothing."""
        return self._find_caution()

    def warn(self) -> None:
        """Say once what predicting without metadata does, if something was missing."""
        if self.missing and not self._warned and self.caution:
            logger.warning("%s", self.caution)
            self._warned = True

    def report(self) -> None:
        """Say once what was missing."""
        self.warn()
        for name, count in self.missing.items():
            logger.warning("%s", describe_missing(name, count, self.images))
        if self.unseen:
            told = ", ".join(f"{value} ({n})" for value, n in self.unseen.most_common(5))
            logger.warning("values that training never saw count as missing: %s", told)


def what_to_type(learned: dict[str, Any], value: Any) -> str:
    """Return what a column takes instead of a value."""
    if learned["kind"] == "number":
        digits = 0 if learned["scale"] > 1 else 2
        return f" Type for example {learned['name']}={learned['mean']:.{digits}f}."
    near = did_you_mean(str(value), learned["values"])
    return f"{near} Type one of: {', '.join([*learned['values'], 'unknown'])}."
