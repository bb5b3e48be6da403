"""The synthetic sample: learnable but not trivial, the same bytes for a seed, safe to race for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lesionfast.config import DataConfig
from lesionfast.data import sample
from lesionfast.data.metadata import load_metadata
from lesionfast.data.parts.drawing import assign_split
from lesionfast.data.sample import SIZE, make_sample
from lesionfast.errors import LesionfastError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sample of this module's own."""
    return make_in(tmp_path_factory.mktemp("sample"))


def make_in(cache: Path, seed: int = 0) -> Path:
    """Return the sample in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LESIONFAST_CACHE", str(cache))
        return make_sample(seed)


@pytest.fixture(scope="module")
def raw(folder) -> pd.DataFrame:
    """The CSV of the sample as it is written."""
    return pd.read_csv(folder / "sample_metadata.csv")


@pytest.fixture(scope="module")
def df(folder) -> pd.DataFrame:
    """The sample's metadata as the library reads it."""
    return load_metadata(DataConfig(data=str(folder)))


def colours(path: str) -> np.ndarray:
    """Return what a glance sees: a coarse picture and the spread of its colours."""
    pixels = np.asarray(Image.open(path), np.float32)
    coarse = np.asarray(Image.open(path).resize((10, 8)), np.float32)
    levels = np.percentile(pixels, [2, 10, 25, 50, 75, 90, 98], axis=(0, 1))
    return np.concatenate([coarse.ravel(), levels.ravel()])


def test_the_table_looks_like_ham10000(raw, folder):
    names = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    assert list(raw) == names
    assert len(raw) == 420
    assert raw["image_id"].is_unique
    assert raw["image_id"].str.fullmatch(r"SYNTH_\d{5}").all()
    assert raw["lesion_id"].str.startswith("SYNTH_").all()
    assert {path.stem for path in (folder / "images").iterdir()} == set(raw["image_id"])


def test_seven_classes_with_enough_lesions(raw):
    lesions = raw.groupby("dx")["lesion_id"].nunique()
    assert set(lesions.index) == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    assert lesions.min() >= 8
    assert raw["dx"].value_counts().idxmax() == "nv"
    views = raw.groupby("lesion_id").size()
    assert set(views) == {1, 2, 3}


def test_a_lesion_is_of_one_person(raw):
    assert (raw.fillna("").groupby("lesion_id")[["dx", "age", "sex"]].nunique() == 1).all(axis=None)


def test_age_and_sex_are_missing_now_and_then_and_tell_something(raw):
    assert 0 < raw["age"].isna().sum() < 30
    assert 0 < (raw["sex"] == "unknown").sum() < 30
    age = raw.groupby("dx")["age"].mean()
    assert age["nv"] + 10 < age["mel"] < age["akiec"] + 5
    male = (raw["sex"] == "male").groupby(raw["dx"]).mean()
    assert male["akiec"] > male["nv"]


def test_ids_tell_nothing(raw):
    order = raw.sort_values("image_id")["dx"].to_numpy()
    assert (order[1:] == order[:-1]).mean() < 0.35  # by chance 0.21


def test_the_images_are_small_rgb_jpegs(folder):
    with Image.open(folder / "images" / "SYNTH_00001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (160, 120))
        assert image.info["comment"] == b"synthetic"


def test_views_of_a_lesion_differ(df):
    group = df["group"].value_counts().index[0]
    first, second, *_ = (
        Image.open(path).tobytes() for path in df.loc[df["group"] == group, "path"]
    )
    assert first != second


def test_a_simple_model_learns_it_but_not_all_of_it(df):
    df = assign_split(df, test=0, folds=3)
    features = np.stack([colours(path) for path in df["path"]])
    train = (df["split"] == "train").to_numpy()
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=300)
    ).fit(features[train], df["target"][train])
    decided = model.predict(features[~train])
    truth = df["target"][~train]
    assert 0.45 < balanced_accuracy_score(truth, decided) < 0.9
    assert ((truth == "mel") & (decided == "nv")).any()


def test_a_seed_gives_the_same_bytes_and_another_does_not(folder, tmp_path):
    again = make_in(tmp_path)
    other = make_in(tmp_path, seed=1)
    for name in ("sample_metadata.csv", "images/SYNTH_00001.jpg", "images/SYNTH_00420.jpg"):
        content = (folder / name).read_bytes()
        assert (again / name).read_bytes() == content
        assert (other / name).read_bytes() != content


def test_it_is_made_once(folder):
    table = folder / "sample_metadata.csv"
    before = table.stat().st_mtime_ns
    assert make_in(folder.parent) == folder
    assert table.stat().st_mtime_ns == before


def test_it_lies_in_the_cache_folder_by_version(cache_folder):
    folder = make_sample()
    assert folder.parent == cache_folder
    assert f"synthetic-sample-v{sample.VERSION}" in folder.name


def test_processes_that_race_leave_one_whole_sample(tmp_path):
    command = [sys.executable, "-c", "import lesionfast.data.sample as s; s.make_sample()"]
    environment = {**os.environ, "LESIONFAST_CACHE": str(tmp_path)}
    racers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    (made,) = tmp_path.iterdir()
    assert len(list((made / "images").iterdir())) == 420


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "photograph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_in(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_sample_does_not_need_more_than_it_says(folder):
    blocks = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
    assert SIZE / 2 < blocks <= SIZE


@pytest.fixture
def kept(tmp_path, monkeypatch, folder):
    """A sample in a cache of this test's own, and what it is drawn by: a copy, which is faster."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))
    copy = lambda made, seed: shutil.copytree(folder, made, dirs_exist_ok=True)  # noqa: E731
    monkeypatch.setattr(sample, "write_sample", copy)
    return make_sample()


DAMAGES = {
    "a flipped bit": lambda file: file.write_bytes(file.read_bytes()[:-9] + b"damaged!!"),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:300]),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("name", ["images/SYNTH_00007.jpg", "sample_metadata.csv"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_sample_in_the_cache_is_noticed_said_and_drawn_again(
    damage, name, kept, folder, caplog
):
    damage(kept / name)
    assert make_sample() == kept
    assert (kept / name).read_bytes() == (folder / name).read_bytes()
    assert f"{kept / name} is damaged" in caplog.text
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_full_disk_says_what_the_sample_needs_and_leaves_nothing(small_disk):
    with pytest.raises(LesionfastError, match=r"needs 2\.0 MB, and 1\.0 MB are free.* folder"):
        make_in(small_disk)
    assert list(small_disk.iterdir()) == []
