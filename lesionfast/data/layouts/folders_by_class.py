"""Images in folders named like their class, below train, valid and test or alone; no table."""

from itertools import takewhile
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts import tables
from lesionfast.data.layouts.base import NO_LESIONS, Dataset, Folder, layouts, read_rows
from lesionfast.data.layouts.copies import (
    find_content,
    keep_one_of_copies,
    settle_parts,
)
from lesionfast.data.layouts.paths import name_by_path
from lesionfast.data.layouts.places import MASK_STEM, read_place, relative_names
from lesionfast.diagnoses import MALIGNANT, NAMES, NEVUS, plain
from lesionfast.errors import LesionfastError, list_first, pluralize

ISIC_ID = r"(?i)(ISIC_\d{7})"
KNOWN_CLASSES = {*NAMES, *NAMES.values(), *NEVUS, *MALIGNANT, "benign", "malignant"}
MOST_CLASSES = 20  # more folders need so many images each, else they are of lesions or patients
FEW_IMAGES = 4
BESIDE = ("age", "age_approx", "sex", "gender", "anatom_site_general", "localization")


@layouts.register("folders_by_class")
def folders_by_class(folder: Folder, config: DataConfig) -> Dataset | None:
    """Folders named like their class, alone or below train, valid and test; no table."""
    if config.image or config.target or tables.find_usable(folder, config):
        return None
    if folder.images.empty:
        return None
    places = read_places(folder)
    if (chosen := choose_classes(places)) is None:
        return None
    rows, notes = chosen
    unlabelled = rows.loc[rows["target"] == "", "path"]
    rows = rows[rows["target"] != ""].reset_index(drop=True)
    names = relative_names(rows["path"], folder.root)
    rows = keep_one_of_copies(rows, find_content(rows["path"].tolist()), names)
    rows = rows.assign(image_id=name_images(rows, folder.root))
    rows, groups, more = find_lesions(folder, rows)
    split, told = settle_parts(rows, "target", () if config.group else groups)
    return Dataset(
        name="folders by class",
        table=folder.only or folder.root,
        rows=rows.drop(columns=["stem", "kind", "names", *([] if split else ["part"])]),
        image="image_id",
        target="target",
        groups=groups,
        split=split,
        source=folder.name,
        notes=(*notes, *more, *told),
        unlabelled=tuple(unlabelled),
    )


def read_places(folder: Folder) -> pd.DataFrame:
    """Return the images of a folder with what their place says: path, stem, part, kind, names."""
    files = folder.images
    parents = relative_names(files["path"], folder.root).str.rpartition("/")[0]
    places = {parent: read_place(parent, folder.root) for parent in parents.unique()}
    found = parents.map(places)
    masks = files["stem"].str.contains(MASK_STEM, regex=True)
    return files.assign(
        part=[place.part for place in found],
        kind=["mask" if m else place.kind for m, place in zip(masks, found, strict=True)],
        names=[place.names for place in found],
    )


def choose_classes(places: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]] | None:
    """Return images with their `target`, "" without one, and what is left out; None if none has.

    Pictures made from others, in images_resized beside images, count only if they are alone.
    """
    real = places[places["kind"] != "mask"]
    originals = add_targets(real[real["kind"] == ""])
    labelled = originals if is_by_class(originals) else add_targets(real)
    if not is_by_class(labelled):
        return None
    counts = {
        "outside the folders of classes": int((labelled["target"] == "").sum()),
        "in folders of resized or otherwise processed copies": len(real) - len(labelled),
        "that are masks": len(places) - len(real),
    }
    notes = (f"Left out {pluralize(n, 'image')} {what}." for what, n in counts.items() if n)
    return labelled, tuple(notes)


def is_by_class(rows: pd.DataFrame) -> bool:
    """Return whether rows have at least two classes, and not nearly as many as images."""
    classes = set(rows["target"]) - {""}
    few = (rows["target"] != "").sum() < FEW_IMAGES * len(classes)
    return len(classes) > 1 and not (len(classes) > MOST_CLASSES and few)


def add_targets(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a `target`, the folder that names the class; "" if there is none."""
    in_parts = (rows["part"] != "") & (rows["names"].str.len() > 0)
    if rows.loc[in_parts, "names"].nunique() < 2:  # the parts have no classes, as a flat test/
        in_parts = rows["part"] == ""
    names = rows["names"].where(in_parts, rows["names"].map(lambda names: ()))
    levels = zip(*filter(None, names.unique()), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    tails = {name: name[common:] for name in names.unique()}
    place = choose_level([tail for tail in tails.values() if tail])
    targets = {name: tail[place] if tail else "" for name, tail in tails.items()}
    return rows.assign(target=names.map(targets).astype("str"))


def choose_level(tails: list[tuple[str, ...]]) -> int:
    """Return 0 if the class is the first of the folders that may name it, -1 if it is the last.

    It is the level with the names of diagnoses; else the last if the same names recur there.
    """
    if not tails:
        return 0
    firsts, lasts = ({tail[place] for tail in tails} for place in (0, -1))
    known = [
        sum(plain(x) in KNOWN_CLASSES for x in level) / len(level) for level in (firsts, lasts)
    ]
    if any(known):
        return 0 if known[0] >= known[1] else -1
    recurring = len(lasts) < len({(tail[0], tail[-1]) for tail in tails})
    return -1 if recurring or len(lasts) < len(firsts) else 0


def name_images(rows: pd.DataFrame, root: Path) -> pd.Series:
    """Return the image id of each row: the name of its file, or its path with - for / if it recurs.

    Raises `LesionfastError` for two files in one folder that differ in the suffix only.
    """
    relative = relative_names(rows["path"], root)
    ids = name_by_path(relative)
    twice = ids.duplicated(keep=False)
    if twice.any():
        first, second = relative[ids == ids[twice].iloc[0]].iloc[:2]
        raise LesionfastError(
            f"two different images have the same name and folder: {first} and {second}. Remove one "
            "of them, or rename it."
        )
    return ids


def find_lesions(
    folder: Folder, rows: pd.DataFrame
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Return rows with the lesion ids that a table below the folder has, their groups, and notes.

    Images are found in it by the ISIC id in their names.
    """
    original = rows["stem"].str.extract(ISIC_ID)[0].str.upper().fillna("")
    check_originals(rows, original, folder.root)
    for path in folder.tables("lesion_id") if (original != "").any() else []:
        table = read_rows(path, "lesion_id")
        column = tables.first_of(tables.IDS, list(table))
        if column is None:
            continue
        ids = table[column].str.extract(ISIC_ID)[0].str.upper()
        table = table[ids.notna() & ~ids.duplicated()].set_axis(
            ids[ids.notna() & ~ids.duplicated()]
        )
        named = original.isin(table.index)
        if named.any():
            lower = {name.lower(): name for name in table}
            kept = [lower[name] for name in (*tables.PATIENTS, *BESIDE) if name in lower]
            found = table[["lesion_id", *kept]].reindex(original).fillna("").set_axis(rows.index)
            groups = ("lesion_id", *(name for name in kept if name.lower() in tables.PATIENTS))
            if original[~named & (original != "")].duplicated().any():
                found, groups = found.assign(original_id=original), ("original_id", *groups)
            note = f"Lesion ids are those of {path.name}, for {named.sum():,} of the images."
            return rows.join(found), groups, (note,)
    note = (NO_LESIONS,)
    if original[original != ""].duplicated().any():
        return rows.assign(original_id=original), ("original_id",), note
    return rows, (), note


def check_originals(rows: pd.DataFrame, original: pd.Series, root: Path) -> None:
    """Raise `LesionfastError` if pictures of one ISIC image lie in folders of several classes."""
    known = rows[original != ""].assign(original=original)
    count = known.groupby("original")["target"].nunique()
    if (count > 1).any():
        torn = known[known["original"] == count.index[count > 1][0]].drop_duplicates("target")
        raise LesionfastError(
            f"{torn['original'].iloc[0]} lies in the folders of {pluralize(len(torn), 'class')}: "
            f"{list_first(relative_names(torn['path'], root))}. Remove those with the wrong label."
        )
