"""Read, check and clean the metadata CSV: one row an image, every dropped row counted and named."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.encoder import (
    EMPTY,
    NOT_KNOWN,
    describe_missing,
    is_age,
    is_possible,
    why_impossible,
)
from lesionfast.data.leaks import RESERVED, check_inputs
from lesionfast.data.sources import IMAGE_SUFFIXES, find_source, list_images, without_twins
from lesionfast.data.table import read_table
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")

FAR = 100  # times the range of the middle 90 %: a value that far off is looked at


def load_metadata(config: DataConfig) -> pd.DataFrame:
    """Find the data that `config` names and read it; see `read_metadata`."""
    source = find_source(config)
    return read_metadata(source.csv, source.images, config)


def read_metadata(
    csv: str | Path,
    images: str | Path | Sequence[str | Path],
    config: DataConfig = DataConfig(),  # noqa: B008 (frozen)
) -> pd.DataFrame:
    """Return one row an image, checked, typed, cleaned and sorted by image id.

    Columns: image_id, path (of a file, or "<zip>/<member>"), target (class name), group (lesion
    id; the image id if `config.group` is 'none'), all text; then the other columns of the CSV,
    numbers as float, text as str, missing values (empty, 'unknown', …) as NaN. Whatever is left
    out is counted in the log. Raises `LesionfastError` for anything that the user has to settle.
    """
    csv = Path(csv).expanduser()
    raw = read_table(csv, required_columns(config), config.separator)
    df = name_columns(raw, config)
    check_ids(csv, df, config)
    df = add_paths(csv, df, images)
    df = add_types(csv, df, config.metadata_columns)
    check_inputs(csv, df, config)
    df = handle_missing(df, config)
    return df.sort_values("image_id").reset_index(drop=True)


def required_columns(config: DataConfig) -> dict[str, str]:
    """Return the columns that the CSV must have, each with the option that names it."""
    named = {config.image: "--image", config.target: "--target"}
    if config.group != "none":
        named[config.group] = "--group, or type --group none if every image is a lesion of its own"
    inputs = "--metadata, or type --metadata none to use the image alone"
    return named | {name: inputs for name in config.metadata_columns if name not in named}


def name_columns(raw: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return the table with image_id, target and group first, under these names."""
    image_id = without_suffix(raw[config.image])
    group = image_id if config.group == "none" else raw[config.group]
    keys = {"image_id": image_id, "target": raw[config.target], "group": group}
    others = [name for name in raw if name not in {config.image, config.target, config.group}]
    reserved = {*RESERVED, *(f"p_{each}" for each in raw[config.target].unique())}
    taken = [name for name in others if name in reserved]
    if taken:
        logger.warning("columns left out, their names are taken: %s", ", ".join(taken))
    return pd.DataFrame(keys).join(raw[[name for name in others if name not in reserved]])


def check_ids(csv: Path, df: pd.DataFrame, config: DataConfig) -> None:
    """Raise `LesionfastError` for missing, duplicate, unsafe or contradictory ids and labels."""
    for key, column in {
        "image_id": config.image,
        "target": config.target,
        "group": config.group,
    }.items():
        empty = df.index[df[key].str.lower().isin(EMPTY)]
        if len(empty):
            raise LesionfastError(
                f"column '{column}' of {csv.name} is empty in {list_rows(empty)} "
                "(the header is row 1). Fill it in or take these rows out."
            )
    unsafe = df.index[df["image_id"].str.contains(r"[/\\]|\.\.", regex=True)]
    if len(unsafe):
        raise LesionfastError(
            f"image id '{df.at[unsafe[0], 'image_id']}' in row {unsafe[0]} of {csv.name} climbs "
            "out of the folder of images. An image id is a file name without folders: correct "
            f"{list_rows(unsafe)}."
        )
    check_unique(csv, df)
    check_one_label(csv, df)


def check_unique(csv: Path, df: pd.DataFrame) -> None:
    """Raise `LesionfastError` if two rows have the same image id."""
    twice = df.index[df["image_id"].duplicated()]
    if len(twice):
        name = df.at[twice[0], "image_id"]
        where = list_rows(df.index[df["image_id"] == name])
        raise LesionfastError(
            f"{len(twice)} image ids of {csv.name} come more than once; the first is '{name}' in "
            f"{where}. Keep one row an image, or name the column with --image."
        )


def check_one_label(csv: Path, df: pd.DataFrame) -> None:
    """Raise `LesionfastError` if images of one lesion have different classes."""
    labels = df[["group", "target"]].drop_duplicates()
    torn = labels.loc[labels["group"].duplicated(), "group"].unique()
    if len(torn):
        names = " and ".join(sorted(labels.loc[labels["group"] == torn[0], "target"]))
        raise LesionfastError(
            f"{len(torn)} lesions of {csv.name} have more than one label; the first is "
            f"'{torn[0]}' with {names} ({list_rows(df.index[df['group'] == torn[0]])}). "
            "Correct them, or name the column with the lesion id with --group."
        )


def list_rows(numbers: pd.Index) -> str:
    """Return "row 2" or "rows 2, 7, 9, 11, 12 and 4 more"."""
    return f"row{'s' * (len(numbers) > 1)} {list_first(numbers, 5)}"


def add_paths(
    csv: Path, df: pd.DataFrame, images: str | Path | Sequence[str | Path]
) -> pd.DataFrame:
    """Add the path of each row's image, found by its stem; rows without one are left out."""
    files = list_images(images)
    has_row = pd.Index(df["image_id"]).get_indexer(files["stem"]) >= 0  # isin: 70 x the time
    files_of_rows = one_of_each(files[has_row])
    path = df["image_id"].map(files_of_rows.set_index("stem")["path"])
    if path.isna().all():
        raise LesionfastError(
            f"none of the {len(df)} images of {csv.name} is there: '{df['image_id'].iloc[0]}' is "
            f"the first, and the {len(files)} image files found are {list_first(files['stem'])}"
            ". Name the folder or zip file with --images and the column with --image."
        )
    if path.isna().any():
        gone = df.loc[path.isna(), "image_id"]
        logger.warning("%d rows without an image, left out: %s", len(gone), list_first(gone))
    if not has_row.all():
        extra = files.loc[~has_row, "stem"]
        logger.warning("%d images without a row, left out: %s", len(extra), list_first(extra))
    df.insert(1, "path", path)
    return df[path.notna()]


def without_suffix(image_ids: pd.Series) -> pd.Series:
    """Return image ids without '.jpg' and the like, which some tables have; counted if so."""
    with_suffix = np.array([name.lower().endswith(IMAGE_SUFFIXES) for name in image_ids.tolist()])
    if not with_suffix.any():
        return image_ids
    logger.warning("%d image ids end with a suffix such as .jpg, taken off", with_suffix.sum())
    return image_ids.mask(with_suffix, image_ids.str.rsplit(".", n=1).str[0])


def one_of_each(files: pd.DataFrame) -> pd.DataFrame:
    """Return files with one of each stem, as `without_twins`; how many there were more is said."""
    try:
        chosen = without_twins(files)
    except LesionfastError as error:
        raise LesionfastError(
            f"{error}. Remove one of each, or name the right folder or zip file with --csv FILE "
            "--images DIR."
        ) from None
    twins = len(files) - len(chosen)
    if twins:
        double = chosen.loc[chosen["stem"].isin(files["stem"][files["stem"].duplicated()]), "path"]
        logger.warning(
            "%d image files are copies of another file of the same name; one of each is used: %s",
            twins, list_first(double, 1),
        )  # fmt: skip
    return chosen


def add_types(csv: Path, df: pd.DataFrame, inputs: list[str]) -> pd.DataFrame:
    """Make columns of numbers float, and what is not known NaN; `inputs` must be one or other."""
    keys = ("image_id", "path", "target", "group")
    typed = {
        name: df[name] if name in keys else as_typed(csv, df[name], name in inputs) for name in df
    }
    return pd.DataFrame(typed, df.index)  # assign: a pass over all columns for each


def as_typed(csv: Path, column: pd.Series, is_input: bool) -> pd.Series:
    """Return a column of text as float if all of it is numbers, else as text."""
    codes, values = pd.factorize(column)  # a column has far fewer values than rows
    values = pd.Series(values, dtype=object)
    known = ~values.str.lower().isin(NOT_KNOWN)
    numbers = pd.to_numeric(values.where(known), errors="coerce").astype(float)
    number = np.isfinite(numbers)
    if (number | ~known).all() and not (values.str.match(r"0\d").any() and not is_input):
        numbers = pd.Series(numbers.to_numpy()[codes], column.index, name=column.name)
        return possible_numbers(csv, numbers, is_input)
    share = number.to_numpy()[codes].sum() / max(known.to_numpy()[codes].sum(), 1)
    if is_input and share > 0.5:
        text = (known & ~number).to_numpy()[codes]
        first = column.index[text][0]
        raise LesionfastError(
            f"column '{column.name}' of {csv.name} mixes numbers and text: '{column[first]}' in "
            f"row {first} is not a number, as in {text.sum()} rows. Correct them (empty means "
            "missing), or leave the column out of --metadata."
        )
    return pd.Series(values.where(known, np.nan).to_numpy()[codes], column.index, dtype="str")


def possible_numbers(csv: Path, numbers: pd.Series, is_input: bool) -> pd.Series:
    """Return a column of numbers without those that it can't have, which are counted.

    Raises `LesionfastError` for such in an input: a model would scale all others by them.
    """
    name = str(numbers.name)
    wrong = numbers.index[numbers.notna() & ~is_possible(name, numbers)]
    if is_input:
        warn_of_far(csv, numbers.drop(wrong))
    if not len(wrong):
        return numbers
    found = f"column '{name}' of {csv.name} has {numbers[wrong[0]]:g} in {list_rows(wrong)}"
    if is_input:
        raise LesionfastError(
            f"{found}, which is {why_impossible(name, 0)}. Correct the value, leave it empty if it "
            "is not known, or take the column out of --metadata."
        )
    logger.warning("%s, which is %s: treated as missing", found, why_impossible(name, 0))
    return numbers.mask(numbers.index.isin(wrong))


def warn_of_far(csv: Path, numbers: pd.Series) -> None:
    """Warn of numbers far from nearly all others, such as 9999 for what is not known."""
    if is_age(str(numbers.name)) or numbers.isna().all():
        return
    low, high = numbers.quantile([0.05, 0.95])
    far = numbers.index[
        (numbers < low - FAR * (high - low)) | (numbers > high + FAR * (high - low))
    ]
    if low < high and len(far):
        logger.warning(
            "column '%s' of %s has %g in %s; 90 %% of the values are from %g to %g. Leave it empty "
            "if it means not known: the model scales all values by it.",
            numbers.name, csv.name, numbers[far[0]], list_rows(far), low, high,
        )  # fmt: skip


def handle_missing(df: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Count missing values of the input columns; leave the rows out if --missing is 'drop'."""
    missing = df[config.metadata_columns].isna()
    for name, count in missing.sum().items():
        if count:
            logger.warning("%s", describe_missing(name, count, len(df)))
    if "age" in df and (df["age"] == 0).any():
        count = pluralize((df["age"] == 0).sum(), "image")
        logger.warning("Age is 0 for %s; the value is kept", count)
    gone = missing.any(axis=1)
    if config.missing == "keep" or not gone.any():
        return df
    names = " or ".join(config.metadata_columns)
    if gone.all():
        raise LesionfastError(
            f"--missing drop leaves no row: all {len(df)} lack {names}. "
            "Type --missing keep, or fewer columns with --metadata."
        )
    logger.warning("%d rows without %s left out (--missing drop)", gone.sum(), names)
    return df[~gone]
