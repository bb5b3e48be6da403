"""The metadata of a dataset: one row an image, checked, typed, cleaned; lost rows are counted.

Columns that give the label away are refused as inputs.
"""

import logging
import os
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.special import bdtrc, chdtri, entr

from lesionfast.config import DataConfig
from lesionfast.data.columns.conversion import convert, list_rows
from lesionfast.data.encoder import describe_missing
from lesionfast.data.formats.labels import DROP, drop_classes, settle_labels
from lesionfast.data.layouts import tables
from lesionfast.data.layouts.base import NO_LESIONS, PART_NAMES, Dataset
from lesionfast.data.layouts.columns import (
    chain_groups,
    find_unique,
    remove_suffixes,
    rename_usual,
)
from lesionfast.data.layouts.recognise import check_columns, describe, find_dataset
from lesionfast.data.table import EMPTY
from lesionfast.diagnoses import probability_columns, split_names
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")
Config = TypeVar("Config", bound=DataConfig)

KEYS = ("image_id", "path", "target", "group")  # columns that every table of images has
RESERVED = (*KEYS, "split", "row")  # columns that lesionfast adds
ENOUGH_LESIONS = 5  # a value of fewer lesions can be of one class by chance
LESIONS_A_BIN = 25
MOST_FLAGS = 10  # a column of numbers with more values than that is measured, not coded
MOST_FEW = 20  # so many values are no ids, however few the lesions
TELLING = 0.5  # share of the bits: age and site of HAM10000 tell up to 0.21, age of the sample 0.36
CHANCE = 1e-3  # how often chance alone may do so
TELLING_NAMES = ("dx_type", "diagnosis_confirm_type")  # how the diagnosis was made


def load_metadata(config: DataConfig) -> pd.DataFrame:
    """Find the data that `config` names and read it; see `read_dataset`."""
    found = find_dataset(config)
    df = read_dataset(found, config)
    logger.info("%s", describe(found, df))
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
    return read_dataset(tables.from_frame(text, config), config)


def name_columns(found: Dataset, config: DataConfig) -> pd.DataFrame:
    """Return the rows of a dataset with image_id, path, target, group (and split) first.

    What else the options ask for gets its name there: an input that the table has under another
    usual name, such as sex for gender.
    """
    raw = rename_usual(found, config.metadata_columns)
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


def clean(found: Dataset, df: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return the rows of `name_columns` as `read_dataset` does."""
    csv = found.table
    df = settle_labels(df, config, found.target)
    check_ids(found, df)
    df = drop_classes(add_paths(csv, df, found.files), config)
    inputs = config.metadata_columns
    others = df.columns.difference([*KEYS, "split"], sort=False)
    typed = {name: convert(csv, df[name], is_input=name in inputs) for name in others}
    keys = [name for name in (*KEYS, "split") if name in df]
    df = pd.DataFrame({**df[keys], **typed}, df.index)
    df.attrs["written"] = {name: column.attrs for name, column in typed.items() if column.attrs}
    config = settle_inputs(df, config)
    check_inputs(csv, df, config, {found.image, found.target, *found.groups}, found.leaks)
    return handle_missing(df, config).sort_values("image_id").reset_index(drop=True)


def settle_inputs(df: pd.DataFrame, config: Config) -> Config:
    """Return the configuration with the columns that --metadata auto stands for in this table."""
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
    known = ~labels["group"].str.lower().isin(EMPTY) & (labels["target"] != DROP)
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
            "Name the folder or zip file with --images and the column with --image."
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


def check_inputs(
    csv: Path,
    df: pd.DataFrame,
    config: DataConfig,
    keys: Collection[str] = (),
    leaks: Collection[str] = (),
) -> None:
    """Raise `LesionfastError` for an input column that gives the label away.

    Refused are `keys` (ids and the target), `leaks` (what the layout knows to give it away) and
    what `find_leak` finds, unless --allow-leak names it.
    """
    keys = {*keys, *RESERVED}
    allowed = split_names(config.allow_leak or "")
    names = [name for name in config.metadata_columns if name in df]
    kept = df if config.missing == "keep" else df[df[names].notna().all(axis=1)]
    for name in config.metadata_columns:
        if name in keys:
            reason = "it is the label, an id or a split"
        elif name not in df:
            reason = "its name is reserved for predictions"
        elif name in allowed:
            reason = ""
        else:
            reason = find_leak(kept, name)
            if name in leaks and not reason:
                reason = "it says what was diagnosed, or how"
        reason = reason or ("it is named twice" if config.metadata_columns.count(name) > 1 else "")
        if reason:
            raise LesionfastError(
                f"column '{name}' of {csv.name} can't be an input: {reason}. "
                f"Remove it from --metadata {config.metadata}."
            )


def find_leak(df: pd.DataFrame, name: str) -> str:
    """Return how the column `name` gives the class away, or '' if it does not.

    It does so if it removes more than half of the uncertainty, in bits, whether a lesion is of some
    class or group of classes, or if one of its values is almost certainly of one class and covers
    a fifth of it. A missing value counts as a value. What chance alone would remove is subtracted
    first, so a few lesions prove nothing.
    """
    lesions = df.loc[~df["group"].duplicated(), [name, "target"]]
    column, known = lesions[name], lesions[name].notna().to_numpy()
    distinct = column.nunique()
    if not is_numeric_dtype(column) and distinct > MOST_FEW and 2 * distinct > known.sum():
        return f"it is an id: it has {distinct} different values in {known.sum()} lesions"
    codes, values = bin_values(column)
    count = partial(count_lesions, lesions["target"])
    tables = {
        "value": count(np.where(known, codes, -1), values),
        "value or missing": count(np.where(known, codes, len(values)), [*values, "missing"]),
        "known or missing": count(known.astype(int), ["missing", "known"]),
    }
    is_measured = is_numeric_dtype(column) and distinct > MOST_FLAGS
    for kind, table in tables.items():
        share = share_explained(table.to_numpy())
        if share > TELLING:
            reason = f"on its own it removes {share:.0%} of the uncertainty about some classes"
            return f"it gives the label away: {reason}{list_surest_values(table)}"
        is_coded = not is_measured or kind == "known or missing"
        if name in TELLING_NAMES or (is_coded and len(table) and has_sure_value(table)):
            return f"it gives the label away{list_surest_values(table)}"
    return ""


def bin_values(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return the number of each row's value (n,), and the values: quantiles, rare texts as one.

    What is missing has the number -1.
    """
    codes, values = pd.factorize(column)
    most = int(np.clip((codes >= 0).sum() // LESIONS_A_BIN, 5, 50))
    if not is_numeric_dtype(column):
        rare = np.bincount(codes[codes >= 0], minlength=len(values)) < ENOUGH_LESIONS
        return np.where(rare[codes] & (codes >= 0), len(values), codes), [*values, "rare values"]
    if len(values) > most:
        binned = pd.qcut(column, most, duplicates="drop")
        codes, values = binned.cat.codes.to_numpy(int), binned.cat.categories
    return codes, [str(value) for value in values]


def count_lesions(target: pd.Series, codes: np.ndarray, values: list[str]) -> pd.DataFrame:
    """Return the lesions of each value that occurs (rows) and class (columns); -1 is left out."""
    targets, classes = pd.factorize(target, sort=True)
    pairs = (codes * len(classes) + targets)[codes >= 0]
    table = np.bincount(pairs, minlength=len(values) * len(classes))
    table = table.reshape(len(values), len(classes))
    return pd.DataFrame(table, values, classes)[table.any(axis=1)]


def share_explained(table: np.ndarray) -> float:
    """Return the share of the bits between some classes and the others that values (rows) explain.

    The largest over the groups of classes, of up to eight classes, else over the single classes
    (the uncertainty coefficient, Theil 1970, doi:10.1086/224909), less what one table of a thousand
    has by chance (the G-test's chi-square).
    """
    n, k = table.sum(), table.shape[1]
    if len(table) < 2 or k < 2:
        return 0.0
    groups = np.arange(1, 2 ** (k - 1)) if k <= 8 else 2 ** np.arange(k, dtype=object)
    chosen = np.array([[int(group) >> i & 1 for i in range(k)] for group in groups], float)
    inside = table @ chosen.T  # (values, groups)
    of_value = table.sum(axis=1, keepdims=True)
    before = bits(inside.sum(axis=0) / n)
    after = (of_value / n * bits(inside / np.maximum(of_value, 1))).sum(axis=0)
    by_chance = chdtri(len(table) - 1, CHANCE) / (2 * n * np.log(2))
    return float(((before - after - by_chance) / np.maximum(before, 1e-9)).max())


def bits(share: np.ndarray) -> np.ndarray:
    """Return the entropy of shares and their complements, in bits."""
    return (entr(share) + entr(1 - share)) / np.log(2)


def has_sure_value(counted: pd.DataFrame) -> bool:
    """Whether a value (row) is almost certainly of one class (column), and covers a fifth of it.

    Almost certain: a tenth of the errors, or fewer, that the class's share of all lesions leaves.
    """
    table = counted.to_numpy(float)
    of_class, of_value = table.sum(axis=0), table.sum(axis=1, keepdims=True)
    share = of_class / of_class.sum()
    sure = (1 - table / of_value <= (1 - share) / 10) & (table >= of_class / 5) & (share < 1)
    luck = bdtrc(table - 1, of_value, share)  # as many of the class, or more
    return bool((sure & (luck * table.size < CHANCE)).any())


def list_surest_values(table: pd.DataFrame) -> str:
    """Return the surest values: " (follow_up is always nv, yes is mel in 95% of 120 lesions)"."""
    lesions, sentences = table.sum(axis=1), []
    surest = pd.DataFrame({"share": table.max(axis=1) / lesions, "lesions": lesions})
    common = surest[(surest["lesions"] >= ENOUGH_LESIONS) & (surest["share"] >= 0.9)]
    for value, row in common.nlargest(3, ["share", "lesions"]).iterrows():
        how = "always " if row["share"] == 1 else ""
        often = "" if how else f" in {row['share']:.0%} of {row['lesions']:.0f} lesions"
        sentences.append(f"{value} is {how}{table.loc[value].idxmax()}{often}")
    return f" ({', '.join(sentences)})" if sentences else ""
