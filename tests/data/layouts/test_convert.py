"""The normal form of a dataset is read as the dataset itself is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import DataConfig, SplitConfig
from lesionfast.data.layouts.convert import convert
from lesionfast.data.sample import make_sample
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError


def test_the_normal_form_gives_the_same_table_split_and_bytes(tmp_path):
    before = load_dataset(SplitConfig(metadata="age,sex,localization"))
    to = convert(DataConfig(data=str(make_sample())), tmp_path / "out")
    assert sorted(path.name for path in to.iterdir()) == ["images", "metadata.csv"]
    after = load_dataset(SplitConfig(data=str(to), metadata="age,sex,localization"))
    pd.testing.assert_frame_equal(after.drop(columns="path"), before.drop(columns="path"))
    for old, new in zip(before["path"][:20], after["path"][:20], strict=True):
        assert Path(old).read_bytes() == Path(new).read_bytes()
    with pytest.raises(LesionfastError, match="exists already. Name another folder with --to"):
        convert(DataConfig(data=str(make_sample())), to)


@pytest.fixture
def odd(tmp_path):
    """A dataset of a phone's JPEG with two pictures, and of a file that is no picture."""
    folder = tmp_path / "odd"
    folder.mkdir()
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    red.save(folder / "a.jpg", "MPO", save_all=True, append_images=[blue])
    (folder / "b.jpg").write_bytes(b"no picture")
    (folder / "metadata.csv").write_text("image_id,lesion_id,dx\na,,nv\nb,L1,mel\n")
    return folder


def test_images_that_can_not_be_read_are_named_or_left_out(odd, tmp_path, caplog):
    with pytest.raises(LesionfastError, match="1 image can't be read: b: it is not a picture"):
        convert(DataConfig(data=str(odd)), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd"]
    to = convert(DataConfig(data=str(odd), skip_bad=True), tmp_path / "out")
    assert pd.read_csv(to / "metadata.csv")["image_id"].tolist() == ["a"]
    with Image.open(to / "images" / "a.png") as picture:
        assert picture.format == "PNG" and picture.getpixel((20, 20))[0] > 250
    assert "They are left out (--skip-bad)" in caplog.text


@pytest.mark.parametrize("layout", ["pad_ufes_20", "isic2020", "isic2019", "folders_by_class"])
def test_lesions_and_patients_are_kept(written, tmp_path, layout):
    before = load_dataset(SplitConfig(data=str(written(layout))))
    to = convert(DataConfig(data=str(written(layout))), tmp_path / "out")
    after = load_dataset(SplitConfig(data=str(to)))
    keys = ["image_id", "target", "group", "split"]
    pd.testing.assert_frame_equal(after[keys], before[keys])


def test_a_lesion_named_like_one_of_its_images_is_kept(tmp_path):
    for seed, name in enumerate("abc"):
        pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("image_id,lesion_id,dx\na,a,nv\nb,a,nv\nc,,mel\n")
    to = convert(DataConfig(data=str(tmp_path)), tmp_path / "out")
    assert pd.read_csv(to / "metadata.csv")["lesion_id"].fillna("").tolist() == ["a", "a", ""]


def test_long_ids_keep_their_digits(tmp_path):
    ids = ["900719925474099301", "900719925474099302", "007"]
    for seed, name in enumerate("abc"):
        pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    rows = [f"{name},L{i},{i},nv" for name, i in zip("abc", ids, strict=True)]
    (tmp_path / "t.csv").write_text("image_id,lesion_id,patient_id,dx\n" + "\n".join(rows))
    to = convert(DataConfig(data=str(tmp_path)), tmp_path / "out")
    assert pd.read_csv(to / "metadata.csv", dtype=str)["patient_id"].tolist() == ids


def test_several_datasets_become_one(written, tmp_path):
    data = f"{written('kaggle_ham')},{written('pad_ufes_20')}"
    before = load_dataset(SplitConfig(data=data))
    after = load_dataset(SplitConfig(data=str(convert(DataConfig(data=data), tmp_path / "out"))))
    assert after["source"].tolist() == before["source"].tolist()
    assert after["group"].tolist() == before["group"].tolist()
