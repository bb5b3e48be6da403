"""PAD-UFES-20 (Pacheco et al. 2020, doi:10.1016/j.dib.2020.106221): phone pictures."""

import logging
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
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
from lesionfast.errors import LesionfastError

logger = logging.getLogger("lesionfast")

GROUPS = ("lesion_id", "patient_id")
FIELDS = (
    *GROUPS,
    *("smoke", "drink", "background_father", "background_mother", "age", "pesticide", "gender"),
    *("skin_cancer_history", "cancer_history", "has_piped_water", "has_sewage_system"),
    *("fitspatrick", "region", "diameter_1", "diameter_2", "itch", "grew", "hurt", "changed"),
    *("bleed", "elevation", "biopsed"),
)
IMAGE = r"(?i)^(PAT_\d+)_(\d+)_\d+$"  # patient, lesion, picture


@layouts.register("pad_ufes_20")
def pad_ufes_20(folder: Folder, config: DataConfig) -> Dataset | None:
    """PAD-UFES-20: metadata.csv (diagnostic, img_id) beside smartphone images as PNG files."""
    candidates = folder.tables("diagnostic", "img_id")
    if not candidates:
        return None
    table = choose_table(folder, candidates, "img_id")
    rows = blank_words(read_rows(table, "diagnostic", "img_id", known=FIELDS), "UNK")
    rows = rows.assign(img_id=[name_without_suffix(name) for name in rows["img_id"]])
    if not config.group:
        rows = name_lesions(rows, table)
    found = Dataset(
        name="PAD-UFES-20",
        table=table,
        rows=rows,
        image="img_id",
        target="diagnostic",
        groups=GROUPS,
        files=folder.images,
        leaks=("biopsed",),
        renamed={"region": "localization"},
    )
    return keep_labelled(found, config)


def name_lesions(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return rows whose lesion ids name the patient too: the table numbers lesions.

    Ids that the table lacks are taken from the image ids, such as PAT_46_881_939. Raises
    `LesionfastError` if they do not have them.
    """
    missing = [name for name in GROUPS if name not in rows]
    if missing:
        parts = rows["img_id"].str.extract(IMAGE)
        if parts.isna().any(axis=None):
            raise LesionfastError(
                f"column '{missing[0]}' is not in {table.name}; it has: "
                f"{list_columns(list(rows))}. Add it, or type --group none if every image is a "
                "lesion of its own."
            )
        logger.warning(
            "%s has no column %s: taken from the image ids, such as %s",
            table.name, " or ".join(missing), rows["img_id"].iloc[0],
        )  # fmt: skip
        found = {"patient_id": parts[0].str.upper(), "lesion_id": parts[1]}
        rows = rows.assign(**{name: found[name] for name in missing})
    patient, lesion = rows["patient_id"], rows["lesion_id"]
    both = (patient != "") & (lesion != "")
    return rows.assign(lesion_id=lesion.mask(both, patient + "_" + lesion))
