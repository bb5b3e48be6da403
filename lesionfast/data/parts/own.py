"""Parts that are not drawn: a dataset's own train, valid and test, or a value held out for test."""

import logging
from collections.abc import Iterable

import pandas as pd
from pandas.api.types import is_numeric_dtype

from lesionfast.config import SplitConfig
from lesionfast.data.metadata import find_conflicts
from lesionfast.data.parts.drawing import assign_split
from lesionfast.diagnoses import unquote
from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize

logger = logging.getLogger("lesionfast")

PARTS = ("train", "valid", "test")


def draw(df: pd.DataFrame, config: SplitConfig, **changes: float | None) -> pd.DataFrame:
    """Return a table with the split of a configuration, drawn from seed and shares."""
    seed = config.seed if config.split_seed is None else config.split_seed
    options = {name: getattr(config, name) for name in ("val", "test", "folds", "fold")}
    return assign_split(df, seed=seed, **(options | changes))


def use_own_split(df: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Return a table with the dataset's own parts, from its column `split`; see `why_unusable`.

    Rows without a part join the lesion's, else train. A valid or test part that is missing is drawn
    from train. Where the parts can't be used, new ones are drawn, and the reason is logged.
    """
    df = complete(df)
    if reason := why_unusable(df):
        logger.warning("its own split %s, so a new one is drawn", reason)
        return draw(df.drop(columns="split"), config)
    own = df["split"].value_counts()
    counts = ", ".join(f"{own[name]:,} {name}" for name in PARTS if name in own)
    logger.info("using the dataset's own split: %s (type --split new to draw one)", counts)
    absent = [name for name in PARTS[1:] if name not in own and (name == "valid" or config.test)]
    if absent:
        df = draw_absent(df, absent, config)
    here = [name for name in PARTS[1:] if name in own]
    for option in [{"valid": "val"}.get(name, name) for name in here]:
        warn_of_unused(config, [option], "the dataset's own split is used; --split new draws one")
    warn_of_absent_classes(df, here)
    return df


def complete(df: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose rows without a part have that of their lesion, else train."""
    empty = df["split"] == ""
    if not empty.any():
        return df
    known = df[~empty].drop_duplicates("group").set_index("group")["split"]
    filled = df["split"].mask(empty, df["group"].map(known).fillna("train"))
    counts = filled[empty].value_counts()
    words = ", ".join(f"{counts[name]:,} {name}" for name in counts.index)
    logger.warning(
        "%s without a part in the dataset's own split joined their lesions, or train: %s",
        pluralize(int(empty.sum()), "image"), words,
    )  # fmt: skip
    return df.assign(split=filled)


def why_unusable(df: pd.DataFrame) -> str:
    """Return why the parts of a table can't be used, '' if they can.

    They can if no lesion or patient is in two parts and train has every class.
    """
    if len(other := df.loc[~df["split"].isin(PARTS), "split"].unique()):
        return f"has other words than {', '.join(PARTS)}: {list_first(other)}"
    count, group, parts = find_conflicts(df, "split")
    if count:
        lesions = pluralize(count, "lesion")
        return f"puts {lesions} (or patients) in two parts (the first is '{group}', in {parts})"
    untaught = set(df["target"]) - set(df.loc[df["split"] == "train", "target"])
    if untaught:
        return f"has no image of class {list_first(sorted(untaught), 5)} in train"
    return ""


def draw_absent(df: pd.DataFrame, absent: list[str], config: SplitConfig) -> pd.DataFrame:
    """Return a table whose missing parts are drawn from its train rows, as --val and --test say."""
    rows = df[df["split"] == "train"].drop(columns="split")
    if absent == ["test"]:
        drawn = draw(rows, config, val=config.test, test=0.0)["split"].replace("valid", "test")
    else:
        drawn = draw(rows, config, test=config.test if "test" in absent else 0.0)["split"]
    counts = drawn.value_counts()
    words = " and ".join(f"{counts[name]:,} {name}" for name in absent)
    logger.info("the dataset's own split has no %s: drew %s from train", " or ".join(absent), words)
    return df.assign(split=drawn.reindex(df.index).fillna(df["split"]))


def hold_out(df: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Return a table whose test part is all rows with the value of a column that --test-on names.

    The others are train and valid. Left out and counted are other images of lesions that have one
    in test, and test images of a class that no other row has. Raises `LesionfastError` for an
    unknown column or value, and if nothing is left.
    """
    is_test = find_rows(df, str(config.test_on))
    warn_of_unused(config, ["test"], f"--test-on {config.test_on} says what is tested")
    beside = ~is_test & df["group"].isin(df.loc[is_test, "group"])
    rest = df[~is_test & ~beside]
    if rest.empty:
        raise LesionfastError(
            f"--test-on {config.test_on} leaves no image to train on: all have that value, or are "
            "of lesions or patients that have. Name another value, or another --group."
        )
    unknown = is_test & ~df["target"].isin(rest["target"])
    names = sorted(df.loc[unknown, "target"].unique())
    for lost, why in [
        (beside, "of lesions or patients that have others in test"),
        (unknown, f"in test of class {list_first(names, 5)}, which no other image has"),
    ]:
        if lost.any():
            logger.warning("Left out %s %s", pluralize(int(lost.sum()), "image"), why)
    is_test &= ~unknown
    if not is_test.any():
        raise LesionfastError(
            f"--test-on {config.test_on} leaves no image to test: the others have none of its "
            f"classes ({list_first(names, 5)}). Make them one with --map, or name another value."
        )
    drawn = draw(rest.drop(columns="split", errors="ignore"), config, test=0.0)["split"]
    df = df.assign(split=drawn.reindex(df.index).mask(is_test, "test"))
    logger.info("testing on %s with %s", pluralize(int(is_test.sum()), "image"), config.test_on)
    df = df[df["split"].notna()].reset_index(drop=True)
    warn_of_absent_classes(df, ["test"])
    return df


def find_rows(df: pd.DataFrame, typed: str) -> pd.Series:
    """Return which rows "column=value" means, in any case; raises `LesionfastError` if none."""
    column, _, value = (unquote(part) for part in typed.partition("="))
    if not (column and value):
        raise LesionfastError(
            f"--test-on is '{typed}'. Type a column and a value, such as source=bcn20000."
        )
    columns = [name for name in df if name not in ("image_id", "path")]
    name = {name.lower(): name for name in reversed(columns)}.get(column.lower(), column)
    if name not in columns:
        raise LesionfastError(
            f"--test-on names the column '{column}', which the table does not have."
            f"{did_you_mean(column, columns)} It has: {list_first(columns, 30)}."
        )
    values = df[name]
    if is_numeric_dtype(values):
        number = pd.to_numeric(value, errors="coerce")
        found = values == number
    else:
        found = values.fillna("").str.strip().str.lower() == value.lower()
    if not found.any():
        known = [f"{v:g}" if is_numeric_dtype(values) else v for v in values.dropna().unique()]
        raise LesionfastError(
            f"--test-on {typed}: no image has this value of '{name}'.{did_you_mean(value, known)} "
            f"It has: {list_first(sorted(known), 20)}."
        )
    return found


def warn_of_unused(config: SplitConfig, options: Iterable[str], reason: str) -> None:
    """Warn of options that were changed and have no effect."""
    plain = SplitConfig()
    for name in options:
        value = getattr(config, name)
        if value != getattr(plain, name):
            logger.warning("--%s %s has no effect: %s", name.replace("_", "-"), value, reason)


def warn_of_absent_classes(df: pd.DataFrame, parts: Iterable[str]) -> None:
    """Warn of classes that a part lacks: their metrics are not defined there."""
    classes = set(df["target"])
    for part in parts:
        if absent := sorted(classes - set(df.loc[df["split"] == part, "target"])):
            logger.warning(
                "%s has no image of class %s, so nothing is measured of it there",
                part, list_first(absent, 5),
            )  # fmt: skip
