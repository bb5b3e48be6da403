"""Refuse metadata columns that give the label away, and weights that have seen the answers."""

import json
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.tables import read_table
from lesionfast.errors import LesionfastError

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
    """Raise `LesionfastError` if the run of these weights learned from what now is held out.

    So it does for a run of another architecture: the same tensors may want other inputs.
    `weights` is as typed; of a run, its split.csv says what it learned from. `df` is split.
    """
    path = Path(weights).expanduser()
    folder = path.parent if path.name == "weights.safetensors" else path
    file = folder / "split.csv"
    if weights in ("auto", "none") or not file.is_file():
        return
    recorded = recorded_arch(folder)
    if recorded not in (None, arch):
        raise LesionfastError(
            f"the weights of {folder} are those of {recorded}, not of {arch}. Type --arch "
            f"{recorded}, or other --weights."
        )
    earlier = read_table(file, {"image_id": "", "split": ""}, option="--weights")
    learned = earlier.loc[earlier["split"] == "train", "image_id"]
    seen = df.loc[df["image_id"].isin(learned) & (df["split"] != "train"), "split"].value_counts()
    if len(seen):
        raise LesionfastError(
            f"the weights of {folder} have learned from {seen.sum()} images that this split keeps "
            f"for {' and '.join(f'{name} ({n})' for name, n in sorted(seen.items()))}: its numbers "
            f"would be too good. Type --split {file} to keep that split, or other --weights."
        )


def recorded_arch(folder: Path) -> str | None:
    """Return the architecture that a run or a pretraining says it has."""
    for name in ("config.json", "pretrain.json"):
        if (folder / name).is_file():
            return json.loads((folder / name).read_text(encoding="utf-8")).get("arch")
    return None


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
