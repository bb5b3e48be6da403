"""Damage to each file of a run, and what the commands that read it say then.

The quick tests damage each file once. `pytest -m damage` tries every damage of every file under
every command and counts what comes of it.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from lesionfast.cli.base import app
from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.findings import renew_damaged
from lesionfast.run import CORRECTIONS, FITTED, GIVEN, LEARNED, UNCORRECTED, WITHOUT_METADATA, Run

TINY = TrainConfig(arch="test_resnet", weights="none", size=32, epochs=2, tta=1)
FILES = [name for name in (*GIVEN, *LEARNED, *FITTED) if name != "pretrain.json"]
FILES.append("manifest.json")
OTHER, SILENT = "of another run", "another answer in silence"
READERS = {  # of the files that predict does not read
    "environment.json": lambda run: run.environment,
    "split.csv": lambda run: run.split,
    "predictions.csv": lambda run: run.predictions,
    UNCORRECTED: lambda run: run.predictions_before_corrections,
    CORRECTIONS: lambda run: run.file(CORRECTIONS),
    WITHOUT_METADATA: lambda run: run.predictions_without_metadata,
    "history.csv": lambda run: run.history,
    "features.safetensors": read_features,
}


def changed_digit(data: bytes, other: bytes) -> bytes:
    """The data with one digit changed, in the middle of the digits; of no text, one bit."""
    digits = [i for i, byte in enumerate(data) if byte in b"12345678"]
    place = digits[len(digits) // 2] if digits else len(data) // 2
    return data[:place] + bytes([data[place] ^ 1 or 2]) + data[place + 1 :]


def changed_bit(data: bytes, other: bytes) -> bytes:
    place = 2 * len(data) // 3
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def of_newer_schema(data: bytes, other: bytes) -> bytes:
    try:
        told = json.loads(data)
    except ValueError:
        return data + b"# schema 99\n"
    told = told | {"schema": 99} if isinstance(told, dict) else [{"schema": 99}, *told]
    return json.dumps(told).encode()


DAMAGES: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "truncated": lambda data, other: data[: 2 * len(data) // 3],
    "emptied": lambda data, other: b"",
    "a digit changed": changed_digit,
    "a bit changed": changed_bit,
    OTHER: lambda data, other: other,
    "missing": lambda data, other: None,
    "of a newer schema": of_newer_schema,
    "garbage": lambda data, other: bytes(range(256)) * 4,
}


class Trial:
    """Two runs under one folder, one of which is damaged, and what commands say of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs, self.aside = root, root / "runs", root / "aside"
        df = load_dataset(TINY)
        self.held_out = df[df["split"] != "train"]
        self.run = self.train(TINY, "first")
        self.images = df["path"][df["split"] == "test"].tolist()[:3]
        self.exported, self.vouched = root / "model", True
        self.expected: dict[tuple[str, bool], tuple] = {}
        assert self.invoke(self.commands["predict"])[1] is None  # the run keeps its choices then
        shutil.copytree(self.run, self.aside)

    def train(self, config: TrainConfig, name: str) -> Path:
        """Train with a correction of its own, so that it keeps all that a run can keep."""
        from lesionfast.training.experiment import train

        corrections, image = self.root / f"{name}.csv", self.held_out.iloc[len(name)]
        other = next(one for one in ("nv", "mel") if one != image["target"])
        corrections.write_text(f"image,answer\n{image['image_id']},is {other}\n")
        config = replace(config, corrections=str(corrections))
        return train(load_dataset(config), config, self.runs, name).path

    @cached_property
    def other(self) -> Path:
        """Another run of the same data, which keeps all that the first one keeps."""
        path = self.train(replace(TINY, seed=7, split=str(self.aside / "split.csv")), "second")
        assert self.invoke(["predict", path, *self.images])[1] is None
        return path

    @property
    def commands(self) -> dict[str, list]:
        """What is typed, by the name of the command."""
        return {
            "interpret": ["interpret", self.run, "--json"],
            "predict": ["predict", self.run, *self.images],
            "export": ["export", self.run, "--to", self.exported],
            "compare": ["compare", self.run, self.runs / "second", "--json", "--out", self.root],
            "runs": ["runs", "--json", "--out", self.runs],
        }

    def invoke(self, words: list) -> tuple[str, BaseException | None]:
        """What a command prints to stdout, and what it raises."""
        shutil.rmtree(self.exported, ignore_errors=True)
        result = CliRunner().invoke(app, [str(word) for word in words])
        raised = result.exception
        return result.stdout, None if isinstance(raised, SystemExit) and not raised.code else raised

    def answer(self, name: str) -> tuple[tuple, BaseException | None]:
        """What a command prints and exports, and what it raises."""
        printed, raised = self.invoke(self.commands[name])
        files = [p for p in sorted(self.exported.glob("*")) if p.name != "README.md"]
        return (printed, *((p.name, p.read_bytes()) for p in files)), raised

    def restore(self) -> None:
        """Bring back the run as it was, or as an earlier version would have written it."""
        while self.run.exists():  # what draws in the background may still write figures
            shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.aside, self.run, dirs_exist_ok=True)
        if not self.vouched:
            (self.run / "manifest.json").unlink()
            path = self.run / "environment.json"
            told = json.loads(path.read_text())
            path.write_text(json.dumps({k: v for k, v in told.items() if k != "manifest"}))

    def damage(self, file: str, damage: str) -> None:
        """Damage a file of the whole run."""
        self.restore()
        path = self.run / file
        other = (self.other / file).read_bytes() if damage == OTHER else b""
        found = DAMAGES[damage](path.read_bytes(), other)
        path.unlink()
        if found is not None:
            path.write_bytes(found)

    def outcome(self, file: str, damage: str, name: str) -> str:
        """What comes of a command: 'right', 'error', SILENT or a traceback."""
        key = name, self.vouched
        if key not in self.expected:
            self.restore()
            self.expected[key], raised = self.answer(name)
            assert raised is None, raised
        self.damage(file, damage)
        found, raised = self.answer(name)
        if isinstance(raised, LesionfastError):
            return "error"
        if raised is not None:
            return f"traceback of {type(raised).__name__}"
        return "right" if found == self.expected[key] else SILENT


@pytest.fixture(scope="module")
def trial(tmp_path_factory, cache_folder):
    """Both runs, trained and interpreted; figures are not drawn, for they are no answer."""

    def draw(findings, draw, *more):
        path = findings.folder / f"{draw.__name__}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
        return findings.files.setdefault(draw.__name__, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("lesionfast"), "disabled", True)  # thousands of lines
        patch.setattr("lesionfast.evaluation.findings.Findings.drawn", draw)
        patch.setattr("lesionfast.reporting.images.draw_atlas", lambda *given: [])
        patch.setattr("lesionfast.reporting.comparison.draw_comparison", lambda *given: [])
        yield Trial(tmp_path_factory.mktemp("damage"))


@pytest.mark.parametrize("file", FILES)
def test_a_changed_digit_is_no_other_answer(trial, file):
    """Whoever reads the file says that it is damaged, and what to type."""
    if file not in READERS:
        assert trial.outcome(file, "a digit changed", "predict") == "error"
        return
    trial.damage(file, "a digit changed")
    with pytest.raises(DamageError, match=rf"{file} is damaged.*(lesionfast|Copy)"):
        READERS[file](Run(trial.run))


def test_interpret_mends_what_is_chosen_on_validation(trial):
    trial.restore()
    expected = trial.answer("predict")
    for file in FITTED:
        path = trial.run / file
        path.write_bytes(changed_digit(path.read_bytes(), b""))
    assert set(Run(trial.run).damaged()) == set(FITTED)
    renew_damaged(Run(trial.run))
    assert trial.answer("predict") == expected
    assert Run(trial.run).damaged() == {}


def test_runs_verify_names_what_is_damaged_and_seal_takes_it_as_it_is(trial):
    words = ["runs", "--verify", "--out", trial.runs]
    trial.restore()
    assert trial.invoke(words)[1] is None
    trial.damage("model.json", "a digit changed")
    printed, raised = trial.invoke(words)
    assert "model.json: its content is not what was written" in printed
    assert isinstance(raised, DamageError)
    assert trial.invoke(["runs", "--seal", trial.run])[1] is None
    assert trial.invoke(words)[1] is None


def test_a_run_that_lost_its_manifest_is_not_taken_for_an_old_one(trial):
    trial.restore()
    (trial.run / "manifest.json").unlink()
    with pytest.raises(DamageError, match=r"manifest.json is missing.*runs --seal"):
        _ = Run.open(trial.run).model
    trial.vouched = False
    trial.restore()
    assert trial.answer("predict")[1] is None
    trial.vouched = True


def test_damaged_weights_are_trained_again_by_resume(trial):
    trial.damage("weights.safetensors", "a bit changed")
    raised = trial.invoke(["train", "--resume", trial.run])[1]
    assert raised is None and Run(trial.run).damaged() == {}
    kept = (trial.run / "weights.safetensors").read_bytes()
    assert kept == (trial.aside / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("file", ["predictions.csv", WITHOUT_METADATA, "metrics.json"])
def test_damaged_predictions_are_predicted_again_by_resume_with_the_weights_as_they_are(
    trial, file, monkeypatch
):
    def train_again(*args):
        raise AssertionError("the weights are whole")

    monkeypatch.setattr("lesionfast.training.experiment.fit", train_again)
    trial.damage(file, "emptied")
    assert "predict again: lesionfast train --resume" in Run(trial.run).remedy(file)
    raised = trial.invoke(["train", "--resume", trial.run])[1]
    assert raised is None and Run(trial.run).damaged() == {}
    for name in ("predictions.csv", WITHOUT_METADATA, "features.safetensors"):
        assert (trial.run / name).read_bytes() == (trial.aside / name).read_bytes()
    found, before = Run(trial.run).metrics, Run(trial.aside).metrics
    lost = {"train_seconds": 0.0} if file == "metrics.json" else {}
    kept = before | lost
    if lost:
        del kept["images_per_second"]
    assert found == kept


@pytest.mark.damage
@pytest.mark.parametrize("vouched", [True, False], ids=["manifest", "earlier version"])
@pytest.mark.parametrize("file", FILES)
def test_no_damage_gives_another_answer_in_silence_or_a_traceback(trial, file, vouched):
    """Nothing tells a changed digit in a run by an earlier version, but it gives no traceback."""
    if not vouched and file == "manifest.json":
        pytest.skip("a run by an earlier version has none")
    trial.vouched = vouched
    assert trial.other.is_dir()
    tries = [(damage, name) for damage in DAMAGES for name in trial.commands]
    found = {each: trial.outcome(file, *each) for each in tries}
    trial.vouched = True
    print(f"{file}: {dict(Counter(found.values()))}")
    allowed = ("right", "error") if vouched else ("right", "error", SILENT)
    assert {each: what for each, what in found.items() if what not in allowed} == {}
