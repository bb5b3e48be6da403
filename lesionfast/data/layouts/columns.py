"""What columns are called here and elsewhere; the images and the groups that their ids mean."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionfast.data.layouts.base import Dataset
from lesionfast.data.sources import drop_copies, name_without_suffix
from lesionfast.data.table import EMPTY
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
    bare = pd.Series([name_without_suffix(name) for name in image_ids], image_ids.index, "str")
    if changed := int((bare != image_ids).sum()):
        logger.warning("Removed .jpg or the like from %s", pluralize(changed, "image id"))
    return bare if changed else image_ids


def chain_groups(ids: pd.DataFrame, image_id: pd.Series) -> pd.Series:
    """Return the group of each row: rows that share an id of a column, over any number of steps.

    `ids` has a column for each kind of id, the finest first (the lesion, then the patient). An
    empty id joins nothing; a row without any is a group of its own, named like its image. A group
    is named by its first id of the last column, in alphabetical order.
    """
    ids = ids.mask(ids.apply(lambda column: column.str.lower().isin(EMPTY)), "")
    columns = [ids[name] for name in ids if (ids[name] != "").any()]
    if not columns:
        return image_id
    if len(columns) == 1:
        return columns[0].mask(columns[0] == "", image_id)
    nodes, start = [], 0
    for column in columns:
        codes, values = pd.factorize(column.where(column != ""), use_na_sentinel=True)
        nodes.append(np.where(codes < 0, -1, codes + start))
        start += len(values)
    rows = np.arange(len(ids)) + start
    ends = np.concatenate([np.stack([rows, node])[:, node >= 0] for node in nodes], axis=1)
    graph = coo_array((np.ones(ends.shape[1]), ends), (start + len(ids),) * 2)
    component = connected_components(graph, directed=False)[1][start:]
    named = columns[-1]
    for column in reversed(columns[:-1]):
        spare = column.where(~column.isin(columns[-1]), str(column.name) + " " + column)
        named = named.mask(named == "", spare.mask(column == "", ""))
    named = named.mask(named == "", image_id)
    rank = pd.Series((~(columns[-1] != "")).astype(int), ids.index)
    best = pd.DataFrame({"component": component, "rank": rank, "name": named})
    first = best.sort_values(["rank", "name"]).drop_duplicates("component")
    names = first.set_index("component")["name"]
    return pd.Series(names.loc[component].to_numpy(), ids.index, dtype="str")


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
