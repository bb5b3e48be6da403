"""Fitzpatrick17k (Groh et al. 2021, arXiv:2104.09957): clinical pictures linked on the web."""

import logging
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    UNKNOWN,
    Dataset,
    Folder,
    blank_words,
    keep_labelled,
    layouts,
    read_rows,
)
from lesionfast.data.layouts.tables import choose_table
from lesionfast.data.sources import name_without_suffix
from lesionfast.data.table import list_columns
from lesionfast.errors import LesionfastError, pluralize

logger = logging.getLogger("lesionfast")

LABELS = ("label", "nine_partition_label", "three_partition_label")  # the finest first
SCALES = ("fitzpatrick_scale", "fitzpatrick_centaur")
NAMES = ("md5hash", "url_alphanum")  # how files of the download are named
TOLD = ("qc", "url")  # checked by a dermatologist, and where the picture was
FEWEST = 20  # images of a class: of fewer, a test set of 15 % has less than three


@layouts.register("fitzpatrick17k")
def fitzpatrick17k(folder: Folder, config: DataConfig) -> Dataset | None:
    """Fitzpatrick17k: fitzpatrick17k.csv with three kinds of labels, files named by md5hash."""
    tables = folder.tables("md5hash")
    if not tables:
        return None
    labelled = [path for path in tables if {*LABELS} & {*folder.headers[path]}]
    table = choose_table(folder, labelled or tables, "md5hash")
    rows = read_rows(table, "md5hash", known=(*LABELS, *SCALES, *TOLD, "url_alphanum"))
    image = find_names(rows, folder)
    rows = rows.assign(**{image: [name_without_suffix(name) for name in rows[image]]})
    rows = blank_scales(rows, table)
    target, note = choose_label(rows, image, folder, table, config)
    found = Dataset(
        name="Fitzpatrick17k",
        table=table,
        rows=rows,
        image=image,
        target=target,
        files=folder.images,
        leaks=(*LABELS, *TOLD, *(name for name in NAMES if name != image)),
        notes=tuple(filter(None, [note, note_wrong(rows)])),
    )
    return keep_labelled(found, config)


def find_names(rows: pd.DataFrame, folder: Folder) -> str:
    """Return the column that files are named by, of the usual ones."""
    stems = set(folder.images["stem"])
    counts = {name: rows[name].map(name_without_suffix).isin(stems).sum()
              for name in NAMES if name in rows}  # fmt: skip
    return max(counts, key=lambda name: counts[name])


def blank_scales(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return rows with "" for -1, which stands for an unknown skin type; counted in the log."""
    names = [name for name in SCALES if name in rows]
    for name in names:
        if count := int(rows[name].isin(["-1", "-1.0"]).sum()):
            logger.info(
                "%s of %s is -1, unknown, for %s", name, table.name, pluralize(count, "image")
            )
    return rows.assign(**blank_words(rows[names], "-1", "-1.0")) if names else rows


def choose_label(
    rows: pd.DataFrame, image: str, folder: Folder, table: Path, config: DataConfig
) -> tuple[str, str]:
    """Return the finest label with enough images of each class, and a sentence that says so.

    Only rows with an image count. If no label has enough, it is the one with the fewest classes.
    Raises `LesionfastError` if there is none.
    """
    there = [name for name in LABELS if name in rows]
    if config.target:
        return (there or [image])[0], ""
    if not there:
        raise LesionfastError(
            f"{table.name} has none of the labels of Fitzpatrick17k ({', '.join(LABELS)}); it has: "
            f"{list_columns(list(rows))}. Name the column of the diagnosis with --target."
        )
    found = rows[rows[image].isin(folder.images["stem"])]
    counts = {name: found[name][~found[name].str.lower().isin(UNKNOWN)].value_counts()
              for name in there}  # fmt: skip
    chosen = next((name for name in there if counts[name].min() >= FEWEST), there[-1])
    if chosen != there[0]:
        few, finest = (counts[there[0]] < FEWEST).sum(), there[0]
        return chosen, (
            f"Its classes are those of {chosen}: of the {len(counts[finest]):,} of {finest}, "
            f"{few:,} have fewer than {FEWEST} images (type --target {finest} for them)."
        )
    return (
        chosen,
        f"Its classes are those of {chosen} (type --target {there[-1]} for the coarsest).",
    )


def note_wrong(rows: pd.DataFrame) -> str:
    """Return a sentence on the images whose label a dermatologist called wrong, "" if none."""
    wrong = rows["qc"].str.contains("wrong", case=False).sum() if "qc" in rows else 0
    images = pluralize(int(wrong), "image")
    return (
        f"A dermatologist called the label of {images} wrong (qc); they are kept." if wrong else ""
    )
