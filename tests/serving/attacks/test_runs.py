"""What a run, a search or a study from a stranger may do: each file of it says anything at all."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.files import sha256
from lesionfast.manifest import Manifest, hash_json
from lesionfast.models import fusion, inference
from lesionfast.models.ensemble import load_any
from lesionfast.run import Run, list_runs_of
from lesionfast.serving.predictor import Predictor
from lesionfast.stats import calibration
from lesionfast.training.callbacks.progress import logging_to
from lesionfast.training.search.space import read_settings
from lesionfast.training.study import read_toml

TINY = TrainConfig(
    arch="test_resnet", weights="none", size=32, epochs=1, head_epochs=0, tta=1, precision="float32"
)
PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
FILES = (
    *("manifest.json", "config.json", "model.json", "metrics.json", "encoder.json"),
    *("operating.json", "calibration.json", "conformal.json", "referral.json", "environment.json"),
)
VALUES = {
    **{"object": {}, "many": list(range(20_000)), "path": "../../../../etc/passwd", "null": None},
    **{"true": True, "10^9": 10**9, "10^400": 10**400, "NaN": float("nan"), "minus": -1},
    **{"1e308": 1e308, "text": "x", "list": [], "NUL": "a\0b", "huge": [1e308] * 7},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_folder) -> Run:
    from lesionfast.training.experiment import train

    made = train(load_dataset(TINY), TINY, tmp_path_factory.mktemp("runs"), "run")
    Predictor(made)(PHOTO)  # from now on it keeps what validation chose
    return made


@pytest.fixture
def stranger(run, tmp_path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "stranger"))


def put(run: Run, folder: Path, name: str, told: object) -> None:
    """Write a file of a run by an earlier version, which nothing vouches for; or the manifest."""
    for file in run.path.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    if name == "manifest.json":
        if isinstance(told, dict):
            told = {key: value for key, value in told.items() if key != "sha256"}
            told |= {"sha256": hash_json(told)}
    else:
        (folder / "manifest.json").unlink()
        about = json.loads((folder / "environment.json").read_text("utf-8"))
        about.pop("manifest")
        (folder / "environment.json").write_text(json.dumps(about), "utf-8")
    (folder / name).write_text(json.dumps(told), "utf-8")


def campaign(
    run: Run, folder: Path, files: tuple[str, ...], names: tuple[str, ...], list_parts: Callable
) -> Counter:
    """Replace each part of each file by each value, predict and look, and count what comes."""
    outcomes: Counter = Counter()
    for file in files:
        told = json.loads((run.path / file).read_text("utf-8"))
        for path, change in list_parts(told):
            for name in names:
                put(run, folder, file, change(VALUES[name]))
                outcome = "harmless"
                try:
                    Run(folder).condition()
                    Predictor(folder)(PHOTO)
                except LesionfastError:
                    outcome = "refused"
                except Exception as error:
                    pytest.fail(f"{file} {'.'.join(map(str, path))} = {name}: {error!r}")
                outcomes[outcome] += 1
    return outcomes


def is_whole(model: torch.nn.Module) -> bool:
    """Return whether a model still has its own precision, which a config may change in place."""
    return all(weights.dtype == torch.float32 for weights in model.parameters())


@pytest.fixture
def built_once(monkeypatch):
    """What was built, folded or fitted from the very same bytes before is given again.

    Nearly all of a try goes into that. Whatever else is read, is read and judged each time.
    """
    kept: dict = {}
    read, fold, fit = fusion.read_model, inference.folded, calibration.fit_scaling

    def read_again(about: dict, path: Path, advice: str) -> fusion.FusionModel:
        key = repr(about), path, path.is_file() and sha256(path)
        if key not in kept or not is_whole(kept[key]):
            kept[key] = read(about, path, advice)
        return kept[key]

    def fold_again(model: torch.nn.Module, *inputs: torch.Tensor) -> torch.nn.Module:
        key = model, *((one.shape, one.numpy().tobytes()) for one in inputs)
        if key not in kept or not is_whole(kept[key]):
            kept[key] = fold(model, *inputs)
        return kept[key]

    def fit_again(
        truth: np.ndarray, probabilities: np.ndarray, *how: object
    ) -> calibration.Calibrator:
        key = truth.tobytes(), probabilities.shape, probabilities.tobytes(), how
        if key not in kept:
            kept[key] = fit(truth, probabilities, *how)
        return kept[key]

    monkeypatch.setattr(calibration, "fit_scaling", fit_again)
    monkeypatch.setattr(fusion, "read_model", read_again)
    monkeypatch.setattr(inference, "folded", fold_again)


@pytest.fixture
def in_silence(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lesionfast"), "disabled", True)


@pytest.mark.usefixtures("in_silence", "built_once")
def test_a_run_that_says_anything_is_refused_or_harmless(run, stranger, list_parts):
    files = ("manifest.json", "model.json", "calibration.json")
    outcomes = campaign(run, stranger, files, ("object", "many"), list_parts)
    assert outcomes["refused"] > 50


@pytest.mark.attack
@pytest.mark.parametrize("file", FILES)
@pytest.mark.usefixtures("in_silence", "built_once")
def test_each_file_of_a_run_says_anything_at_all(run, stranger, list_parts, file):
    outcomes = campaign(run, stranger, (file,), tuple(VALUES), list_parts)
    print(file, dict(outcomes))
    assert sum(outcomes.values()) > 100


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "/dev/zero", "a\0b"])
def test_a_manifest_lists_no_file_elsewhere(stranger, name):
    manifest = Manifest(stranger)
    entry = {"sha256": "0" * 64, "bytes": 1, "schema": 1}
    manifest._save({name: entry}, {})
    with pytest.raises(DamageError, match="which is not in the folder"):
        _ = manifest.names
    assert Run(stranger).condition()[0] == "damaged"


def test_an_ensemble_of_itself_ends(stranger):
    about = json.loads((stranger / "model.json").read_text("utf-8"))
    for members in (["."], ["../stranger", "../stranger"], ["./."] * 1001):
        more = {"members": members, "weights": [1 / len(members)] * len(members)}
        Run(stranger).write_json("model.json", about | more | {"mean": "arithmetic"})
        for read in (list_runs_of, load_any, Predictor):
            with pytest.raises(DamageError, match="averages itself, or more than"):
                read(Run(stranger))
        assert Run(stranger).condition()[0] in ("whole", "damaged")


def test_what_is_sealed_is_in_the_folder(run, stranger, tmp_path):
    other = Path(shutil.copytree(run.path, tmp_path / "mine"))
    (other / "history.csv").write_text("changed")
    before = sha256(other / "manifest.json")
    (stranger / "inner").symlink_to(other)
    Run(stranger).seal()
    assert sha256(other / "manifest.json") == before


def test_a_log_is_not_written_through_a_link(stranger, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (stranger / "log.txt").unlink()
    (stranger / "log.txt").symlink_to(mine)
    with pytest.raises(LesionfastError, match="a symbolic link"), logging_to(stranger / "log.txt"):
        pass
    assert mine.read_text() == "mine"


def link(folder: Path, target: Path) -> None:
    """Put a link in the place of a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.symlink_to(target)


@pytest.mark.parametrize("name", ["figures", "checkpoints"])
def test_nothing_is_written_behind_a_link_to_what_is_not_ours(stranger, tmp_path, name):
    (tmp_path / "theirs").mkdir()
    link(stranger / name, tmp_path / "theirs")
    if os.getuid() == 0:
        os.chown(tmp_path / "theirs", 12345, 12345)
    else:
        (stranger / name).unlink()
        link(stranger / name, Path("/usr/share"))
    run = Run.open(stranger)
    assert run.condition()[0] == "whole" and run.metrics  # reading needs neither
    for file in ("a.json", "valid/a.json"):
        with pytest.raises(LesionfastError, match=f"{name} is a symbolic link to .* another user"):
            run.write_json(f"{name}/{file}", 1)
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("name", ["figures", "checkpoints"])
def test_figures_and_checkpoints_may_lie_on_a_disk_of_our_own(stranger, tmp_path, name):
    link(stranger / name, tmp_path / "scratch")
    with pytest.raises(
        LesionfastError, match=f"{name} is a symbolic link to .*Make that directory"
    ):
        Run.open(stranger).write_json(f"{name}/a.json", 1)
    (tmp_path / "scratch").mkdir()
    Run.open(stranger).write_json(f"{name}/a.json", 1)
    assert (tmp_path / "scratch" / "a.json").read_text() == "1\n"


BAD_CORRECTIONS = {
    "empty": b"",
    "NUL": b"image,answer\n\0,right\n",
    "not UTF-8": b"image,answer\n\xff\xfe,is mel\n",
    "pickle": b"\x80\x04cos\nsystem\n.",
    "a long field": b"image,answer\na," + b"x" * 10**6 + b"\n",
    "many columns": b"image,answer" + b",x" * 50_000 + b"\na,right\n",
    "an open quote": b'image,answer\n"a,right\nb,right\n' * 1000,
    "a command": b"image,answer\nSYNTH_00001,=cmd|' /C calc'!A0\n",
    "a path": b"image,answer\n../../../etc/passwd,right\n",
}


@pytest.mark.parametrize("kind", BAD_CORRECTIONS)
def test_corrections_of_a_wrong_form_are_refused(tmp_path, kind):
    (tmp_path / "c.csv").write_bytes(BAD_CORRECTIONS[kind])
    with pytest.raises(LesionfastError, match=r"c\.csv|--corrections"):
        load_dataset(replace(TINY, corrections=str(tmp_path / "c.csv")))


TEXTS = {
    "deep": b"a = " + b"[" * 50_000,
    "not UTF-8": b"\xff\xfe",
    "twice": b"a = 1\na = 2\n",
    "NUL": b"a = \0",
    "pickle": b"\x80\x04cos\nsystem\n.",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_study_or_a_space_that_is_no_toml_is_refused(tmp_path, text):
    file = tmp_path / "file.toml"
    file.write_bytes(TEXTS[text])
    for read in (lambda: read_toml(file, "Write one."), lambda: read_settings(file, {})):
        with pytest.raises(LesionfastError, match=r"file\.toml is not valid TOML"):
            read()


def test_what_is_no_line_is_not_called_one(tmp_path):
    os.mkfifo(tmp_path / "p")
    with pytest.raises(LesionfastError, match=r"p can't be read: it is a named pipe\. Write one\."):
        read_toml(tmp_path / "p", "Write one.")
    (tmp_path / "latin").write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(LesionfastError, match=r"it is not UTF-8\. Save it as UTF-8\."):
        read_toml(tmp_path / "latin", "Write one.")


def test_a_toml_that_is_a_pipe_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(LesionfastError, match="a named pipe"):
        read_toml(tmp_path / "pipe.toml", "Write one.")
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(500 * 10**6)
    with pytest.raises(LesionfastError, match=r"it has 500\.0 MB, and at most"):
        read_toml(tmp_path / "large.toml", "Write one.")
