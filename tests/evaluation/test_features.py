"""The features kept with a run, and the nearest lesions of one trained once for the module."""

import shutil

import numpy as np
import pytest
from PIL import Image

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.features import nearest_lesions, read_features, write_features
from lesionfast.reporting.images import draw_nearest
from lesionfast.run import Run
from lesionfast.training.experiment import train

CONFIG = TrainConfig(arch="test_resnet", weights="none", size=32, head="prototype", fusion="none")


@pytest.mark.parametrize(("largest", "dtype"), [(60_000, "F16"), (70_000, "F32")])
def test_features_too_large_for_16_bits_are_kept_in_32(tmp_path, largest, dtype):
    features = np.array([[0.5, -1.25], [largest, 0]])
    write_features(Run(tmp_path), ["a", "b"], features)
    assert dtype.encode() in (tmp_path / "features.safetensors").read_bytes()
    read = read_features(Run(tmp_path))
    assert read.index.tolist() == ["a", "b"] and (read.to_numpy() == features).all()


def test_no_features_can_be_kept(tmp_path):
    write_features(Run(tmp_path), [], np.empty((0, 4)))
    assert read_features(Run(tmp_path)).shape == (0, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(load_dataset(CONFIG), CONFIG, tmp_path_factory.mktemp("runs"))


def test_they_are_training_lesions_the_most_similar_first(run):
    image = run.predictions["image_id"].iloc[0]
    table = nearest_lesions(run, image, k=4)
    assert table["image_id"].iloc[0] == image
    others = table.iloc[1:]
    assert len(others) == 4 and others["group"].is_unique
    split = run.split.set_index("image_id")["split"]
    assert (split[others["image_id"]] == "train").all()
    assert others["similarity"].is_monotonic_decreasing
    assert others["similarity"].between(-1, 1.001).all()


def test_a_copy_of_a_training_image_finds_it_again(run, tmp_path):
    df = load_dataset(CONFIG)
    row = df[df["split"] == "train"].iloc[3]
    shutil.copy(row["path"], tmp_path / "copy.jpg")
    table = nearest_lesions(run, str(tmp_path / "copy.jpg"), k=1)
    assert table["group"].iloc[1] == row["group"]
    assert table["similarity"].iloc[1] == pytest.approx(1, abs=1e-3)


def test_a_training_image_does_not_find_its_own_lesion(run):
    row = run.split[run.split["split"] == "train"].iloc[0]
    assert row["group"] not in nearest_lesions(run, row["image_id"]).iloc[1:]["group"].tolist()


def test_the_features_are_kept_and_read_again(run):
    image = run.predictions["image_id"].iloc[0]
    first = nearest_lesions(run, image)
    path = run.path / "features.safetensors"
    stamp = path.stat().st_mtime_ns
    np.testing.assert_allclose(nearest_lesions(run, image)["similarity"], first["similarity"])
    assert path.stat().st_mtime_ns == stamp


def test_the_picture_is_drawn(run, tmp_path):
    table = nearest_lesions(run, run.predictions["image_id"].iloc[0])
    with Image.open(draw_nearest(run, table, tmp_path)) as picture:
        assert min(picture.size) > 300


def test_an_unknown_image_says_what_to_type(run):
    with pytest.raises(LesionfastError, match="neither an image id.*nor a file.*--nearest SYNTH"):
        nearest_lesions(run, "SYNTH_nowhere")
    with pytest.raises(LesionfastError, match="--k is 0"):
        nearest_lesions(run, "SYNTH_00001", k=0)
