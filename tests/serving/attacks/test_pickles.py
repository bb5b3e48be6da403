"""A pickle under each name that is read: none is opened, by whatever command reads the folder."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lesionfast.cache import cache_folder as own_cache
from lesionfast.cli.base import app
from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.files import sha256
from lesionfast.models.weights import read_weights
from lesionfast.run import CONFIGS, FITTED, GIVEN, LEARNED, Run
from lesionfast.serving.bundle import hash_description
from lesionfast.serving.export import export
from lesionfast.serving.predictor import Predictor

TINY = TrainConfig(
    arch="test_resnet", weights="none", size=32, epochs=1, head_epochs=0, tta=1, precision="float32"
)
PHOTO = np.zeros((64, 64, 3), np.uint8)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def plain(trap: Trap) -> bytes:
    return pickle.dumps(trap, protocol=2)


def of_torch(trap: Trap) -> bytes:
    data = io.BytesIO()
    torch.save({"state_dict": trap}, data)
    return data.getvalue()


def of_numpy(trap: Trap) -> bytes:
    data = io.BytesIO()
    np.save(data, np.array([trap], dtype=object), allow_pickle=True)
    return data.getvalue()


KINDS: dict[str, Callable[[Trap], bytes]] = {
    "pickle": plain,
    "torch": of_torch,
    "numpy": of_numpy,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_folder) -> Run:
    from lesionfast.training.experiment import train

    return train(load_dataset(TINY), TINY, tmp_path_factory.mktemp("runs"), "run")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    return export(run, tmp_path_factory.mktemp("made") / "model")


def invoke(*words: object) -> int:
    """Run a command; whatever it says, it does not end in a bug."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, LesionfastError):
        return 2
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


@pytest.mark.parametrize("kind", KINDS)
def test_the_traps_are_traps(tmp_path, kind):
    data = KINDS[kind](Trap(tmp_path / "sprung"))
    (tmp_path / "file").write_bytes(data)
    if kind == "pickle":
        pickle.loads(data)
    elif kind == "torch":
        torch.load(tmp_path / "file", weights_only=False)
    else:
        np.load(tmp_path / "file", allow_pickle=True)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_an_exported_folder_is_unpickled(folder, tmp_path, kind):
    trap = tmp_path / "sprung"
    for name in ("model.json", "model.safetensors", "outliers.safetensors", "README.md"):
        copy = Path(shutil.copytree(folder, tmp_path / name))
        (copy / name).write_bytes(KINDS[kind](Trap(trap)))
        if name != "model.json":  # under a hash that is right
            told = json.loads((copy / "model.json").read_text("utf-8"))
            del told["sha256"]
            if name in told["files"]:
                told["files"][name] = sha256(copy / name)
            (copy / "model.json").write_text(
                json.dumps(told | {"sha256": hash_description(told)}), "utf-8"
            )
        if name == "README.md":
            Predictor(copy)(PHOTO)
        else:
            with pytest.raises(LesionfastError):
                Predictor(copy)(PHOTO)
        for more in ("model.pkl", "export.pkl", "encoder.pkl", "model.onnx", "conftest.py"):
            (copy / more).write_bytes(KINDS[kind](Trap(trap)))
        with pytest.raises(LesionfastError):
            Predictor(copy / "model.onnx")(PHOTO)
        assert not trap.exists()


FILES = [name for name in (*GIVEN, *LEARNED, *FITTED, "manifest.json", "note.txt", "log.txt")]


@pytest.mark.parametrize("vouched", [True, False], ids=["manifest", "earlier version"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_a_run_is_unpickled(run, tmp_path, kind, vouched):
    """With a manifest that vouches for it, or without one, as in a run of an earlier version."""
    trap = tmp_path / "sprung"
    for name in FILES:
        copy = Path(shutil.copytree(run.path, tmp_path / name.replace(".", "-")))
        (copy / name).write_bytes(KINDS[kind](Trap(trap)))
        if vouched and name != "manifest.json":
            Run(copy).seal()
        elif not vouched:
            (copy / "manifest.json").unlink()
            told = json.loads(run.path.joinpath("environment.json").read_text("utf-8"))
            told.pop("manifest")
            if name != "environment.json":
                (copy / "environment.json").write_text(json.dumps(told), "utf-8")
        with suppress(LesionfastError):
            Predictor(copy)(PHOTO)
        with suppress(LesionfastError):
            Run(copy).condition()
        for file in (copy / name, copy):
            with suppress(LesionfastError):
                read_weights(file)
        assert not trap.exists(), name


@pytest.mark.attack
@pytest.mark.parametrize("kind", KINDS)
def test_no_command_unpickles_a_file_of_a_run(run, tmp_path, kind):
    trap, root = tmp_path / "sprung", tmp_path / "runs"
    for name in FILES:
        if name in CONFIGS[1:]:
            continue
        shutil.rmtree(root, ignore_errors=True)
        copy = Path(shutil.copytree(run.path, root / "run"))
        shutil.copytree(run.path, root / "other")
        (copy / name).write_bytes(KINDS[kind](Trap(trap)))
        if name != "manifest.json":
            Run(copy).seal()
        (copy / "checkpoints").mkdir(exist_ok=True)
        for more in ("checkpoints/last.safetensors", "checkpoints/last.pth", "models.pkl"):
            (copy / more).write_bytes(KINDS[kind](Trap(trap)))
        invoke("interpret", copy, "--json")
        invoke("compare", copy, root / "other", "--json", "--out", root)
        invoke("export", copy, "--to", tmp_path / f"{name}-{kind}")
        invoke("runs", "--verify", "--out", root)
        invoke("runs", "--json", "--out", root)
        invoke("labels", copy)
        invoke("train", "--config", copy / "config.json", "--epochs", "0")
        invoke("train", "--resume", copy)
        assert not trap.exists(), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_the_cache_is_unpickled(tmp_path, kind, monkeypatch):
    """Somebody else may have written to a cache that several share."""
    trap, data, df = tmp_path / "sprung", KINDS[kind], load_dataset(TINY)
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))  # without the sample's pictures
    from lesionfast.data.images import open_dataset_images

    expected = open_dataset_images(df, TINY).pixels.copy()
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files and str(own_cache()).startswith(str(tmp_path))
    for file in files:
        file.write_bytes(data(Trap(trap)))
    assert (open_dataset_images(df, TINY).pixels == expected).all()
    assert not trap.exists()
