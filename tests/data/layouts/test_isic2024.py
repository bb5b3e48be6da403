"""ISIC 2024 as it lies on disk: HDF5 or JPEG files, Kaggle's or the ISIC's tables, and broken."""

import h5py
import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset

WHOLE = (88, 2, 28)  # patients
TABLE = "train-metadata.csv"
STORE = "train-image.hdf5"


def say(folder, **options) -> str:
    """Return the sentence that says what a folder is."""
    config = DataConfig(data=str(folder), **options)
    found = find_dataset(config)
    return describe(found, read_dataset(found, config))


def test_what_it_looks_like_is_said(written):
    assert say(written("isic2024")) == (
        "This looks like ISIC 2024: 88 images, 2 classes, 8 lesions, 72 without a lesion id (each "
        "counts as a lesion of its own), 28 patients."
    )


def unpack(it, folder="train-image/image", keep_store=False):
    """Write the images of the HDF5 file as JPEG files."""
    (it.path / folder).mkdir(parents=True)
    with h5py.File(it.path / STORE) as file:
        for name in file:
            (it.path / folder / f"{name}.jpg").write_bytes(file[name][()].tobytes())
    if not keep_store:
        it.remove(STORE)


def part_tables(it):
    """Write the tables as the ISIC's own download has them: truth, metadata, supplement."""
    rows = pd.read_csv(it.path / TABLE, dtype=str, keep_default_na=False)
    truth = rows[["isic_id", "target"]].rename(columns={"target": "malignant"})
    truth.assign(malignant=truth["malignant"] + ".0").to_csv(it.path / "truth.csv", index=False)
    extra = ["iddx_full", "iddx_1", "lesion_id", "mel_thick_mm"]
    rows[["isic_id", *extra]].to_csv(it.path / "supplement.csv", index=False)
    rows.drop(columns=["target", *extra]).to_csv(it.path / TABLE, index=False)


def add_tests(it):
    """Put the images of the test set beside, which test-metadata.csv names."""
    with h5py.File(it.path / STORE) as file:
        names = sorted(file)[:3]
        data = [file[name][()] for name in names]
    with h5py.File(it.path / "test-image.hdf5", "w") as file:
        for name, value in zip(names, data, strict=True):
            file.create_dataset(f"{name}9", data=value)
    it.edit("test-metadata.csv", lambda rows: rows.assign(isic_id=[f"{name}9" for name in names]))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (unpack, WHOLE),
        (lambda it: unpack(it, "all", keep_store=True), WHOLE),
        (lambda it: it.nest(), WHOLE),
        (lambda it: (it.move(TABLE, "csv/a.csv"), it.move(STORE, "b.h5")), WHOLE),
        (lambda it: it.edit(TABLE, lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (lambda it: it.copy_table(TABLE, "train-metadata_clean.csv"), WHOLE),
        (lambda it: it.edit(TABLE, lambda rows: rows.drop(columns="lesion_id")), WHOLE),
        (lambda it: it.edit(TABLE, lambda rows: rows.assign(patient_id="")), (88, 2, 80)),
        (lambda it: it.edit(TABLE, lambda rows: rows[4:]), (84, 2, 27)),
        (lambda it: it.change_cell(TABLE, 2, target=""), (87, 2, 28)),
        (add_tests, WHOLE),
        (part_tables, WHOLE),
    ],
)
def test_what_people_have_is_read(download, summarize, change, counts):
    it = download("isic2024")
    change(it)
    assert summarize(it.path) == counts


def test_what_is_left_out_is_counted(download, caplog):
    it = download("isic2024")
    add_tests(it)
    it.change_cell(TABLE, 2, target="")
    assert say(it.path).endswith(
        "Left out 1 row without a label (target). Left out 3 images named in test-metadata.csv "
        "(without labels)."
    )
    assert "without a row" not in caplog.text


def test_the_supplement_is_joined(download):
    it = download("isic2024")
    part_tables(it)
    df = load_metadata(DataConfig(data=str(it.path)))
    assert {"lesion_id", "iddx_full"} <= {*df}


def test_columns_keep_their_names(written):
    df = load_metadata(DataConfig(data=str(written("isic2024"))))
    assert {"tbp_lv_A", "clin_size_long_diam_mm", "age", "sex"} <= {*df}


@pytest.mark.parametrize(
    "name", ["iddx_1", "mel_thick_mm", "tbp_lv_dnn_lesion_confidence", "lesion_id", "patient_id"]
)
def test_what_gives_the_label_away_is_no_input(written, refuse, name):
    assert f"column '{name}' of" in refuse(written("isic2024"), metadata=f"age,{name}")


def cut_store(it):
    """Keep the first half of the HDF5 file, as a download that broke off."""
    data = (it.path / STORE).read_bytes()
    (it.path / STORE).unlink()
    (it.path / STORE).write_bytes(data[: len(data) // 2])


def empty_store(it):
    it.remove(STORE)
    with h5py.File(it.path / STORE, "w"):
        pass


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (cut_store, [STORE, "is not a complete HDF5 file", "Download it again"]),
        (empty_store, [STORE, "holds no images", "Name the file or folder"]),
        (lambda it: it.remove(STORE), ["none of the 88 images", "found are: none"]),
        (lambda it: it.remove(TABLE),
         ["ISIC 2024", "have no labels", "sample_submission.csv", "Put train-metadata.csv"]),
        (lambda it: (it.remove(TABLE), it.remove("sample*")), ["have no labels", "test-metadata"]),
        (lambda it: it.edit(TABLE, lambda rows: rows.drop(columns="target")), ["have no labels"]),
        (lambda it: it.change_cell(TABLE, 3, target="2"),
         ["'target' of train-metadata.csv has '2' in row 3", "0 for benign", "--target"]),
        (lambda it: it.edit(TABLE, lambda rows: rows.assign(target="")),
         ["'target' of train-metadata.csv is empty in all 88 rows", "--target"]),
        (lambda it: it.edit(TABLE, lambda rows: rows.iloc[[0, *range(len(rows))]]),
         ["repeats 1 image id", "rows 2, 3", "Keep one row"]),
        (lambda it: it.edit(TABLE, lambda rows: rows.assign(isic_id="X" + rows["isic_id"])),
         ["none of the 88 images", "The first is 'XISIC_0025346'", "ISIC_00"]),
        (lambda it: it.change_cell(TABLE, 2, lesion_id="HAM_0000002"),
         ["gives 1 lesion more than one label", "'HAM_0000002' with benign and malignant"]),
        (lambda it: (part_tables(it), it.edit("truth.csv", lambda rows: rows[5:])),
         ["truth.csv has no row for 5 of 88 rows", "Download both"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(download, refuse, change, parts):
    it = download("isic2024")
    change(it)
    message = refuse(it.path)
    assert all(part in message for part in parts), message
