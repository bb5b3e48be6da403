"""Which images weights were trained on: digests of their ids, kept inside the weights file.

A weights file that is moved, renamed or exported alone still says which images, and which lesions,
it was trained on. It does not contain the ids, only 8 bytes of the SHA-256 of each: anyone with an
id can ask whether it was trained on, and so can anyone who guesses one, such as a running number.
"""

import base64
import logging
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from lesionfast.data.corrections.applying import restore
from lesionfast.data.table import read_table
from lesionfast.errors import DamageError, LesionfastError, shell_quote
from lesionfast.files import parse_json, read_json
from lesionfast.manifest import Manifest
from lesionfast.run import CONFIGS, Run, list_runs_of

logger = logging.getLogger("lesionfast")

WEIGHTS = ("weights.safetensors", "model.safetensors")  # of a run, and of an exported model
KEY = "lineage"  # in the header of a weights file
OWN = "backbone.body."  # prefix of the tensors of a run's backbone
PARTS = ("train", "valid")


@dataclass(frozen=True, eq=False)
class Lineage:
    """Digests of the images and lesions that weights were trained on, and selected by.

    `train` and `valid` are sorted uint64, and include those of the weights that the training
    started from; `train` also those of a teacher. `arch` is the architecture, None if unknown.
    """

    arch: str | None
    train: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, split: pd.DataFrame, arch: str | None) -> "Lineage":
        """Return that of a training on a table with image_id, split and perhaps group."""
        parts = {name: np.unique(digest_rows(split[split["split"] == name])) for name in PARTS}
        return cls(arch, **parts)

    def __or__(self, earlier: "Lineage | None") -> "Lineage":
        """Return that of a training that started from earlier weights."""
        if earlier is None:
            return self
        train, valid = (np.union1d(getattr(self, n), getattr(earlier, n)) for n in PARTS)
        return Lineage(self.arch or earlier.arch, train, valid)

    def contains(self, rows: pd.DataFrame, part: str) -> np.ndarray:
        """Return which rows, bool (n,), are images or of lesions that are in `part`."""
        digests = digest_rows(rows).reshape(2, len(rows))
        return np.isin(digests, getattr(self, part)).any(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-safe values: the digests little-endian in base64."""
        return {"arch": self.arch} | {
            name: base64.b64encode(getattr(self, name).astype("<u8").tobytes()).decode()
            for name in PARTS
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Lineage":
        """Return the lineage from what `to_dict` returned."""
        parts = {name: np.frombuffer(base64.b64decode(values[name]), "<u8") for name in PARTS}
        return cls(values["arch"], **{name: part.astype(np.uint64) for name, part in parts.items()})


def digest_rows(rows: pd.DataFrame) -> np.ndarray:
    """Return the digests of the images of a table, then of their lesions: uint64 (2 n,).

    A digest is the first 8 bytes of a SHA-256.
    """
    lesions = rows["group" if "group" in rows else "image_id"]
    texts = [f"image {name}" for name in rows["image_id"]] + [f"lesion {name}" for name in lesions]
    hashes = (sha256(text.encode("utf-8", "surrogateescape")).digest() for text in texts)
    return np.array([int.from_bytes(digest[:8], "little") for digest in hashes], np.uint64)


def read_lineage(source: str | Path, seen: frozenset[Path] = frozenset()) -> Lineage | None:
    """Return the lineage of the weights in a file, a run, a pretraining or an exported folder.

    It is read from the header of the file, and from the split.csv of a run that contains the file,
    also through links. None if there is neither. Folders in `seen` are skipped: a run that was
    renamed to the name of its earlier weights refers to itself.
    """
    file = find_weights_file(source)
    folders = [folder for folder in find_runs(file) if folder.resolve() not in seen]
    lineages = [read_run_lineage(folder, seen | {folder.resolve()}) for folder in folders]
    header = read_header(file)
    lineages += [] if header is None else [header]
    return reduce(or_, lineages) if lineages else None


def find_weights_file(source: str | Path) -> Path:
    """Return the weights file of a folder, or the file itself."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return path
    return next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])


def find_runs(file: Path) -> list[Path]:
    """Return the runs and pretrainings that contain a file, by its name and behind its links.

    Of a run inside a run, which has a split of its own, that is the inner one.
    """
    near = [
        next(filter(is_run, path.parents[:2]), None) for path in (file.absolute(), file.resolve())
    ]
    return [folder for folder in dict.fromkeys(near) if folder is not None]


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run or a pretraining that has begun."""
    has_config = any((folder / name).is_file() for name in CONFIGS)
    return has_config and (folder / "split.csv").is_file()


def read_header(file: Path) -> Lineage | None:
    """Return the lineage in the header of a safetensors file, None if there is none."""
    try:
        with safe_open(file, framework="np") as opened:
            header = parse_json((opened.metadata() or {}).get("header", "null"))
        return Lineage.from_dict(header[KEY])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None  # weights from elsewhere, or a broken file, which fails when it is loaded


def read_run_lineage(folder: Path, seen: frozenset[Path]) -> Lineage:
    """Return the lineage of a run or a pretraining, from its split.csv, and of its own weights."""
    file = next(folder / name for name in CONFIGS if (folder / name).is_file())
    manifest, advice = Manifest(folder), f"Copy {folder} again, or type other --weights."
    shape = {"arch?": str, "weights?": (str, None), "teacher?": (str, None)}
    config = read_json(manifest.require(file.name, advice), shape, advice)
    split = read_table(
        manifest.require("split.csv", advice), {"image_id": "", "split": ""}, option="--weights"
    )
    earlier = earlier_lineage(config.get("weights"), seen)
    taught = teacher_lineage(config.get("teacher"), seen)
    return Lineage.of(split, config.get("arch")) | earlier | taught


def earlier_lineage(weights: str | None, seen: frozenset[Path] = frozenset()) -> Lineage | None:
    """Return the lineage of the value of --weights; None for 'auto' and 'none'."""
    return None if weights in (None, "auto", "none") else read_lineage(weights, seen)


def teacher_lineage(teacher: str | None, seen: frozenset[Path] = frozenset()) -> Lineage | None:
    """Return what a teacher, the path of a run, learned from: all as training; None without one.

    One that is gone is left out, for the header of its student's weights has it.
    """
    if teacher is None or not Path(teacher).is_dir():
        return None
    run = Run(teacher)
    try:
        models = list_runs_of(run) if run.holds("model.json") else []
    except DamageError:  # a model of it is gone
        models = []
    found = [read_lineage(path, seen) for path in (run.path, *(one.path for one in models))]
    known = [lineage for lineage in found if lineage is not None]
    if not known:
        return None
    whole = reduce(or_, known)
    return Lineage(None, np.union1d(whole.train, whole.valid), np.array([], np.uint64))


def lineage_header(
    split: pd.DataFrame, arch: str, weights: str, teacher: str | None = None
) -> dict[str, Any]:
    """Return the header of the weights of a training that starts from `weights`."""
    whole = Lineage.of(restore(split), arch) | earlier_lineage(weights) | teacher_lineage(teacher)
    return {KEY: whole.to_dict()}


def check_weights(df: pd.DataFrame, weights: str, arch: str) -> None:
    """Raise `LesionfastError` if these weights were trained on images that are now held out.

    So it does for weights of another architecture: the same tensors may need other inputs.
    `weights` is a run, a pretraining, an exported folder, or a file of one of them, which names its
    own training images; those of other files, or of old ones without their run, are unknown. `df`
    is split.
    """
    if weights in ("auto", "none"):
        return
    lineage = read_lineage(weights)
    if lineage is None:
        if is_from_run(weights):
            logger.warning(
                "%s does not say which images it was trained on, and its run is not beside it: if "
                "validation or test images are among them, the numbers will be too optimistic",
                weights,
            )
        return
    if lineage.arch not in (None, arch):
        raise LesionfastError(
            f"the weights of {weights} are those of {lineage.arch}, not of {arch}. Type --arch "
            f"{shell_quote(lineage.arch)}, or other --weights."
        )
    check_held_out(df, weights, lineage)


def is_from_run(source: str | Path) -> bool:
    """Return whether a safetensors file contains a run's weights, by the names of its tensors."""
    try:
        with safe_open(find_weights_file(source), framework="np") as opened:
            return any(name.startswith(OWN) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def check_held_out(df: pd.DataFrame, weights: str, lineage: Lineage) -> None:
    """Raise `LesionfastError` if weights were trained on held-out images or on their lesions.

    Nor may the weights have been selected by test images, as they are by those of validation.
    """
    df = restore(df)  # what is left out now is trained on, or measured, without corrections
    held_out = df[df["split"] != "train"]
    tested = (held_out["split"] == "test").to_numpy()
    problems = {
        "were trained on": lineage.contains(held_out, "train"),
        "were selected by": lineage.contains(held_out, "valid") & tested,
    }
    for what, seen in problems.items():
        counts = held_out.loc[seen, "split"].value_counts()
        if len(counts):
            parts = " and ".join(f"{name} ({n})" for name, n in sorted(counts.items()))
            runs = find_runs(find_weights_file(weights))
            named = "FILE with the split.csv of their run"
            split = shell_quote(runs[0] / "split.csv") if runs else named
            kept = f"--split {split} to keep their split, or other --weights"
            if runs and has_seen_validation(runs[0], lineage):
                kept = "other --weights"
            raise LesionfastError(
                f"the weights of {weights} {what} {counts.sum()} images (or others of their "
                f"lesions) that this split holds out for {parts}: metrics would be "
                f"too optimistic. Type {kept}."
            )


def has_seen_validation(folder: Path, lineage: Lineage) -> bool:
    """Return whether weights were trained on validation images of their run, as a student's are."""
    split = read_table(folder / "split.csv", {"image_id": "", "split": ""}, option="--weights")
    return bool(np.isin(Lineage.of(split, None).valid, lineage.train).any())
