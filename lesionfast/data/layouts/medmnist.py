"""DermaMNIST and the other MedMNIST datasets (Yang et al. 2023, doi:10.1038/s41597-022-01721-8).

One .npz file holds images and labels of the parts train, val and test.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.formats.containers import Npz
from lesionfast.data.layouts import tables
from lesionfast.data.layouts.base import NO_LESIONS, Dataset, Folder, layouts
from lesionfast.errors import LesionfastError, list_first, shell_quote

PARTS = ("train", "val", "test")
DERMA_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")  # in the order of the labels
DERMA_SIZES = (7007, 1003, 2005)
MOST_BESIDE = 50  # pictures beside the file, such as a montage: of more they are the dataset
EXAMPLE = "Write it again with numpy.savez_compressed(file, train_images=…, train_labels=…)."


@dataclass(frozen=True)
class Parts:
    """What an .npz file holds: of each part the shape of its images and its labels (n,)."""

    file: Path
    shapes: dict[str, tuple[int, ...]]
    labels: dict[str, np.ndarray]

    @property
    def size(self) -> int:
        """Pixels of an image."""
        return int(np.prod(next(iter(self.shapes.values()))[1:3]))

    @property
    def is_derma(self) -> bool:
        """Whether this is DermaMNIST: by its name, or by its parts and number of classes."""
        if "dermamnist" in re.sub(r"[\W_]", "", self.file.stem.lower()):
            return self.values <= set(range(len(DERMA_CLASSES)))
        sizes = tuple(len(self.labels.get(part, ())) for part in PARTS)
        return sizes == DERMA_SIZES and self.values == set(range(len(DERMA_CLASSES)))

    @property
    def values(self) -> set[int]:
        """The labels that occur."""
        return {int(value) for labels in self.labels.values() for value in np.unique(labels)}


@layouts.register("medmnist")
def medmnist(folder: Folder, config: DataConfig) -> Dataset | None:
    """DermaMNIST or another MedMNIST .npz file, of the largest size that is there."""
    files = folder.find(".npz")
    if not files or (
        not folder.only and (len(folder.images) > MOST_BESIDE or tables.find_usable(folder, config))
    ):
        return None
    found = [parts for file in files if (parts := read_parts(file))]
    if not found:
        return None
    parts, notes = choose_size(found, folder)
    rows = list_rows(parts)
    height, width = next(iter(parts.shapes.values()))[1:3]
    whole = set(rows["part"]) == {"train", "valid", "test"}
    return Dataset(
        name=f"{'DermaMNIST' if parts.is_derma else 'MedMNIST'} ({width} x {height} pixels)",
        table=parts.file,
        rows=rows if whole else rows.drop(columns="part"),
        image="image_id",
        target="target",
        split="part" if whole else None,
        source="dermamnist" if parts.is_derma else parts.file.stem,
        notes=(
            *notes,
            NO_LESIONS,
            *(["Its own parts are the split."] if whole else []),
        ),
    )


def read_parts(file: Path) -> Parts | None:
    """Return what an .npz file holds, None if that is no dataset; `LesionfastError` if broken."""
    with Npz(str(file)) as archive:
        shapes = {name: shape for name, (shape, _) in archive.headers.items()}
        parts = [part for part in PARTS if f"{part}_images" in shapes or f"{part}_labels" in shapes]
        if not parts:
            return None
        archive.list_members()  # raises if the images are none
        for part in parts:
            check_shapes(file, part, shapes)
        kinds = {part: archive.headers[f"{part}_labels"][1] for part in parts}
        for part, kind in kinds.items():
            if kind.kind not in "iub" and not kind.hasobject:
                raise LesionfastError(
                    f"{file} has {kind} in '{part}_labels', but a label is a whole number. "
                    f"{EXAMPLE}"
                )
        labels = {part: archive.read_array(f"{part}_labels").reshape(-1) for part in parts}
    return Parts(file, {part: shapes[f"{part}_images"] for part in parts}, labels)


def check_shapes(file: Path, part: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `LesionfastError` unless a part has as many labels as images, one each."""
    images, labels = shapes.get(f"{part}_images"), shapes.get(f"{part}_labels")
    if images is None or labels is None:
        lost = f"{part}_{'images' if images is None else 'labels'}"
        raise LesionfastError(
            f"{file} has no '{lost}'; it has: {list_first(shapes, 10)}. Download it again, or "
            "write images and labels of every part with numpy.savez_compressed."
        )
    if len(labels) not in (1, 2) or labels[1:] not in ((), (1,)):
        raise LesionfastError(
            f"{file} has '{part}_labels' of shape {labels}, but an image has one label: shape "
            f"({images[0]}, 1). Datasets with several labels an image, such as ChestMNIST, can't "
            f"be classified here. {EXAMPLE}"
        )
    if labels[0] != images[0]:
        raise LesionfastError(
            f"{file} has {labels[0]:,} labels for {images[0]:,} images in '{part}'. Download it "
            "again, or write as many labels as images with numpy.savez_compressed."
        )


def choose_size(found: Sequence[Parts], folder: Folder) -> tuple[Parts, tuple[str, ...]]:
    """Return the file with the largest images, and a note about the others.

    Raises `LesionfastError` if the files are different datasets.
    """
    best = max(found, key=lambda parts: parts.size)
    for parts in found:
        alike = parts.labels.keys() == best.labels.keys() and all(
            np.array_equal(labels, best.labels[part]) for part, labels in parts.labels.items()
        )
        if not alike:
            names = list_first(parts.file.relative_to(folder.root) for parts in found)
            raise LesionfastError(
                f"{folder.root} holds several datasets: {names} have different labels. Type the "
                f"file in place of the folder: --data {shell_quote(best.file)}"
            )
    others = [parts.file.name for parts in found if parts is not best]
    if not others:
        return best, ()
    note = f"The largest images are read, those of {best.file.name}, not {list_first(others)}."
    return best, (note,)


def list_rows(parts: Parts) -> pd.DataFrame:
    """Return the images with their labels: image_id, path, part, target."""
    found = []
    for part, labels in parts.labels.items():
        rows = pd.DataFrame({"number": np.arange(len(labels)).astype(str), "label": labels})
        rows["image_id"] = f"{part}-" + rows["number"].str.zfill(len(str(len(labels))))
        rows["path"] = (
            f"{Path(os.path.abspath(parts.file)).as_posix()}/{part}_images/" + rows["number"]
        )
        rows["part"] = {"val": "valid"}.get(part, part)
        found.append(rows)
    rows = pd.concat(found, ignore_index=True)
    if parts.is_derma:
        rows["target"] = np.array(DERMA_CLASSES)[rows["label"]]
    else:
        rows["target"] = rows["label"].astype(int).astype(str)
    return rows[["image_id", "path", "part", "target"]].astype("str")
