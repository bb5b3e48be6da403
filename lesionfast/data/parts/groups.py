"""Which images stay in one part: those of a lesion, of a patient, or of a pair of duplicates."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionfast.data.columns.values import is_missing


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


def join_groups(df: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Give images that are joined by pairs of image ids, over any number of steps, one group.

    The name of a joined group is the first of its members' in alphabetical order. Pairs with an
    image that is not in the table are ignored.
    """
    codes, names = pd.factorize(df["group"], sort=True)
    code_of_image = pd.Series(codes, df["image_id"].to_numpy())
    ends = pd.DataFrame(list(pairs), columns=["a", "b"]).apply(lambda end: end.map(code_of_image))
    ends = ends.dropna().astype(int)
    graph = coo_array((np.ones(len(ends)), (ends["a"], ends["b"])), (len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    first = pd.Series(names).groupby(component).first()  # names are sorted
    return df.assign(group=first.to_numpy()[component[codes]])
