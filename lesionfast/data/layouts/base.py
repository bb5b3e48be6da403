"""What every layout is built from: the folder that it looks at, and the dataset that it returns."""

import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.columns.names import USUAL, find_usual, list_renamed
from lesionfast.data.formats.members import HIDDEN_PART
from lesionfast.data.layouts.places import leave_out_derived
from lesionfast.data.sources import is_visible, list_images, name_without_suffix
from lesionfast.data.table import EMPTY, TABLE_SUFFIXES, list_columns, open_table
from lesionfast.errors import LesionfastError, list_first, pluralize
from lesionfast.registry import Registry

logger = logging.getLogger("lesionfast")

layouts = Registry("layout", "--layout")
BINARY = {"0": 0, "0.0": 0, "false": 0, "benign": 0, "1": 1, "1.0": 1, "true": 1, "malignant": 1}
UNKNOWN = (*EMPTY, "unknown", "unk")
PACKED = (".csv", ".tsv", ".tab", ".xlsx")  # tables that a zip file of a whole dataset has
SAMPLE_ROWS = 2_000  # of a table, that tell what its columns hold

NO_LESIONS = (
    "No lesion ids: every image counts as a lesion of its own, and leaks between images of one "
    "lesion can't be checked."
)


@dataclass(frozen=True)
class Dataset:
    """A dataset as its layout reads it, nothing left out yet.

    `rows` has one row an image, all text, "" where a value is missing; its index is the number of
    the row in the file `table`, which errors name. `image`, `target` and `groups` are columns of
    it: rows that share a value of a group belong together (the lesion first, then the patient). The
    files are found by a column `path` ("" if there is none), else by their stem in `files` (columns
    stem and path). `leaks` are columns known to give the label away, `split` the column of the
    dataset's own parts (train, valid, test), `renamed` maps columns to the usual names, `source` is
    the name of the layout, `gone` are classes that only left-out rows have, `unlabelled` are paths
    of images that no row has, to be predicted.
    """

    name: str
    table: Path
    rows: pd.DataFrame
    image: str
    target: str
    groups: tuple[str, ...] = ()
    files: pd.DataFrame | None = None
    leaks: tuple[str, ...] = ()
    split: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    gone: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()

    def note(self, text: str) -> "Dataset":
        """Return the dataset with one more sentence for the user."""
        return replace(self, notes=(*self.notes, text))


def rename_usual(found: Dataset, inputs: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows with the usual names of columns that the table has under another one.

    A column that `inputs` names keeps its name.
    """
    kept = {found.image, found.target, *found.groups, *inputs}
    header = [name for name in found.rows if name not in kept]
    names = {other: usual for other, usual in found.renamed.items() if other in header}
    for usual in {*USUAL, *inputs} - {*found.rows, *names.values()}:
        if other := find_usual(usual, [name for name in header if name not in names]):
            names[other] = usual
    if names:
        logger.info("Reading %s", list_renamed(names))
    return found.rows.rename(columns=names)


class Folder:
    """A folder as a person downloaded it, looked through once; nothing is unpacked.

    `files` are the visible files below it, as paths relative to `root` with forward slashes. A zip
    file counts as one file here; the images in it are in `images`. If a file is named in place of a
    folder, it is `only` and there is nothing else.
    """

    def __init__(self, path: Path) -> None:
        self.only = path if path.is_file() else None
        self.root = path.parent if self.only else path

    @property
    def name(self) -> str:
        """The name of the folder, or that of the only file without its suffix."""
        return self.only.stem if self.only else Path(os.path.abspath(self.root)).name

    @cached_property
    def files(self) -> list[str]:
        """Every visible file below the folder, sorted."""
        if self.only:
            return [self.only.name]
        found, seen = [], set()
        for parent, folders, names in os.walk(self.root, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:  # a link to a folder that was searched; it could go round for ever
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(filter(is_visible, folders))
            beneath = os.path.relpath(parent, self.root)
            start = "" if beneath == "." else PurePosixPath(Path(beneath)).as_posix() + "/"
            found += [start + name for name in filter(is_visible, names)]
        return sorted(found)

    def find(self, *suffixes: str) -> list[Path]:
        """Return the files with one of some lower-case suffixes, those near the top first."""
        chosen = [name for name in self.files if name.lower().endswith(suffixes)]
        paths = [self.root / name for name in sorted(chosen, key=lambda name: name.count("/"))]
        # no pipe, which nobody may write to; a link whose target is away is missed aloud
        return [path for path in paths if path.is_file() or not path.exists()]

    @cached_property
    def headers(self) -> dict[Path, list[str]]:
        """The column names of each table, in lower case, tables near the top first.

        Files without a suffix are tables if they are text with a separator in the first line.
        """
        return dict(read_headers(self))

    def tables(self, *columns: str, without: Sequence[str] = ()) -> list[Path]:
        """Return the tables that have all of some columns and none of others, in any case."""
        wanted, unwanted = set(map(str.lower, columns)), set(map(str.lower, without))
        return [
            path
            for path, header in self.headers.items()
            if wanted <= set(header) and not unwanted & set(header)
        ]

    @cached_property
    def packed_tables(self) -> list[str]:
        """The tables in zip files, as "<zip>/<member>"."""
        return [
            f"{path}/{name}"
            for path in self.find(".zip")
            for name in list_zipped(path)
            if name.lower().endswith(PACKED) and not HIDDEN_PART.search(name)
        ]

    @cached_property
    def images(self) -> pd.DataFrame:
        """The images below the folder, those in zip files included: columns path and stem.

        If there are none, they are those in HDF5 files.
        """
        images = list_images(self.only or self.root)
        if images.empty and (packed := self.find(".hdf5", ".h5")):
            images = list_images(packed)
        return leave_out_derived(images, self.root)

    @cached_property
    def samples(self) -> dict[Path, pd.DataFrame]:
        """The first rows of each table, as text; none of one that can't be read."""
        return {path: read_sample(path) for path in self.headers}


def list_zipped(path: Path) -> list[str]:
    """Return the names in a zip file, none if it is broken."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def read_headers(folder: Folder) -> Iterator[tuple[Path, list[str]]]:
    """Yield each table of a folder with its column names in lower case."""
    bare = [folder.root / name for name in folder.files if "." not in name.rsplit("/", 1)[-1]]
    for path in [*folder.find(*TABLE_SUFFIXES), *filter(is_text, bare)]:
        try:
            yield path, [name.lower() for name in open_table(path).header]
        except LesionfastError:
            continue  # a layout that needs it says what is wrong with it


def read_sample(path: Path) -> pd.DataFrame:
    """Return the first rows of a table, none if it can't be read: who needs it says why."""
    try:
        return next(open_table(path).read_chunks(report=False)).head(SAMPLE_ROWS)
    except LesionfastError:
        return pd.DataFrame()


def is_text(path: Path) -> bool:
    """Return whether a file begins with a line of text with several fields."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            line = file.read(4096).split(b"\n")[0].decode()
    except (OSError, UnicodeError):
        return False
    return line.isprintable() or "\t" in line


def read_rows(
    path: Path, *required: str, known: Sequence[str] = (), separator: str | None = None
) -> pd.DataFrame:
    """Return a table as text; its columns get the names asked for, whatever their case.

    Those that are `known` need not be there.
    """
    table = open_table(path, separator)
    found = {name.lower(): name for name in table.header}
    names = [name for name in (*required, *known) if name.lower() in found]
    renamed = {found[name.lower()]: name for name in names}
    table.require({found.get(name.lower(), name): "" for name in required})
    return pd.concat(list(table.read_chunks())).rename(columns=renamed)


def blank_words(rows: pd.DataFrame, *words: str) -> pd.DataFrame:
    """Return rows with "" for what a dataset writes for unknown, in any case."""
    unknown = [word.lower() for word in words]
    return rows.mask(rows.apply(lambda column: column.str.lower().isin(unknown)), "")


def name_classes(
    rows: pd.DataFrame, column: str, table: Path, names: tuple[str, str] = ("benign", "malignant")
) -> pd.Series:
    """Return a column of 0 and 1 (false and true, benign and malignant) as two names, "" if empty.

    Raises `LesionfastError` for anything else.
    """
    words = rows[column].str.lower()
    number = words.map(BINARY)
    wrong = rows.index[number.isna() & ~words.isin(UNKNOWN)]
    if len(wrong):
        raise LesionfastError(
            f"column '{column}' of {table.name} has '{rows.at[wrong[0], column]}' in row "
            f"{wrong[0]}, but it holds 0 for {names[0]} and 1 for {names[1]} "
            f"({pluralize(len(wrong), 'such row')}). Correct them, or name another column with "
            "--target."
        )
    return number.map(dict(enumerate(names))).fillna("").astype("str")


def keep_labelled(found: Dataset, config: DataConfig, advice: str = "") -> Dataset:
    """Return a dataset without the rows that have no label, and without their images; noted.

    The label is what --target names if it names one column. Raises `LesionfastError` if no row has
    one.
    """
    target = config.target if config.target in found.rows else found.target
    empty = found.rows[target].str.lower().isin(UNKNOWN)
    if not empty.any():
        return replace(found, split=keep_split(found, found.rows))
    if empty.all():
        raise LesionfastError(
            f"column '{target}' of {found.table.name} is empty in all {len(empty):,} rows; it has: "
            f"{list_first(found.rows, 30)}. Name the column of the diagnosis with --target."
        )
    count = pluralize(int(empty.sum()), "row")
    lost = found.rows.loc[empty, found.image]
    found = replace(
        found,
        rows=found.rows[~empty],
        files=drop_files(found.files, lost),
        split=keep_split(found, found.rows[~empty]),
    )
    return found.note(f"Left out {count} without a label ({target}).{advice}")


def keep_split(found: Dataset, rows: pd.DataFrame) -> str | None:
    """Return the column of the parts, None if only one part is left."""
    return found.split if found.split and rows[found.split].nunique() > 1 else None


def drop_files(files: pd.DataFrame | None, ids: pd.Series) -> pd.DataFrame | None:
    """Return image files without those of some ids."""
    stems = pd.Series([name_without_suffix(name) for name in ids], dtype="str")
    return None if files is None else files[~is_among(files["stem"], stems)]


def is_among(values: pd.Series, others: pd.Series) -> np.ndarray:
    """Return which values are among others; much faster than `isin` for many."""
    return pd.Index(others.unique()).get_indexer(values) >= 0


def from_one_hot(rows: pd.DataFrame, columns: Sequence[str], table: Path) -> pd.Series:
    """Return the class of each row from columns of 0 and 1, or of false and true; one must be 1.

    Raises `LesionfastError` for a row with none or several, and for what is not a number.
    """
    plain = rows[list(columns)]
    values = {value.lower() for name in columns for value in rows[name].unique()}
    if values == {"false", "true"}:
        plain = plain.apply(lambda column: column.str.lower().map({"false": "0", "true": "1"}))
    numbers = plain.apply(pd.to_numeric, errors="coerce")
    wrong = rows.index[numbers.isna().any(axis=1)]
    if len(wrong):
        column = next(name for name in columns if pd.isna(numbers.at[wrong[0], name]))
        raise LesionfastError(
            f"column '{column}' of {table.name} has '{rows.at[wrong[0], column]}' in row "
            f"{wrong[0]}, but one-hot columns hold 0 and 1. Correct the row, or remove it."
        )
    chosen = numbers.to_numpy() > 0.5
    count = chosen.sum(axis=1)
    if (count != 1).any():
        row = rows.index[count != 1][0]
        names = [name for name, on in zip(columns, chosen[count != 1][0], strict=True) if on]
        raise LesionfastError(
            f"row {row} of {table.name} has {' and '.join(names) or 'none'} of the columns "
            f"{list_columns(columns)} set, but exactly one is needed "
            f"({pluralize(int((count != 1).sum()), 'such row')}). Correct or remove them."
        )
    return pd.Series(np.array(columns, object)[chosen.argmax(axis=1)], rows.index, dtype="str")


def join_tables(
    rows: pd.DataFrame, other: pd.DataFrame, key: str, tables: tuple[Path, Path]
) -> pd.DataFrame:
    """Return rows with the columns of another table beside them, matched by `key`.

    Raises `LesionfastError` if a key is missing in `other`, or occurs there twice.
    """
    twice = other.loc[other[key].duplicated(), key]
    if len(twice):
        raise LesionfastError(
            f"{tables[1].name} has {pluralize(len(twice), 'row')} too many: '{twice.iloc[0]}' "
            f"occurs again in row {twice.index[0]}. Keep one row of each {key}."
        )
    place = pd.Index(other[key]).get_indexer(rows[key])
    if (place < 0).any():
        lost = rows.loc[place < 0, key]
        raise LesionfastError(
            f"{tables[1].name} has no row for {len(lost):,} of {pluralize(len(rows), 'row')} of "
            f"{tables[0].name}; the first is '{lost.iloc[0]}'. Download both files again: they "
            "belong to different versions or one of them is incomplete."
        )
    beside = other.drop(columns=[key, *other.columns.intersection(rows.columns)], errors="ignore")
    return rows.join(beside.iloc[place].set_axis(rows.index))


def note_pictures(images_of: str, left_out: int) -> tuple[str, ...]:
    """Return a sentence on the pictures of another kind that are not used; none if there are none.

    `images_of` is dermoscopic, clinical or all, as typed.
    """
    if not left_out or images_of == "all":
        return ()
    other = "clinical" if images_of == "dermoscopic" else "dermoscopic"
    return (
        f"The {images_of} images are used, {left_out:,} others are not (type --images-of {other} "
        "or --images-of all).",
    )


def list_candidates(folder: Folder) -> str:
    """Return the tables and images of a folder in words, for an error."""
    tables = list_first((path.relative_to(folder.root) for path in folder.headers), 5)
    return f"tables: {tables}; {pluralize(len(folder.images), 'image')}"
