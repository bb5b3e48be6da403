"""derm7pt (Kawahara et al. 2018, doi:10.1109/JBHI.2018.2824327): two pictures of each case."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    UNKNOWN,
    Dataset,
    Folder,
    drop_files,
    keep_labelled,
    layouts,
    note_pictures,
    read_rows,
)
from lesionfast.data.layouts.places import find_part
from lesionfast.data.layouts.tables import choose_table
from lesionfast.data.sources import name_without_suffix
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")

GROUPS = {  # of the paper, each with the names in meta.csv, or parts of them
    "MEL": ("melanoma",),
    "NEV": ("nevus", "naevus"),
    "BCC": ("basal cell carcinoma",),
    "SK": ("seborrheic keratosis",),
    "MISC": ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion"),
}
PARTS = ("train", "valid", "test")
KINDS = {"derm": "dermoscopic", "clinic": "clinical"}
FIELDS = (
    *("case_num", "case_id", "seven_point_score", "pigment_network", "streaks", "pigmentation"),
    *("regression_structures", "dots_and_globules", "blue_whitish_veil", "vascular_structures"),
    *("level_of_diagnostic_difficulty", "elevation", "location", "sex", "management", "notes"),
)
AGAIN = "Download the index files again, or remove all three: another split is drawn then."


@layouts.register("derm7pt")
def derm7pt(folder: Folder, config: DataConfig) -> Dataset | None:
    """derm7pt: meta.csv with a dermoscopic and a clinical path a case, split by row numbers."""
    tables = find_tables(folder)
    if not tables:
        return None
    table = choose_table(folder, tables, "derm")
    kinds = [name for name, kind in KINDS.items() if config.images_of in (kind, "all")]
    required = [*kinds, *([] if config.target else ["diagnosis"])]
    cases = read_rows(table, *required, known=(*KINDS, "diagnosis", *FIELDS))
    others = {name: "" for name in (*KINDS, "diagnosis") if name not in cases}
    cases = cases.assign(**others)
    cases, split = add_split(cases, table, folder, config)
    cases = cases.assign(
        case_id=name_cases(cases), diagnosis_group=group_names(cases, table, config)
    )
    pictures = list_pictures(cases)
    rows = choose_pictures(pictures, config)
    named = pictures.loc[pictures["file"] != "", "image"]
    unused = named[~named.isin(rows["image"])]
    found = Dataset(
        name="derm7pt",
        table=table,
        rows=rows.drop(columns=[*KINDS, "file"]),
        image="image",
        target="diagnosis_group",
        groups=("case_id",),
        files=drop_files(match_files(pictures, folder.images), unused),
        leaks=("diagnosis", "diagnosis_group", "management", "level_of_diagnostic_difficulty"),
        split=split,
        renamed={"location": "localization"},
        notes=note_pictures(config.images_of, unused.nunique()),
    )
    if bare := len(cases) - rows["case_id"].nunique():
        found = found.note(f"Left out {pluralize(bare, 'case')} without such an image.")
    if not config.target:
        found = found.note(
            "The diagnoses count as five groups, as in the paper (type --target diagnosis for "
            "their names)."
        )
    return keep_labelled(found, config)


def find_tables(folder: Folder) -> list[Path]:
    """Return the tables of cases; raises `LesionfastError` if there are index files alone."""
    found = folder.tables("derm", "clinic", "diagnosis") or folder.tables("derm", "clinic")
    found = found or folder.tables("seven_point_score", "diagnosis")
    indexes = [path for path in folder.tables("indexes") if find_part(path.name)]
    if len(indexes) > 1 and not found:
        raise LesionfastError(
            "this looks like derm7pt, but its table of cases (diagnosis, derm, clinic) is missing. "
            f"{folder.root} has {list_first((path.name for path in folder.headers), 5)}. Put "
            "meta.csv beside them."
        )
    return found


def name_cases(cases: pd.DataFrame) -> pd.Series:
    """Return the id of each case; the release fills case_id for a few only, case_num for all."""
    number = cases.get("case_num", pd.Series("", cases.index))
    number = number.mask(number == "", cases.index.astype(str))
    given = cases.get("case_id", pd.Series("", cases.index))
    return given.mask(given.str.lower().isin(UNKNOWN), "case " + number)


def group_names(cases: pd.DataFrame, table: Path, config: DataConfig) -> pd.Series:
    """Return the group of each diagnosis in the paper, "" if it is empty.

    Raises `LesionfastError` for a name in none of them, unless --target names another column.
    """
    parts = [(part, group) for group, names in GROUPS.items() for part in names]

    def find_group(name: str) -> str | None:
        if name in GROUPS or name.lower() in UNKNOWN:
            return name if name in GROUPS else ""
        return next((group for part, group in parts if part in name.lower()), None)

    group = cases["diagnosis"].map({name: find_group(name) for name in cases["diagnosis"].unique()})
    lost = cases.index[group.isna()]
    if len(lost) and not config.target:
        raise LesionfastError(
            f"column 'diagnosis' of {table.name} has '{cases.at[lost[0], 'diagnosis']}' in row "
            f"{lost[0]}, which is in none of the groups {', '.join(GROUPS)} "
            f"({pluralize(len(lost), 'such row')}). Correct it, or type --target diagnosis for the "
            "names as they are."
        )
    return group.fillna("").astype("str")


def add_split(
    cases: pd.DataFrame, table: Path, folder: Folder, config: DataConfig
) -> tuple[pd.DataFrame, str | None]:
    """Return the cases with the column of their part, and its name; None if there is no split.

    The files of row numbers count from 0. Raises `LesionfastError` if one of the three is missing,
    if a number is no row, and unless each case is in one part.
    """
    found = {find_part(path.name): path for path in reversed(folder.tables("indexes"))}
    if not found or getattr(config, "split", None):
        return cases, None
    if missing := [part for part in PARTS if part not in found]:
        raise LesionfastError(
            f"the split of derm7pt needs {', '.join(f'{part}_indexes.csv' for part in PARTS)}, but "
            f"there is none for {' and '.join(missing)} beside "
            f"{list_first(path.name for path in found.values())}. {AGAIN}"
        )
    numbers = pd.concat({part: read_indexes(found[part], len(cases), table) for part in PARTS})
    twice, absent = numbers[numbers.duplicated()], set(range(len(cases))) - set(numbers)
    if len(twice) or absent:
        number, what = (twice.iloc[0], "several parts") if len(twice) else (min(absent), "no part")
        raise LesionfastError(
            f"the index files of derm7pt do not fit {table.name}, which has "
            f"{pluralize(len(cases), 'case')}: row number {number} is in {what} "
            f"({len(twice) or len(absent):,} such). {AGAIN}"
        )
    part = pd.Series(numbers.index.get_level_values(0), numbers.to_numpy()).sort_index()
    return cases.assign(part=part.to_numpy()), "part"


def read_indexes(path: Path, count: int, table: Path) -> pd.Series:
    """Return the row numbers in a file; raises `LesionfastError` for what is none of the table."""
    text = read_rows(path, "indexes")["indexes"]
    numbers = pd.to_numeric(text, errors="coerce")
    wrong = text[~numbers.isin(range(count))]
    if len(wrong):
        raise LesionfastError(
            f"{path.name} has '{wrong.iloc[0]}' in row {wrong.index[0]}, but {table.name} has "
            f"{pluralize(count, 'case')}, numbered from 0 to {count - 1}. {AGAIN}"
        )
    return numbers.astype(int)


def list_pictures(cases: pd.DataFrame) -> pd.DataFrame:
    """Return two rows a case: `file` as in the table, `image_type`, and the id `image`.

    The id is the name of the file, or all of its path where names occur in several folders. Row
    numbers of the second half say which picture they are.
    """
    halves = [cases.assign(file=cases[name], image_type=kind) for name, kind in KINDS.items()]
    halves[1].index = [f"{number} (clinic)" for number in cases.index]
    rows = pd.concat(halves)
    file = rows["file"].str.replace("\\", "/").str.removeprefix("./").str.strip("/")
    bare = file.map(name_without_suffix)
    stem = bare.str.rsplit("/", n=1).str[-1]
    folders = bare.str.lower().groupby(stem.str.lower()).nunique()
    alone = stem.str.lower().map(folders).le(1).all()
    return rows.assign(file=bare, image=stem if alone else bare.str.replace("/", "_"))


def choose_pictures(pictures: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return the rows of the pictures that --images-of names, a file of both kinds once."""
    kinds = KINDS.values() if config.images_of == "all" else [config.images_of]
    rows = pictures[pictures["image_type"].isin(kinds) & (pictures["file"] != "")]
    return rows[~rows.duplicated(["image", "case_id"])]


def match_files(pictures: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """Return image files, those that a row names with its `image` as stem.

    The longest end of a path that fits counts, in any case and with any suffix.
    """
    rows = pictures[pictures["file"] != ""].drop_duplicates("image")
    names = rows["file"].str.lower().str.split("/").map(tuple)
    wanted = dict(zip(names, rows["image"], strict=True))
    paths = [tuple(name_without_suffix(path).lower().split("/")) for path in files["path"]]
    stems = pd.Series(np.nan, files.index, dtype=object)
    for depth in range(max(map(len, wanted), default=0), 0, -1):
        count = Counter(name[-depth:] for name in wanted)
        ends = {
            name[-depth:]: image
            for name, image in wanted.items()
            if len(name) >= depth and count[name[-depth:]] == 1
        }
        found = pd.Series([ends.get(path[-depth:]) for path in paths], files.index, dtype=object)
        stems = stems.where(stems.notna(), found)
        done = set(found)
        wanted = {name: image for name, image in wanted.items() if image not in done}
    return files.assign(stem=stems.where(stems.notna(), files["stem"]).astype("str"))
