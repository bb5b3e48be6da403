"""HAM10000 as it lies on disk: of Dataverse and Kaggle, with masks and a test set, and broken."""

import zipfile

import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import read_dataset

WHOLE = (88, 7, 56)
CSV, TAB = "HAM10000_metadata.csv", "HAM10000_metadata.tab"
TEST = "ISIC2018_Task3_Test_GroundTruth.tab"


def say(folder, **options) -> str:
    """Return the sentence that says what a folder is."""
    config = DataConfig(data=str(folder), **options)
    found = find_dataset(config)
    return describe(found, read_dataset(found, config))


@pytest.mark.parametrize("name", ["kaggle_ham", "dataverse"])
def test_what_it_looks_like_is_said(written, name):
    text = say(written(name))
    assert text.startswith("This looks like HAM10000: 88 images, 7 classes, 56 lesions.")


def test_masks_and_copies_are_counted_once(written, caplog):
    caplog.set_level("INFO")
    say(written("dataverse"))
    say(written("kaggle_ham"))
    assert caplog.text.count("segmentation") == 1
    assert "Ignored 3 segmentation masks" in caplog.text
    assert "without a row" not in caplog.text
    assert "Ignored 88 image files with the name and the content of another" in caplog.text


def add_test_images(it):
    """Put the images of the ISIC 2018 test beside, which a table of its own names."""
    it.draw("ISIC2018_Task3_Test_Images", *(f"ISIC_003452{number}" for number in range(4, 8)))


def test_the_images_of_the_test_are_counted_with_their_table(download, caplog):
    it = download("dataverse")
    add_test_images(it)
    assert say(it.path).endswith(f"Left out 4 images named in {TEST} (another dataset's table).")
    assert "without a row" not in caplog.text


def unpack(it):
    """Unpack the zip files and leave them beside."""
    for path in sorted(it.path.glob("*images_part_*.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(it.path / path.stem)


def make_masks(it):
    """Put masks as files, named like their images, into a folder."""
    it.draw("masks", "ISIC_0025346_segmentation", "ISIC_0025346_Segmentation")


@pytest.mark.parametrize(
    ("name", "change", "counts"),
    [
        ("kaggle_ham", lambda it: it.nest(), WHOLE),
        ("kaggle_ham", lambda it: it.move(CSV, "tables/labels.csv"), WHOLE),
        ("kaggle_ham", lambda it: it.move(CSV, "HAM10000_metadata"), WHOLE),
        ("kaggle_ham", lambda it: it.remove("hmnist*"), WHOLE),
        ("kaggle_ham", lambda it: it.edit(CSV, lambda rows: rows.rename(columns=str.upper)), WHOLE),
        ("kaggle_ham", lambda it: it.copy_table(CSV, "HAM10000_metadata_clean.csv"), WHOLE),
        ("kaggle_ham", lambda it: it.copy_table(CSV, "small.csv", lambda rows: rows[:60]), WHOLE),
        ("kaggle_ham", lambda it: it.remove("ham10000_images_part_1"), WHOLE),
        ("kaggle_ham", lambda it: it.remove("[hH]*_images_part_1"), (44, 5, 30)),
        ("kaggle_ham", make_masks, WHOLE),
        ("dataverse", unpack, WHOLE),
        ("dataverse", lambda it: it.move(TAB, "HAM10000_metadata"), WHOLE),
        ("dataverse", lambda it: it.remove("*.txt"), WHOLE),
        ("dataverse", lambda it: it.remove(TEST), WHOLE),
        ("dataverse", add_test_images, WHOLE),
        ("dataverse", lambda it: it.remove("*part_2.zip"), (44, 6, 26)),
    ],
)
def test_what_people_have_is_read(download, summarize, name, change, counts):
    it = download(name)
    change(it)
    assert summarize(it.path, test=0.15 if counts == WHOLE else 0.0) == counts


def test_a_missing_zip_file_is_counted(download, caplog):
    it = download("dataverse")
    it.remove("*part_2.zip")
    say(it.path)
    assert "Left out 44 rows without an image" in caplog.text


def test_how_it_was_diagnosed_is_no_input(written, refuse):
    assert "column 'dx_type' of" in refuse(written("kaggle_ham"), metadata="age,dx_type")


def break_zip(it):
    """Leave the beginning of a zip file."""
    it.remove("HAM10000_images_part_1.zip")
    (it.path / "HAM10000_images_part_1.zip").write_bytes(b"PK\3\4")


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("kaggle_ham", lambda it: it.remove(CSV),
         ["is not laid out as any dataset", "hmnist_28_28_L.csv", "Type --csv FILE"]),
        ("kaggle_ham", lambda it: it.change_cell(CSV, 2, dx=""),
         ["'dx' of HAM10000_metadata.csv is empty in row 2", "Fill it in"]),
        ("kaggle_ham", lambda it: it.change_cell(CSV, 3, image_id=""), ["'image_id'", "row 3"]),
        ("kaggle_ham", lambda it: it.change_cell(CSV, 2, dx="mel"),
         ["gives 1 lesion more than one label", "mel and nv", "--group"]),
        ("kaggle_ham", lambda it: it.edit(CSV, lambda rows: rows.iloc[[0, *range(len(rows))]]),
         ["repeats 1 image id", "rows 2, 3"]),
        ("kaggle_ham", lambda it: it.edit(CSV, lambda rows: rows.assign(
            image_id=rows["image_id"] + "_x")), ["none of the 88 images", "ISIC_0025346_x"]),
        ("kaggle_ham", lambda it: it.copy_table(CSV, "mine.csv"),
         ["holds 2 tables", "HAM10000_metadata.csv (88 images), mine.csv (88 images)",
          "--csv FILE --images DIR"]),
        ("kaggle_ham", lambda it: it.draw("", "ISIC_0025346"),
         ["two different images are named 'ISIC_0025346'", "Remove one of each"]),
        ("kaggle_ham", lambda it: it.change_cell(CSV, 2, age="old"),
         ["'age' of HAM10000_metadata.csv", "'old' in row 2", "Correct"]),
        ("dataverse", lambda it: it.remove("*images*.zip"), ["none of the 88 images", "found are"]),
        ("dataverse", break_zip,
         ["HAM10000_images_part_1.zip is not a complete zip file", "Download it again"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(download, refuse, name, change, parts):
    it = download(name)
    change(it)
    message = refuse(it.path)
    assert all(part in message for part in parts), message
