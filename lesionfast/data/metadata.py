"""The metadata of a dataset: one row an image, checked, typed, cleaned; lost rows are counted.

Columns that give the label away are refused as inputs.
"""

import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from operator import ne
from pathlib import Path
from typing import TypeVar

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.columns.conversion import convert, list_rows
from lesionfast.data.columns.labels import DROP, RARE, drop_classes, expand_map, settle_labels
from lesionfast.data.columns.leaks import KEYS, RESERVED, check_inputs
from lesionfast.data.columns.values import MISSING
from lesionfast.data.encoder import describe_missing
from lesionfast.data.formats.dicom import DICOM_SUFFIXES
from lesionfast.data.layouts import tables
from lesionfast.data.layouts.base import NO_LESIONS, Dataset, rename_usual
from lesionfast.data.layouts.paths import find_unique
from lesionfast.data.layouts.places import PART_NAMES
from lesionfast.data.layouts.recognise import (
    apply_columns,
    check_columns,
    describe,
    find_dataset,
)
from lesionfast.data.parts.groups import chain_groups
from lesionfast.data.sources import (
    FileReader,
    count_threads,
    name_without_suffix,
    read_dicom_tags,
)
from lesionfast.data.table import EMPTY
from lesionfast.diagnoses import join_names, probability_columns
from lesionfast.errors import LesionfastError, list_first, pluralize, shell_quote

logger = logging.getLogger("lesionfast")
Config = TypeVar("Config", bound=DataConfig)

LONGEST_NAME = 1_000  # characters of the name of a class: longer is free text
OF_IDS = re.compile(  # columns of patients and lesions by their names
    r"(patient|lesion|subject|person|participant|case|pat)([ _-]?(id|no|nr|number|code|key))?"
    r"|pid|mrn",
    re.IGNORECASE,
)


def load_metadata(config: DataConfig) -> pd.DataFrame:
    """Find the data that `config` names and read it; see `read_dataset`."""
    found = find_dataset(config)
    df = read_dataset(found, config)
    logger.info("%s", describe(found, df))
    for note in found.notes:
        logger.warning("%s", note)
    return df


def read_dataset(found: Dataset, config: DataConfig) -> pd.DataFrame:
    """Return one row an image, checked, typed, cleaned and sorted by image id.

    Columns: image_id, path (of a file, or "<container>/<member>"), target (class name), group (what
    stays in one split; the image id if there are no groups), all text; then the other columns of
    the table, numbers as float, text as str, missing values (empty, 'unknown', …) as NaN, and
    `split` if the dataset has parts of its own. Whatever is left out is counted in the log. Raises
    `LesionfastError` for anything that the user has to settle.
    """
    rows = name_columns(found, config)
    return clean(found, rows, config)


def read_frame(df: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return a table from Python as `read_dataset` returns that of a folder.

    The images are those of its column `path`, or lie under --images; its index does not matter.
    Without a column of image ids they are the names of the files. A column `split` is kept.
    """
    df = df.set_axis(df.columns.astype(str), axis=1).set_axis(range(2, len(df) + 2), axis=0)
    if "path" not in df and config.images is None:
        raise LesionfastError(
            "the table does not say where the images are. Add a column 'path', or type images="
            '"FOLDER".'
        )
    text = df.astype(object).where(df.notna(), "").astype(str)
    if "path" in df and config.images is None:
        if len(empty := text.index[text["path"] == ""]):
            raise LesionfastError(
                f"column 'path' of the table is empty in {list_rows(empty)} (the first row counts "
                "as row 2, as in a CSV file). Fill it in or remove these rows."
            )
        paths = [os.path.abspath(os.path.expanduser(path)) for path in text["path"]]
        text["path"] = pd.Series(paths, text.index, dtype="str")
    else:
        text = text.drop(columns="path", errors="ignore")
    return read_dataset(apply_columns(tables.from_frame(text, config), config), config)


def name_columns(found: Dataset, config: DataConfig) -> pd.DataFrame:
    """Return the rows of a dataset with image_id, path, target, group (and split) first.

    What else the options ask for gets its name there: an input that the table has under another
    usual name, such as sex for gender.
    """
    raw = rename_usual(found, config.metadata_columns)
    check_class_names(found, raw[found.target])
    if config.metadata != "auto":
        inputs = "--metadata, or type --metadata none to use the image alone"
        check_columns(replace(found, rows=raw), config.metadata_columns, inputs)
    if not (found.groups or config.group or NO_LESIONS in found.notes):
        logger.warning(
            "%s has no column of lesions or patients: every image counts as a lesion of its own, "
            "and several images of one lesion can end up on both sides of the split. If the table "
            "has such a column, name it with --group",
            found.table.name,
        )
    image_id = remove_suffixes(raw[found.image])
    keys = {"image_id": image_id, "target": raw[found.target]}
    keys["group"] = chain_groups(raw[list(found.groups)], image_id)
    if found.split:
        words = raw[found.split]
        keys["split"] = words.str.lower().map(PART_NAMES).fillna(words)
    used = [
        found.image,
        found.target,
        found.split,
        *(found.groups if len(found.groups) < 2 else ()),
    ]
    others = raw.columns.difference(used, sort=False)
    reserved = {*RESERVED, *probability_columns(raw[found.target].unique())} - {"path"}
    taken = [name for name in others if name in reserved]
    if taken:
        columns = pluralize(len(taken), "column")
        logger.warning("Left out %s with a reserved name: %s", columns, ", ".join(taken))
    return pd.DataFrame(keys).join(raw[[name for name in others if name not in reserved]])


def check_class_names(found: Dataset, names: pd.Series) -> None:
    """Raise `LesionfastError` for a class with a name as long as a page of text."""
    if len(long := names.index[names.str.len() > LONGEST_NAME]):
        raise LesionfastError(
            f"column '{found.target}' of {found.table.name} has a text of "
            f"{len(names[long[0]]):,} characters in {list_rows(long)}; the name of a class has at "
            f"most {LONGEST_NAME:,}. Name the column of the diagnosis with --target."
        )


def remove_suffixes(image_ids: pd.Series) -> pd.Series:
    """Return image ids without '.jpg' and the like, which some tables have; counted if so."""
    ids = image_ids.tolist()
    bare = list(map(name_without_suffix, ids))
    if not (changed := sum(map(ne, bare, ids))):
        return image_ids
    logger.warning("Removed .jpg or the like from %s", pluralize(changed, "image id"))
    return pd.Series(bare, image_ids.index, dtype="str")


def clean(found: Dataset, df: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return the rows of `name_columns` as `read_dataset` does."""
    csv = found.table
    df = settle_labels(df, config, found.target, found.gone)
    check_ids(found, df)
    df = add_tags(drop_classes(add_paths(csv, df, found.files), config))
    inputs = config.metadata_columns
    others = df.columns.difference([*KEYS, "split"], sort=False)
    typed = {
        name: df[name].mask(df[name].str.lower().isin(MISSING))  # an id of digits is no number
        if name in found.groups
        else convert(csv, df[name], is_input=name in inputs)
        for name in others
    }
    keys = [name for name in (*KEYS, "split") if name in df]
    rare = df.attrs.get(RARE, {})
    df = pd.DataFrame({**df[keys], **typed}, df.index)
    df.attrs[RARE] = rare
    df.attrs["written"] = {name: column.attrs for name, column in typed.items() if column.attrs}
    config = settle_inputs(df, config)
    check_inputs(csv, df, config, {found.image, found.target, *found.groups}, found.leaks)
    warn_of_unused_ids(found, df)
    return handle_missing(df, config).sort_values("image_id").reset_index(drop=True)


def add_tags(df: pd.DataFrame) -> pd.DataFrame:
    """Return rows with age and sex from the tags of their DICOM files, if no column has them."""
    lacking = [name for name in ("age", "sex") if name not in df]
    files = df["path"][df["path"].str.lower().str.endswith(DICOM_SUFFIXES)]
    if not lacking or files.empty:
        return df
    with FileReader() as reader, ThreadPoolExecutor(count_threads()) as threads:
        tags = list(threads.map(partial(find_tags, reader=reader), files))
    logger.info(
        "Read %s from the tags of %s",
        " and ".join(lacking), pluralize(len(files), "DICOM file"),
    )  # fmt: skip
    columns = {name: [tag.get(name, "") for tag in tags] for name in lacking}
    beside = pd.DataFrame(columns, files.index, dtype="str")
    return df.join(beside).fillna(dict.fromkeys(lacking, ""))


def find_tags(path: str, reader: FileReader) -> dict[str, str]:
    """Return the tags of a DICOM file, none if it is broken: decoding says what is wrong."""
    try:
        return read_dicom_tags(path, reader)
    except LesionfastError:
        return {}


def settle_inputs(df: pd.DataFrame, config: Config) -> Config:
    """Return the configuration with the columns that --metadata auto stands for in this table.

    A file of --map is replaced by the pairs in it, so that a run does not need the file.
    """
    config = replace(config, map=expand_map(config.map))
    if config.metadata != "auto":
        return config
    names = [name for name in config.metadata_columns if name in df and df[name].notna().any()]
    return replace(config, metadata=",".join(names) or "none")


def check_ids(found: Dataset, df: pd.DataFrame) -> None:
    """Raise `LesionfastError` for missing, repeated, unsafe or contradictory ids and labels."""
    csv = found.table
    for key, column in {"image_id": found.image, "target": found.target}.items():
        empty = df.index[df[key].str.lower().isin(EMPTY)]
        if len(empty):
            raise LesionfastError(
                f"column '{column}' of {csv.name} is empty in {list_rows(empty)} "
                "(the header is row 1). Fill it in or remove these rows."
            )
    unsafe = df.index[df["image_id"].str.contains(r"[/\\]|\.\.", regex=True)]
    if len(unsafe):
        raise LesionfastError(
            f"image id '{df.at[unsafe[0], 'image_id']}' in row {unsafe[0]} of {csv.name} is not a "
            "file name without folders: it contains '/', '\\' or '..'. Correct "
            f"{list_rows(unsafe)}."
        )
    repeated = df.loc[df["image_id"].duplicated(), "image_id"]
    if len(repeated):
        where = list_rows(df.index[df["image_id"] == repeated.iloc[0]])
        raise LesionfastError(
            f"{csv.name} repeats {pluralize(len(repeated), 'image id')}; the first is "
            f"'{repeated.iloc[0]}' in {where}. Keep one row per image, or name the column of image "
            "ids with --image."
        )
    lesion = next((name for name in found.groups if "lesion" in name.lower()), None)
    if lesion is None:
        return
    labels = pd.DataFrame({"group": found.rows[lesion], "target": df["target"]})
    known = ~labels["group"].str.lower().isin(MISSING) & (labels["target"] != DROP)
    count, lesion, names = find_conflicts(labels[known], "target")
    if count:
        raise LesionfastError(
            f"{csv.name} gives {pluralize(count, 'lesion')} more than one label; the first is "
            f"'{lesion}' with {names} ({list_rows(labels.index[labels['group'] == lesion])}). "
            "Correct them, or name the column of lesion ids with --group."
        )


def find_conflicts(df: pd.DataFrame, column: str) -> tuple[int, str, str]:
    """Return how many groups have several values of a column, the first of them, and its values."""
    pairs = df[["group", column]].drop_duplicates()
    torn = pairs.loc[pairs["group"].duplicated(), "group"].unique()
    values = pairs.loc[pairs["group"].isin(torn[:1]), column]
    return len(torn), "".join(torn[:1]), " and ".join(sorted(values))


def add_paths(csv: Path, df: pd.DataFrame, files: pd.DataFrame | None) -> pd.DataFrame:
    """Add the path of each row's image, found by its stem; rows without one are left out.

    Without `files` the rows have a column `path`, "" where there is no image.
    """
    if files is None:
        files = pd.DataFrame({"path": df["path"], "stem": df["image_id"]})[df["path"] != ""]
    df = df.drop(columns="path", errors="ignore")
    has_row = pd.Index(df["image_id"]).get_indexer(files["stem"]) >= 0  # isin: 70 x the time
    path = df["image_id"].map(find_unique(files[has_row]).set_index("stem")["path"])
    if path.isna().all():
        raise LesionfastError(
            f"none of the {pluralize(len(df), 'image')} of {csv.name} was found. The first is "
            f"'{df['image_id'].iloc[0]}'; the image files found are: {list_first(files['stem'])}. "
            "Name the folder or file of images with --images and the column with --image."
        )
    for lost, what in [
        (df.loc[path.isna(), "image_id"], "row without an image"),
        (files.loc[~has_row, "stem"], "image without a row"),
    ]:
        if len(lost):
            noun, rest = what.split(" ", 1)
            logger.warning("Left out %s %s: %s", pluralize(len(lost), noun), rest, list_first(lost))
    df.insert(1, "path", path)
    return df[path.notna()]


def handle_missing(df: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Count missing values of the input columns; leave the rows out if --missing is 'drop'."""
    missing = df[config.metadata_columns].isna()
    for name, count in missing.sum().items():
        if count:
            logger.warning("%s", describe_missing(name, count, len(df)))
    if "age" in missing and not pd.api.types.is_numeric_dtype(df["age"]):
        first = next(iter(df["age"].dropna()), "")
        logger.warning("Age is not numeric, such as %.40r: it is used as a category", first)
    if "age" in df and (df["age"] == 0).any():
        count = pluralize((df["age"] == 0).sum(), "image")
        logger.warning("Age is 0 for %s; the value is kept", count)
    incomplete = missing.any(axis=1)
    if config.missing == "keep" or not incomplete.any():
        return df
    names = " or ".join(config.metadata_columns)
    if incomplete.all():
        raise LesionfastError(
            f"--missing drop leaves no rows: {names} is missing for all {len(df)}. "
            "Type --missing keep, or name fewer columns with --metadata."
        )
    rows = pluralize(incomplete.sum(), "row")
    logger.warning("Left out %s without %s (--missing drop)", rows, names)
    return df[~incomplete]


def warn_of_unused_ids(found: Dataset, df: pd.DataFrame) -> None:
    """Warn of patients or lesions in the table that are no groups although they would join some.

    Images that share one can then end up on both sides of the split.
    """
    unused = {}
    for name in df.columns.difference([*KEYS, *found.groups], sort=False):
        if OF_IDS.fullmatch(name.strip()):
            pairs = df.loc[df[name].notna(), [name, "group"]].drop_duplicates()
            torn = pairs.loc[pairs[name].duplicated(), name].nunique()
            unused |= {name: torn} if torn else {}
    if unused:
        ids = ", ".join(f"{name} ({pluralize(count, 'id')})" for name, count in unused.items())
        logger.warning(
            "%s has ids that are not used: %s. Images that share one can end up on both sides of "
            "the split. To keep them together, type --group %s",
            found.table.name, ids, shell_quote(join_names([*found.groups, *unused], ",")),
        )  # fmt: skip
