"""What the names of folders say: a part of the dataset, masks, resized copies, or a class."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lesionfast.errors import pluralize

logger = logging.getLogger("lesionfast")

PART_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PART_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "valid")
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of HAM10000_images_part_1: HAM, images, part
NEUTRAL = {  # words of folders that say nothing about what is in them
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "jpg", "jpeg"),
    *("png", "data", "dataset", "set", "dir", "folder", "split", "part", "fold", "batch", "input"),
    *("raw", "original", "isic", "ham", "task"),
}
DERIVED = {
    *("resized", "resize", "cropped", "crop", "augmented", "aug", "preprocessed", "processed"),
    "small",
}
MASKS = {"mask", "masks", "segmentation", "segmentations", "superpixels", "annotations", "heatmaps"}
MASK_STEM = r"(?i)[_-](?:mask|segmentation|superpixels)$"


@dataclass(frozen=True)
class Place:
    """What the path of a folder says: its part, "mask" or "derived", what may name the class."""

    part: str
    kind: str
    names: tuple[str, ...]


def read_place(parent: str, root: Path) -> Place:
    """Return what the path of a folder says; a zip or tar file is a folder if it has none."""
    part, kind, names, folders = "", "", [], parent.split("/") if parent else []
    below = 0  # number of names above the part
    for i, name in enumerate(folders):
        packed = name.lower().endswith((".zip", ".tar"))
        zipped = packed and not (root / "/".join(folders[: i + 1])).is_dir()
        words = [word.lower() for word in WORDS.findall(name[:-4] if zipped else name)]
        found = read_part(words)
        if MASKS & set(words):
            kind = "mask"
        elif found or (words and {*words} <= NEUTRAL | DERIVED):
            below = len(names) if found and not part else below
            part = part or found
            kind = kind or ("derived" if DERIVED & {*words} else "")
        elif not zipped or i == len(folders) - 1:
            names.append(name[:-4] if zipped else name)
    if part:
        names = names[below:] or names[:below][-1:]
    return Place(part, kind, tuple(names))


def read_part(words: list[str]) -> str:
    """Return the part that the words of a folder's name say, such as train_dir; "" if none."""
    found = [PART_NAMES[word] for word in words if word in PART_NAMES]
    others = [word for word in words if word not in {*PART_NAMES, *NEUTRAL, *DERIVED}]
    named_first = words and words[0] in PART_NAMES and len(words) < 3
    return found[0] if len(found) == 1 and (named_first or not others) else ""


def find_part(path: str) -> str:
    """Return train, valid or test for the last such word in a path, "" if there is none."""
    words = re.findall("[a-z]+", path.lower())
    return next((PART_NAMES[word] for word in reversed(words) if word in PART_NAMES), "")


def leave_out_derived(files: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Return images (path, stem) without masks and resized copies of others; counted in the log.

    Such are in folders with names that say so, and another image has their stem.
    """
    twins = files[files["stem"].duplicated(keep=False)]
    if twins.empty:
        return files
    parents = relative_names(twins["path"], root).str.rpartition("/")[0]
    kinds = parents.map({parent: read_place(parent, root).kind for parent in parents.unique()})
    originals = set(twins.loc[kinds == "", "stem"])
    derived = twins[(kinds != "") & twins["stem"].isin(originals)]
    if len(derived):
        logger.warning(
            "Left out %s in folders of masks or resized copies, such as %s",
            pluralize(len(derived), "image"), derived["path"].iloc[0],
        )  # fmt: skip
    return files.drop(index=derived.index).reset_index(drop=True)


def relative_names(paths: pd.Series, root: Path) -> pd.Series:
    """Return paths as seen from a folder."""
    return paths.str.removeprefix(Path(os.path.abspath(root)).as_posix().rstrip("/") + "/")
