"""Images of the ISIC Archive, as its gallery or the command `isic` downloads them."""

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import UNKNOWN, Dataset, Folder, keep_labelled, layouts, read_rows
from lesionfast.data.layouts.isic import (
    FIELDS,
    choose_pictures,
    distinct_tables,
    find_leaks,
    stack_rows,
)
from lesionfast.errors import LesionfastError, list_first

LABELS = (  # the most specific first that most images have
    *("diagnosis_3", "diagnosis", "diagnosis_2", "diagnosis_1", "diagnosis_4", "diagnosis_5"),
    "benign_malignant",
)


@layouts.register("isic_archive")
def isic_archive(folder: Folder, config: DataConfig) -> Dataset | None:
    """ISIC Archive (its gallery or the isic command): metadata.csv with diagnosis_1 to 5."""
    tables = {path: None for name in LABELS for path in folder.tables("isic_id", name)}
    if not tables or folder.tables("lesion_id", "MEL", "NV"):  # that is MILK10k
        return None
    chosen = distinct_tables(folder, list(tables), "isic_id")
    rows = stack_rows([read_rows(path, "isic_id", known=FIELDS) for path in chosen])
    target = choose_label(rows, config, chosen[0].name)
    found = Dataset(
        name="the ISIC Archive",
        table=chosen[0],
        rows=rows,
        image="isic_id",
        target=target,
        groups=tuple(name for name in ("lesion_id", "patient_id") if name in rows),
        files=folder.images,
        leaks=find_leaks(rows, target),
    )
    return keep_labelled(choose_pictures(found, "image_type", config), config, advise(rows, target))


def choose_label(rows: pd.DataFrame, config: DataConfig, table: str) -> str:
    """Return --target, else the first column of `LABELS` that has values.

    Raises `LesionfastError` if none has.
    """
    if config.target in rows:
        return str(config.target)
    named = [name for name in LABELS if name in rows]
    labels = [name for name in named if not rows[name].str.lower().isin(UNKNOWN).all()]
    if not labels:
        raise LesionfastError(
            f"no image of {table} has a diagnosis: {', '.join(named)} is empty in all rows. It "
            f"has: {list_first(rows, 30)}. Name the column of the class with --target."
        )
    return labels[0]


def advise(rows: pd.DataFrame, target: str) -> str:
    """Return which other column has a label for more images, as a sentence after a space."""
    count = {
        name: int((~rows[name].str.lower().isin(UNKNOWN)).sum()) for name in LABELS if name in rows
    }
    best = max(count, key=lambda name: count[name], default=target)
    if count.get(best, 0) <= count.get(target, len(rows)):
        return ""
    classes = rows.loc[~rows[best].str.lower().isin(UNKNOWN), best].nunique()
    return f" --target {best} has {classes} classes and {count[best]:,} rows with a label."
