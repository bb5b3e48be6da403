"""What to predict: images, folders, globs, tables, files of images; each with its metadata."""

import glob
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.columns.names import find_usual, list_renamed
from lesionfast.data.encoder import MetadataEncoder, UnseenValue, describe_missing, read_value
from lesionfast.data.formats.containers import CONTAINERS
from lesionfast.data.formats.dicom import DICOM_SUFFIXES
from lesionfast.data.layouts.base import SAMPLE_ROWS, Dataset, Folder
from lesionfast.data.layouts.paths import find_unique, locate_images, match_paths
from lesionfast.data.layouts.places import leave_out_derived
from lesionfast.data.layouts.recognise import recognise
from lesionfast.data.layouts.tables import IMAGES, check_header, choose_image, first_of
from lesionfast.data.sources import (
    IMAGE_SUFFIXES,
    FileReader,
    find_images_in_folder,
    image_stem,
    list_images,
    list_members,
    read_dicom_tags,
)
from lesionfast.data.table import (
    SEPARATORS,
    TABLE_SUFFIXES,
    TableFile,
    find_separator,
    is_table,
    list_columns,
)
from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize
from lesionfast.files import readable_name, sha256

logger = logging.getLogger("lesionfast")

NAME_SOME = "Name images, a folder, a table, or a zip, tar, HDF5, Parquet or .npz file of images."
FOREIGN = (".gif", ".jp2")  # images that may not be readable


@dataclass(frozen=True)
class Item:
    """One image: its name in the output, its path (None: see `problem`), and its metadata."""

    name: str
    path: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass
class Shard:
    """One of `count` shards: every `count`th chunk of the images, as one process cuts them.

    The numbers of an image depend on its chunk in the last digits, so a chunk is never divided.
    """

    number: int  # from 1
    count: int
    images: int = 0  # of all shards, as far as they were seen
    names: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard of a text such as "3/8"; raises `LesionfastError` if there is none."""
        parts = [int(part) for part in text.split("/") if re.fullmatch("[0-9]{1,6}", part)]
        if text.count("/") != 1 or len(parts) != 2 or not 1 <= parts[0] <= parts[1]:
            raise LesionfastError(
                f"--shard {text} is not a shard. Type for example --shard 3/8 for the third of "
                "eight, which are 1/8 to 8/8."
            )
        return cls(*parts)

    def choose(self, items: Iterable[Item], chunk: int) -> Iterator[Item]:
        """Yield the images of this shard; all are counted, and their names hashed."""
        for item in items:
            if self.images // chunk % self.count == self.number - 1:
                yield item
            self.images += 1
            self.names.update(item.name.encode("utf-8", "backslashreplace") + b"\0")

    def __str__(self) -> str:
        """Return it as a person types it."""
        return f"{self.number}/{self.count}"


def find_items(
    inputs: Sequence[str],
    *,
    images: Path | None = None,
    metadata: dict[str, Any] | None = None,
    image_column: str = "image_id",
    columns: Sequence[str] = (),
    separator: str | None = None,
    renamed: dict[str, str] | None = None,
    choose: Callable[[Iterator[Item]], Iterator[Item]] = iter,
) -> Iterator[Item]:
    """Yield the images of files, folders, globs, zip files and the like, datasets and tables.

    `images` is the folder or file of the images that a table names, unless they are beside
    it; `metadata` holds for every image whose table does not say otherwise; a table should have
    `columns`; its `separator` is found unless given, and `renamed` maps columns of a table to
    those. `choose` leaves images out before any file is opened. Raises `LesionfastError`, before
    the first image, for an input that does not exist, and before the first image of a table that
    can't be read.
    """
    roots = [root for pattern in inputs for root in expand(pattern)]
    for root in roots:
        if not Path(root).exists():
            raise LesionfastError(
                f"there is no file, folder or pattern '{readable_name(root)}'. {NAME_SOME}"
            )
    tables = Tables(images, metadata or {}, image_column, columns, separator, renamed or {})
    return add_tags(choose(item for root in roots for item in read_input(Path(root), tables)))


def add_tags(items: Iterable[Item]) -> Iterator[Item]:
    """Yield images, those in DICOM files with what their tags know and their metadata does not."""
    with FileReader() as reader:
        for item in items:
            tags = {} if item.path is None else find_patient(item.path, reader)
            known = {name: value for name, value in item.metadata.items() if value != ""}
            yield replace(item, metadata={**tags, **known}) if tags else item


def find_patient(path: str, reader: FileReader) -> dict[str, str]:
    """Return age and sex from the tags of a DICOM file, nothing for other suffixes."""
    tags: dict[str, str] = {}
    if path.lower().endswith(DICOM_SUFFIXES):
        with suppress(LesionfastError):  # reading the image says what is wrong
            tags = read_dicom_tags(path, reader)
    if sex := {"M": "male", "F": "female"}.get(tags.pop("sex", "")):
        tags["sex"] = sex
    return tags


def expand(pattern: str) -> list[str]:
    """Return the paths that a glob matches, sorted; anything else as it is."""
    path = os.path.expanduser(pattern)
    return [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True)) or [path]


def read_input(root: Path, tables: "Tables") -> Iterator[Item]:
    """Yield the images of one input; the other files of a folder are counted."""
    suffix, others = root.suffix.lower(), []
    if is_table(root):
        yield from tables.read(root)
        return
    found = find_known(root, tables) if root.is_dir() or suffix in CONTAINERS else None
    if found:
        yield from tables.read(found) if isinstance(found, Path) else tables.read_dataset(found)
        return
    if root.is_dir():
        paths = find_images_in_folder(root, (*IMAGE_SUFFIXES, *FOREIGN), others)
    elif suffix in CONTAINERS:
        paths = iter(list_members(root))
    else:
        paths = iter([root.as_posix()])
    yield from (Item(readable_name(path), path, tables.metadata) for path in paths)
    if others:
        logger.warning("%s: skipped %d other files: %s", root, len(others), list_first(others))


def find_known(root: Path, tables: "Tables") -> Dataset | Path | None:
    """Return the dataset in a folder or file as a training reads it, None if no layout fits.

    A table without labels is none to train on; if it is the only one of images, its path is
    returned.
    """
    column = tables.image_column if tables.image_column != IMAGES[0] else None
    try:
        found = recognise(root, DataConfig(image=column, separator=tables.separator))
    except LesionfastError as error:
        headers = Folder(root).headers if root.is_dir() else {}
        named = [path for path in headers if first_of((column or "", *IMAGES), headers[path])]
        if len(named) == 1:
            return named[0]
        if headers:
            logger.warning(
                "%s: the images are read without metadata, because %s To read a table, name it "
                "in place of the folder", root, error,
            )  # fmt: skip
        return None
    logger.info("%s looks like %s", root, found.name)
    return found


def hash_tables(inputs: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of the tables among the inputs, whose metadata the predictions need."""
    paths = [Path(path) for pattern in inputs for path in expand(pattern)]
    below = [table for path in paths if path.is_dir() for table in Folder(path).headers]
    tables = [path for path in paths if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    return {path.name: sha256(path)[:12] for path in [*tables, *below]}


@dataclass(frozen=True)
class Tables:
    """Reads tables of images; the fields are the options of `find_items`."""

    images: Path | None
    metadata: dict[str, Any]
    image_column: str
    columns: Sequence[str]
    separator: str | None
    renamed: dict[str, str]

    def read(self, path: Path) -> Iterator[Item]:
        """Yield the images that a table names, with the values of its other columns.

        All rows are read once before, so that an error is raised before the first image.
        """
        table, root = self._open(path), self.images or path.parent
        files = leave_out_derived(list_images(root), root)
        image = self._find_image(table, files)
        names = self._name_columns(path.name, table.header)
        images = pd.concat([rows[image].drop_duplicates() for rows in table.read_chunks()])
        paths = find_paths(images.drop_duplicates(), files, root, path)
        for rows in table.read_chunks(report=False):
            for row in rows.rename(columns=names).to_dict("records"):
                name = row.pop(image)
                yield Item(name, paths[name] or None, self._merge(row))

    def read_dataset(self, found: Dataset) -> Iterator[Item]:
        """Yield the images of a dataset with the values of its table, then those without a row."""
        renamed = found.rows.rename(columns=found.renamed)
        names = self._name_columns(found.table.name, list(renamed))
        paths, others = locate_images(found), list(found.unlabelled)
        if found.files is not None:
            unique = find_unique(found.files)["path"]
            others = unique[~unique.isin(set(paths))].tolist()
        rows = renamed.rename(columns=names).to_dict("records")
        for path, row in zip(paths, rows, strict=True):
            if path:
                yield Item(readable_name(path), path, self._merge(row))
        if lost := int((paths == "").sum()):
            logger.warning("Left out %s without an image", pluralize(lost, "row"))
        yield from (Item(readable_name(path), path, self.metadata) for path in others)

    def _merge(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata of an image: that of its row where there is some, else of all."""
        return self.metadata | {key: value for key, value in row.items() if value != ""}

    def _find_image(self, table: TableFile, files: pd.DataFrame) -> str:
        """Return the column of the images: the model's, or the one that names `files`.

        Raises `LesionfastError` if there is none.
        """
        if self.image_column in table.header and self.image_column != IMAGES[0]:
            return self.image_column
        sample, stems = next(table.read_chunks(report=False)), set(files["stem"].str.lower())
        column, _ = choose_image(sample.head(SAMPLE_ROWS), stems, DataConfig())
        check_header(column, stems)
        table.require({column or self.image_column: "--image"})
        return column or self.image_column

    def _name_columns(self, table: str, header: Sequence[str]) -> dict[str, str]:
        """Return the columns to rename, as said or by usual names; what is missing is warned of.

        Raises `LesionfastError` for a column to rename that is not there.
        """
        for name in self.renamed:
            if name not in header:
                raise LesionfastError(
                    f"--map names the column '{name}', which is not in {table}; it has: "
                    f"{list_columns(header)}.{did_you_mean(name, header)} Correct the name."
                )
        names = dict(self.renamed)
        for name in self.columns:
            other = find_usual(name, [column for column in header if column not in names])
            if name in names.values() or other == name:
                continue
            if other:
                names[other] = name
            elif name not in self.metadata:
                logger.warning(
                    "%s has no column '%s', so it is missing for all images.%s If it has another "
                    "name there, type --map OTHER=%s",
                    table, name, did_you_mean(name, header), name,
                )  # fmt: skip
        if found := {key: value for key, value in names.items() if key not in self.renamed}:
            logger.info("%s: reading %s", table, list_renamed(found))
        return names

    def _open(self, path: Path) -> TableFile:
        """Return a table with its separator: as given, else the one that finds the columns."""
        if self.separator is not None:
            return TableFile(path, self.separator, "")
        usual = "," if path.suffix.lower() == ".csv" else "\t"
        found = find_separator(path, (self.image_column, *IMAGES, *self.columns), usual)
        if found != usual:
            logger.warning("%s: the fields are separated by '%s'", path.name, SEPARATORS[found])
        return TableFile(path, found, "")


def find_paths(names: pd.Series, files: pd.DataFrame, root: Path, table: Path) -> dict[str, str]:
    """Return the path of the image that each name of a table means, "" where there is none.

    A path below `root` is that file; the others are found in the rest of `files` as for training.
    Raises `LesionfastError` if a name fits files that differ.
    """
    found = {name: find_beside(name, root) for name in names}
    rest = files[~files["path"].isin({os.path.abspath(path) for path in found.values() if path})]
    others = pd.Series([name for name, path in found.items() if not path], dtype="str")
    found |= dict(zip(others, match_paths(others, rest, root, table), strict=True))
    used = {path for path in found.values() if path}
    twins = rest["path"][~rest["path"].isin(used) & rest["stem"].isin(set(map(image_stem, used)))]
    if len(twins):
        logger.warning(
            "Ignored %s with the name of another that the table names, such as %s",
            pluralize(len(twins), "image file"), twins.iloc[0],
        )  # fmt: skip
    return found


def find_beside(name: str, root: Path) -> str:
    """Return the path of a file that is named as seen from `root`, "" if there is none."""
    path = root / name.replace("\\", "/")
    with suppress(OSError):  # the name is too long for a file
        if name and path.suffix and path.is_file():
            return path.as_posix()
    return ""


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

    @property
    def is_mostly_missing(self) -> bool:
        """Whether most images lacked some column, so that the model answers unlike in its test."""
        return any(2 * count > self.images for count in self.missing.values())

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
