"""WebDataset shards: tar files with an image and a small file about it, under one key.

A sample is the files whose names are the same up to the first dot: key.jpg, and key.json with the
columns of its row, or key.cls with its class (github.com/webdataset/webdataset).
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.formats.excel import as_text
from lesionfast.data.formats.untar import Tar
from lesionfast.data.layouts import places, tables
from lesionfast.data.layouts.base import NO_LESIONS, Dataset, Folder, layouts
from lesionfast.data.layouts.copies import count_crossing, keep_one_of_copies, settle_parts
from lesionfast.data.layouts.huggingface import OWN_IDS, drop_unlabelled
from lesionfast.data.layouts.paths import name_by_path
from lesionfast.data.layouts.places import PART_NAMES, WORDS, read_part, relative_names
from lesionfast.data.table import EMPTY
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, list_first, pluralize
from lesionfast.files import parse_json, readable_name

logger = logging.getLogger("lesionfast")

ABOUT = ("json", "cls")  # what follows the key in the names of files about an image
SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # key, and what follows it
NUMBER = re.compile(r"(.*?)(\d+)")  # of a shard
PICTURES = ""  # counts among the names of columns
CLASSES = ("classes.txt", "classnames.txt", "labels.txt")  # names by the number of a class


@layouts.register("webdataset")
def webdataset(folder: Folder, config: DataConfig) -> Dataset | None:
    """WebDataset shards (.tar): images beside .json or .cls files of the same key."""
    shards = folder.find(".tar")
    if not shards or (not folder.only and tables.find_usable(folder, config)):
        return None
    left_out: Counter[str] = Counter()
    found = [(path, read_shard(path, folder, left_out)) for path in shards]
    shards = [path for path, rows in found if set(rows) - {"path", "part"}]
    if not shards:
        return None
    rows = pd.concat([rows for path, rows in found if path in shards], ignore_index=True)
    rows = rows.fillna("").astype("str")
    report_left_out(left_out)
    target = find_target(rows, shards, config)
    rows = rows.assign(**{target: name_classes(rows[target], shards[0].parent)})
    rows = rows.assign(part=find_parts(rows))
    unlabelled = rows.loc[rows[target].str.lower().isin(EMPTY), "path"]
    rows, notes = drop_unlabelled(rows, target, shards)
    rows, image, shared = keep_one_of_each(rows, target, folder)
    groups = tables.find_groups(rows)
    split, told = settle_parts(rows, target, () if config.group else groups, shared)
    return Dataset(
        name=f"a WebDataset ({pluralize(len(shards), 'shard')})",
        table=shards[0],
        rows=rows if split else rows.drop(columns="part"),
        image=image,
        target=target,
        groups=groups,
        split=split,
        notes=(*notes, *find_gaps(shards), *told, *([] if groups else [NO_LESIONS])),
        source=folder.name,
        unlabelled=tuple(unlabelled),
    )


def read_shard(path: Path, folder: Folder, left_out: Counter[str]) -> pd.DataFrame:
    """Return the samples of a shard as text: path, part, then the columns of its small files.

    What is `left_out` is counted: further pictures, and columns of lists by name. Raises
    `LesionfastError` if the shard or the JSON of a sample is broken.
    """
    shard = Tar(str(path))
    readable = [name for name in shard.list_members() if readable_name(name) == name]
    images = choose_images(readable, left_out)
    about: dict[str, dict[str, str]] = {kind: {} for kind in ABOUT}
    for name in shard.names:
        if (match := SAMPLE.fullmatch(name)) and match[2].lower() in about and match[1] in images:
            about[match[2].lower()][match[1]] = name
    start, part = Path(os.path.abspath(path)).as_posix(), find_part(path, folder)
    rows = {key: {"path": f"{start}/{name}", "part": part} for key, name in images.items()}
    for kind, names in about.items():
        for (key, name), data in zip(names.items(), shard.read_all([*names.values()]), strict=True):
            if kind == "cls":
                rows[key]["cls"] = data.decode(errors="replace").strip()
                continue
            for column, value in read_fields(data, f"{path}/{name}"):
                if isinstance(value, list):
                    left_out[column] += 1
                else:
                    column = f"{column}_" if column in ("path", "part") else column
                    rows[key].setdefault(column, as_text(value))
    return pd.DataFrame(list(rows.values()), columns=None if rows else ["path", "part"])


def report_left_out(left_out: Counter[str]) -> None:
    """Log what `read_shard` left out."""
    if pictures := left_out.pop(PICTURES, 0):
        logger.warning("Left out %s beside the image of a sample", pluralize(pictures, "picture"))
    if left_out:
        columns = pluralize(len(left_out), "column")
        logger.warning("Left out %s of lists: %s", columns, list_first(left_out))


def choose_images(members: Iterable[str], left_out: Counter[str]) -> dict[str, str]:
    """Return the image of each key; of several the one with the shortest name, which is counted."""
    images: dict[str, str] = {}
    for name in members:
        match = SAMPLE.fullmatch(name)
        key = match[1] if match else name
        if key in images:
            left_out[PICTURES] += 1
            name = min(name, images[key], key=len)
        images[key] = name
    return images


def read_fields(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a sample's JSON, those of objects within it too."""

    def walk(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for column, value in fields.items():
            if isinstance(value, dict):
                yield from walk(value)
            else:
                yield column, value

    try:
        fields = parse_json(data)
    except ValueError as error:
        raise LesionfastError(
            f"{name} is not JSON ({error}). Correct it, and write the shard again."
        ) from None
    if not isinstance(fields, dict):
        raise LesionfastError(
            f"{name} holds {type(fields).__name__}, not an object of columns such as "
            '{"class": "mel", "lesion_id": "HAM_1"}. Write the shard again.'
        )
    yield from walk(fields)


def find_target(rows: pd.DataFrame, shards: Sequence[Path], config: DataConfig) -> str:
    """Return the column of the class: --target, one of a usual name, or the .cls files.

    Raises `LesionfastError`, with the columns and their number of values, if there is none.
    """
    usual = tables.first_of((*tables.TARGETS, "cls"), list(rows))
    typed = split_names(config.target)[0] if config.target else usual
    if typed in rows:
        return typed
    candidates = tables.list_values(rows.drop(columns=["path", "part"]))
    problem = f"column '{typed}' is not in" if typed else "no column is known to be the class in"
    raise LesionfastError(
        f"{problem} the JSON files of {shards[0].name}; they have: {candidates}. Name yours with "
        "--target."
    )


def name_classes(labels: pd.Series, folder: Path) -> pd.Series:
    """Return labels that are numbers by the names in a file beside the shards, if there is one.

    Raises `LesionfastError` for a number that has no name.
    """
    file = next((folder / name for name in CLASSES if (folder / name).is_file()), None)
    numbers = pd.Series(labels.unique(), dtype="str")
    if file is None or not numbers[numbers != ""].str.fullmatch(r"\d+").all():
        return labels
    lines = file.read_text(encoding="utf-8").split("\n")
    names = {str(number): line.strip() for number, line in enumerate(lines) if line.strip()}
    if wrong := sorted({*numbers} - {*names, ""}, key=int):
        raise LesionfastError(
            f"the shards have the class {wrong[0]}, but {file} has names for {len(names)} only: "
            f"{list_first(names.values(), 10)}. Add a line for each class."
        )
    return labels.map(names | {"": ""}).astype("str")


def find_part(path: Path, folder: Folder) -> str:
    """Return the part that the name of a shard says, or else the nearest folder; "" if none."""
    above = reversed(path.relative_to(folder.root).parts[:-1])
    found = (read_part([word.lower() for word in WORDS.findall(place)]) for place in above)
    return places.find_part(path.stem) or next(filter(None, found), "")


def find_parts(rows: pd.DataFrame) -> pd.Series:
    """Return the part of each sample: that of its shard, else a column such as `split`."""
    column = tables.find_split(rows.drop(columns="part")) if (rows["part"] == "").all() else None
    return rows[column].str.lower().map(PART_NAMES).fillna("") if column else rows["part"]


def keep_one_of_each(
    rows: pd.DataFrame, target: str, folder: Folder
) -> tuple[pd.DataFrame, str, int]:
    """Return the rows without copies, the column of image ids, and how many were in several parts.

    Rows of one image id are one image. Their bytes are not compared: `data check` does.
    """
    image, names = tables.first_of(OWN_IDS, list(rows)), name_by_path(rows["path"])
    if image is None:
        return rows.assign(image_id=names), "image_id", 0
    keys = rows[image].mask(rows[image] == "", names)
    rows = rows.assign(**{image: keys})
    shared = count_crossing(rows.assign(key=keys), "key")
    names = relative_names(rows["path"], folder.root)
    return keep_one_of_copies(rows, keys, names, "image id", target), image, shared


def find_gaps(shards: Sequence[Path]) -> tuple[str, ...]:
    """Return a sentence on shards whose number is left out between others, () if there is none."""
    numbers: dict[tuple[Path, str], dict[int, str]] = {}
    for path in shards:
        if match := NUMBER.fullmatch(path.stem):
            numbers.setdefault((path.parent, match[1]), {})[int(match[2])] = match[2]
    lost = [
        f"{start}{str(number).zfill(len(next(iter(found.values()))))}.tar"
        for (_, start), found in numbers.items()
        if max(found) < 10 * len(found)  # else they are dates or the like
        for number in sorted({*range(min(found), max(found))} - {*found})
    ]
    if not lost:
        return ()
    return (f"{pluralize(len(lost), 'shard')} may be missing: {list_first(lost, 5)}.",)
