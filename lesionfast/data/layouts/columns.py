"""What columns are called here and elsewhere; the images and the groups that their ids mean."""

import logging
from collections.abc import Sequence
from operator import ne

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionfast.data.columns.values import is_missing
from lesionfast.data.layouts.base import Dataset
from lesionfast.data.sources import drop_copies, name_without_suffix
from lesionfast.errors import LesionfastError, pluralize

logger = logging.getLogger("lesionfast")

USUAL = {  # columns of other data sets, in lower case, and what they are called here
    "age": ("age_approx", "age_years", "age_at_diagnosis", "patient_age"),
    "sex": ("gender", "patient_sex", "patient_gender"),
    "localization": (
        *("localisation", "anatom_site_general", "anatom_site_general_challenge", "anatom_site_1"),
        *("anatomical_site", "anatomic_site", "anatomical_location", "body_site", "body_location"),
    ),
}


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


def find_usual(wanted: str, header: Sequence[str]) -> str | None:
    """Return the column of a table that holds what is wanted, None if none does.

    It is the column of that name, in any case, or of another usual name, such as gender for sex.
    """
    families = [{usual, *others} for usual, others in USUAL.items()]
    family = next((names for names in families if wanted.lower() in names), set())
    known = {name.lower(): name for name in reversed(header)}
    names = [wanted.lower(), *sorted(family)]
    return wanted if wanted in header else next((known[n] for n in names if n in known), None)


def list_renamed(names: dict[str, str]) -> str:
    """Return renamed columns in words: "gender as sex, age_approx as age"."""
    return ", ".join(f"{other} as {usual}" for other, usual in names.items())


def remove_suffixes(image_ids: pd.Series) -> pd.Series:
    """Return image ids without '.jpg' and the like, which some tables have; counted if so."""
    ids = image_ids.tolist()
    bare = list(map(name_without_suffix, ids))
    if not (changed := sum(map(ne, bare, ids))):
        return image_ids
    logger.warning("Removed .jpg or the like from %s", pluralize(changed, "image id"))
    return pd.Series(bare, image_ids.index, dtype="str")


def chain_groups(ids: pd.DataFrame, image_id: pd.Series) -> pd.Series:
    """Return the group of each row: rows that share an id of a column, over any number of steps.

    `ids` has a column for each kind of id, the finest first (the lesion, then the patient). An
    empty or unknown id joins nothing; a row without any is a group of its own, named like its
    image. A group is named by its first id of the last column that it has one of, in alphabetical
    order; a name that two columns have gets the name of the later column before it.
    """
    codes, names, kinds = [], [], []
    for kind, column in enumerate(ids):
        numbers, values = factorize_ids(ids[column])
        start, taken = len(names), set(names)
        codes.append(np.where(numbers < 0, -1, numbers + start))
        names += [f"{column} {value}" if value in taken else value for value in values]
        kinds += [kind] * len(values)
    start = len(names)
    if start == 0:
        return image_id
    nodes = np.concatenate(codes)
    rows = np.tile(np.arange(len(ids)), len(codes))[nodes >= 0] + start
    shape = (start + len(ids),) * 2
    graph = coo_array((np.ones(len(rows), np.int8), (rows, nodes[nodes >= 0])), shape)
    component = connected_components(graph, directed=False)[1]
    found = pd.DataFrame({"of": component[:start], "kind": kinds, "name": names})
    found = found.sort_values(["kind", "name"], ascending=[False, True]).drop_duplicates("of")
    group = pd.Series(component[start:], ids.index).map(found.set_index("of")["name"])
    return group.where(group.notna(), image_id).astype("str")


def factorize_ids(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return the number of each row's id (n,), and the ids; -1 for none: empty, unknown, NA, -."""
    codes, values = pd.factorize(column)
    is_empty = np.array([is_missing(str(value)) for value in values], bool)
    number = np.where(is_empty, -1, np.cumsum(~is_empty) - 1)
    known = [str(value) for value, empty in zip(values, is_empty, strict=True) if not empty]
    return number[codes] if len(values) else codes, known


def find_unique(files: pd.DataFrame) -> pd.DataFrame:
    """Return one file of each stem; copies are counted, and different files raise an error."""
    try:
        unique = drop_copies(files)
    except LesionfastError as error:
        raise LesionfastError(
            f"{error}. Remove one of each, or name the right folder or zip file with --csv FILE "
            "--images DIR."
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
    files = found.files[found.files["stem"].isin(set(ids))]
    return ids.map(find_unique(files).set_index("stem")["path"]).fillna("")
