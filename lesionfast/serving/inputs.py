"""What is to be predicted: images, folders, globs, zip files and tables, one item at a time."""

import csv
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lesionfast.data.metadata import some
from lesionfast.data.sources import (
    IMAGE_SUFFIXES,
    TABLE_SUFFIXES,
    find_images_in_zip,
    is_visible,
    list_images,
)
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import readable_name, sha256

logger = logging.getLogger("lesionfast")

FOREIGN = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jp2")  # pictures too, perhaps not read
ID_COLUMNS = ("image_id", "image", "path", "file")
GLOB = "*?["


@dataclass(frozen=True)
class Item:
    """One image: its name in the output, where it is (None: nowhere), and what is known of it."""

    name: str
    path: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


def find_items(
    inputs: Sequence[str],
    *,
    images: Path | None = None,
    metadata: dict[str, Any] | None = None,
    image_column: str = "image_id",
) -> Iterator[Item]:
    """Yield the images of files, folders, globs, zip files and tables, in order.

    `images` is the folder or zip file of the images that a table names, unless they are beside
    it; `metadata` is said of every image that no table says it of. Raises `LesionfastError`, before
    the first image, for an input that is not there.
    """
    roots = [root for each in inputs for root in expanded(each)]
    for root in roots:
        if not Path(root).exists():
            raise LesionfastError(
                f"there is no file, folder or pattern {root!r}. Name images, a folder, a zip file "
                "or a CSV file."
            )
    return (
        item
        for root in roots
        for item in items_of(Path(root), images, metadata or {}, image_column)
    )


def expanded(given: str) -> list[str]:
    """Return the paths that a glob stands for, sorted; anything else as it is."""
    path = os.path.expanduser(given)
    if os.path.exists(path) or not any(each in path for each in GLOB):
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def items_of(
    root: Path, images: Path | None, metadata: dict[str, Any], image_column: str
) -> Iterator[Item]:
    """Yield the images of one input."""
    if root.is_dir():
        found = images_below(root)
    elif root.suffix.lower() == ".zip":
        found = find_images_in_zip(root)
    elif root.suffix.lower() in TABLE_SUFFIXES:
        yield from rows_of(root, images, metadata, image_column)
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
    others = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(filter(is_visible, folders))
        for name in sorted(filter(is_visible, names)):
            path = Path(parent, name)
            if name.lower().endswith((*IMAGE_SUFFIXES, *FOREIGN)):
                yield path.as_posix()
            elif name.lower().endswith(".zip"):
                yield from find_images_in_zip(path)
            else:
                others.append(name)
    if others:
        logger.warning("%s: %d other files left out: %s", folder, len(others), some(others))


def rows_of(
    table: Path, images: Path | None, metadata: dict[str, Any], image_column: str
) -> Iterator[Item]:
    """Yield the images that a table names, with what its other columns say of them."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        dialect = csv.excel if table.suffix.lower() == ".csv" else csv.excel_tab
        rows = csv.DictReader(file, dialect=dialect)
        names = list(rows.fieldnames or [])
        column = next((each for each in (image_column, *ID_COLUMNS) if each in names), None)
        if column is None:
            raise LesionfastError(
                f"{table} has no column '{image_column}' that names the images; it has: "
                f"{', '.join(names) or 'none'}.{did_you_mean(image_column, names)} "
                f"Name the column {image_column}."
            )
        places = Places(images or table.parent)
        for row in rows:
            told = {name: value for name, value in row.items() if name and name != column}
            yield Item(row[column], places.find(row[column]), metadata | known(told))


def known(told: dict[str, Any]) -> dict[str, Any]:
    """Return what a row says, without its empty cells."""
    return {name: value for name, value in told.items() if value not in ("", None)}


class Places:
    """Where the images of a table are: as it names them, or by the stem of the file's name."""

    def __init__(self, root: Path) -> None:
        self.root, self._of_stem = root, None

    def find(self, name: str) -> str | None:
        """Return the path of an image, None if it is not there."""
        beside = self.root / name
        if name and beside.suffix and beside.is_file():
            return beside.as_posix()
        if self._of_stem is None:
            files = list_images(self.root)
            self._of_stem = dict(zip(files["stem"], files["path"], strict=True))
        stem = name.rsplit("/", 1)[-1]
        suffix = stem.lower().endswith((*IMAGE_SUFFIXES, *FOREIGN))
        return self._of_stem.get(stem.rsplit(".", 1)[0] if suffix else stem)
