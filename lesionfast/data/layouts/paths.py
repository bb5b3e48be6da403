"""Which file a name or a path in a table means, and what an image is called by its path."""

import logging
import os
from pathlib import Path

import pandas as pd

from lesionfast.data.formats.members import is_image
from lesionfast.data.layouts.base import Dataset, is_among
from lesionfast.data.sources import (
    content_keys,
    drop_copies,
    image_stem,
    name_without_suffix,
    read_head,
)
from lesionfast.errors import LesionfastError, pluralize

logger = logging.getLogger("lesionfast")

SUFFIX = r"\.\w{1,5}$"


def last_parts(names: pd.Series) -> pd.Series:
    """Return the last parts of names that may be paths, in lower case."""
    return names.str.replace("\\", "/").str.rsplit("/", n=1).str[-1].str.strip().str.lower()


def count_matches(names: pd.Series, stems: set[str]) -> int:
    """Return how many images of these stems, in lower case, the names or paths in a column mean."""
    last = pd.Series(last_parts(names).unique(), dtype="str")
    bare = last.str.replace(SUFFIX, "", regex=True)
    return int(last.where(last.isin(stems), bare[bare.isin(stems)]).nunique())


def match_paths(names: pd.Series, files: pd.DataFrame, root: Path, table: Path) -> pd.Series:
    """Return the path in `files` (of `list_images`) that each name means, "" where there is none.

    A name is a path under `root` or beside the table, or an absolute one, with / or \\, in any
    case, with or without a suffix; of a path that lies elsewhere, such as one on the author's
    machine, the longest end that fits one file counts. A file that several names fit is that of the
    name with the longest such end. Raises `LesionfastError` if a name fits files that differ.
    """
    start = Path(os.path.abspath(root)).as_posix().rstrip("/") + "/"
    known = pd.Series(files["path"].to_numpy(), files["stem"].str.lower(), dtype="str")
    several = known[known.index.duplicated(keep=False)].groupby(level=0).agg(list)
    once = known[~known.index.duplicated()]
    unique = pd.Series(names.unique(), dtype="str")
    last = last_parts(unique)
    stem = last.where(last.isin(known.index), last.str.replace(r"\.[^.]*$", "", regex=True))
    found = stem.map(once).fillna("")
    unclear = stem[stem.isin(several.index)]
    fitting = {unique[i]: fit_best(unique[i], several[key], start) for i, key in unclear.items()}
    check_alike({name: paths for name, paths in fitting.items() if len(paths) > 1}, table)
    found = found.mask(unique.isin(fitting), unique.map({k: v[0] for k, v in fitting.items()}))
    found = found.mask(find_outdone(unique, found, start), "")
    lost = unique[found == ""]
    elsewhere = {name: find_elsewhere(name, table) for name in lost}
    return names.map(dict(zip(unique, found, strict=True)) | elsewhere).astype("str")


def check_alike(fitting: dict[str, list[str]], table: Path) -> None:
    """Raise `LesionfastError` unless the files that each name fits have the same content."""
    paths = sorted({path for several in fitting.values() for path in several})
    keys = dict(zip(paths, content_keys(paths), strict=True))
    for name, several in fitting.items():
        other = next((path for path in several if keys[path] != keys[several[0]]), None)
        if other:
            raise LesionfastError(
                f"two different images fit '{name}' in {table.name}: {several[0]} and {other}. "
                "Remove one of them, or write the folder before the name in the table."
            )


def fit_best(name: str, paths: list[str], start: str) -> list[str]:
    """Return the paths, seen from the folder `start`, whose ends fit a name best."""
    ends = [count_common(name, path.removeprefix(start)) for path in paths]
    return [path for path, end in zip(paths, ends, strict=True) if end == max(ends)]


def find_outdone(names: pd.Series, found: pd.Series, start: str) -> pd.Series:
    """Return which names fit the file found for them worse than another name fits it."""
    shared = found[(found != "") & found.duplicated(keep=False)]
    fit = pd.Series(
        [count_common(names[i], path.removeprefix(start)) for i, path in shared.items()],
        shared.index,
        dtype=float,
    )
    outdone = fit < fit.groupby(shared).transform("max")
    return outdone.reindex(found.index, fill_value=False)


def count_common(name: str, path: str) -> float:
    """Return how many folders at the end of two paths agree; the same suffix counts a half.

    The name of a table may have \\ for / and letters in another case; the same case counts a
    quarter.
    """
    name = name.strip().replace("\\", "/")
    same_case = (image_stem(name) == image_stem(path)) / 4
    name, path = name.lower(), path.lower()
    pairs = zip(reversed(name.split("/")[:-1]), reversed(path.split("/")[:-1]), strict=False)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count + (name.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]) / 2 + same_case


def find_elsewhere(name: str, table: Path) -> str:
    """Return the image of a path that leads out of the folder, as seen from its table; else ""."""
    if "/" not in name:
        return ""
    path = Path(os.path.abspath(table.parent / os.path.expanduser(name))).as_posix()
    return path if os.path.isfile(path) and is_image(path, read_head) else ""


def name_by_path(paths: pd.Series) -> pd.Series:
    """Return an image id for each path: its stem, or the path with - for / where that recurs.

    Of the path, what all have in common is left out.
    """
    if paths.empty:
        return paths
    stems = paths.map(image_stem)
    unique = paths.drop_duplicates()
    recurs = stems.isin(stems[unique.index][stems[unique.index].duplicated()])
    parents = paths.str.rpartition("/")[0].str.lstrip("/")
    shared = os.path.commonpath([f"/{parent}" for parent in parents.unique()])[1:]
    start = len(shared) + 1 if shared else 0
    long = (parents + "/").str[start:].str.replace("/", "-") + stems
    return stems.mask(recurs, long).str.replace(r"\.{2,}", "_", regex=True)


def find_unique(files: pd.DataFrame) -> pd.DataFrame:
    """Return one file of each stem; copies are counted, and different files raise an error."""
    try:
        unique = drop_copies(files)
    except LesionfastError as error:
        raise LesionfastError(
            f"{error}. Remove one of each, or name the right folder or file of images with "
            "--csv FILE --images DIR."
        ) from None
    if len(unique) < len(files):
        copied = unique["stem"].isin(files["stem"][files["stem"].duplicated()])
        logger.warning(
            "Ignored %s with the name and the content of another, such as those of %s",
            pluralize(len(files) - len(unique), "image file"), unique.loc[copied, "path"].iloc[0],
        )  # fmt: skip
    return unique


def locate_images(found: Dataset) -> pd.Series:
    """Return the path of each row's image, "" where there is none."""
    if found.files is None:
        return found.rows["path"]
    ids = found.rows[found.image].map(name_without_suffix)
    files = found.files[is_among(found.files["stem"], ids)]
    return ids.map(find_unique(files).set_index("stem")["path"]).fillna("")
