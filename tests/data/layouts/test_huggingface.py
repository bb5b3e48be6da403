"""Parquet files with pictures are a dataset; what is in two parts is one image."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import DataConfig, SplitConfig
from lesionfast.data.layouts.base import NO_LESIONS
from lesionfast.data.layouts.huggingface import check_shards
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SIZES = {"train": 12, "validation": 6, "test": 6}
NAMES = ["melanoma", "nevus", "keratosis"]


def draw(seed: int) -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def frame(n: int, start: int, **columns) -> pd.DataFrame:
    """Return rows as a Hugging Face dataset has them; None leaves a column out."""
    numbers = range(start, start + n)
    rows = {
        "image": [{"bytes": draw(i), "path": f"p{i}.png"} for i in numbers],
        "label": [i % 3 for i in numbers],
        **columns,
    }
    return pd.DataFrame({name: values for name, values in rows.items() if values is not None})


def save(path: Path, rows: pd.DataFrame, features: dict | None = None) -> Path:
    """Write a Parquet file with the notes of Hugging Face in its footer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    if features:
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    pq.write_table(table, path)
    return path


LABELS = {"label": {"names": NAMES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def write(root: Path, features: dict | None = None, name="data/{}-00000-of-00001.parquet") -> Path:
    """Write three parts with pictures that are all different."""
    start = 0
    for part, n in SIZES.items():
        save(root / name.format(part), frame(n, start), features or LABELS)
        start += n
    return root


def load(path: Path, **options):
    return load_metadata(DataConfig(data=str(path), **options))


def refusal(path: Path, **options) -> str:
    with pytest.raises(LesionfastError) as error:
        load(path, **options)
    return str(error.value)


def test_images_in_two_parts_are_one_and_a_new_split_is_drawn(written, caplog):
    config = SplitConfig(data=str(written("parquet")))
    df = load_dataset(config)
    assert (len(df), df["target"].nunique(), df["group"].nunique()) == (88, 7, 56)
    assert (df.groupby("group")["split"].nunique() == 1).all() and df["age"].notna().any()
    assert "9 images lie in several parts of the dataset" in caplog.text
    assert describe(find_dataset(config), df) == (
        "This looks like a Hugging Face dataset: 88 images, 7 classes, 56 lesions. Its own parts "
        "(train, test) share images or lesions, so a new split is drawn."
    )


@pytest.mark.parametrize(
    "name",
    [
        "data/{}-00000-of-00001.parquet",
        "{}.parquet",
        "default/{}/0000.parquet",
        "default/partial-{}/0000.parquet",
    ],
)
def test_whole_parts_are_the_split_and_labels_get_their_names(tmp_path, name):
    df = load_dataset(SplitConfig(data=str(write(tmp_path, name=name))))
    assert df["split"].value_counts().to_dict() == {"train": 12, "valid": 6, "test": 6}
    assert set(df["target"]) == {*NAMES}
    assert df.set_index("image_id").at["p4", "target"] == "nevus"


def test_names_of_labels_may_be_numbered(tmp_path):
    names = {str(number): name for number, name in enumerate(NAMES)}
    write(tmp_path, {"label": {"names": names, "_type": "ClassLabel"}})
    assert set(load(tmp_path)["target"]) == {*NAMES}


def test_one_file_and_a_column_of_bytes_alone(tmp_path):
    rows = frame(12, 0, image=[draw(i) for i in range(12)], dx=["mel", "nv"] * 6, label=None)
    df = load(save(tmp_path / "lesions.parquet", rows))
    assert df["image_id"].tolist()[:2] == ["image-0", "image-1"] and "split" not in df
    assert df["path"].iloc[0].endswith("lesions.parquet/0")


def test_the_same_names_in_several_parts_are_different_images(tmp_path):
    for start, part in enumerate(SIZES):
        pictures = [{"bytes": draw(100 * start + i), "path": f"{i}.png"} for i in range(6)]
        save(tmp_path / f"{part}.parquet", frame(6, 0, image=pictures), LABELS)
    df = load(tmp_path)
    assert len(df) == 18 and "train-0" in set(df["image_id"])


def test_the_same_bytes_under_other_names_are_one_image(tmp_path, caplog):
    write(tmp_path)
    again = [{"bytes": draw(9 + i), "path": f"other{i}.png"} for i in range(6)]
    save(tmp_path / "data" / "test-00000-of-00001.parquet", frame(6, 9, image=again), LABELS)
    df = load(tmp_path)
    assert len(df) == 18 and "split" not in df
    assert "Ignored 6 images with the content of another" in caplog.text


def test_the_same_bytes_with_two_labels_are_an_error_that_names_both(tmp_path):
    write(tmp_path)
    save(tmp_path / "data" / "test-00000-of-00001.parquet", frame(6, 9, label=[0] * 6), LABELS)
    message = refusal(tmp_path)
    assert "data/test-00000-of-00001.parquet/" in message and "parquet/2 are the same" in message
    assert "'melanoma'" in message and message.endswith("Remove those with the wrong label.")


def test_lesions_in_several_parts_are_split_anew(tmp_path):
    start = 0
    for part, n in SIZES.items():
        lesions = [f"L{i % 3}{i % 7}" for i in range(start, start + n)]
        save(tmp_path / f"{part}.parquet", frame(n, start, lesion_id=lesions), LABELS)
        start += n
    found = find_dataset(DataConfig(data=str(tmp_path)))
    assert found.groups == ("lesion_id",) and found.split is None
    assert "share images or lesions" in found.notes[0]


def test_rows_without_a_label_and_without_bytes_are_left_out_aloud(tmp_path, caplog):
    write(tmp_path)
    empty = [{"bytes": None, "path": None}]
    pictures = empty + [{"bytes": draw(90 + i), "path": f"q{i}.png"} for i in range(5)]
    rows = frame(6, 0, image=pictures, label=[0, 1, 2, -1, -1, 0])
    save(tmp_path / "data" / "test-00000-of-00001.parquet", rows, LABELS)
    config = DataConfig(data=str(tmp_path))
    df = load_metadata(config)
    assert len(df) == 18 + 3
    assert "Left out 2 images without a label." in describe(find_dataset(config), df)
    assert "Left out 1 row without an image" in caplog.text


def test_a_column_split_is_the_split(tmp_path):
    parts = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    save(tmp_path / "all.parquet", frame(12, 0, split=parts), LABELS)
    assert load(tmp_path)["split"].value_counts().to_dict() == {"train": 6, "valid": 3, "test": 3}


def test_only_class_label_of_another_name_is_the_target(tmp_path):
    rows = frame(12, 0, label=None, lesion_type=[i % 3 for i in range(12)], age=range(12))
    save(tmp_path / "a.parquet", rows, {"lesion_type": LABELS["label"]})
    assert set(load(tmp_path)["target"]) == {*NAMES}


def test_lists_are_left_out_aloud(tmp_path, caplog):
    save(tmp_path / "a.parquet", frame(12, 0, boxes=[[1, 2]] * 12), LABELS)
    assert "boxes" not in load(tmp_path)
    assert "left out 1 column of lists: boxes" in caplog.text
    assert NO_LESIONS in find_dataset(DataConfig(data=str(tmp_path))).notes


BROKEN = {
    "no bytes": (
        {"image": [{"bytes": b"", "path": "a.png"}] + [{"bytes": None, "path": "b.png"}] * 11},
        "none of the 12 images of a.parquet was found",
    ),
    "nothing but paths": (
        {"image": [{"bytes": None, "path": "a.png"}] * 12},
        "needs one column with the bytes of images; it has none. Its columns are: image struct<",
    ),
    "two columns of bytes": (
        {"image": None, "left": [b"a"] * 12, "right": [b"b"] * 12},
        "it has 2 columns of bytes: left, right. Its columns",
    ),
    "no target": (
        {"label": None, "sex": ["m", "f"] * 6, "number": range(12)},
        "no column is known to be the class in a.parquet; it has: sex (2 values), number (12 "
        "values). Name yours with --target.",
    ),
    "no names": ({"label": [7] * 12}, "has the label 7, but names for 3 only: melanoma, nevus"),
    "no labels": (
        {"label": [-1] * 12},
        "column 'label' of a.parquet is empty in all 12 rows. Name",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_columns_are_refused_with_what_to_do(tmp_path, name):
    columns, message = BROKEN[name]
    features = LABELS if columns.get("label", [0]) is not None else {}
    save(tmp_path / "a.parquet", frame(12, 0, **columns), features)
    assert message in refusal(tmp_path)


def test_a_target_that_is_not_there(tmp_path):
    message = refusal(write(tmp_path), target="dx")
    assert "column 'dx' is not in" in message and message.endswith("Name yours with --target.")


def test_a_file_that_is_cut_off(tmp_path):
    file = write(tmp_path) / "data" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    assert "is not a complete Parquet file" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, name="data/{}-00000-of-00002.parquet")
    message = refusal(tmp_path)
    assert "data has 1 of 2 files of the part 't" in message
    assert "-00001-of-00002.parquet. Download them too." in message


@pytest.mark.parametrize("total", ["3000000", "9" * 40])
def test_a_name_that_says_there_are_billions_of_shards_is_refused_at_once(total):
    names = [Path("data", f"x-{n:0{len(total)}}-of-{total}.parquet") for n in (0, 2)]
    with pytest.raises(LesionfastError) as refused:
        check_shards(names)
    assert f"data has 2 of {int(total):,} files" in str(refused.value)
    assert str(refused.value).endswith(f"4-of-{total}.parquet and others. Download them too.")


def test_pictures_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """Columns of bytes are never read whole."""
    write(tmp_path)
    read, asked = pq.ParquetFile.read, []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read",
        lambda self, columns=None, **options: (
            asked.append(columns) or read(self, columns, **options)
        ),
    )
    load(tmp_path)
    assert asked == [["label", "image.path"]] * 3


def test_the_bytes_of_the_images_are_compared_once(tmp_path, monkeypatch):
    from lesionfast.data.layouts import copies

    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    read, calls = copies.content_keys, []
    monkeypatch.setattr(copies, "content_keys", lambda paths: calls.append(paths) or read(paths))
    first = load(write(tmp_path / "hub"))
    pd.testing.assert_frame_equal(load(tmp_path / "hub"), first)
    assert len(calls[0]) == 24 and sum(map(len, calls)) == 24
