"""ISIC 2020 as it lies on disk: of the ISIC or Kaggle, JPEG and DICOM, and broken."""

import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset
from lesionfast.diagnoses import Classes

WHOLE = (88, 2, 28)  # patients


def say(folder, **options) -> str:
    """Return the sentence that says what a folder is."""
    config = DataConfig(data=str(folder), **options)
    found = find_dataset(config)
    return describe(found, read_dataset(found, config))


def test_what_it_looks_like_is_said(written):
    assert say(written("isic2020")) == (
        "This looks like ISIC 2020: 88 images, 2 classes, 28 patients."
    )


def test_the_malignant_class_is_melanoma(written):
    df = load_metadata(DataConfig(data=str(written("isic2020"))))
    classes = Classes(sorted(df["target"].unique()))
    assert (list(classes), classes.melanoma) == (["benign", "melanoma"], "melanoma")


def test_other_cancers_are_not_called_melanoma(download):
    it = download("isic2020")
    row = pd.read_csv(it.path / "train.csv")["target"].idxmax() + 2
    it.change_cell("train.csv", row, diagnosis="basal cell carcinoma")
    assert set(load_metadata(DataConfig(data=str(it.path)))["target"]) == {"benign", "malignant"}


def add_lesions(rows):
    return rows.assign(lesion_id="IL_" + rows["image_name"])


def add_dicom(it):
    """Put a DICOM file beside each JPEG file, as Kaggle does."""
    (it.path / "train").mkdir()
    for path in sorted((it.path / "jpeg" / "train").glob("*.jpg")):
        (it.path / "train" / f"{path.stem}.dcm").write_bytes(b"\0" * 128 + b"DICM")


def leave_dicom(it):
    """Leave the DICOM files alone."""
    add_dicom(it)
    it.remove("jpeg")


def add_tests(it):
    """Make images of the test set, which test.csv names."""
    names = [f"ISIC_77{number:05d}" for number in range(3)]
    it.draw("jpeg/test", *names)
    it.edit("test.csv", lambda rows: rows.assign(image_name=names))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda it: it.nest(), WHOLE),
        (lambda it: it.move("train.csv", "csv/ISIC_2020_Training_GroundTruth.csv"), WHOLE),
        (lambda it: it.move("jpeg/train", "512x512"), WHOLE),
        (lambda it: it.zip_folder("jpeg/train"), WHOLE),
        (lambda it: it.edit("train.csv", lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (lambda it: it.edit("train.csv", lambda rows: rows.drop(columns="target")), WHOLE),
        (lambda it: it.edit("train.csv", lambda rows: rows.drop(
            columns=["diagnosis", "benign_malignant"])), WHOLE),
        (lambda it: it.edit("train.csv", lambda rows: rows.assign(target=rows["target"] + ".0")),
         WHOLE),
        (lambda it: it.copy_table("train.csv", "train_clean.csv"), WHOLE),
        (lambda it: it.copy_table("train.csv", "GroundTruth_v2.csv", add_lesions), WHOLE),
        (lambda it: it.change_cell("train.csv", 2, target="", benign_malignant=""), (87, 2, 28)),
        (lambda it: it.draw("tfrecords", "x"), WHOLE),
        (add_dicom, WHOLE),
        (leave_dicom, WHOLE),
        (add_tests, WHOLE),
        (lambda it: it.remove("jpeg/train/ISIC_0024*"), (84, 2, 28)),
    ],
)  # fmt: skip
def test_what_people_have_is_read(download, summarize, change, counts):
    it = download("isic2020")
    change(it)
    assert summarize(it.path) == counts


def test_what_is_left_out_is_counted(download, caplog):
    caplog.set_level("INFO")
    it = download("isic2020")
    add_tests(it)
    add_dicom(it)
    text = say(it.path)
    assert text.endswith("Left out 3 images named in test.csv (without labels).")
    assert "Ignored 88 DICOM files beside JPEG or PNG files of the same name" in caplog.text
    assert "without a row" not in caplog.text


def test_duplicates_join_patients(download, caplog):
    caplog.set_level("INFO")
    it = download("isic2020")
    rows = pd.read_csv(it.path / "train.csv", dtype=str)
    one = rows.drop_duplicates("patient_id")["image_name"].tolist()
    pairs = pd.DataFrame({"image_name_1": one[:3], "image_name_2": [*one[1:3], "ISIC_0000000"]})
    pairs.to_csv(it.path / "2020_Challenge_duplicates.csv", index=False)
    df = load_metadata(DataConfig(data=str(it.path)))
    assert df["group"].nunique() == 26
    assert df[df["image_id"].isin(one[:3])]["group"].nunique() == 1
    assert (
        "Joined the patients of 2 pairs of the same image (2020_Challenge_duplicates.csv)"
        in caplog.text
    )


def test_duplicates_without_patients_are_a_group(download):
    it = download("isic2020")
    it.edit("train.csv", lambda rows: rows.assign(patient_id=["-1", "", *rows["patient_id"][2:]]))
    rows = pd.read_csv(it.path / "train.csv", dtype=str)
    pairs = rows["image_name"][:2].tolist()
    table = f"image_name_1,image_name_2\n{pairs[0]},{pairs[1]}\n"
    (it.path / "duplicates.csv").write_text(table)
    df = load_metadata(DataConfig(data=str(it.path))).set_index("image_id")
    assert df.loc[pairs[0], "group"] == df.loc[pairs[1], "group"]
    assert (df["group"] == df.loc[pairs[0], "group"]).sum() == 2


@pytest.mark.parametrize("name", ["diagnosis", "benign_malignant"])
def test_what_gives_the_label_away_is_no_input(written, refuse, name):
    assert f"column '{name}' of" in refuse(written("isic2020"), metadata=f"age,{name}")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda it: it.remove("train.csv"),
         ["ISIC 2020", "have no labels", "sample_submission.csv, test.csv; 88 images",
          "Put train.csv"]),
        (lambda it: it.change_cell("train.csv", 2, target="0.37"),
         ["'target' of train.csv has '0.37' in row 2", "0 for benign", "--target"]),
        (lambda it: it.change_cell("train.csv", 2, target="1"),
         ["train.csv contradicts itself in row 2", "benign_malignant says benign", "Correct them"]),
        (lambda it: it.edit("train.csv", lambda rows: rows.drop(
            columns=["target", "benign_malignant"])), ["have no labels", "Put train.csv"]),
        (lambda it: it.edit("train.csv", lambda rows: rows.assign(target="", benign_malignant="")),
         ["'target' of train.csv is empty in all 88 rows", "--target"]),
        (lambda it: it.edit("train.csv", lambda rows: rows.iloc[[0, *range(len(rows))]]),
         ["repeats 1 image id", "rows 2, 3", "Keep one row"]),
        (lambda it: it.edit("train.csv", lambda rows: rows.assign(
            image_name=rows["image_name"] + "_x")), ["none of the 88 images", "ISIC_0025346_x"]),
        (lambda it: it.remove("jpeg"), ["none of the 88 images", "found are: none"]),
        (lambda it: it.draw("", "ISIC_0025346"), ["two different images", "Remove one of each"]),
        (lambda it: it.edit("train.csv", lambda rows: rows.assign(target="0",
            benign_malignant="benign")), ["only one class, 'benign'", "--target"]),
        (lambda it: it.change_cell("train.csv", 3, image_name=""),
         ["'image_name' of train.csv is empty in row 3"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(download, refuse, change, parts):
    it = download("isic2020")
    change(it)
    message = refuse(it.path)
    assert all(part in message for part in parts), message
