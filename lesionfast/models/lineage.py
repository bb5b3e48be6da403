"""Which images weights have learned from: digests of their ids, kept inside the weights file.

A weights file that is moved, renamed or exported alone still says which images, and which lesions,
it was trained on. The ids are not in it, only 8 bytes of the SHA-256 of each: who has an id can
ask whether it was trained on, and so can who guesses one, such as a running number.
"""

import base64
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from lesionfast.data.table import read_table
from lesionfast.errors import LesionfastError
from lesionfast.files import read_json
from lesionfast.manifest import Manifest
from lesionfast.runs import CONFIGS

logger = logging.getLogger("lesionfast")

WEIGHTS = ("weights.safetensors", "model.safetensors")  # of a run, and of an exported model
KEY = "lineage"  # in the header of a weights file
OWN = "backbone.body."  # what the tensors of a run's backbone are called
PARTS = ("train", "valid")
NOTHING = np.zeros(0, np.uint64)


@dataclass(frozen=True, eq=False)
class Lineage:
    """Digests of the images and lesions that weights were trained on and chosen by.

    `train` and `valid` are sorted uint64; both hold what earlier weights have learned from too, if
    the training started from some. `arch` is the architecture, None if it is not known.
    """

    arch: str | None
    train: np.ndarray = field(default_factory=lambda: NOTHING)
    valid: np.ndarray = field(default_factory=lambda: NOTHING)

    @classmethod
    def of(cls, split: pd.DataFrame, arch: str | None) -> "Lineage":
        """Return that of a training on a table with image_id, split and, if known, group."""
        parts = {name: digests(split[split["split"] == name]) for name in PARTS}
        return cls(arch, **{name: np.unique(found) for name, found in parts.items()})

    def __or__(self, earlier: "Lineage | None") -> "Lineage":
        """Return that of a training that started from earlier weights."""
        if earlier is None:
            return self
        train, valid = (np.union1d(getattr(self, n), getattr(earlier, n)) for n in PARTS)
        return Lineage(self.arch or earlier.arch, train, valid)

    def met(self, rows: pd.DataFrame, part: str) -> np.ndarray:
        """Return which rows, bool (n,), are images or of lesions that are in `part`."""
        found = digests(rows).reshape(2, len(rows))
        return np.isin(found, getattr(self, part)).any(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-safe values: the digests little-endian in base64."""
        return {"arch": self.arch} | {
            name: base64.b64encode(getattr(self, name).astype("<u8").tobytes()).decode()
            for name in PARTS
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Lineage":
        """Return what `to_dict` returned as values."""
        parts = {name: np.frombuffer(base64.b64decode(values[name]), "<u8") for name in PARTS}
        return cls(values["arch"], **{name: part.astype(np.uint64) for name, part in parts.items()})


def digests(rows: pd.DataFrame) -> np.ndarray:
    """Return the digests of the images of a table, then of their lesions: uint64 (2 n,)."""
    lesions = rows["group" if "group" in rows else "image_id"]
    named = [("image", rows["image_id"]), ("lesion", lesions)]
    found = [digest(f"{kind} {name}") for kind, names in named for name in names]
    return np.array(found, np.uint64)


def digest(text: str) -> int:
    """Return the first 8 bytes of the SHA-256 of a text as a number."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "little")


def read_lineage(source: str | Path, seen: frozenset[Path] = frozenset()) -> Lineage | None:
    """Return what the weights in a file, a run, a pretraining or an exported folder learned from.

    Found in the header of the file, and in the split.csv of a run that it lies in, through links
    too. None if neither says it. Folders that were `seen` are passed over: a run that was renamed
    to that of its earlier weights names itself.
    """
    file = weights_file(Path(source).expanduser())
    folders = [folder for folder in folders_of(file) if folder.resolve() not in seen]
    lineages = [folder_lineage(folder, seen | {folder.resolve()}) for folder in folders]
    header = header_lineage(file)
    if header is not None:
        lineages.append(header)
    return joined(lineages) if lineages else None


def joined(lineages: Iterable[Lineage]) -> Lineage:
    """Return all of them as one."""
    first, *others = lineages
    for each in others:
        first = first | each
    return first


def weights_file(path: Path) -> Path:
    """Return the weights file of a folder, or the file itself."""
    if not path.is_dir():
        return path
    return next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])


def folders_of(file: Path) -> list[Path]:
    """Return the runs and pretrainings that a file lies in, as it is named and where it is."""
    near = [parent for each in (file.absolute(), file.resolve()) for parent in each.parents[:2]]
    return [
        folder
        for folder in dict.fromkeys(near)
        if (folder / "split.csv").is_file() and any((folder / n).is_file() for n in CONFIGS)
    ]


def header_lineage(file: Path) -> Lineage | None:
    """Return what the header of a safetensors file says of its own lineage; None if nothing."""
    try:
        with safe_open(file, framework="np") as opened:
            header = json.loads((opened.metadata() or {}).get("header", "null"))
        return Lineage.from_dict(header[KEY])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None  # a file of others, or a broken one, which is said when it is loaded


def is_own(source: str | Path) -> bool:
    """Return whether a safetensors file holds the weights of a run, by the names of its tensors."""
    try:
        with safe_open(weights_file(Path(source).expanduser()), framework="np") as opened:
            return any(name.startswith(OWN) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def folder_lineage(folder: Path, seen: frozenset[Path]) -> Lineage:
    """Return the lineage of a run or a pretraining, from its split.csv, and of its own weights."""
    file = next(folder / name for name in CONFIGS if (folder / name).is_file())
    manifest, advice = Manifest(folder), f"Copy {folder} again, or name other --weights."
    shape = {"arch?": str, "weights?": (str, None)}
    config = read_json(manifest.require(file.name, advice), shape, advice)
    split = read_table(
        manifest.require("split.csv", advice), {"image_id": "", "split": ""}, option="--weights"
    )
    return Lineage.of(split, config.get("arch")) | earlier_lineage(config.get("weights"), seen)


def earlier_lineage(weights: str | None, seen: frozenset[Path] = frozenset()) -> Lineage | None:
    """Return the lineage of what --weights names; None for 'auto', 'none' and what says nothing."""
    return None if weights in (None, "auto", "none") else read_lineage(weights, seen)


def lineage_header(split: pd.DataFrame, arch: str, weights: str) -> dict[str, Any]:
    """Return the header of the weights of a training that starts from `weights`."""
    return {KEY: (Lineage.of(split, arch) | earlier_lineage(weights)).to_dict()}


def check_weights(df: pd.DataFrame, weights: str, arch: str) -> None:
    """Raise `LesionfastError` if these weights have learned from what now is held out.

    So it does for weights of another architecture: the same tensors may want other inputs.
    `weights` is as typed: a run, a pretraining, an exported folder, or a file of one of them,
    which says itself what it learned from; of another, or of an old one without its run, that
    is not known. `df` is split.
    """
    if weights in ("auto", "none"):
        return
    lineage = read_lineage(weights)
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
            parts = " and ".join(f"{name} ({n})" for name, n in sorted(counts.items()))
            raise LesionfastError(
                f"the weights of {weights} {what} {counts.sum()} images (or others of their "
                f"lesions) that this split keeps for {parts}: its numbers would be too good. "
                f"{way_on(weights)}"
            )


def way_on(weights: str) -> str:
    """Return what to type instead of weights that have seen what is held out."""
    folders = folders_of(weights_file(Path(weights).expanduser()))
    split = folders[0] / "split.csv" if folders else "FILE with the split.csv of their run"
    return f"Type --split {split} to keep their split, or other --weights."
