"""Any table beside images: its columns are recognised by their names and by what they hold."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    PART_NAMES,
    Dataset,
    Folder,
    layouts,
    list_candidates,
    read_rows,
)
from lesionfast.data.sources import list_images
from lesionfast.data.table import list_columns, open_table
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")

IDS = ("image_id", "isic_id", "image_name", "image", "img_id", "img")
IMAGES = (
    *IDS,
    *("image_path", "img_path", "path", "filepath", "file_path", "filename", "file_name", "file"),
    *("image_file", "image_filename", "images", "id"),
)
TARGETS = (
    *("dx", "diagnosis", "diagnostic", "label", "target", "class", "class_name", "label_name"),
    *("diagnosis_3", "category", "disease", "benign_malignant", "malignant", "y"),
)
LESIONS = ("lesion_id", "lesion", "lesionid", "lesion_number")
PATIENTS = ("patient_id", "patient", "patientid", "subject_id", "subject", "pat_id", "case_id")
SPLITS = ("split", "partition", "subset", "set")


@layouts.register("table")
def table(folder: Folder, config: DataConfig) -> Dataset | None:
    """Any CSV, TSV, Parquet or Excel table beside images, with columns for image and class."""
    named = [path for path in folder.headers if find_image_column(path, config, folder)]
    if not named:
        return None
    return read_any_table(choose_table(folder, named, None), config, folder)


def read_any_table(path: Path, config: DataConfig, folder: Folder | None = None) -> Dataset:
    """Return the dataset of a table and the images of `folder`, else of --images.

    Raises `LesionfastError` if there is no column that can be the image or the class.
    """
    opened = open_table(path, config.separator)
    opened.require(required_columns(config))
    find_columns(path, opened.header, config)
    rows = pd.concat(list(opened.read_chunks()))
    files = folder.images if folder else list_images(config.images or path.parent)
    return guess_columns(path, rows, files, config)


def from_frame(rows: pd.DataFrame, config: DataConfig) -> Dataset:
    """Return the dataset of a table of text from Python; its images as in `guess_columns`."""
    files = list_images(config.images) if config.images is not None else None
    if files is None and not (config.image or first_of(IDS, list(rows))):
        rows = rows.assign(image_id=[Path(path).stem for path in rows["path"]])
    found = guess_columns(Path("the table"), rows, files, config)
    return replace(found, split="split" if "split" in rows else None)


def guess_columns(
    path: Path, rows: pd.DataFrame, files: pd.DataFrame | None, config: DataConfig
) -> Dataset:
    """Return the dataset of a table, its columns as the options name them or by usual names.

    Its images are `files`, else in its column `path`.
    """
    header = list(rows)
    image, target = find_columns(path, header, config)
    groups = [first_of(names, header) for names in (LESIONS, PATIENTS)]
    return Dataset(
        name=f"a table ({path.name})",
        table=path,
        rows=rows,
        image=image,
        target=target,
        groups=tuple(name for name in groups if name),
        files=files,
        split=find_split(rows),
    )


def find_columns(path: Path, header: list[str], config: DataConfig) -> tuple[str, str]:
    """Return the columns of the image and of the class; raises `LesionfastError` if unknown."""
    found = []
    for typed, names, what, option in [
        (config.image, IMAGES, "image ids", "--image"),
        (config.target, TARGETS, "the diagnosis", "--target"),
    ]:
        column = split_names(typed)[0] if typed else first_of(names, header)
        if column is None:
            raise LesionfastError(
                f"no column of {path.name} is known to hold {what}; it has: "
                f"{list_columns(header)}. Name yours with {option}."
            )
        found.append(column)
    return found[0], found[1]


def required_columns(config: DataConfig) -> dict[str, str]:
    """Return the columns that the options name, each with the option that does."""
    named: dict[str, str] = {}
    if config.image:
        named[config.image] = "--image"
    for name in split_names(config.target or ""):
        named[name] = "--target"
    if config.group not in (None, "none"):
        advice = "--group, or type --group none if every image is a lesion of its own"
        named |= dict.fromkeys(split_names(config.group), advice)
    return named


def first_of(names: tuple[str, ...], header: list[str]) -> str | None:
    """Return the column of a header that comes first in `names`, in any case and spelling."""
    known = {re.sub(r"[\s_-]+", "_", name.strip().lower()): name for name in reversed(header)}
    return next((known[name] for name in names if name in known), None)


def find_split(rows: pd.DataFrame) -> str | None:
    """Return the column that says train, validation or test for every row, None if none does."""
    column = first_of(SPLITS, list(rows))
    if column and set(rows[column].str.lower()) <= set(PART_NAMES):
        return column
    return None


def find_image_column(path: Path, config: DataConfig, folder: Folder) -> str | None:
    """Return the column of a table whose values are images of a folder, None if there is none."""
    header = folder.headers[path]
    wanted = config.image.lower() if config.image else first_of(IMAGES, header)
    return wanted if wanted in header else None


def find_usable(folder: Folder, config: DataConfig) -> list[Path]:
    """Return the tables of a folder with columns of images and classes that name images of it."""
    stems = set(folder.images["stem"])
    return [
        path
        for path, header in folder.headers.items()
        if find_image_column(path, config, folder)
        and (config.target or first_of(TARGETS, header))
        and count_named(path, config.image, stems)
    ]


def choose_table(folder: Folder, candidates: list[Path], column: str | None) -> Path:
    """Return the table that names the most images of a folder.

    Of several that name as many, it is the one whose name the others extend, as a copy does.
    Raises `LesionfastError`, with the candidates, if none stands out.
    """
    if len(candidates) == 1:
        return candidates[0]
    stems = set(folder.images["stem"])
    found = {path: count_named(path, column, stems) for path in candidates}
    best = [path for path in candidates if found[path] == max(found.values())]
    shortest = min(best, key=lambda path: len(path.stem))
    if all(path.stem.lower().startswith(shortest.stem.lower()) for path in best):
        for path in best:
            if path != shortest:
                logger.warning(
                    "Ignored %s beside %s. To use it instead, type --csv and --images",
                    path.name, shortest.name,
                )  # fmt: skip
        return shortest
    lines = list_first((f"{path.name} ({pluralize(found[path], 'image')})" for path in best), 5)
    raise LesionfastError(
        f"{folder.root} holds {len(best)} tables that may be the metadata: {lines}. "
        "Type --csv FILE --images DIR instead of --data."
    )


def count_named(path: Path, column: str | None, stems: set[str]) -> int:
    """Return how many images a table names in a column, by default the usual ones."""
    header = open_table(path).header
    name = first_of((column,) if column else IMAGES, header)
    if name is None:
        return 0
    values = read_rows(path)[name]
    names = values.str.replace("\\", "/").str.rsplit("/", n=1).str[-1]
    trimmed = names.str.replace(r"\.\w{2,5}$", "", regex=True)
    return int((names.isin(stems) | trimmed.isin(stems)).sum())


def list_values(rows: pd.DataFrame) -> str:
    """Return the columns of a table with their number of values, for an error; few values first."""
    counts = {name: rows[name][rows[name] != ""].nunique() for name in rows}
    ranked = sorted(counts, key=lambda name: (counts[name] < 2, counts[name]))
    return list_first((f"{name} ({pluralize(counts[name], 'value')})" for name in ranked), 15)


def unknown_layout(folder: Folder) -> LesionfastError:
    """Return the error for a folder that no layout fits."""
    if folder.only:
        return LesionfastError(
            f"--data {folder.only} is a file with {pluralize(len(folder.images), 'image')}, but "
            "without their classes. Type the folder that holds the metadata CSV too, or --csv FILE "
            f"--images {folder.only}."
        )
    if not folder.headers:
        images = pluralize(len(folder.images), "image")
        return LesionfastError(
            f"there is no CSV file in {folder.root}, and its {images} are not in folders named "
            "like their class. Type --csv FILE --images DIR instead of --data."
        )
    return LesionfastError(
        f"{folder.root} is not laid out as any dataset that is known ({list_candidates(folder)}). "
        "Type --csv FILE --images DIR --image COLUMN --target COLUMN instead of --data."
    )
