"""The split by lesion: a column that is drawn, the dataset's own or a file's; read by all."""

import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.config import (
    IN_MEMORY,
    WHERE,
    SplitConfig,
    TrainConfig,
    flag_name,
    read_options,
)
from lesionfast.console import counting_bar
from lesionfast.data.columns.labels import expand_map, read_map
from lesionfast.data.corrections.applying import carry, correct, is_corrected, restore
from lesionfast.data.metadata import (
    check_inputs,
    find_conflicts,
    load_metadata,
    read_frame,
    settle_inputs,
)
from lesionfast.data.parts.drawing import check_shares
from lesionfast.data.parts.groups import join_groups
from lesionfast.data.parts.own import PARTS, draw, hold_out, use_own_split, warn_of_unused
from lesionfast.data.table import read_table
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize
from lesionfast.files import csv_text, sha256, write_text
from lesionfast.manifest import Manifest
from lesionfast.run import CORRECTIONS

logger = logging.getLogger("lesionfast")

FOLD = "fold"  # column of the split.csv of a run of folds
OPTIONS = "lesionfast"  # in the attrs of a table: how it was loaded
AFTER_LOADING = ("seed", "split_seed", "cache", "skip_bad", "metadata")  # may change for a training


def load_data(
    data: str | Path | list[str | Path] | pd.DataFrame | None = None, **options: Any
) -> pd.DataFrame:
    """Return a dataset as a checked table, one row per image, split into train, valid and test.

    `data` is a folder as downloaded or a table beside its images, a list of such, a table with
    `images`, or a DataFrame with the columns of one and either a column `path` or `images`; by
    default it is the synthetic sample.
    `options` are those of `lesionfast data split`, by keyword: `val`, `test`, `folds`, `seed`,
    `join_duplicates`, `metadata`, the names of the columns. A DataFrame with a column `split` keeps
    its own.

    The columns: image_id, path, target (class name), group (lesion id), split (train, valid or
    test), then all others, such as age in years. The options are kept in `df.attrs`. Raises
    `LesionfastError` for whatever has to be settled first.

    >>> df = lf.load_data(val=0.2)
    >>> bool((df.groupby("group")["split"].nunique() == 1).all())
    True
    """
    if isinstance(data, pd.DataFrame):
        if is_corrected(data) and "corrections" not in options:
            logger.warning("The table is read without its corrections. Type corrections=FILE again")
        data = restore(data)
        config = SplitConfig(**read_options(SplitConfig, {"data": IN_MEMORY, **options}))
        if OPTIONS in data.attrs:  # it was loaded before, and has the names of lesionfast
            asked = {key: getattr(config, key) for key in ("target", "group")}
            gone = {k: v for k, v in asked.items() if v not in (*data, None, "none")}
            found = {key: key for key, name in asked.items() if name is None and key in data}
            data, config = data.rename(columns=gone), replace(config, **found)
        return split_metadata(read_frame(data, config), config)
    where = "csv" if "images" in options else "data"
    given = {} if data is None else {where: data}
    return load_dataset(SplitConfig(**read_options(SplitConfig, {**given, **options})))


def load_dataset(config: SplitConfig, split: Path | None = None) -> pd.DataFrame:
    """Return the checked and split table: find the data, read it, join near-duplicates, split.

    `split`, the split.csv of a run, decides instead of `config`, and so does the copy of the
    corrections beside it. Raises `LesionfastError` for bad data.
    """
    if split is None:
        check_options(config)
        return split_metadata(load_metadata(config), config)
    df = read_split(load_metadata(config), split, with_groups=True)
    return keep_options(correct(df, config, find_corrections(split)), config)


def check_options(config: SplitConfig) -> None:
    """Raise `LesionfastError`, before data is read, for options that are wrong whatever it is."""
    if config.map:
        read_map(config.map)
    check_ways(config)
    check_shares(config.val, config.test, config.folds, config.fold)


def find_corrections(split: Path) -> Path | None:
    """Return the corrections of a run by its split.csv; None if it has none."""
    kept = split.with_name(CORRECTIONS)
    if not kept.is_file() and not Manifest(split.parent).lists(CORRECTIONS):
        return None
    return Manifest(split.parent).require(CORRECTIONS, f"Copy {split.parent} again.")


def split_metadata(df: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Join near-duplicates, add the column `split`, and correct labels, as the options say.

    It comes from the file --split, else --test-on holds out the test part, else it is the dataset's
    own, as far as no lesion is in two of its parts; else, and with --folds or --split new, it is
    drawn from seed and shares.
    """
    if config.join_duplicates:
        from lesionfast.data.duplicates import find_near_duplicates

        with counting_bar("comparing images") as progress:
            pairs = find_near_duplicates(df, progress, cache=config.cache)
        df = join_groups(df, zip(pairs["image_a"], pairs["image_b"], strict=True))
    check_ways(config)
    if config.split not in (None, "new"):
        df = read_split(df, Path(config.split).expanduser())
        warn_of_unused(config, ["val", "test", "split_seed"], f"{config.split} is the split")
    elif config.test_on:
        df = hold_out(df, config)
    elif "split" not in df or config.split == "new" or config.folds:
        df = draw(df.drop(columns="split", errors="ignore"), config)
    elif config.data == IN_MEMORY:
        check_rows("the table", df)
        check_parts("the table", df)
    else:
        df = use_own_split(df, config)
    if config.folds:
        warn_of_unused(config, ["val"], f"--folds {config.folds} says what is validated")
    return keep_options(correct(df, config), config)


def check_ways(config: SplitConfig) -> None:
    """Raise `LesionfastError` for options that say what the parts are in two ways."""
    others = [("test_on", config.test_on), ("folds", config.folds)]
    if config.split is None:
        return
    for name, value in others if config.split != "new" else others[:1]:
        if value:
            flag = flag_name(name)
            raise LesionfastError(
                f"--split {config.split} and {flag} {value} say in two ways what the parts are. "
                "Leave one of them out."
            )


def keep_options(df: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Note in a table how it was loaded, for the training on it."""
    names = [setting.name for setting in fields(SplitConfig)]
    config = settle_inputs(df, config)
    df.attrs[OPTIONS] = {name: getattr(config, name) for name in names}
    return df


def configure(df: pd.DataFrame, config: TrainConfig | None = None, **options: Any) -> TrainConfig:
    """Return the options of a training: how its table was loaded, then `config`, then `options`.

    Another seed than that of the loading keeps the split, which `split_seed` then names. Raises
    `LesionfastError` for unknown options, for those of the data and the split, which `load_data`
    takes, and for metadata that gives the label away.
    """
    check_loaded(df, config)
    options = read_options(TrainConfig, options)
    plain, config = TrainConfig(), config or TrainConfig()
    typed = {name for name, value in asdict(config).items() if value != getattr(plain, name)}
    given = {name: getattr(config, name) for name in typed} | options
    if "map" in given:
        given["map"] = expand_map(given["map"])
    loaded = df.attrs.get(OPTIONS)
    if loaded is None:
        where = {} if any(name in given for name in WHERE) else {"data": IN_MEMORY}
        config = settle_inputs(df, TrainConfig(**where, **given))
        check_inputs(Path("the table"), df, config)
        return settle_fusion(config)
    late = {*AFTER_LOADING, *(["folds"] if given.get("all") and not loaded["folds"] else [])}
    late |= {"corrections"} if loaded.get("corrections") is None else set()
    for name, value in given.items():
        settled = name in loaded and name not in late
        if settled and value != loaded[name]:
            raise LesionfastError(
                f"the table was loaded with {name}={loaded[name]!r}, so {name}={value!r} comes too "
                f"late. Type it there: load_data(…, {name}={value!r})."
            )
    check_loaded_columns(loaded, given.get("metadata", "none"))
    if given.get("seed", loaded["seed"]) != loaded["seed"] and loaded["split_seed"] is None:
        given.setdefault("split_seed", loaded["seed"])
    return settle_fusion(TrainConfig(**{**loaded, **given}))


def settle_fusion(config: TrainConfig) -> TrainConfig:
    """Return the options with --fusion none if there is no metadata and no other was chosen."""
    if config.metadata_columns or config.fusion != TrainConfig().fusion:
        return config
    logger.warning(
        "There is no metadata: no column of age or sex is known, or --metadata is none. The model "
        "gets the image alone"
    )
    return replace(config, fusion="none")


def check_loaded(df: Any, config: Any) -> None:
    """Raise `LesionfastError` for what is no table of `load_data`, or no configuration."""
    if not isinstance(df, pd.DataFrame):
        raise LesionfastError(f"{df!r} is not a table. Load it: lesionfast.load_data({df!r}).")
    needed = ("image_id", "path", "target", "group", "split")
    if missing := [name for name in needed if name not in df]:
        raise LesionfastError(
            f"the table has no column {', '.join(missing)}; it has: {list_first(df, 20)}. Load it: "
            'lesionfast.load_data(df, target="diagnosis", group="lesion_id").'
        )
    for name in PARTS[:2]:
        if not (df["split"] == name).any():
            raise LesionfastError(
                f"the table has no row in '{name}'. Split it again: lesionfast.load_data(df)."
            )
    if config is not None and not isinstance(config, TrainConfig):
        raise LesionfastError(f"config is {config!r}. Name options by keyword: arch={config!r}.")


def check_loaded_columns(loaded: dict[str, Any], columns: str) -> None:
    """Raise `LesionfastError` for metadata that was not checked when the table was loaded."""
    late = [name for name in split_names(columns) if name not in split_names(loaded["metadata"])]
    if late not in ([], ["none"]):
        raise LesionfastError(
            f"the table was loaded with metadata='{loaded['metadata']}', so {', '.join(late)} was "
            f"not checked as an input. Type it there: load_data(…, metadata='{columns}')."
        )


def read_split(df: pd.DataFrame, file: str | Path, with_groups: bool = False) -> pd.DataFrame:
    """Add the column `split` from a CSV with the columns image_id and split.

    `with_groups`, for the split of a run, takes the column `group` from there too, with its joined
    lesions, and leaves out images that the run did not have. Raises `LesionfastError` if an image
    is not in the file, for a word other than the three parts, and for a lesion in two parts.
    """
    file = Path(file)
    if file.name == "split.csv":  # of a run, unless it has no manifest
        Manifest(file.parent).require(
            file.name, f"Copy {file.parent} again, or name another file with --split."
        )
    columns = ["image_id", "split", *(["group"] if with_groups else [])]
    table = read_table(file, dict.fromkeys(columns, ""), option="--split")
    check_rows(file, table)
    rows = table.set_index("image_id")
    if with_groups:
        df = df.assign(group=df["image_id"].map(rows["group"]).fillna(df["group"]))
    part = df["image_id"].map(rows["split"])
    absent = df.loc[part.isna(), "image_id"]
    if len(absent) and with_groups and len(absent) < len(df):
        logger.warning("Left out %s that %s does not have", pluralize(len(absent), "image"), file)
        df, part = df[part.notna()].reset_index(drop=True), part.dropna().reset_index(drop=True)
    elif len(absent):
        raise LesionfastError(
            f"{len(absent)} of {pluralize(len(df), 'image')} are not in the split {file}; the first"
            f" is '{absent.iloc[0]}'. Add them, or leave --split out for a new split."
        )
    df = df.assign(split=part)
    if not (with_groups and FOLD in table):  # each fold of that run is its validation in turn
        check_parts(file, df)
    if len(table) > len(df):
        extra = pluralize(len(table) - len(df), "image")
        logger.warning("%s: left out %s that the data does not have", file, extra)
    return df


def check_rows(file: str | Path, table: pd.DataFrame) -> None:
    """Raise `LesionfastError` for an unknown part or an image that comes twice."""
    wrong = table.loc[~table["split"].isin(PARTS), "split"]
    if len(wrong):
        hint = did_you_mean(wrong.iloc[0], PARTS)
        raise LesionfastError(
            f"'{wrong.iloc[0]}' in row {wrong.index[0]} of {file} is not a part of a split.{hint} "
            f"Write one of: {', '.join(PARTS)}."
        )
    twice = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise LesionfastError(
            f"image '{twice.iloc[0]}' is in {file} twice (again in row {twice.index[0]}). "
            "Keep one row per image."
        )


def check_parts(file: str | Path, df: pd.DataFrame) -> None:
    """Raise `LesionfastError` for a lesion in two parts, or a part that has no image."""
    count, lesion, parts = find_conflicts(df, "split")
    if count:
        raise LesionfastError(
            f"{file} puts {pluralize(count, 'lesion')} in two parts; the first is '{lesion}', in "
            f"{parts}. Put all images of a lesion in one part."
        )
    for part in ("train", "valid"):
        if not (df["split"] == part).any():
            raise LesionfastError(
                f"{file} has no image in '{part}'. Put some lesions there; of a run of folds, name "
                "the split.csv of one fold."
            )
    untaught = sorted(set(df["target"]) - set(df.loc[df["split"] == "train", "target"]))
    if untaught:
        raise LesionfastError(
            f"{file} has no image of class {', '.join(untaught)} in 'train'. Put some there."
        )


def write_split(df: pd.DataFrame, path: str | Path) -> str:
    """Write image_id, group, target and split, sorted by image id; return the file's SHA-256.

    The same split has the same bytes, whatever the order of the rows.
    """
    return sha256(write_text(Path(path), format_split(df)))


def format_split(df: pd.DataFrame) -> str:
    """Return the content of the file that `write_split` writes, the same with corrections."""
    table = restore(df).sort_values("image_id")[["image_id", "group", "target", "split"]]
    return csv_text(table)


def deal_folds(df: pd.DataFrame, config: TrainConfig) -> pd.Series:
    """Return the fold of each row, Int64 (n,); it is missing for test images.

    They are those of `--folds N --fold 0` to N - 1. The test part of a table that was loaded
    without folds stays, and its other images are dealt. Raises `LesionfastError` for impossible
    folds.
    """
    loaded = df.attrs.get(OPTIONS, {})
    redrawn = loaded.get("folds") == config.folds and not config.test_on

    df = restore(df)

    def deal(fold: int) -> pd.Series:
        rows = df if redrawn else df[df["split"] != "test"]
        shares = {} if redrawn else {"test": 0.0}
        drawn = draw(rows.drop(columns="split"), replace(config, fold=fold), **shares)["split"]
        return drawn.reindex(df.index).fillna("test")

    if redrawn and not deal(loaded["fold"]).equals(df["split"].astype("str")):
        redrawn = False  # the parts were changed since
    numbers = pd.Series(pd.NA, df.index, dtype="Int64")
    for fold in range(config.folds or 0):
        numbers[deal(fold) == "valid"] = fold
    return numbers


def choose_fold(
    df: pd.DataFrame, numbers: pd.Series, fold: int, config: TrainConfig
) -> pd.DataFrame:
    """Return a table whose validation is one fold of `deal_folds`; what is not test is train."""
    split = numbers.eq(fold).map({True: "valid", False: "train"}).where(numbers.notna(), "test")
    return keep_options(carry(df, split.astype("str")), replace(config, fold=fold))


def format_folds(df: pd.DataFrame, numbers: pd.Series) -> str:
    """Return the split.csv of a run of folds: its images are train, with a fold, or test."""
    df = restore(df)
    split = numbers.notna().map({True: "train", False: "test"})
    table = df.assign(**{"split": split, FOLD: numbers}).sort_values("image_id")
    columns = ["image_id", "group", "target", "split", FOLD]
    return csv_text(table[columns])


def read_folds(file: Path, df: pd.DataFrame) -> pd.Series:
    """Return the fold of each row of a table, from the split.csv of a run of folds."""
    columns = dict.fromkeys(("image_id", FOLD), "")
    table = read_table(file, columns, option="--split").set_index("image_id")
    return pd.to_numeric(df["image_id"].map(table[FOLD])).astype("Int64")
