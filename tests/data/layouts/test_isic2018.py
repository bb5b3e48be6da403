"""ISIC 2018 as it lies on disk: whole, renamed, moved, in parts and broken."""

import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
TRUTH = "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
LESIONS = "ISIC2018_Task3_Training_LesionGroupings.csv"
IMAGES = "ISIC2018_Task3_Training_Input"
WHOLE = (88, 7, 56)


def add_part(it, name="Validation", count=14):
    """Add images with truth of all classes, but without lesions."""
    ids = [f"ISIC_99{number:05d}" for number in range(count)]
    it.draw(f"ISIC2018_Task3_{name}_Input", *ids)
    rows = ["image," + ",".join(CLASSES)]
    for number, image in enumerate(ids):
        rows.append(",".join([image, *("1.0" if number % 7 == i else "0.0" for i in range(7))]))
    folder = f"ISIC2018_Task3_{name}_GroundTruth"
    (it.path / folder).mkdir()
    (it.path / folder / f"{folder}.csv").write_text("\n".join(rows) + "\n")


def test_what_it_looks_like_is_said(written):
    config = DataConfig(data=str(written("isic2018")))
    found = find_dataset(config)
    assert describe(found, read_dataset(found, config)) == (
        "This looks like ISIC 2018: 88 images, 7 classes, 56 lesions."
    )


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda it: it.nest(), WHOLE),
        (lambda it: it.move(TRUTH, "labels/truth.csv"), WHOLE),
        (lambda it: it.move(LESIONS, "csv/groups.csv"), WHOLE),
        (lambda it: it.zip_folder(IMAGES), WHOLE),
        (lambda it: it.edit(TRUTH, lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (lambda it: it.edit(LESIONS, lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (lambda it: it.edit(TRUTH, lambda rows: rows.assign(image=rows["image"] + ".jpg")), WHOLE),
        (lambda it: it.edit(LESIONS, lambda rows: rows.sample(frac=1, random_state=1)), WHOLE),
        (lambda it: it.copy_table(TRUTH, TRUTH.replace(".csv", "_clean.csv")), WHOLE),
        (lambda it: it.copy_table(TRUTH, "train_small.csv", lambda rows: rows[:60]), WHOLE),
        (lambda it: it.copy_table(TRUTH, "submission.csv", lambda rows: predict(rows)), WHOLE),
        (lambda it: it.draw("ISIC2018_Task3_Test_Input", "ISIC_0099990"), WHOLE),
        (lambda it: it.remove(f"{IMAGES}/ISIC_0024*.jpg"), (84, 7, 54)),
        (lambda it: it.remove(LESIONS), (88, 7, 88)),
    ],
)
def test_what_people_have_is_read(download, summarize, change, counts):
    it = download("isic2018")
    change(it)
    assert summarize(it.path) == counts


def predict(rows):
    """Return probabilities in place of the truth."""
    return rows.assign(**{name: "0.1" for name in CLASSES[1:]}, MEL="0.4")


def test_the_official_parts_are_the_split(download, summarize):
    it = download("isic2018")
    add_part(it)
    it.move("ISIC2018_Task3_Validation_GroundTruth", "val_truth")
    it.move("ISIC2018_Task3_Training_GroundTruth", "train_truth")
    df = load_metadata(DataConfig(data=str(it.path)))
    assert df["split"].value_counts().to_dict() == {"train": 88, "valid": 14}
    assert df.loc[df["split"] == "valid", "image_id"].str.startswith("ISIC_99").all()


def test_a_part_that_is_not_there_is_drawn(download, summarize):
    it = download("isic2018")
    add_part(it, "Test")
    assert summarize(it.path) == (102, 7, 70)


def test_parts_are_known_by_the_folders_of_their_images(download):
    it = download("isic2018")
    add_part(it, "Test")
    it.move("ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv", "a.csv")
    it.move(TRUTH, "b.csv")
    df = load_metadata(DataConfig(data=str(it.path)))
    assert df["split"].value_counts().to_dict() == {"train": 88, "test": 14}


def test_a_smaller_copy_is_counted(download, caplog):
    it = download("isic2018")
    it.copy_table(TRUTH, "train_small.csv", lambda rows: rows[:60])
    assert len(load_metadata(DataConfig(data=str(it.path)))) == 88
    assert "Ignored train_small.csv beside" in caplog.text
    assert "it names 60 of 88 images" in caplog.text


def test_missing_lesions_are_said(download, caplog):
    it = download("isic2018")
    it.remove(LESIONS)
    found = find_dataset(DataConfig(data=str(it.path)))
    assert "LesionGroupings.csv, which is not there" in found.notes[0]


def test_one_hot_columns_are_no_inputs_but_can_be_targets(written):
    folder = str(written("isic2018"))
    assert not {*CLASSES} & {*load_metadata(DataConfig(data=folder))}
    df = load_metadata(DataConfig(data=folder, target="MEL,NV,BCC,AKIEC,BKL,DF,VASC"))
    assert sorted(df["target"].unique()) == sorted(CLASSES)
    assert load_metadata(DataConfig(data=folder, target="MEL"))["target"].nunique() == 2


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda it: it.change_cell(TRUTH, 2, MEL="1.0"),
         ["row 2 of", "MEL and NV", "exactly one is needed"]),
        (lambda it: it.change_cell(TRUTH, 3, NV="0.0"), ["row 3", "has none", "Correct or remove"]),
        (lambda it: it.change_cell(TRUTH, 4, NV="yes"), ["'NV'", "'yes' in row 4", "0 and 1"]),
        (lambda it: it.change_cell(TRUTH, 5, BCC=""), ["'BCC'", "'' in row 5", "0 and 1"]),
        (lambda it: it.edit(TRUTH, predict), ["none of the columns", "exactly one is needed"]),
        (lambda it: it.edit(LESIONS, lambda rows: rows[5:]),
         [LESIONS, "no row for 5 of 88 rows", "Download both files again"]),
        (lambda it: it.edit(LESIONS, lambda rows: rows.assign(image="X" + rows["image"])),
         [LESIONS, "no row for 88 of 88 rows", "the first is 'ISIC_0025346'"]),
        (lambda it: it.edit(LESIONS, lambda rows: rows.iloc[[0, *range(len(rows))]]),
         ["1 row too many", "'ISIC_0025346' occurs again in row 3", "Keep one row"]),
        (lambda it: it.edit(TRUTH, lambda rows: rows.iloc[[0, *range(len(rows))]]),
         ["repeats 1 image id", "in rows 2, 3", "Keep one row per image"]),
        (lambda it: it.edit(TRUTH, lambda rows: rows.assign(image=rows["image"] + "_resized")),
         ["no row for 88 of 88 rows", "ISIC_0025346_resized", "Download both"]),
        (lambda it: it.change_cell(LESIONS, 2, lesion_id="HAM_0000002"),
         ["gives 1 lesion more than one label", "HAM_0000002", "--group"]),
        (lambda it: it.remove(f"{IMAGES}/*.jpg"), ["none of the 88 images", "found are: none"]),
        (lambda it: it.draw("", "ISIC_0025346"),
         ["two different images are named 'ISIC_0025346'", "Remove one of each"]),
        (lambda it: (it.path / TRUTH).write_text("image," + ",".join(CLASSES) + "\n"),
         ["has a header but no rows", "Name another CSV"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(download, refuse, change, parts):
    it = download("isic2018")
    change(it)
    message = refuse(it.path)
    assert all(part in message for part in parts), message
