"""ISIC 2019 as it lies on disk: whole, renamed, moved, with a test set and broken."""

import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset

TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
IMAGES = "ISIC_2019_Training_Input/ISIC_2019_Training_Input"
WHOLE = (88, 7, 74)


def say(folder, **options) -> str:
    """Return the sentence that says what a folder is."""
    config = DataConfig(data=str(folder), **options)
    found = find_dataset(config)
    return describe(found, read_dataset(found, config))


def test_what_it_looks_like_is_said(written):
    assert say(written("isic2019")) == (
        "This looks like ISIC 2019: 88 images, 7 classes, 44 lesions, 30 without a lesion id (each "
        "counts as a lesion of its own)."
    )


def rename_images(it, of, to):
    for path in sorted((it.path / IMAGES).glob(of)):
        path.rename(path.with_name(to(path.name)))


def add_test_set(it, with_truth):
    """Put the test set beside: ten images, two of them of no known class."""
    ids = [f"ISIC_77{number:05d}" for number in range(10)]
    it.draw("ISIC_2019_Test_Input", *ids)

    def make_truth(rows):
        rows = rows[:10].assign(image=ids, score_weight="1.0", validation_weight="0.0")
        rows.loc[:1, rows.columns[1:9]] = "0.0"
        rows.loc[:1, "UNK"] = "1.0"
        return rows

    if with_truth:
        it.copy_table(TRUTH, "ISIC_2019_Test_GroundTruth.csv", make_truth)
    it.copy_table(
        METADATA,
        "ISIC_2019_Test_Metadata.csv",
        lambda rows: rows[:10].assign(image=ids).drop(columns="lesion_id"),
    )


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda it: it.nest(), WHOLE),
        (lambda it: (it.move(TRUTH, "y.csv"), it.move(METADATA, "meta/x.csv")), WHOLE),
        (lambda it: it.move(IMAGES, "images"), WHOLE),
        (lambda it: it.zip_folder(IMAGES), WHOLE),
        (lambda it: it.edit(TRUTH, lambda rows: rows.rename(columns=str.lower)), WHOLE),
        (lambda it: it.edit(METADATA, lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (lambda it: it.edit(TRUTH, lambda rows: rows.drop(columns="UNK")), WHOLE),
        (lambda it: rename_images(it, "*_downsampled.jpg", lambda name: name[:12] + ".jpg"), WHOLE),
        (lambda it: rename_images(it, "*[0-9].jpg", lambda name: name[:12] + "_downsampled.jpg"),
         WHOLE),
        (lambda it: it.edit(METADATA, lambda rows: rows.assign(image=rows["image"].str[:12])),
         WHOLE),
        (lambda it: it.edit(TRUTH, lambda rows: rows.assign(image=rows["image"].str[:12])), WHOLE),
        (lambda it: it.copy_table(METADATA, "metadata_clean.csv"), WHOLE),
        (lambda it: add_test_set(it, with_truth=False), WHOLE),
        (lambda it: it.change_cell(TRUTH, 2, NV="0.0", UNK="1.0"), (87, 7, 73)),
        (lambda it: it.remove(f"{IMAGES}/ISIC_0024*"), (84, 7, 71)),
    ],
)  # fmt: skip
def test_what_people_have_is_read(download, summarize, change, counts):
    it = download("isic2019")
    change(it)
    assert summarize(it.path) == counts


def test_truth_and_metadata_may_be_one_table(download, summarize):
    it = download("isic2019")
    rows = [pd.read_csv(it.path / name, dtype=str) for name in (TRUTH, METADATA)]
    rows[0].merge(rows[1]).to_csv(it.path / "all.csv", index=False)
    it.remove("ISIC_2019*.csv")
    assert summarize(it.path) == WHOLE


def test_the_test_set_is_a_part_and_unknown_classes_are_left_out(download):
    it = download("isic2019")
    add_test_set(it, with_truth=True)
    df = load_metadata(DataConfig(data=str(it.path)))
    assert df["split"].value_counts().to_dict() == {"train": 88, "test": 8}
    assert "UNK" not in set(df["target"])
    assert "Left out 2 rows without a label (target)." in say(it.path)


def test_files_without_the_suffix_are_counted(download, caplog):
    it = download("isic2019")
    rename_images(it, "*_downsampled.jpg", lambda name: name[:12] + ".jpg")
    df = load_metadata(DataConfig(data=str(it.path)))
    assert "Matched 18 image files whose name differs" in caplog.text
    assert df["image_id"].str.endswith("_downsampled").sum() == 18


def test_metadata_has_its_usual_names(written):
    df = load_metadata(DataConfig(data=str(written("isic2019"))))
    assert {"age", "sex", "localization"} <= {*df}


def test_without_metadata_every_image_can_be_a_lesion(download, summarize):
    it = download("isic2019")
    it.remove(METADATA)
    assert summarize(it.path, group="none") == (88, 7, 88)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda it: it.remove(METADATA),
         [f"no table beside {TRUTH}", f"tables: {TRUTH}; 88 images", "or type --group none"]),
        (lambda it: it.edit(METADATA, lambda rows: rows[3:]),
         [METADATA, "no row for 3 of 88 rows", "ISIC_0025346", "Download both files again"]),
        (lambda it: it.edit(METADATA, lambda rows: rows.iloc[[0, *range(len(rows))]]),
         ["1 row too many", "occurs again", "Keep one row"]),
        (lambda it: it.change_cell(TRUTH, 2, SCC="1.0"), ["row 2", "NV and SCC", "exactly one"]),
        (lambda it: it.change_cell(TRUTH, 9, AK="?"), ["'AK'", "'?' in row 9", "0 and 1"]),
        (lambda it: it.edit(METADATA, lambda rows: rows.assign(image=rows["image"] + "_small")),
         [METADATA, "no row for 88 of 88 rows", "Download both"]),
        (lambda it: it.edit(METADATA, lambda rows: rows.drop(columns="lesion_id")),
         ["no table beside", "has the lesions", "--group none"]),
        (lambda it: rename_images(it, "*.jpg", lambda name: f"x{name}"),
         ["none of the 88 images", "The first is 'ISIC_0025346_downsampled'", "found are: xISIC"]),
        (lambda it: it.draw("", "ISIC_0028498"), ["two different images", "Remove one of each"]),
        (lambda it: it.edit(TRUTH, lambda rows: rows.assign(NV="0.0", UNK="0.0")),
         ["has none of the columns", "(10 such rows)", "Correct or remove"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(download, refuse, change, parts):
    it = download("isic2019")
    change(it)
    message = refuse(it.path)
    assert all(part in message for part in parts), message
