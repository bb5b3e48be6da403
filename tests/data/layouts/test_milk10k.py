"""MILK10k is read from its tables, one picture of a lesion or both, and what is wrong is said."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset

WHOLE = (56, 7, 56)  # dermoscopic pictures, classes, lesions
TRUTH = "MILK10k_Training_GroundTruth.csv"
METADATA = "MILK10k_Training_Metadata.csv"
SUPPLEMENT = "MILK10k_Training_Supplement.csv"


@pytest.fixture
def milk(copied) -> Path:
    return copied("milk10k")


def edit(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Return a change of a folder: one of its tables is rewritten."""

    def rewrite(folder: Path) -> None:
        rows = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        change(rows).to_csv(folder / name, index=False)

    return rewrite


@pytest.mark.parametrize(
    ("kind", "counts"), [("dermoscopic", WHOLE), ("clinical", WHOLE), ("all", (112, 7, 56))]
)
def test_the_pictures_asked_for_are_read(written, summarize, caplog, kind, counts):
    folder = written("milk10k")
    assert summarize(folder, images_of=kind) == counts
    df = load_metadata(DataConfig(data=str(folder), images_of=kind))
    kinds = {"dermoscopic": {"dermoscopic"}, "clinical": {"clinical: close-up"}}
    assert set(df["image_type"]) == kinds.get(kind, {"dermoscopic", "clinical: close-up"})
    assert "without a row" not in caplog.text  # those not asked for have one


def test_it_says_what_it_is(written):
    config = DataConfig(data=str(written("milk10k")))
    found = find_dataset(config)
    assert describe(found, read_dataset(found, config)) == (
        "This looks like MILK10k: 56 images, 7 classes, 56 lesions. The dermoscopic images are "
        "used, 56 others are not (type --images-of clinical or --images-of all)."
    )


def test_columns_have_their_usual_names_and_the_supplement_is_no_input(written, summarize, refuse):
    folder = written("milk10k")
    df = load_metadata(DataConfig(data=str(folder), metadata="age,sex,MONET_hair"))
    assert {"age", "sex", "localization", "MONET_hair", "diagnosis_full"} <= {*df}
    message = refuse(folder, metadata="age,diagnosis_confirm_type")
    assert "column 'diagnosis_confirm_type' of" in message
    assert "can't be an input" in message


def add_test_set(folder: Path) -> None:
    """Leave the test set, which has no truth, beside."""
    rows = pd.read_csv(folder / METADATA, dtype=str).head(4)
    rows["lesion_id"] = ["IL_9", "IL_9", "IL_8", "IL_8"]
    rows["isic_id"] = [f"ISIC_70{n}" for n in range(4)]
    rows.to_csv(folder / "MILK10k_Test_Metadata.csv", index=False)
    pictures = sorted((folder / "MILK10k_Training_Input").rglob("*.jpg"))
    for name, lesion, picture in zip(rows["isic_id"], rows["lesion_id"], pictures, strict=False):
        (folder / "MILK10k_Test_Input" / lesion).mkdir(parents=True, exist_ok=True)
        (folder / "MILK10k_Test_Input" / lesion / f"{name}.jpg").hardlink_to(picture)


def add_submission(folder: Path) -> None:
    rows = pd.read_csv(folder / TRUTH, dtype=str).head(5)
    rows.assign(**dict.fromkeys(rows.columns[1:], "0.0")).to_csv(
        folder / "sample_submission.csv", index=False
    )


def add_copies(folder: Path) -> None:
    for name in (TRUTH, METADATA):
        copy = folder / name.replace(".csv", "_clean.csv")
        copy.write_text((folder / name).read_text())


def deepen(folder: Path) -> None:
    """Rename the tables, and put them and the pictures into folders of their own."""
    for name, other in {TRUTH: "labels.csv", METADATA: "info.csv", SUPPLEMENT: "more.csv"}.items():
        (folder / "tables").mkdir(exist_ok=True)
        (folder / name).rename(folder / "tables" / other)
    (folder / "MILK").mkdir()
    (folder / "MILK10k_Training_Input").rename(folder / "MILK" / "pictures")


def flatten(folder: Path) -> None:
    for path in list(folder.rglob("*.jpg")):
        path.rename(folder / path.name)


def zip_beside(folder: Path) -> None:
    inputs = folder / "MILK10k_Training_Input"
    with zipfile.ZipFile(folder / "MILK10k_Training_Input.zip", "w") as archive:
        for path in sorted(inputs.rglob("*.jpg"))[:20]:
            archive.write(path, path.relative_to(folder))


def shout(folder: Path) -> None:
    for name in (TRUTH, METADATA, SUPPLEMENT):
        edit(name, lambda rows: rows.rename(columns=str.upper))(folder)


def whisper(folder: Path) -> None:
    edit(TRUTH, lambda rows: rows.rename(columns=str.lower))(folder)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def remove_pictures(folder: Path) -> None:
    for path in sorted(folder.rglob("ISIC_9*.jpg"))[:2]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "counts"),
    [
        (add_test_set, WHOLE),
        (add_submission, WHOLE),
        (add_copies, WHOLE),
        (deepen, WHOLE),
        (flatten, WHOLE),
        (zip_beside, WHOLE),
        (shout, WHOLE),
        (whisper, WHOLE),
        (remove(SUPPLEMENT), WHOLE),
        (edit(SUPPLEMENT, lambda rows: rows.head(9)), WHOLE),
        (edit(METADATA, lambda rows: rows.assign(isic_id=rows["isic_id"] + ".png")), WHOLE),
        (edit(METADATA, lambda rows: rows.drop(1)), (55, 7, 55)),
        (remove_pictures, (54, 7, 54)),
    ],
)  # fmt: skip
def test_what_people_have_is_read(milk, summarize, damage, counts):
    damage(milk)
    assert summarize(milk) == counts


def test_what_was_left_out_is_counted(milk, caplog):
    add_test_set(milk)
    edit(METADATA, lambda rows: rows.drop(1))(milk)
    edit(SUPPLEMENT, lambda rows: rows.head(9))(milk)
    found = find_dataset(DataConfig(data=str(milk)))
    assert found.notes[1] == "Left out 1 lesion without such an image."
    assert found.notes[2] == "Left out 4 images of lesions without truth (a test set)."
    assert "MILK10k_Training_Supplement.csv has no row for 103 images" in caplog.text


def set_two(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(BCC=rows["BCC"].where(rows.index > 0, "1.0"))


def set_none(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(NV=rows["NV"].where(rows.index > 0, "0.0"))


def set_text(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(BCC=rows["BCC"].where(rows.index > 0, "yes"))


def swap_pictures(folder: Path) -> None:
    """Give a picture's name to another picture, elsewhere."""
    first, *_, last = sorted(folder.rglob("ISIC_9*.jpg"))
    (folder / first.name).hardlink_to(last)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (remove(METADATA), ["table of the metadata", "is missing", TRUTH, f"Put {METADATA}"]),
        (remove(TRUTH), ["table of the diagnoses", "is missing", METADATA, f"Put {TRUTH}"]),
        (edit(TRUTH, lambda rows: rows.drop(0)), [TRUTH, "no row for 2 of 112 rows of", METADATA]),
        (edit(METADATA, lambda rows: rows.drop([0, 1])), [METADATA, "no row for 1 of 56", TRUTH]),
        (edit(TRUTH, lambda rows: pd.concat([rows, rows[:1]])), ["1 row too many", "Keep one"]),
        (edit(METADATA, lambda rows: rows.drop(columns="image_type")),
         ["'image_type' is not in MILK10k_Training_Metadata.csv; it has: lesion_id", "Add it"]),
        (edit(TRUTH, lambda rows: rows.drop(columns="lesion_id")),
         ["'lesion_id' is not in MILK10k_Training_GroundTruth.csv; it has: AKIEC", "Add it"]),
        (edit(TRUTH, set_two), ["row 2", "BCC and NV", "exactly one is needed"]),
        (edit(TRUTH, set_none), ["row 2", "has none of the columns", "exactly one is needed"]),
        (edit(TRUTH, set_text), ["'BCC'", "'yes' in row 2", "hold 0 and 1"]),
        (edit(TRUTH, lambda rows: rows.assign(lesion_id="X" + rows["lesion_id"])),
         ["no lesion of", "'XIL_0000000' and 'IL_0000000'", "Put the metadata"]),
        (edit(METADATA, lambda rows: rows.assign(image_type="TBP tile")),
         ["no dermoscopic image", "'TBP tile'", "--images-of all"]),
        (edit(METADATA, lambda rows: rows.assign(isic_id="ISIC_9000000")), ["repeats 55 image id"]),
        (swap_pictures, ["two different images are named 'ISIC_9000000'", "Remove one of each"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(milk, refuse, damage, parts):
    damage(milk)
    message = refuse(milk)
    assert all(part in message for part in parts), message
