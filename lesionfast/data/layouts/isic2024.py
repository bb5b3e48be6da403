"""ISIC 2024, SLICE-3D (Kurtansky et al. 2024, doi:10.1038/s41597-024-03743-w): tiles of bodies."""

import logging
from copy import copy
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    UNKNOWN,
    Dataset,
    Folder,
    is_among,
    join_tables,
    keep_labelled,
    layouts,
    list_candidates,
    name_classes,
    read_rows,
)
from lesionfast.data.layouts.isic import FIELDS, find_leaks, leave_out_tests
from lesionfast.data.layouts.tables import choose_table
from lesionfast.data.sources import list_images
from lesionfast.errors import LesionfastError, pluralize

logger = logging.getLogger("lesionfast")

LABELS = ("target", "malignant")
KEYS = ("isic_id", "patient_id")
OWN = ("tbp_", "iddx_")  # columns that no other dataset has


@layouts.register("isic2024")
def isic2024(folder: Folder, config: DataConfig) -> Dataset | None:
    """ISIC 2024 (SLICE-3D): benign or malignant, JPEG files or one HDF5 file, with patients."""
    tables = [path for path in folder.tables(*KEYS) if has_own_columns(folder, path)]
    if not tables:
        return None
    folder = open_stores(folder)
    labelled = [path for path in tables if set(LABELS) & set(folder.headers[path])]
    table = choose_table(folder, labelled or tables, "isic_id")
    rows = read_rows(table, *KEYS, known=FIELDS)
    if not labelled:
        rows = add_truth(rows, folder, table)
    for path in folder.tables("isic_id", "lesion_id", without=["patient_id", *LABELS]):
        supplement = read_rows(path, "isic_id", known=FIELDS)
        rows = join_tables(rows, supplement, "isic_id", (table, path))
    label = next(name for name in LABELS if name in rows)
    rows = rows.assign(target=name_classes(rows, label, table))
    rows = rows.drop(columns="malignant", errors="ignore")
    found = Dataset(
        name="ISIC 2024",
        table=table,
        rows=rows,
        image="isic_id",
        target="target",
        groups=tuple(name for name in ("lesion_id", "patient_id") if name in rows),
        files=folder.images,
        leaks=find_leaks(rows, "target"),
    )
    tests = [path for path in tables if path not in labelled and path != table]
    return leave_out_tests(keep_labelled(found, config), folder, tests, "isic_id")


def has_own_columns(folder: Folder, table: Path) -> bool:
    """Return whether a table has columns of ISIC 2024 alone."""
    return any(name.startswith(OWN) for name in folder.headers[table])


def add_truth(rows: pd.DataFrame, folder: Folder, table: Path) -> pd.DataFrame:
    """Return rows with the target of another table, as the ISIC's own download has it.

    Raises `LesionfastError` if there is none; a sample submission, all of one value, is none.
    """
    for label in LABELS:
        for path in folder.tables("isic_id", label, without=["patient_id"]):
            truth = read_rows(path, "isic_id", label)[["isic_id", label]]
            if truth.loc[~truth[label].isin(UNKNOWN), label].nunique() > 1:
                return join_tables(rows, truth, "isic_id", (table, path))
    raise LesionfastError(
        f"the tables of ISIC 2024 in {folder.root} have no labels: {table.name} has no column "
        f"'target', and no table beside it has one with several values. There are "
        f"{list_candidates(folder)}. Put train-metadata.csv there."
    )


def open_stores(folder: Folder) -> Folder:
    """Return a folder with the images in its HDF5 files too, those of the same name once."""
    stores = folder.find(".hdf5", ".h5")
    if not stores:
        return folder
    stored, opened = list_images(stores), copy(folder)
    others = folder.images[~is_among(folder.images["stem"], stored["stem"])]
    if count := len(folder.images) - len(others):
        logger.info("Ignored %s that an HDF5 file holds too", pluralize(count, "image file"))
    opened.images = pd.concat([stored, others], ignore_index=True)
    return opened
