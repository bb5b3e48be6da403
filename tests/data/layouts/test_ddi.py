"""DDI is read as downloaded, benign and malignant, and what is wrong is said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset

WHOLE = (40, 2, 40)  # images, classes; each image is a group


@pytest.fixture(scope="session")
def written_ddi(tmp_path_factory) -> Path:
    """A small DDI: its first column has no name."""
    folder, n = tmp_path_factory.mktemp("ddi"), np.arange(1, 41)
    rows = pd.DataFrame({"DDI_ID": n, "DDI_file": [f"{i:06d}.png" for i in n]})
    rows = rows.assign(
        skin_tone=np.array([12, 34, 56])[n % 3],
        malignant=n % 4 == 0,
        disease=np.where(n % 4, "melanocytic-nevi", "melanoma-in-situ"),
    )
    rows.to_csv(folder / "ddi_metadata.csv")
    (folder / "images").mkdir()
    for i, name in zip(n, rows["DDI_file"], strict=True):
        draw(folder / "images" / name, i)
    return folder


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 36)).save(path)


@pytest.fixture
def ddi(written_ddi, tmp_path) -> Path:
    return shutil.copytree(written_ddi, tmp_path / "data")


def test_it_says_what_it_is_and_that_there_are_no_lesion_ids(written_ddi, caplog):
    config = DataConfig(data=str(written_ddi))
    found = find_dataset(config)
    df = read_dataset(found, config)
    assert describe(found, df) == "This looks like DDI: 40 images, 2 classes."
    assert df["target"].value_counts().to_dict() == {"benign": 30, "malignant": 10}
    assert "every image counts as a lesion of its own" in caplog.text


def test_skin_tone_is_an_input_and_the_disease_is_not(written_ddi, summarize, refuse):
    assert summarize(written_ddi, metadata="skin_tone") == WHOLE
    message = refuse(written_ddi, metadata="skin_tone,disease")
    assert "column 'disease' of ddi_metadata.csv can't be an input" in message
    assert summarize(written_ddi, target="disease") == WHOLE
    assert "column 'malignant'" in refuse(written_ddi, target="disease", metadata="malignant")


def edit(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Return a change of a folder: its table is rewritten."""

    def rewrite(folder: Path) -> None:
        path = folder / "ddi_metadata.csv"
        change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)

    return rewrite


def change(**columns) -> Callable[[Path], None]:
    return edit(lambda rows: rows.assign(**columns))


def first(column: str, value: str) -> Callable[[Path], None]:
    """Return a change of the first value of a column."""
    return change(**{column: lambda rows: rows[column].where(rows.index > 0, value)})


def rename(folder: Path) -> None:
    (folder / "ddi_metadata.csv").rename(folder / "images" / "labels.csv")


def flatten(folder: Path) -> None:
    for path in list(folder.rglob("*.png")):
        path.rename(folder / path.name)


def zip_beside(folder: Path) -> None:
    shutil.make_archive(str(folder / "ddidiversedermatologyimages"), "zip", folder / "images")


def add_tables(folder: Path) -> None:
    rows = pd.read_csv(folder / "ddi_metadata.csv", dtype=str)
    rows.to_csv(folder / "ddi_metadata_clean.csv", index=False)
    rows[["DDI_file"]].assign(score=0.5).to_csv(folder / "sample_submission.csv", index=False)


def remove_pictures(count: int) -> Callable[[Path], None]:
    def unlink(folder: Path) -> None:
        for path in sorted(folder.rglob("*.png"))[:count]:
            path.unlink()

    return unlink


@pytest.mark.parametrize(
    ("damage", "counts"),
    [
        (rename, WHOLE),
        (flatten, WHOLE),
        (zip_beside, WHOLE),
        (add_tables, WHOLE),
        (edit(lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (edit(lambda rows: rows.iloc[:, 1:]), WHOLE),
        (change(DDI_file=lambda rows: rows["DDI_file"].str.removesuffix(".png")), WHOLE),
        (change(malignant=lambda rows: rows["malignant"].map({"True": "1", "False": "0"})), WHOLE),
        (first("malignant", ""), (39, 2, 39)),
        (remove_pictures(2), (38, 2, 38)),
    ],
)  # fmt: skip
def test_what_people_have_is_read(ddi, summarize, damage, counts):
    damage(ddi)
    assert summarize(ddi) == counts


def test_what_is_left_out_is_counted(ddi, caplog):
    first("malignant", "")(ddi)
    remove_pictures(3)(ddi)
    config = DataConfig(data=str(ddi))
    assert find_dataset(config).notes == ("Left out 1 row without a label (malignant).",)
    load_metadata(config)
    assert "Left out 2 rows without an image" in caplog.text


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (first("malignant", "maybe"), ["'malignant'", "'maybe' in row 2", "--target"]),
        (change(malignant=""), ["empty in all 40 rows", "--target"]),
        (edit(lambda rows: rows.drop(columns="malignant")), ["'malignant' is not in", "it has"]),
        (first("DDI_file", "000002.png"), ["repeats 1 image id", "Keep one row"]),
        (first("DDI_file", ""), ["column 'DDI_file' of ddi_metadata.csv is empty in row 2"]),
        (first("DDI_file", "a/b.png"), ["'a/b' in row 2", "not a file name"]),
        (remove_pictures(40), ["none of the 40 images", "--images"]),
        (change(malignant="True"), ["there is only one class, 'malignant'"]),
        (lambda folder: draw(folder / "000001.png", 99), ["two different images are named"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(ddi, refuse, damage, parts):
    damage(ddi)
    message = refuse(ddi)
    assert all(part in message for part in parts), message
