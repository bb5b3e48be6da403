"""BCN20000 (Hernández-Pérez et al. 2024, doi:10.1038/s41597-024-03387-w) as on figshare."""

from dataclasses import replace

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    Dataset,
    Folder,
    keep_labelled,
    layouts,
    read_rows,
)
from lesionfast.data.layouts.isic import FIELDS, distinct_tables, find_leaks, stack_rows
from lesionfast.data.layouts.places import PART_NAMES
from lesionfast.data.sources import name_without_suffix
from lesionfast.errors import LesionfastError, list_first


@layouts.register("bcn20000")
def bcn20000(folder: Folder, config: DataConfig) -> Dataset | None:
    """BCN20000: bcn_20k_train.csv (bcn_filename, diagnosis, lesion_id) beside its images."""
    tables = folder.tables("bcn_filename")
    if not tables:
        return None
    chosen = distinct_tables(folder, tables, "bcn_filename")
    read = {path: read_rows(path, "bcn_filename", known=FIELDS) for path in chosen}
    chosen.sort(key=lambda path: -count_diagnoses(read[path]))
    rows = stack_rows([read[path] for path in chosen])
    if not {"diagnosis", config.target} & {*rows}:
        raise LesionfastError(
            f"the tables of BCN20000 in {folder.root} have no column 'diagnosis': "
            f"{list_first(path.name for path in chosen)} has {list_first(rows, 30)}. Put "
            "bcn_20k_train.csv there."
        )
    rows = rows.assign(bcn_filename=rows["bcn_filename"].map(name_without_suffix))
    if "split" in rows and not rows["split"].str.lower().isin(PART_NAMES).all():
        rows = rows.drop(columns="split")
    found = Dataset(
        name="BCN20000",
        table=chosen[0],
        rows=rows,
        image="bcn_filename",
        target="diagnosis",
        groups=("lesion_id",) if "lesion_id" in rows else (),
        files=folder.images,
        leaks=find_leaks(rows, "diagnosis"),
        split="split" if "split" in rows else None,
    )
    found = keep_labelled(found, config)
    if found.split is None:
        found = replace(found, rows=found.rows.drop(columns="split", errors="ignore"))
    return found


def count_diagnoses(rows: pd.DataFrame) -> int:
    """Return how many rows have a diagnosis."""
    return int((rows["diagnosis"] != "").sum()) if "diagnosis" in rows else 0
