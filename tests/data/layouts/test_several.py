"""Several datasets are one: no image twice, and no lesion or patient on both sides."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lesionfast.config import DataConfig, SplitConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError


def draw(seed: int) -> bytes:
    """Return a picture of its own as the bytes of a PNG file."""
    out = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(
        out, "PNG"
    )
    return out.getvalue()


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a dataset: a folder, a table and the seeds of the pictures."""

    def write(name: str, table: str, seeds: dict[str, int]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metadata.csv").write_text(table)
        for image, seed in seeds.items():
            (folder / f"{image}.png").write_bytes(draw(seed))
        return str(folder)

    return write


@pytest.fixture
def two(write):
    """Two datasets: ISIC_0000001 is in both, and so are the bytes of b under another id."""
    first = write(
        "first",
        "image_id,lesion_id,dx,age\nISIC_0000001,HAM_0000001,nv,40\nb,7,mel,50\nc,8,nv,60\n",
        {"ISIC_0000001": 1, "b": 2, "c": 3},
    )
    second = write(
        "second",
        "image,lesion_id,patient_id,diagnosis,age_approx,gender\n"
        "ISIC_0000001_downsampled,HAM_0000001,P1,NV,40,male\nx,7,P1,MEL,1,male\n"
        "ISIC_0000002,HAM_0000001,P2,NV,41,female\nc,9,P3,nv,2,female\n",
        {"ISIC_0000001_downsampled": 11, "x": 2, "ISIC_0000002": 12, "c": 13},
    )
    return [first, second]


def test_an_image_of_two_datasets_is_one_and_joins_its_groups(two, caplog):
    df = load_metadata(DataConfig(data=",".join(two))).set_index("image_id")
    assert set(df.index) == {"ISIC_0000001", "b", "first-c", "ISIC_0000002", "second-c"}
    assert df["source"].to_dict()["ISIC_0000002"] == "second"
    assert "2 images of a later dataset are in an earlier one already" in caplog.text
    group = df["group"]
    assert group["ISIC_0000001"] == group["ISIC_0000002"]  # one lesion of the archive
    assert group["b"] == group["ISIC_0000001"]  # its copy x is of P1, as that lesion is
    assert len({group["first-c"], group["second-c"], group["b"]}) == 3
    assert df.loc["second-c", ["age", "sex"]].tolist() == [2, "female"]
    assert df["sex"].isna().to_dict()["b"]


def test_groups_of_two_columns_that_are_no_patients_are_both_kept(write):
    table = "image_id,lesion_id,case_id,dx\n"
    first = write("first", table + "a,1,C,mel\nb,2,C,nv\nc,3,D,nv\n", {"a": 1, "b": 2, "c": 3})
    second = write("second", table + "d,1,C,mel\ne,2,C,nv\n", {"d": 4, "e": 5})
    group = load_metadata(DataConfig(data=f"{first},{second}")).set_index("image_id")["group"]
    assert group["a"] == group["b"] != group["c"] and group["d"] == group["e"] != group["a"]


def test_labels_that_differ_are_said_and_the_first_dataset_counts(write, caplog):
    first = write("first", "image_id,dx\nISIC_0000001,akiec\na,nv\n", {"ISIC_0000001": 1, "a": 2})
    table = "image_id,dx\nISIC_0000001,AK\nISIC_0000002,AK\n"
    second = write("second", table, {"ISIC_0000001": 1, "ISIC_0000002": 4})
    df = load_metadata(DataConfig(data=f"{first},{second}")).set_index("image_id")
    assert df.at["ISIC_0000001", "target"] == "akiec"
    assert "1 of these have another label" in caplog.text and "(akiec, then AK)" in caplog.text
    caplog.clear()
    load_metadata(DataConfig(data=f"{first},{second}", map="AK=akiec"))
    assert "another label" not in caplog.text


def test_what_the_datasets_are_is_said_in_one_sentence(two):
    config = DataConfig(data=",".join(two))
    found = find_dataset(config)
    assert describe(found, read_dataset(found, config)).startswith(
        "This looks like a table (metadata.csv): 5 images, 2 classes, 3 groups"
    )


def test_a_dataset_without_its_images_is_an_error(two, write):
    empty = write("empty", "image_id,dx\nq,nv\n", {})
    with pytest.raises(LesionfastError, match="none of the 1 image of metadata.csv was found"):
        find_dataset(DataConfig(data=",".join([*two, empty])))


def test_ham10000_and_pad_ufes_20_are_one_dataset(written):
    paths = [str(written("kaggle_ham")), str(written("pad_ufes_20"))]
    df = load_dataset(SplitConfig(data=",".join(paths), map="ack=akiec,sek=bkl,nev=nv"))
    assert df["source"].value_counts().to_dict() == {"ham10000": 88, "pad_ufes_20": 88}
    assert (df.groupby("group")["split"].nunique() == 1).all()


def test_a_class_that_only_left_out_copies_have_may_be_mapped(write):
    first = write("first", "image_id,dx\nISIC_0000001,akiec\na,nv\n", {"ISIC_0000001": 1, "a": 2})
    second = write("second", "image_id,dx\nISIC_0000001,AK\nb,NV\n", {"ISIC_0000001": 1, "b": 3})
    df = load_metadata(DataConfig(data=f"{first},{second}", map="ak=akiec"))
    assert df["target"].value_counts().to_dict() == {"nv": 2, "akiec": 1}
