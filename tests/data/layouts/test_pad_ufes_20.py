"""PAD-UFES-20 is read however it was unpacked, and what is wrong with it is said."""

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset
from lesionfast.errors import LesionfastError

WHOLE = (88, 6, 28)  # images, classes, patients


@pytest.fixture
def pad(copied) -> Path:
    return copied("pad_ufes_20")


def test_it_says_what_it_is(written):
    config = DataConfig(data=str(written("pad_ufes_20")))
    found = find_dataset(config)
    said = describe(found, read_dataset(found, config))
    assert said == "This looks like PAD-UFES-20: 88 images, 6 classes, 56 lesions, 28 patients."


def test_unknown_answers_are_missing_and_columns_have_their_usual_names(written):
    df = load_metadata(DataConfig(data=str(written("pad_ufes_20"))))
    assert set(df["sex"].dropna()) == {"male", "female"}
    assert set(df["smoke"].dropna()) == {"True", "False"}
    assert df["grew"].isna().all()
    assert df["localization"].notna().all()


def test_a_lesion_number_of_two_patients_is_two_lesions(pad):
    change(lesion_id="1", diagnostic=lambda rows: rows["patient_id"])(pad)
    found = find_dataset(DataConfig(data=str(pad)))
    assert found.rows["lesion_id"].nunique() == found.rows["patient_id"].nunique() == 28


def test_biopsed_is_no_input_unless_allowed(written, summarize, refuse):
    folder = written("pad_ufes_20")
    assert "column 'biopsed' of metadata.csv can't be an input" in refuse(
        folder, metadata="age,biopsed"
    )
    assert summarize(folder, metadata="age,biopsed", allow_leak="biopsed") == WHOLE


def deepen(folder: Path) -> None:
    """Move everything one folder down and rename the table."""
    (folder / "PAD").mkdir()
    (folder / "images").rename(folder / "PAD" / "images")
    (folder / "metadata.csv").rename(folder / "PAD" / "pad_20_meta.csv")


def flatten(folder: Path) -> None:
    for path in list(folder.rglob("*.png")):
        path.rename(folder / path.name)


def zip_beside(folder: Path) -> None:
    """Leave one of the zips that were downloaded beside its unpacked folder."""
    part = folder / "images" / "imgs_part_1"
    with zipfile.ZipFile(folder / "imgs_part_1.zip", "w") as archive:
        for path in part.rglob("*.png"):
            archive.write(path, path.relative_to(part))


def add_tables(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv", dtype=str)
    table.to_csv(folder / "metadata_clean.csv", index=False)
    table[["img_id"]].assign(pred=0).to_csv(folder / "sample_submission.csv", index=False)


def change(**columns):
    """Return a change of the table: columns replaced, or removed for None."""

    def write(folder: Path) -> None:
        table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
        for name, value in columns.items():
            table = table.drop(columns=name) if value is None else table.assign(**{name: value})
        table.to_csv(folder / "metadata.csv", index=False)

    return write


def shout(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    table.rename(columns=str.upper).to_csv(folder / "metadata.csv", index=False)


@pytest.mark.parametrize(
    ("damage", "counts"),
    [
        (deepen, WHOLE),
        (flatten, WHOLE),
        (zip_beside, WHOLE),
        (add_tables, WHOLE),
        (shout, WHOLE),
        (change(img_id=lambda rows: rows["img_id"].str.removesuffix(".png")), WHOLE),
        (change(img_id=lambda rows: rows["img_id"].str.replace(".png", ".jpg")), WHOLE),
        (change(patient_id=None), WHOLE),
        (change(lesion_id=None), WHOLE),
        (change(diagnostic=lambda rows: rows["diagnostic"].replace("MEL", "UNK")), (72, 5, 28)),
    ],
)  # fmt: skip
def test_what_people_have_is_read(pad, summarize, damage, counts):
    damage(pad)
    if counts == WHOLE:
        assert summarize(pad) == counts
    else:
        df = load_metadata(DataConfig(data=str(pad)))
        assert (len(df), df["target"].nunique()) == counts[:2]


def test_pictures_that_are_missing_are_counted(pad, caplog):
    for path in sorted(pad.rglob("*.png"))[:3]:
        path.unlink()
    assert len(load_metadata(DataConfig(data=str(pad)))) == 85
    assert "Left out 3 rows without an image" in caplog.text


def test_rows_without_a_label_are_counted(pad, caplog):
    change(diagnostic=lambda rows: rows["diagnostic"].replace("MEL", "UNK"))(pad)
    found = find_dataset(DataConfig(data=str(pad)))
    assert found.notes == ("Left out 16 rows without a label (diagnostic).",)


def other_ids(folder: Path) -> None:
    change(lesion_id=None, img_id=lambda rows: "a" + rows["img_id"])(folder)


def repeat(folder: Path) -> None:
    change(img_id=lambda rows: rows["img_id"].where(rows.index != 1, rows["img_id"][0]))(folder)


def two_labels(folder: Path) -> None:
    change(diagnostic=lambda rows: rows["diagnostic"].where(rows.index > 0, "BCC"))(folder)


def two_pictures(folder: Path) -> None:
    """Give a picture's name to another picture."""
    first, *_, last = sorted(folder.rglob("*.png"))
    (folder / first.name).hardlink_to(last)


def remove_pictures(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (other_ids, ["'lesion_id' is not in metadata.csv", "it has: patient_id", "--group none"]),
        (repeat, ["repeats 1 image id", "rows 2, 3", "Keep one row per image"]),
        (two_labels, ["1 lesion more than one label", "'PAT_0_0' with BCC and NEV", "--group"]),
        (change(diagnostic=""), ["empty in all 88 rows", "--target"]),
        (two_pictures, ["two different images are named", "Remove one of each"]),
        (remove_pictures, ["none of the 88 images of metadata.csv was found", "--images"]),
        (change(age=lambda rows: rows["age"].where(rows.index > 0, "sixty")),
         ["'sixty' in row 2 is not a number", "--metadata"]),
        (change(age=lambda rows: rows["age"].where(rows.index > 0, "600")),
         ["has 600 in row 2", "not an age in years"]),
        (change(img_id=lambda rows: "parts/" + rows["img_id"]), ["not a file name", "rows 2, 3"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(pad, refuse, damage, parts):
    damage(pad)
    message = refuse(pad)
    assert all(part in message for part in parts), message


def test_without_the_diagnosis_it_is_not_this_dataset(pad):
    change(diagnostic=None)(pad)
    with pytest.raises(LesionfastError, match="--target"):
        find_dataset(DataConfig(data=str(pad)))
