"""Several datasets as one: images that occur in more than one of them once, groups joined."""

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.columns.labels import fold, read_map
from lesionfast.data.columns.values import MISSING
from lesionfast.data.layouts.base import Dataset, rename_usual
from lesionfast.data.layouts.copies import find_content
from lesionfast.data.layouts.paths import locate_images
from lesionfast.data.parts.groups import chain_groups
from lesionfast.data.sources import name_without_suffix
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")

ARCHIVE = re.compile(r"(ISIC_\d{7})(_downsampled)?", re.IGNORECASE)  # ids of the ISIC archive
ARCHIVE_IDS = r"[A-Z]+\d*_\d{7}"  # of lesions and patients there, such as HAM_0000118
IDS = {"lesion": "lesion_id", "patient": "patient_id"}


def join_datasets(parts: Sequence[Dataset], config: DataConfig) -> Dataset:
    """Return several datasets as one, with a column `source` that names where a row is from.

    An image that occurs in several (the same id of the ISIC archive, or the same bytes) is taken
    once, from the first of them, and its lesions there are one group. Ids of lesions and patients
    hold across datasets if they are those of the ISIC archive, such as HAM_0000118. A split that
    one of them has is not used. Raises `LesionfastError` for one without images.
    """
    sources = name_sources(parts)
    rows = pd.concat([read_part(part, name) for part, name in zip(parts, sources, strict=True)])
    rows = rows.fillna("").reset_index(drop=True)
    rows.index += 2
    rows["target"], labels = spell_alike(rows["target"]), set(rows["target"])
    rows["same"] = find_same(rows)
    groups = rows[["lesion_id", "patient_id", "same"]]
    rows["group_id"] = chain_groups(groups, rows["image_id"])
    first = rows.groupby("same")["source"].transform("first")
    again = rows["source"] != first  # copies within a dataset stay, in one group
    report_same(rows, again, read_map(config.map) if config.map else {})
    rows = rows[~again].drop(columns=["same", "lesion_id", "patient_id"])
    twice = rows["image_id"].duplicated(keep=False)
    rows["image_id"] = rows["image_id"].mask(twice, rows["source"] + "-" + rows["image_id"])
    return Dataset(
        name=" and ".join(dict.fromkeys(part.name for part in parts)),
        table=Path("the joined table"),
        rows=rows,
        image="image_id",
        target="target",
        groups=("group_id",),
        leaks=tuple({leak for part in parts for leak in (*part.leaks, part.target)}),
        notes=tuple(note for part in parts for note in part.notes),
        gone=tuple(sorted(labels - set(rows["target"]))),
    )


def name_sources(parts: Sequence[Dataset]) -> list[str]:
    """Return the value of the column `source` for each dataset: its layout, else its folder."""
    count = Counter(part.source for part in parts)
    names = [
        part.source
        if count[part.source] == 1 and part.source
        else Path(os.path.abspath(part.table)).parent.name
        for part in parts
    ]
    return [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def read_part(part: Dataset, source: str) -> pd.DataFrame:
    """Return the rows of a dataset that have an image, with the columns that all of them share."""
    path = locate_images(part)
    if lost := int((path == "").sum()):
        logger.warning("Left out %s of %s without an image", pluralize(lost, "row"), source)
    if lost == len(path):
        raise LesionfastError(
            f"none of the {pluralize(lost, 'image')} of {part.table.name} was found. The first is "
            f"'{part.rows[part.image].iloc[0]}'. Type the folder that holds them with --data."
        )
    rows = rename_usual(part, [part.target, part.image])
    keys = {"source": source, "path": path, "target": rows[part.target]}
    keys["image_id"] = rows[part.image].map(name_without_suffix)
    for kind, name in IDS.items():
        columns = [column for column in part.groups if is_kind(column, kind)]
        none = pd.Series("", rows.index, dtype="str")
        keys[name] = make_global(chain_groups(rows[columns], none), source)
    repeated = keys["image_id"][keys["image_id"].duplicated()]
    if len(repeated):
        raise LesionfastError(
            f"{part.table.name} repeats {pluralize(len(repeated), 'image id')}; the first is "
            f"'{repeated.iloc[0]}'. Keep one row per image."
        )
    used = [part.image, part.target, part.split, *part.groups, *keys]
    others = rows[[name for name in rows if name not in used]]
    return pd.DataFrame(keys, rows.index).join(others)[path != ""]


def spell_alike(target: pd.Series) -> pd.Series:
    """Return class names in the spelling of the first dataset that has them: MEL is mel."""
    first: dict[str, str] = {}
    names = {name: first.setdefault(fold(name), name) for name in target.unique()}
    changed = [f"{old} as {new}" for old, new in names.items() if old != new]
    if changed:
        logger.info("Reading classes of later datasets: %s", list_first(changed, 10))
    return target.map(names)


def is_kind(column: str, kind: str) -> bool:
    """Return whether a column of groups holds patients; whatever else there is are lesions."""
    is_patient = any(word in column.lower() for word in ("patient", "subject", "person", "pat_id"))
    return is_patient == (kind == "patient")


def make_global(ids: pd.Series, source: str) -> pd.Series:
    """Return ids that mean the same in every dataset: those of another archive get its name."""
    known = ids.str.fullmatch(ARCHIVE_IDS) | ids.str.lower().isin(MISSING)
    return ids.where(known, f"{source} " + ids)


def find_same(rows: pd.DataFrame) -> pd.Series:
    """Return a name for each image that is the same for all its occurrences.

    They have one id of the ISIC archive, or the same bytes.
    """
    match = rows["image_id"].str.extract(ARCHIVE)[0].str.upper()
    whole = rows["image_id"].str.fullmatch(ARCHIVE)
    ids = match.where(whole, "")
    content = find_content(rows["path"].tolist()).set_axis(rows.index)
    return chain_groups(pd.DataFrame({"content": content, "id": ids}), content)


def report_same(rows: pd.DataFrame, again: pd.Series, renamed: Mapping[str, str]) -> None:
    """Count the images that occur again, and those whose label differs there once `renamed`."""
    if not again.any():
        return
    first = rows[~again].drop_duplicates("same").set_index("same")
    others = rows[again]
    logger.warning(
        "%s of a later dataset are in an earlier one already, and are used once, such as %s",
        pluralize(len(others), "image"), list_first(others["image_id"], 1),
    )  # fmt: skip
    before = first["target"].loc[others["same"]].set_axis(others.index)
    names = {fold(old): fold(new) for old, new in renamed.items()}
    labels = [column.map(fold).replace(names) for column in (before, others["target"])]
    torn = others[labels[0] != labels[1]]
    if len(torn):
        pairs = [
            f"{row.image_id} ({first.at[row.same, 'target']}, then {row.target})"
            for row in torn.head(3).itertuples()
        ]
        logger.warning(
            "%s of these have another label in the later dataset, which is not used: %s. If it "
            "means the same, give both one name with --map",
            f"{len(torn):,}", ", ".join(pairs),
        )  # fmt: skip
