"""Refuse metadata columns that give the label away, and weights that have seen the answers."""

import logging
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.lineage import Lineage, folders_of, is_own, lineage_of, weights_file
from lesionfast.errors import LesionfastError

logger = logging.getLogger("lesionfast")

ENOUGH_LESIONS = 5  # a value of fewer lesions can be of one class by chance
RESERVED = (
    "image_id",
    "path",
    "target",
    "group",
    "split",
    "row",
)  # columns of this project's tables
TELLING_NAMES = ("dx_type", "diagnosis_confirm_type")  # how the diagnosis was made


def check_weights(df: pd.DataFrame, weights: str, arch: str) -> None:
    """Raise `LesionfastError` if these weights have learned from what now is held out.

    So it does for weights of another architecture: the same tensors may want other inputs.
    `weights` is as typed: a run, a pretraining, an exported folder, or a file of one of them,
    which says itself what it learned from; of another, or of an old one without its run, that
    is not known. `df` is split.
    """
    if weights in ("auto", "none"):
        return
    lineage = lineage_of(weights)
    if lineage is None:
        if is_own(weights):
            logger.warning(
                "%s does not say which images it was trained on, and its run is not beside it: if "
                "validation or test images are among them, the numbers will be too good",
                weights,
            )
        return
    if lineage.arch not in (None, arch):
        raise LesionfastError(
            f"the weights of {weights} are those of {lineage.arch}, not of {arch}. Type --arch "
            f"{lineage.arch}, or other --weights."
        )
    check_held_out(df, weights, lineage)


def check_held_out(df: pd.DataFrame, weights: str, lineage: Lineage) -> None:
    """Raise `LesionfastError` if held-out images, or others of their lesions, were learned from.

    Test images must not have chosen the weights either, as those of validation did.
    """
    held_out = df[df["split"] != "train"]
    tested = held_out["split"] == "test"
    found = {
        "have learned from": lineage.met(held_out, "train"),
        "were chosen by": lineage.met(held_out, "valid") & tested.to_numpy(),
    }
    for what, seen in found.items():
        counts = held_out.loc[seen, "split"].value_counts()
        if len(counts):
            told = " and ".join(f"{name} ({n})" for name, n in sorted(counts.items()))
            raise LesionfastError(
                f"the weights of {weights} {what} {counts.sum()} images (or others of their "
                f"lesions) that this split keeps for {told}: its numbers would be too good. "
                f"{way_on(weights)}"
            )


def way_on(weights: str) -> str:
    """Return what to type instead of weights that have seen what is held out."""
    folders = folders_of(weights_file(Path(weights).expanduser()))
    split = folders[0] / "split.csv" if folders else "FILE with the split.csv of their run"
    return f"Type --split {split} to keep their split, or other --weights."


def check_inputs(csv: Path, df: pd.DataFrame, config: DataConfig) -> None:
    """Raise `LesionfastError` for an input column from which the label can be told.

    Refused are ids, the target, `dx_type` (how the diagnosis was made) and every column whose
    value fixes the class, or is fixed by it, wherever a value has at least five lesions.
    """
    keys = {config.target, config.group, config.image, *RESERVED}
    for name in config.metadata_columns:
        if name in keys:
            reason = "it is the label, an id or a split"
        else:
            reason = find_leak(df, name) if name in df else "predictions have columns of that name"
        reason = reason or ("it is named twice" if config.metadata_columns.count(name) > 1 else "")
        if reason:
            raise LesionfastError(
                f"column '{name}' of {csv.name} can't be an input: {reason}. "
                f"Take it out of --metadata {config.metadata}."
            )


def find_leak(df: pd.DataFrame, name: str) -> str:
    """Return how the column `name` tells the class, or '' if it does not."""
    value = df[name].astype("str").where(df[name].notna(), "missing")
    lesions = pd.DataFrame({"value": value, "target": df["target"]})[~df["group"].duplicated()]
    examples = one_to_one(lesions, "value", "target")
    if name in TELLING_NAMES or fixes(lesions, "value", "target"):
        return f"it gives the label away{examples}"
    if fixes(lesions, "target", "value"):
        return f"it follows from the label{one_to_one(lesions, 'target', 'value')}"
    return ""


def fixes(lesions: pd.DataFrame, cause: str, effect: str) -> bool:
    """Whether each common value of `cause` goes with a single value of `effect`."""
    common = lesions[lesions.groupby(cause)[cause].transform("size") >= ENOUGH_LESIONS]
    if 2 * len(common) < len(lesions) or common[effect].nunique() < 2:
        return False
    return bool((common.groupby(cause)[effect].nunique() == 1).all())


def one_to_one(lesions: pd.DataFrame, cause: str, effect: str) -> str:
    """Return examples of values of `cause` with one `effect`: " (follow_up is always nv)"."""
    pairs = lesions.groupby(cause)[effect].agg(["nunique", "first", "size"])
    sure = pairs[pairs["nunique"] == 1].nlargest(3, "size")["first"]
    text = ", ".join(f"{value} is always {result}" for value, result in sure.items())
    return f" ({text})" if text else ""
