"""Downloads of the ISIC Archive: whatever columns they have, of several kinds, and broken."""

import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset
from lesionfast.diagnoses import Classes

WHOLE = (88, 7, 74)
TABLE = "metadata.csv"


def say(folder, **options) -> str:
    """Return the sentence that says what a folder is."""
    config = DataConfig(data=str(folder), **options)
    found = find_dataset(config)
    return describe(found, read_dataset(found, config))


def test_what_it_looks_like_is_said(written):
    assert say(written("isic_download")) == (
        "This looks like the ISIC Archive: 88 images, 7 classes, 44 lesions, 30 without a lesion "
        "id (each counts as a lesion of its own)."
    )


def test_melanoma_is_known(written):
    df = load_metadata(DataConfig(data=str(written("isic_download"))))
    classes = Classes(sorted(df["target"].unique()))
    assert classes.melanoma == "Melanoma, NOS"
    assert "Basal cell carcinoma" in classes.malignant


def without(*names):
    return lambda it: it.edit(TABLE, lambda rows: rows.drop(columns=[*names]))


def rename(old, new):
    return lambda it: it.edit(TABLE, lambda rows: rows.rename(columns={old: new}))


def into_folders(it):
    """Put the pictures into folders."""
    for number, path in enumerate(sorted(it.path.glob("*.jpg"))):
        (it.path / f"part{number % 3}").mkdir(exist_ok=True)
        path.rename(it.path / f"part{number % 3}" / path.name)


def into_downloads(it):
    """Divide the download into two, each with a table."""
    it.copy_table(TABLE, "a/metadata.csv", lambda rows: rows[:50])
    it.copy_table(TABLE, "b/metadata.csv", lambda rows: rows[50:].drop(columns="sex"))
    it.remove(TABLE)


def leave_over(it):
    """Leave what a download that broke off leaves."""
    (it.path / ".isic-partial.abc").write_bytes(b"\xff\xd8")
    (it.path / ".isic-partial.ISIC_1.jpg").write_bytes(b"\xff\xd8")


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda it: it.nest(), WHOLE),
        (lambda it: it.move(TABLE, "tables/all.csv"), WHOLE),
        (into_folders, WHOLE),
        (into_downloads, WHOLE),
        (leave_over, WHOLE),
        (lambda it: it.edit(TABLE, lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (lambda it: it.copy_table(TABLE, "metadata_clean.csv"), WHOLE),
        (without("lesion_id"), (88, 7, 88)),
        (without("lesion_id", "image_type", "sex", "diagnosis_confirm_type", "melanocytic"),
         (88, 7, 88)),
        (rename("diagnosis_3", "diagnosis"), WHOLE),
        (rename("diagnosis_3", "diagnosis_2"), WHOLE),
        (lambda it: it.edit(TABLE, lambda rows: rows.assign(diagnosis_3="")), (88, 2, 74)),
        (without("diagnosis_3"), (88, 2, 74)),
        (lambda it: (without("diagnosis_3")(it), rename("diagnosis_1", "benign_malignant")(it)),
         (88, 2, 74)),
        (lambda it: it.edit(TABLE, lambda rows: rows.assign(patient_id="IP_" + rows["sex"])),
         None),
    ],
)  # fmt: skip
def test_what_people_have_is_read(download, summarize, change, counts):
    it = download("isic_download")
    change(it)
    if counts:
        assert summarize(it.path) == counts
    else:
        assert len(load_metadata(DataConfig(data=str(it.path)))) == 88


def test_rows_without_the_label_are_counted_with_what_would_have_more(download, caplog):
    it = download("isic_download")
    it.edit(TABLE, lambda rows: rows.assign(diagnosis_3=rows["diagnosis_3"].where(rows.index > 4)))
    assert say(it.path).endswith(
        "Left out 5 rows without a label (diagnosis_3). --target diagnosis_1 has 2 classes and 88 "
        "rows with a label."
    )
    assert "without a row" not in caplog.text
    assert len(load_metadata(DataConfig(data=str(it.path), target="diagnosis_1"))) == 88


def mix_kinds(rows):
    kinds = ["clinical: close-up", "TBP tile: overview", ""]
    return rows.assign(image_type=[*kinds, *rows["image_type"][3:]])


def test_dermoscopic_images_are_taken_of_several_kinds(download):
    it = download("isic_download")
    it.edit(TABLE, mix_kinds)
    assert len(load_metadata(DataConfig(data=str(it.path)))) == 85
    assert len(load_metadata(DataConfig(data=str(it.path), images_of="all"))) == 88
    clinical = load_metadata(DataConfig(data=str(it.path), images_of="clinical"))
    assert set(clinical["image_type"]) == {"clinical: close-up", "TBP tile: overview"}
    assert "3 others are not (type --images-of clinical or --images-of all)" in say(it.path)


@pytest.mark.parametrize(
    "name", ["diagnosis_1", "diagnosis_confirm_type", "concomitant_biopsy", "melanocytic"]
)
def test_what_gives_the_label_away_is_no_input(written, refuse, name):
    assert f"column '{name}' of" in refuse(written("isic_download"), metadata=f"age,{name}")


def test_a_target_of_ones_own_leaves_diagnosis_3_no_input(written, refuse):
    message = refuse(written("isic_download"), target="diagnosis_1", metadata="age,diagnosis_3")
    assert "column 'diagnosis_3' of" in message


def swap(it):
    """Put another picture under the name of the first elsewhere."""
    it.draw("other", "ISIC_0025346")


@pytest.mark.parametrize(
    ("change", "options", "parts"),
    [
        (without("diagnosis_3", "diagnosis_1"), {},
         ["no column of metadata.csv is known to hold the diagnosis", "isic_id", "--target"]),
        (lambda it: it.edit(TABLE, lambda rows: rows.assign(diagnosis_1="", diagnosis_3="")), {},
         ["no image of metadata.csv has a diagnosis", "empty in all rows", "--target"]),
        (lambda it: it.edit(TABLE, lambda rows: rows.assign(isic_id=rows["isic_id"] + "_x")), {},
         ["none of the 88 images", "'ISIC_0025346_x'"]),
        (lambda it: it.edit(TABLE, lambda rows: rows.iloc[[0, *range(len(rows))]]), {},
         ["repeats 1 image id", "rows 2, 3", "Keep one row"]),
        (lambda it: it.remove("*.jpg"), {}, ["none of the 88 images", "found are: none"]),
        (swap, {}, ["two different images are named 'ISIC_0025346'", "Remove one of each"]),
        (lambda it: it.change_cell(TABLE, 3, lesion_id="HAM_0000002"), {},
         ["gives 1 lesion more than one label", "HAM_0000002", "--group"]),
        (lambda it: None, {"images_of": "clinical"},
         ["no image of metadata.csv is clinical", "dermoscopic (88)", "--images-of all"]),
        (lambda it: None, {"target": "diagnosis_5"},
         ["column 'diagnosis_5' is not in metadata.csv", "it has:", "--target"]),
        (lambda it: it.remove(TABLE), {}, ["there is no CSV file", "88 images", "--csv FILE"]),
        (lambda it: it.change_cell(TABLE, 4, isic_id=""), {},
         ["'isic_id' of metadata.csv is empty in row 4", "remove these rows"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(download, refuse, change, options, parts):
    it = download("isic_download")
    change(it)
    message = refuse(it.path, **options)
    assert all(part in message for part in parts), message
