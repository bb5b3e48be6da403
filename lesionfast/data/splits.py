"""The seeded, stratified split by lesion: a column, written once, read by all."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.config import SplitConfig
from lesionfast.data.tables import read_table
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.runs import sha256, write_atomically

logger = logging.getLogger("lesionfast")

PARTS = ("train", "valid", "test")


def split_metadata(df: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Add the column `split`: from the file --split if given, else from seed and shares."""
    if config.split:
        return read_split(df, Path(config.split).expanduser())
    return assign_split(
        df,
        seed=config.seed,
        val=config.val,
        test=config.test,
        folds=config.folds,
        fold=config.fold,
    )


def assign_split(
    df: pd.DataFrame,
    *,
    seed: int = 42,
    val: float = 0.15,
    test: float = 0.15,
    folds: int | None = None,
    fold: int = 0,
) -> pd.DataFrame:
    """Add the column `split` with train, valid and test; no group crosses, row order is nothing.

    Of each class, `val` and `test` are the shares of lesions (at least one each) and, nearly, of
    images. With `folds`, what is not test is cut into as many folds and number `fold` is
    validation; the test part is the same for every fold. Raises `LesionfastError` for impossible
    shares, and for a class with fewer lesions than parts.
    """
    check_shares(val, test, folds, fold)
    lesions = list_lesions(df)
    check_classes(lesions, parts=(folds or 2) + (test > 0))
    lesions = shuffle(lesions, seed)
    in_test = take(lesions, test, seed, spare=folds or 2)
    rest = lesions[~in_test]
    if folds:
        in_valid = np.arange(len(rest)) % folds == fold
    else:
        in_valid = take(rest, val / (1 - test), seed + 1, spare=1)
    part = pd.Series("train", lesions["group"])
    part[lesions.loc[in_test, "group"]] = "test"
    part[rest.loc[in_valid, "group"]] = "valid"
    return df.assign(split=df["group"].map(part))


def check_shares(val: float, test: float, folds: int | None, fold: int) -> None:
    """Raise `LesionfastError` for shares or folds that leave a part empty."""
    if not 0 <= test < 1 or not (folds or 0 < val < 1 - test):
        raise LesionfastError(
            f"--val {val} and --test {test} leave no train, validation or test part. Type "
            "shares above 0 (--test 0: no test part) with a sum below 1, such as "
            "--val 0.15 --test 0.15."
        )
    if folds is not None and folds < 2:
        raise LesionfastError(f"--folds is {folds}; type 2 or more, such as --folds 5.")
    if not 0 <= fold < (folds or 1):
        what = f"--fold 0 to --fold {folds - 1}" if folds else "--folds 5 with it"
        raise LesionfastError(f"--fold {fold} goes with --folds {folds}. Type {what}.")


def list_lesions(df: pd.DataFrame) -> pd.DataFrame:
    """Return one row a lesion, ordered by its first image id: group, target, images.

    A group of several classes (joined near-duplicates) counts for the rarest of them.
    """
    df = df.sort_values("image_id")
    images = df["group"].value_counts(sort=False)
    count = df["target"].map(df["target"].value_counts())
    rarest = df.loc[count.sort_values(kind="stable").index].drop_duplicates("group")
    target = rarest.set_index("group")["target"]
    lesions = df[["group"]].drop_duplicates().reset_index(drop=True)
    return lesions.assign(target=lesions["group"].map(target), images=lesions["group"].map(images))
