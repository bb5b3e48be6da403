"""From the options to a dataset: find the folders, recognise how they lie on disk, read them."""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.config import IN_MEMORY, DataConfig
from lesionfast.data.formats.containers import CONTAINERS
from lesionfast.data.layouts import (  # noqa: F401 (importing a module registers its layout)
    bcn20000,
    ddi,
    derm7pt,
    fitzpatrick17k,
    folders_by_class,
    ham10000,
    huggingface,
    isic2018,
    isic2019,
    isic2020,
    isic2024,
    isic_archive,
    medmnist,
    milk10k,
    pad_ufes_20,
    tables,
    webdataset,
)
from lesionfast.data.layouts.base import Dataset, Folder, from_one_hot, layouts
from lesionfast.data.layouts.several import is_kind, join_datasets
from lesionfast.data.parts.groups import factorize_ids
from lesionfast.data.sample import make_sample
from lesionfast.data.sources import name_without_suffix
from lesionfast.data.table import is_table
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, pluralize

logger = logging.getLogger("lesionfast")

ID_SUFFIX = re.compile(r"([ _-]|(?<=patient)|(?<=lesion)|(?<=subject))id$")
LAST = (  # what fits anything comes last
    *("huggingface", "webdataset", "medmnist", "folders_by_class", "table"),
)


def find_dataset(config: DataConfig) -> Dataset:
    """Return the dataset of a configuration: --data, --csv with --images, or the sample.

    Raises `LesionfastError` if there is no such file or folder, if no layout fits, or if what fits
    is broken.
    """
    for name in ("data", "csv", "images"):
        if getattr(config, name) == "":
            raise LesionfastError(f"--{name} is empty. Type a path, or leave the option out.")
    if config.data == IN_MEMORY:
        raise LesionfastError(
            "this run was trained on a DataFrame, so its images can't be found again. Type --data, "
            "or --csv and --images."
        )
    if config.data and (config.csv or config.images):
        raise LesionfastError(
            "--data can't be combined with --csv or --images. "
            "Type either --data DIR, or --csv FILE and --images DIR."
        )
    if config.csv and config.images:
        return apply_columns(tables.read_any_table(Path(config.csv).expanduser(), config), config)
    if config.csv or config.images:
        alone, other = ("csv", "images") if config.csv else ("images", "csv")
        raise LesionfastError(
            f"--{alone} needs --{other}. Type both --csv FILE and --images DIR, or --data DIR for "
            "a folder that holds both."
        )
    if not config.data:
        logger.warning("No --data given: using the built-in SYNTHETIC sample (drawn, not patients)")
        return apply_columns(recognise(make_sample(), config), config)
    parts = [apply_columns(recognise(path, config), config) for path in list_paths(config.data)]
    return parts[0] if len(parts) == 1 else join_datasets(parts, config)


def list_paths(data: str) -> list[Path]:
    """Return the paths of --data, which may be one with a comma in it."""
    whole = Path(data).expanduser()
    names = [data] if whole.exists() else split_names(data)
    return [Path(name).expanduser() for name in names]


def recognise(path: Path, config: DataConfig) -> Dataset:
    """Return the dataset in a folder, or of a table with its images beside it.

    The first layout that fits reads it. Raises `LesionfastError` if there is no such folder or none
    fits.
    """
    if path.is_file() and is_table(path):
        return recognise_table(path, config)
    if not path.is_dir() and not is_container(path):
        problem = "is a file" if path.is_file() else "does not exist"
        raise LesionfastError(
            f"--data {path} {problem}. Type the folder that holds the metadata CSV and the "
            "images, or --csv FILE and --images DIR."
        )
    folder = Folder(path)
    if config.layout != "auto":
        if found := layouts[config.layout](folder, config):
            return found
        raise LesionfastError(
            f"{path} is not laid out as --layout {config.layout} says. Leave --layout out to "
            "have the layout recognised."
        )
    if found := find_public(folder, config):
        return found
    if not folder.headers and (packed := folder.packed_tables):
        raise LesionfastError(
            f"{packed[0]} is a table, but only images are read from zip files. Unpack it, and type "
            "--data with the folder."
        )
    found = next(filter(None, (layouts[name](folder, config) for name in LAST)), None)
    if found is None:
        raise tables.unknown_layout(folder)
    return found


def find_public(folder: Folder, config: DataConfig) -> Dataset | None:
    """Return the dataset of the first layout of a public dataset that fits, None if none does."""
    for name in layouts:
        if name not in LAST and (found := layouts[name](folder, config)):
            return replace(found, source=found.source or name)
    return None


def recognise_table(path: Path, config: DataConfig) -> Dataset:
    """Return the dataset of a table with its images beside it.

    If it is that of a public dataset, as its folder is recognised, it is read as such.
    """
    try:
        found = find_public(Folder(path.parent), config)
    except LesionfastError:
        found = None  # the folder is not read, so what is wrong with it does not matter
    if found and found.table.is_file() and found.table.samefile(path):
        logger.warning("%s is the table of %s, so all of its folder is read", path.name, found.name)
        return found
    return tables.read_any_table(path, replace(config, csv=str(path), images=str(path.parent)))


def is_container(path: Path) -> bool:
    """Return whether a path is a file that holds many images."""
    return path.is_file() and path.suffix.lower() in CONTAINERS


def apply_columns(found: Dataset, config: DataConfig) -> Dataset:
    """Return a dataset with the columns that --image, --target and --group name."""
    rows = found.rows
    if config.target and len(columns := split_names(config.target)) > 1:
        check_columns(found, columns, "--target")
        rows = rows.assign(target=from_one_hot(rows, columns, found.table))
        found = replace(found, rows=rows, target="target", leaks=(*found.leaks, *columns))
    elif config.target:
        check_columns(found, [config.target], "--target")
        found = replace(found, target=config.target, leaks=(*found.leaks, found.target))
    if config.image:
        check_columns(found, [config.image], "--image")
    if config.image and config.image != "path":  # which says where the images are
        found = replace(found, image=config.image)
    if config.group == "none":
        return replace(found, groups=())
    if config.group:
        groups = split_names(config.group)
        check_columns(
            found, groups, "--group, or type --group none if every image is a lesion of its own"
        )
        found = replace(found, groups=tuple(groups))
    return found


def check_columns(found: Dataset, columns: Iterable[str], option: str) -> None:
    """Raise `LesionfastError` for a column that the table does not have."""
    tables.check_named(found.table, list(found.rows), columns, option)


def name_group(found: Dataset) -> str:
    """Return what stays in one split: a "patient" where patients are known, else a "lesion"."""
    return "patient" if any(is_kind(name, "patient") for name in found.groups) else "lesion"


def describe(found: Dataset, df: pd.DataFrame) -> str:
    """Return what was recognised in one sentence, with the images, classes and groups of a table.

    `df` is the checked table of the dataset.
    """
    parts = [pluralize(len(df), "image"), pluralize(df["target"].nunique(), "class")]
    bare = list(map(name_without_suffix, found.rows[found.image]))
    rows = found.rows[pd.Index(df["image_id"]).get_indexer(bare) >= 0]
    for name in found.groups:
        noun = ID_SUFFIX.sub("", name.lower()).replace("_", " ")
        codes = factorize_ids(rows[name])[0]
        parts.append(pluralize(len(np.unique(codes[codes >= 0])), noun))
        if lone := int((codes < 0).sum()):
            own = f"counts as a {noun} of its own" if name == found.groups[0] else ""
            parts.append(f"{lone:,} without a {noun} id" + (f" (each {own})" if own else ""))
    return " ".join([f"This looks like {found.name}: {', '.join(parts)}.", *found.notes])
