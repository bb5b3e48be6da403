"""What the datasets of the ISIC share: truth of 0 and 1, tables that belong together, leaks."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from operator import eq
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    Dataset,
    Folder,
    drop_files,
    from_one_hot,
    is_among,
    join_tables,
    note_pictures,
    read_rows,
)
from lesionfast.data.layouts.places import find_part
from lesionfast.data.layouts.tables import choose_table
from lesionfast.data.sources import name_without_suffix
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")

LEAKS = re.compile(
    r"diagnosis|iddx_|mel_|nevus_type|benign_malignant|concomitant_biopsy|melanocytic"
    r"|tbp_lv_dnn_lesion_confidence",
    re.IGNORECASE,
)
FIELDS = (
    *("isic_id", "lesion_id", "patient_id", "age_approx", "sex", "image_type", "split"),
    *("anatom_site_general", "anatom_site_general_challenge", "target", "malignant"),
    *("benign_malignant", "diagnosis", *(f"diagnosis_{level}" for level in range(1, 6))),
)
KINDS = {"dermoscopic": "dermoscop", "clinical": "clinical|close-up|overview"}
DOWNSAMPLED = r"_downsampled$"


def find_leaks(rows: pd.DataFrame, target: str) -> tuple[str, ...]:
    """Return the columns that say what was diagnosed or how, the target left out."""
    return tuple(name for name in rows if LEAKS.match(name) and name != target)


def distinct_tables(
    folder: Folder, tables: list[Path], column: str, like: Path | None = None
) -> list[Path]:
    """Return the tables that name different images; of copies, that which `choose_table` returns.

    Two tables are copies if more than half of the smaller one's images are in the other. Of copies,
    the one whose name begins most like that of `like` is taken if only one does.
    """
    if len(tables) < 2:
        return tables
    ids = {path: set(read_rows(path, column)[column]) for path in tables}
    kinds: list[list[Path]] = []
    for path in tables:
        copies = [kind for kind in kinds if any(overlap(ids[path], ids[k]) > 0.5 for k in kind)]
        others = [kind for kind in kinds if kind not in copies]
        kinds = [*others, [*(copy for kind in copies for copy in kind), path]]
    whole = [keep_whole(name_alike(kind, like), ids) for kind in kinds]
    return [choose_table(folder, kind, column) for kind in whole]


def keep_whole(tables: list[Path], ids: dict[Path, set[str]]) -> list[Path]:
    """Return those of some tables that name the most images."""
    most = max(len(ids[path]) for path in tables)
    whole = [path for path in tables if len(ids[path]) == most]
    for path in tables:
        if path not in whole:
            count = f"{len(ids[path]):,} of {most:,} images"
            logger.warning("Ignored %s beside %s: it names %s", path.name, whole[0].name, count)
    return whole


def name_alike(tables: list[Path], like: Path | None) -> list[Path]:
    """Return those of some tables whose names begin most like that of another one."""
    if like is None or len(tables) < 2:
        return tables
    pairs = {path: zip(path.name.lower(), like.name.lower(), strict=False) for path in tables}
    shared = {path: len(list(takewhile(lambda pair: eq(*pair), pairs[path]))) for path in tables}
    alike = [path for path in tables if shared[path] == max(shared.values())]
    for path in tables:
        if path not in alike:
            logger.warning("Ignored %s beside %s", path.name, alike[0].name)
    return alike


def overlap(one: set[str], other: set[str]) -> float:
    """Return which share of the smaller of two sets is in the other."""
    return len(one & other) / max(min(len(one), len(other)), 1)


def read_truth(
    folder: Folder, tables: list[Path], classes: Sequence[str], config: DataConfig
) -> list[pd.DataFrame]:
    """Return the rows of each table with one-hot columns, with their class as `target` instead.

    Their `part` is train, valid, test, or "" if no name says it. A row of UNK has no target. The
    one-hot columns stay if --target names some. Tables of predictions are left out if there are
    others.
    """
    wanted = set(split_names(config.target or "")) & set(classes)
    truths = [path for path in tables if len(tables) == 1 or not holds_shares(path, classes)]
    parts = []
    for path in distinct_tables(folder, truths or tables, "image"):
        rows = read_rows(path, "image", known=(*classes, *FIELDS))
        one_hot = [name for name in classes if name in rows]
        target = from_one_hot(rows, one_hot, path)
        target = target.mask(target == "UNK", "")
        rows = rows if wanted else rows.drop(columns=one_hot)
        rows = rows.assign(target=target, part=name_part(folder, path, rows))
        rows.attrs["table"] = path
        parts.append(rows)
    return parts


def holds_shares(table: Path, classes: Sequence[str]) -> bool:
    """Whether a table has numbers between 0 and 1 for the classes, as predictions are."""
    rows = read_rows(table, *classes)
    numbers = rows[[name for name in classes if name in rows]].apply(pd.to_numeric, errors="coerce")
    found = bool(((numbers > 0) & (numbers < 1)).any(axis=None) or (numbers == 0).all(axis=None))
    if found:
        logger.warning("Ignored %s: it holds predictions, not the truth", table.name)
    return found


def name_part(folder: Folder, table: Path, rows: pd.DataFrame) -> str:
    """Return which part a table is by its name, else by that of the folder of its images."""
    if part := find_part(table.relative_to(folder.root).as_posix()):
        return part
    paths = folder.images["path"][folder.images["stem"].isin(rows["image"])]
    root = folder.root.absolute().as_posix()
    folders = paths.str.removeprefix(root).str.rpartition("/")[0]
    return find_part(folders.mode().iloc[0]) if len(folders) else ""


def stack_parts(parts: list[pd.DataFrame]) -> tuple[pd.DataFrame, str | None]:
    """Return the rows of several tables and the column of the parts, None if there is only one."""
    rows = stack_rows(parts)
    named = rows["part"].ne("").all() and rows["part"].nunique() > 1
    return (rows, "part") if named else (rows.drop(columns="part"), None)


def stack_rows(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of several tables; the index goes on from table to table."""
    if len(tables) == 1:
        return tables[0]
    rows = pd.concat(tables).fillna("")
    return rows.set_axis(pd.RangeIndex(2, len(rows) + 2))


def join_each(
    parts: list[pd.DataFrame], folder: Folder, tables: list[Path], key: str
) -> list[pd.DataFrame]:
    """Return the rows of each part with the columns of other tables, matched by the image.

    A part none of whose images are there keeps its own columns. Raises `LesionfastError` if that is
    so of all, or if only some images of a part are there.
    """
    chosen = distinct_tables(folder, tables, key, parts[0].attrs["table"])
    others = pd.concat([read_rows(path, key, known=FIELDS) for path in chosen]).fillna("")
    others = others.assign(key=bare_ids(others[key])).drop(columns=key)
    keyed = [rows.assign(key=bare_ids(rows[key])) for rows in parts]
    has_some = [rows["key"].isin(others["key"]).any() for rows in keyed]
    joined = [
        join_tables(rows, others, "key", (rows.attrs["table"], chosen[0]))
        if some or not any(has_some)
        else rows
        for rows, some in zip(keyed, has_some, strict=True)
    ]
    return [rows.drop(columns="key") for rows in joined]


def bare_ids(ids: pd.Series) -> pd.Series:
    """Return image ids without '.jpg' or the like and without '_downsampled'."""
    bare = pd.Series([name_without_suffix(name) for name in ids], ids.index, dtype="str")
    return bare.str.replace(DOWNSAMPLED, "", regex=True)


def match_downsampled(files: pd.DataFrame, ids: pd.Series) -> pd.DataFrame:
    """Return image files, those named like an id but for '_downsampled' with the id as stem."""
    stems = pd.Series([name_without_suffix(name) for name in ids], dtype="str")
    spare = pd.Series(stems.to_numpy(), bare_ids(ids).to_numpy())[~stems.isin(files["stem"]).array]
    spare = spare[~spare.index.duplicated()]
    other = bare_ids(files["stem"]).map(spare).where(~files["stem"].isin(stems))
    if count := int(other.notna().sum()):
        logger.warning(
            "Matched %s whose name differs from the table's by '_downsampled'",
            pluralize(count, "image file"),
        )
    return files.assign(stem=other.fillna(files["stem"]).astype("str"))


def choose_pictures(found: Dataset, column: str, config: DataConfig) -> Dataset:
    """Return a dataset with the pictures of the kind that --images-of names; the others are noted.

    Nothing is left out of a dataset without the column, or of pictures of one kind unless that is
    another one. Raises `LesionfastError` if there is none of the kind that was asked for.
    """
    if config.images_of == "all" or column not in found.rows:
        return found
    kinds = found.rows[column].str.lower()
    chosen = kinds.str.contains(KINDS[config.images_of])
    by_default = config.images_of == DataConfig().images_of
    if chosen.all() or (by_default and not chosen.any()):
        return found
    counts = kinds.replace("", "not given").value_counts()
    if not chosen.any():
        raise LesionfastError(
            f"no image of {found.table.name} is {config.images_of}; its {column} is: "
            f"{list_first((f'{name} ({count:,})' for name, count in counts.items()), 5)}. Leave "
            "--images-of out, or type --images-of all."
        )
    files = drop_files(found.files, found.rows.loc[~chosen, found.image])
    notes = (*found.notes, *note_pictures(config.images_of, int((~chosen).sum())))
    return replace(found, rows=found.rows[chosen], files=files, notes=notes)


def leave_out_tests(
    found: Dataset, folder: Folder, tables: list[Path], column: str, why: str = "without labels"
) -> Dataset:
    """Return a dataset without the images that only other tables name; noted."""
    for path in tables:
        ids = read_rows(path, column)[column]
        lost = ids[~is_among(ids, found.rows[found.image])]
        files = drop_files(found.files, lost)
        if count := len(found.files) - len(files):
            where = path.relative_to(folder.root)
            images = pluralize(count, "image")
            found = replace(found, files=files).note(f"Left out {images} named in {where} ({why}).")
    return found
