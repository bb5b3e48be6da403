"""Write any dataset in the normal form: one CSV file, and one folder of images."""

import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import pandas as pd
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.images import BadImage, read_picture
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.layouts.several import is_kind
from lesionfast.data.metadata import KEYS, read_dataset
from lesionfast.data.sources import FileReader
from lesionfast.errors import LesionfastError, list_first, pluralize
from lesionfast.files import disk_errors, workspace

logger = logging.getLogger("lesionfast")

TABLE, IMAGES = "metadata.csv", "images"
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}


def convert(
    config: DataConfig, to: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the dataset that `config` names to a new folder, and return it.

    metadata.csv has a row for each image: image_id, lesion_id and patient_id as far as they are
    known, dx, split if the dataset has its own, then all other columns. The images
    keep their bytes; what other programs do not open (HEIC, DICOM, MPO) becomes PNG. Raises
    `LesionfastError` if the folder is not empty, and for images that can't be read, unless
    `config.skip_bad`.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise LesionfastError(f"{to} exists already. Name another folder with --to.")
    found = find_dataset(config)
    df, bad = read_dataset(found, config), {}
    logger.info("%s", describe(found, df))
    with disk_errors(to), workspace(to.absolute().parent) as aside, FileReader() as reader:
        (aside / IMAGES).mkdir()
        for done, (image_id, path) in enumerate(zip(df["image_id"], df["path"], strict=True), 1):
            try:
                data, suffix = read_for_all(path, reader)
                (aside / IMAGES / f"{image_id}{suffix}").write_bytes(data)
            except BadImage as error:
                bad[image_id] = str(error)
            if progress:
                progress(done, len(df))
        report_bad(bad, config)
        table = as_table(df[~df["image_id"].isin(bad)], found.groups)
        table.to_csv(aside / TABLE, index=False, lineterminator="\n")
        if to.exists():
            to.rmdir()
        aside.rename(to)
    return to


def read_for_all(path: str, reader: FileReader) -> tuple[bytes, str]:
    """Return the bytes of an image that every program opens, and their suffix."""
    picture = read_picture(path, reader=reader)  # raises BadImage, DICOM and HEIC included
    data = reader.read(path)
    try:
        kind = Image.open(BytesIO(data), formats=list(SUFFIXES)).format
        return data, SUFFIXES[kind or ""]
    except (OSError, KeyError):
        out = BytesIO()
        picture.save(out, "PNG")
        return out.getvalue(), ".png"


def report_bad(bad: dict[str, str], config: DataConfig) -> None:
    """Raise `LesionfastError` for unreadable images, or count them if they may be skipped."""
    if not bad:
        return
    named = list_first((f"{name}: {why}" for name, why in bad.items()), 5)
    problem = f"{pluralize(len(bad), 'image')} can't be read: {named}"
    if not config.skip_bad:
        raise LesionfastError(f"{problem}. Replace them, or leave them out with --skip-bad.")
    logger.warning("%s. They are left out (--skip-bad)", problem)


def as_table(df: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """Return a checked table with the usual column names; `groups` are its own for the ids.

    A lesion of one image that has no id stays without one, so that it is counted again.
    """
    names = {name: "patient_id" if is_kind(name, "patient") else "lesion_id" for name in groups}
    if len(names) == 1:
        lone = (df["group"] == df["image_id"]) & ~df["group"].duplicated(keep=False)
        ids = {name: df["group"].mask(lone, "") for name in names.values()}
        ids = {"group_id": df["group"]} if groups[0] == "group_id" else ids
    else:
        ids = {new: df[old] for old, new in names.items()}
    table = pd.DataFrame({"image_id": df["image_id"], **ids, "dx": df["target"]})
    others = df.drop(columns=[*KEYS, *groups, *table.columns], errors="ignore")
    return as_integers(table.join(others))


def as_integers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns of whole numbers are written without a point."""
    whole = {
        name: column.astype("Int64")
        for name, column in table.select_dtypes("number").items()
        if (column.dropna() % 1 == 0).all()
    }
    return table.assign(**whole)
