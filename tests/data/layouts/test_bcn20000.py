"""BCN20000 as it lies on disk: two tables, a test set without diagnoses, and broken."""

import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset

HEADER = "bcn_filename,age_approx,anatom_site_general,diagnosis,lesion_id,capture_date,sex,split"
CLASSES = ("MEL", "NV", "BCC", "BKL")
TRAIN, TEST = "bcn_20k_train.csv", "bcn_20k_test.csv"
WHOLE = (32, 4, 16)


@pytest.fixture
def bcn(download):
    """A folder with 32 images of 16 lesions, four a class, and four images without diagnosis."""
    it = download()
    names = [f"BCN_{number:010d}" for number in range(36)]
    it.draw("bcn_20k_train", *names[:32])
    it.draw("bcn_20k_test", *[f"BCN_{number:010d}" for number in range(300, 304)])
    rows = [
        f"{name}.jpg,{40 + number % 9},trunk,{CLASSES[number % 4]},BCN_L{number % 16},2014-0{n}-01,"
        f"{('male', 'female')[number // 4 % 2]},train"
        for number, name in enumerate(names[:32])
        for n in [number % 9 + 1]
    ]
    (it.path / TRAIN).write_text("\n".join([HEADER, *rows]) + "\n")
    tests = [f"BCN_{number:010d}.jpg,50,trunk,,,2015-01-01,male,test" for number in range(300, 304)]
    (it.path / TEST).write_text("\n".join([HEADER, *tests]) + "\n")
    return it


def say(folder, **options) -> str:
    """Return the sentence that says what a folder is."""
    config = DataConfig(data=str(folder), **options)
    found = find_dataset(config)
    return describe(found, read_dataset(found, config))


def test_what_it_looks_like_is_said(bcn, caplog):
    assert say(bcn.path) == (
        "This looks like BCN20000: 32 images, 4 classes, 16 lesions. Left out 4 rows without a "
        "label (diagnosis)."
    )
    assert "without a row" not in caplog.text
    assert "reserved name" not in caplog.text


def test_columns_have_their_usual_names_and_a_date_is_no_input(bcn, refuse):
    df = load_metadata(DataConfig(data=str(bcn.path)))
    assert {"age", "sex", "localization"} <= {*df}
    assert "'capture_date'" in refuse(bcn.path, metadata="age,capture_date")


def name_parts(rows):
    """Return rows of train, validation and test."""
    parts = ["train", "train", "val", "test"]
    return rows.assign(split=[parts[int(lesion[5:]) // 4] for lesion in rows["lesion_id"]])


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda it: it.nest(), WHOLE),
        (lambda it: (it.move(TRAIN, "csv/a.csv"), it.move(TEST, "csv/b.csv")), WHOLE),
        (lambda it: it.remove(TEST), WHOLE),
        (lambda it: it.edit(TEST, lambda rows: rows.drop(columns="diagnosis")), WHOLE),
        (lambda it: it.edit(TRAIN, lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (lambda it: it.edit(TRAIN, lambda rows: rows.drop(columns="split")), WHOLE),
        (lambda it: it.edit(TRAIN, lambda rows: rows.assign(split="fold 1")), WHOLE),
        (lambda it: it.edit(TRAIN, name_parts), WHOLE),
        (lambda it: it.edit(TRAIN, lambda rows: rows.drop(columns="lesion_id")), (32, 4, 32)),
        (lambda it: it.copy_table(TRAIN, "bcn_20k_train_clean.csv"), WHOLE),
        (lambda it: it.zip_folder("bcn_20k_train"), WHOLE),
        (lambda it: it.change_cell(TRAIN, 2, lesion_id=""), (32, 4, 17)),
        (lambda it: it.change_cell(TRAIN, 2, diagnosis=""), (31, 4, 16)),
    ],
)
def test_what_people_have_is_read(bcn, summarize, change, counts):
    change(bcn)
    assert summarize(bcn.path) == counts


def test_parts_that_it_has_are_the_split(bcn):
    bcn.edit(TRAIN, name_parts)
    df = load_metadata(DataConfig(data=str(bcn.path)))
    assert df["split"].value_counts().to_dict() == {"train": 16, "valid": 8, "test": 8}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda it: it.remove(TRAIN), ["'diagnosis' of bcn_20k_test.csv is empty in all 4 rows",
                                       "--target"]),
        (lambda it: it.edit(TRAIN, lambda rows: rows.rename(columns={"diagnosis": "label"})),
         ["empty in all 36 rows", "--target"]),
        (lambda it: (it.remove(TEST), it.edit(TRAIN, lambda rows: rows.drop(columns="diagnosis"))),
         ["have no column 'diagnosis'", TRAIN, "Put bcn_20k_train.csv"]),
        (lambda it: it.remove("bcn_20k_train"), ["none of the 32 images", "found are: none"]),
        (lambda it: it.edit(TRAIN, lambda rows: rows.iloc[[0, *range(len(rows))]]),
         ["repeats 1 image id", "Keep one row"]),
        (lambda it: it.change_cell(TRAIN, 2, lesion_id="BCN_L1"),
         ["gives 1 lesion more than one label", "MEL and NV", "--group"]),
        (lambda it: it.edit(TRAIN, lambda rows: rows.assign(
            bcn_filename="x_" + rows["bcn_filename"])), ["none of the 32 images", "'x_BCN_"]),
        (lambda it: it.change_cell(TRAIN, 2, bcn_filename="../BCN_0000000000.jpg"),
         ["is not a file name without folders", "row 2"]),
        (lambda it: it.change_cell(TRAIN, 2, age_approx="old"),
         ["column 'age'", "'old' in row 2", "Correct"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(bcn, refuse, change, parts):
    change(bcn)
    message = refuse(bcn.path)
    assert all(part in message for part in parts), message
