"""Fitzpatrick17k is read with the label that has enough images, and what is wrong is said."""

import hashlib
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

LABELS = [  # label, nine and three partitions
    ("melanoma", "malignant melanoma", "malignant"),
    ("basal cell carcinoma", "malignant epidermal", "malignant"),
    ("dermatofibroma", "benign dermal", "benign"),
    ("syringoma", "benign dermal", "benign"),
    ("psoriasis", "inflammatory", "non-neoplastic"),
    ("eczema", "inflammatory", "non-neoplastic"),
]
WHOLE = (66, 3, 66)  # images, classes; each image is a group


@pytest.fixture(scope="session")
def written_fitzpatrick(tmp_path_factory) -> Path:
    """A small Fitzpatrick17k: 12 rows a label, one of them with a dead link."""
    folder = tmp_path_factory.mktemp("fitzpatrick17k")
    rows = []
    for n, (label, nine, three) in enumerate(LABELS * 12):
        md5 = hashlib.md5(str(n).encode()).hexdigest()
        scale = n % 7 or -1
        url = f"https://example.org/{label}{n}.jpg"
        qc = "3 Wrongly labelled" if n == 5 else "1 Diagnostic" if n % 9 == 0 else ""
        rows.append((md5, scale, scale, label, nine, three, qc, url, f"{label}{n}jpg.jpg"))
        if n >= 6:
            (folder / "images").mkdir(exist_ok=True)
            draw(folder / "images" / f"{md5}.jpg", n)
    columns = ["md5hash", "fitzpatrick_scale", "fitzpatrick_centaur", "label"]
    columns += ["nine_partition_label", "three_partition_label", "qc", "url", "url_alphanum"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "fitzpatrick17k.csv", index=False)
    return folder


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 36)).save(path)


@pytest.fixture
def fitzpatrick(written_fitzpatrick, tmp_path) -> Path:
    return shutil.copytree(written_fitzpatrick, tmp_path / "data")


def test_it_says_what_it_is_and_why_this_label(written_fitzpatrick, caplog):
    config = DataConfig(data=str(written_fitzpatrick))
    found = find_dataset(config)
    df = read_dataset(found, config)
    assert describe(found, df) == (
        "This looks like Fitzpatrick17k: 66 images, 3 classes. Its classes are those of "
        "three_partition_label: of the 6 of label, 6 have fewer than 20 images (type --target "
        "label for them). A dermatologist called the label of 1 image wrong (qc); they are kept."
    )
    assert "Left out 6 rows without an image" in caplog.text  # dead links
    assert "every image counts as a lesion of its own" in caplog.text


def test_the_finest_label_with_enough_images_is_chosen(written_fitzpatrick, monkeypatch, summarize):
    monkeypatch.setattr("lesionfast.data.layouts.fitzpatrick17k.FEWEST", 11)
    assert summarize(written_fitzpatrick) == (66, 6, 66)
    monkeypatch.setattr("lesionfast.data.layouts.fitzpatrick17k.FEWEST", 12)
    assert summarize(written_fitzpatrick) == WHOLE
    assert summarize(written_fitzpatrick, target="nine_partition_label") == (66, 4, 66)


def test_an_unknown_skin_type_is_missing(written_fitzpatrick):
    df = load_metadata(DataConfig(data=str(written_fitzpatrick)))
    assert set(df["fitzpatrick_scale"].dropna()) == {1, 2, 3, 4, 5, 6}
    assert df["fitzpatrick_scale"].isna().sum() == 10


@pytest.mark.parametrize("name", ["label", "nine_partition_label", "qc", "url", "url_alphanum"])
def test_what_names_the_label_is_no_input(written_fitzpatrick, summarize, refuse, name):
    assert summarize(written_fitzpatrick, metadata="fitzpatrick_scale") == WHOLE
    message = refuse(written_fitzpatrick, metadata=f"fitzpatrick_scale,{name}")
    assert f"column '{name}' of fitzpatrick17k.csv can't be an input" in message


def edit(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Return a change of a folder: its table is rewritten."""

    def rewrite(folder: Path) -> None:
        path = folder / "fitzpatrick17k.csv"
        change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)

    return rewrite


def change(**columns) -> Callable[[Path], None]:
    return edit(lambda rows: rows.assign(**columns))


def last(column: str, value: str) -> Callable[[Path], None]:
    """Return a change of the last value of a column."""
    return change(**{column: lambda rows: rows[column].where(rows.index < 71, value)})


def drop(*names: str) -> Callable[[Path], None]:
    return edit(lambda rows: rows.drop(columns=[*names]))


def deepen(folder: Path) -> None:
    (folder / "images").rename(folder / "finalfitz17k")
    (folder / "data").mkdir()
    (folder / "fitzpatrick17k.csv").rename(folder / "data" / "train.csv")


def name_by_url(folder: Path) -> None:
    """Name the pictures as the archive that the authors send does."""
    rows = pd.read_csv(folder / "fitzpatrick17k.csv")
    for md5, name in zip(rows["md5hash"], rows["url_alphanum"], strict=True):
        path = folder / "images" / f"{md5}.jpg"
        if path.exists():
            path.rename(path.with_name(name))


def to_png(folder: Path) -> None:
    for path in list(folder.rglob("*.jpg")):
        path.rename(path.with_suffix(".png"))


def zip_beside(folder: Path) -> None:
    shutil.make_archive(str(folder / "images"), "zip", folder, "images")


def add_tables(folder: Path) -> None:
    rows = pd.read_csv(folder / "fitzpatrick17k.csv", dtype=str)
    rows.to_csv(folder / "fitzpatrick17k_clean.csv", index=False)
    rows[["md5hash"]].assign(pred=0).to_csv(folder / "sample_submission.csv", index=False)


@pytest.mark.parametrize(
    ("damage", "counts"),
    [
        (deepen, WHOLE),
        (name_by_url, WHOLE),
        (to_png, WHOLE),
        (zip_beside, WHOLE),
        (add_tables, WHOLE),
        (edit(lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (drop("qc", "url", "url_alphanum", "fitzpatrick_centaur"), WHOLE),
        (drop("label", "nine_partition_label"), WHOLE),
        (change(md5hash=lambda rows: rows["md5hash"] + ".jpg"), WHOLE),
        (last("three_partition_label", ""), (65, 3, 65)),
        (drop("three_partition_label"), (66, 4, 66)),
    ],
)  # fmt: skip
def test_what_people_have_is_read(fitzpatrick, summarize, damage, counts):
    damage(fitzpatrick)
    assert summarize(fitzpatrick) == counts


def other_picture(folder: Path) -> None:
    """Give a picture's name to another picture."""
    draw(folder / next(folder.rglob("*.jpg")).name, 99)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (drop("label", "nine_partition_label", "three_partition_label"),
         ["has none of the labels of Fitzpatrick17k", "it has: md5hash", "--target"]),
        (change(three_partition_label="", label="", nine_partition_label=""),
         ["is empty in all 72 rows", "--target"]),
        (edit(lambda rows: pd.concat([rows, rows[:2]])), ["repeats 2 image ids", "rows 2, 74"]),
        (last("md5hash", ""), ["column 'md5hash' of fitzpatrick17k.csv is empty in row 73"]),
        (change(md5hash=lambda rows: "x" + rows["md5hash"]), ["none of the 72 images"]),
        (lambda folder: shutil.rmtree(folder / "images"), ["none of the 72 images", "--images"]),
        (other_picture, ["two different images are named", "Remove one of each"]),
        (last("three_partition_label", "unclear"),
         ["the split needs 3 lesions of each class", "'unclear' has 1"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(fitzpatrick, refuse, damage, parts):
    damage(fitzpatrick)
    message = refuse(fitzpatrick)
    assert all(part in message for part in parts), message
