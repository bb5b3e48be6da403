"""ISIC 2020 (Rotemberg et al. 2021, doi:10.1038/s41597-021-00815-z) of the ISIC or Kaggle."""

import logging
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    UNKNOWN,
    Dataset,
    Folder,
    keep_labelled,
    layouts,
    list_candidates,
    name_classes,
    read_rows,
)
from lesionfast.data.layouts.isic import FIELDS, find_leaks, leave_out_tests
from lesionfast.data.layouts.tables import choose_table
from lesionfast.data.sources import name_without_suffix
from lesionfast.errors import LesionfastError, pluralize

logger = logging.getLogger("lesionfast")

KEYS = ("image_name", "patient_id")
DICOM = (".dcm", ".dicom")


@layouts.register("isic2020")
def isic2020(folder: Folder, config: DataConfig) -> Dataset | None:
    """ISIC 2020 (SIIM-ISIC): melanoma or benign, JPEG or DICOM files, with patients."""
    column, tables = next(
        ((name, found) for name in ("target", "benign_malignant") if (found := find(folder, name))),
        ("", []),
    )
    tests = folder.tables(*KEYS, without=("target", "benign_malignant"))
    if not tables and not folder.tables(*KEYS, "anatom_site_general_challenge"):
        return None
    if not tables:
        raise LesionfastError(
            f"the tables of ISIC 2020 in {folder.root} have no labels: none has a column 'target' "
            f"beside image_name and patient_id. There are {list_candidates(folder)}. Put train.csv "
            "or ISIC_2020_Training_GroundTruth.csv there."
        )
    table = choose_table(folder, tables, "image_name")
    rows = read_rows(table, *KEYS, known=FIELDS)
    rows = rows.assign(target=name_lesions(rows, column, table))
    rows = rows.assign(patient_id=rows["patient_id"].mask(rows["patient_id"] == "-1", ""))
    for path in folder.tables("image_name_1", "image_name_2"):
        rows = join_patients(rows, path)
    found = Dataset(
        name="ISIC 2020",
        table=table,
        rows=rows,
        image="image_name",
        target="target",
        groups=tuple(name for name in ("lesion_id", "patient_id") if name in rows),
        files=prefer_pictures(folder.images),
        leaks=find_leaks(rows, "target"),
    )
    return leave_out_tests(keep_labelled(found, config), folder, tests, "image_name")


def find(folder: Folder, target: str) -> list[Path]:
    """Return the tables with image, patient and a target: those that have lesions if some do."""
    return folder.tables(*KEYS, target, "lesion_id") or folder.tables(*KEYS, target)


def name_lesions(rows: pd.DataFrame, column: str, table: Path) -> pd.Series:
    """Return 'melanoma' or 'benign' for each row, 'malignant' if other cancers are among them.

    All that is malignant in ISIC 2020 is melanoma; under that name, its sensitivity is reported as
    that of other datasets. Raises `LesionfastError` if target and benign_malignant disagree.
    """
    target = name_classes(rows, column, table)
    if "benign_malignant" in rows:
        other = name_classes(rows, "benign_malignant", table)
        torn = rows.index[(target != other) & (target != "") & (other != "")]
        if len(torn):
            raise LesionfastError(
                f"{table.name} contradicts itself in row {torn[0]}: target says {target[torn[0]]}, "
                f"benign_malignant says {other[torn[0]]} ({pluralize(len(torn), 'such row')}). "
                "Correct them, or remove one of the two columns."
            )
    malignant = target == "malignant"
    if "diagnosis" in rows and not (
        rows.loc[malignant, "diagnosis"].str.lower().isin(("melanoma", *UNKNOWN)).all()
    ):
        return target
    return target.mask(malignant, "melanoma")


def join_patients(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return the rows with one patient for each pair of images that a table calls the same."""
    pairs = read_rows(table, "image_name_1", "image_name_2")[["image_name_1", "image_name_2"]]
    names = rows["image_name"].map(name_without_suffix)
    patient = rows["patient_id"].where(rows["patient_id"] != "", names)
    of_image, same = dict(zip(names, patient, strict=True)), {}

    def follow(name: str) -> str:
        while name in same:
            name = same[name]
        return name

    known = pairs[pairs.isin(list(of_image)).all(axis=1)]
    for pair in known.itertuples(index=False):
        first, last = sorted(follow(of_image[name]) for name in pair)
        same |= {last: first} if last != first else {}
    count = pluralize(len(known), "pair")
    logger.info("Joined the patients of %s of the same image (%s)", count, table.name)
    has_patient = (rows["patient_id"] != "") | names.isin(known.to_numpy().ravel())
    return rows.assign(patient_id=patient.map(follow).where(has_patient, ""))


def prefer_pictures(files: pd.DataFrame) -> pd.DataFrame:
    """Return image files without the DICOM files of which there is a JPEG or PNG file as well."""
    is_dicom = files["path"].str.lower().str.endswith(DICOM)
    twins = is_dicom & files["stem"].isin(files.loc[~is_dicom, "stem"])
    if twins.any():
        count = pluralize(int(twins.sum()), "DICOM file")
        logger.info("Ignored %s beside JPEG or PNG files of the same name", count)
    return files[~twins]
