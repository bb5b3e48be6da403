"""Weights say which images they were trained on, wherever they lie."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from lesionfast.errors import LesionfastError
from lesionfast.models.lineage import Lineage, check_weights, lineage_header, read_lineage

ARCH = "resnet18"


def table(first: int, train: int, valid: int = 0, test: int = 0) -> pd.DataFrame:
    """Images I<first>, … of lesions of two images each, so many of each split."""
    numbers = np.arange(first, first + train + valid + test)
    return pd.DataFrame(
        {
            "image_id": [f"I{i}" for i in numbers],
            "group": [f"L{i // 2}" for i in numbers],
            "target": "nv",
            "split": np.repeat(["train", "valid", "test"], [train, valid, test]),
        }
    )


def write_run(folder: Path, split: pd.DataFrame, weights="none", header=True) -> Path:
    """A run that a training on `split` leaves; without `header` one of an earlier version."""
    folder.mkdir(parents=True)
    split.to_csv(folder / "split.csv", index=False)
    (folder / "config.json").write_text(json.dumps({"arch": ARCH, "weights": weights}))
    told = json.dumps(lineage_header(split, ARCH, weights) if header else None)
    tensors = {"backbone.body.stem.weight": np.zeros(3, np.float32)}
    save_file(tensors, folder / "weights.safetensors", {"header": told})
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", table(0, train=8, valid=4, test=4))


def named(run: Path, tmp_path: Path, how: str) -> Path:
    """The weights of a run, as a user may name them."""
    file, other = run / "weights.safetensors", tmp_path / "elsewhere"
    other.mkdir()
    if how == "the run":
        return run
    if how == "a copy of the run":
        return Path(shutil.copytree(run, other / "copy"))
    if how == "its file":
        return file
    if how == "its file under another name":
        return file.rename(run / "best.safetensors")
    if how == "a file in its checkpoints":
        (run / "checkpoints").mkdir()
        return file.rename(run / "checkpoints" / "epoch-3.safetensors")
    link = other / "link.safetensors"
    link.symlink_to(file)
    return link


PLACES = [
    "the run",
    "a copy of the run",
    "its file",
    "its file under another name",
    "a file in its checkpoints",
    "a link to it",
]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("how", PLACES)
def test_weights_that_saw_the_test_images_are_refused(tmp_path, how, header):
    run = write_run(tmp_path / "run", table(0, train=8, valid=4, test=4), header=header)
    weights = named(run, tmp_path, how)
    check_weights(table(0, train=8, valid=4, test=4), str(weights), ARCH)
    turned = table(0, train=10).assign(split=["test"] * 4 + ["train"] * 4 + ["valid"] * 2)
    with pytest.raises(
        LesionfastError, match=r"were trained on 4 images.* holds out for test \(4\)"
    ):
        check_weights(turned, str(weights), ARCH)
    with pytest.raises(LesionfastError, match=f"are those of {ARCH}, not of vgg16. Type --arch"):
        check_weights(turned, str(weights), "vgg16")


def test_a_weights_file_moved_alone_still_says_what_it_learned_from(run, tmp_path):
    alone = shutil.copyfile(run / "weights.safetensors", tmp_path / "alone.safetensors")
    shutil.rmtree(run)
    check_weights(table(0, train=8, valid=4, test=4), str(alone), ARCH)
    with pytest.raises(LesionfastError, match=r"were trained on 2 images.*Type --split FILE"):
        check_weights(table(6, train=0, test=6), str(alone), ARCH)
    with pytest.raises(LesionfastError, match=f"are those of {ARCH}"):
        check_weights(table(90, train=2), str(alone), "vgg16")


def test_another_image_of_a_lesion_that_was_trained_on_is_refused(run):
    other = table(0, train=0, test=2).assign(image_id=["new", "newer"])
    with pytest.raises(LesionfastError, match=r"2 images \(or others of their lesions\)"):
        check_weights(other, str(run), ARCH)


def test_images_that_chose_the_weights_may_be_validation_but_not_test(run):
    check_weights(table(8, train=0, valid=4), str(run), ARCH)
    with pytest.raises(LesionfastError, match=r"were selected by 4 images.* test \(4\)"):
        check_weights(table(8, train=0, test=4), str(run), ARCH)


@pytest.mark.parametrize("header", [True, False])
def test_weights_inherit_what_the_weights_they_started_from_learned_from(tmp_path, header):
    first = write_run(tmp_path / "first", table(0, train=8), header=header)
    second = write_run(tmp_path / "second", table(100, train=8), str(first), header=header)
    with pytest.raises(LesionfastError, match="were trained on 4 images"):
        check_weights(table(4, train=0, test=8), str(second), ARCH)


def test_a_run_that_took_the_name_of_the_run_it_started_from_can_be_started_from(tmp_path):
    new = write_run(tmp_path / "new", table(0, train=8), str(tmp_path / "best"))
    best = new.rename(tmp_path / "best")
    check_weights(table(100, train=0, test=8), str(best), ARCH)
    with pytest.raises(LesionfastError, match="were trained on 8 images"):
        check_weights(table(0, train=0, test=8), str(best), ARCH)


def test_the_header_is_read_as_it_was_written():
    lineage = Lineage.of(table(0, train=8, valid=4, test=4), ARCH)
    again = Lineage.from_dict(json.loads(json.dumps(lineage.to_dict())))
    assert again.arch == ARCH and len(again.train) == 8 + 4 and len(again.valid) == 4 + 2
    assert (again.train == lineage.train).all() and (again.valid == lineage.valid).all()


def test_image_ids_are_not_in_the_weights_file(run):
    data = (run / "weights.safetensors").read_bytes()
    assert b"lineage" in data and b"I7" not in data and b"L3" not in data


def test_old_weights_alone_are_taken_with_a_warning(tmp_path, caplog):
    run = write_run(tmp_path / "run", table(0, train=8), header=False)
    alone = (run / "weights.safetensors").rename(tmp_path / "alone.safetensors")
    with caplog.at_level(logging.WARNING, "lesionfast"):
        check_weights(table(0, train=0, test=8), str(alone), ARCH)
    assert "does not say which images it was trained on" in caplog.text


def test_weights_of_others_are_taken_without_a_word(tmp_path, caplog):
    folder = tmp_path / "downloads"
    folder.mkdir()
    table(0, train=8).to_csv(folder / "split.csv", index=False)
    save_file({"stem.weight": np.zeros(3, np.float32)}, folder / "imagenet.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no header")
    for name in ("imagenet.safetensors", "broken.safetensors", "missing.pth"):
        assert read_lineage(folder / name) is None
        check_weights(table(0, train=0, test=8), str(folder / name), ARCH)
    assert not caplog.text


def test_weights_of_a_run_of_another_architecture_are_refused(tmp_path):
    """Two architectures can have the same tensors, and want other inputs."""
    (tmp_path / "split.csv").write_text("image_id,split\nI0,train\n")
    (tmp_path / "pretrain.json").write_text('{"arch": "tf_efficientnet_lite0"}')
    rows = table(0, 100)
    check_weights(rows, str(tmp_path), "tf_efficientnet_lite0")
    with pytest.raises(LesionfastError, match=r"Type --arch tf_efficientnet_lite0, or other"):
        check_weights(rows, str(tmp_path), "efficientnet_lite0")
