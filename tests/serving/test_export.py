import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lesionfast
from lesionfast.errors import LesionfastError
from lesionfast.files import sha256
from lesionfast.serving.bundle import SCHEMA, Bundle
from lesionfast.serving.export import export
from lesionfast.serving.predictor import Predictor


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_the_folder_is_whole_and_told(exported, trained):
    told = json.loads((exported / "model.json").read_text("utf-8"))
    assert sorted(told["files"]) == ["model.safetensors", "outliers.safetensors"]
    for name, expected in told["files"].items():
        assert sha256(exported / name) == expected
    assert told["schema"] == SCHEMA and told["split_sha256"] == trained.metrics["split_sha256"]
    assert {"encoder", "operating_points", "calibration", "conformal", "referral"} <= set(told)
    assert told["operating_points"] and told["model"]["prior"] == trained.model["prior"]


def test_the_card_says_what_a_reader_must_know(exported, trained):
    card = (exported / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: lesionfast\n")
    for words in ("Not a medical device", "SYNTHETIC", "Intended use", "melanoma sensitivity"):
        assert words.lower() in card.lower()
    assert trained.metrics["split_sha256"] in card
    assert re.search(r"\| balanced accuracy \| 0\.\d{3} \| \[0\.\d{3}, [01]\.\d{3}\] \|", card)


def test_what_is_read_is_what_was_written(exported, trained):
    there, here = Bundle.read(exported), Bundle.of(trained)
    assert there.to_dict() == here.to_dict()
    assert there.outliers.threshold == pytest.approx(here.outliers.threshold)


def test_a_folder_is_never_overwritten(exported, trained):
    with pytest.raises(LesionfastError, match="is there already. Type another --to"):
        export(trained, exported)


def test_nothing_is_left_of_an_export_that_fails(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("lesionfast.serving.export.card_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(trained, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "outliers.safetensors"])
@pytest.mark.parametrize("harm", ["truncated", "changed", "gone"])
def test_a_file_that_is_not_what_was_exported_is_told(copy, name, harm):
    file = copy / name
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-9] if harm == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    expected = "is missing" if harm == "gone" else "is not the file that was exported"
    with pytest.raises(LesionfastError, match=f"{name} {expected}.*Copy the whole folder again"):
        Predictor(copy)


def test_a_newer_schema_says_to_upgrade(copy):
    told = json.loads((copy / "model.json").read_text("utf-8"))
    (copy / "model.json").write_text(json.dumps(told | {"schema": SCHEMA + 1}), "utf-8")
    with pytest.raises(
        LesionfastError, match="has the schema 2, and this lesionfast reads up to 1"
    ):
        Predictor(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"classes": []}', '{"schema": 1}'])
def test_a_model_json_that_is_none_is_told(copy, text):
    (copy / "model.json").write_text(text, "utf-8")
    with pytest.raises(LesionfastError, match="model.json"):
        Predictor(copy)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "outliers.safetensors"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_in_place_of_a_file_is_not_opened(copy, name, signed, tmp_path):
    trap = tmp_path / "sprung"
    (copy / name).write_bytes(pickle.dumps(Trap(trap)))
    if signed and name != "model.json":
        told = json.loads((copy / "model.json").read_text("utf-8"))
        told["files"][name] = sha256(copy / name)
        (copy / "model.json").write_text(json.dumps(told), "utf-8")
    with pytest.raises(LesionfastError):
        Predictor(copy)
    assert not trap.exists()
    pickle.loads((copy / name).read_bytes())  # so the trap is one
    assert trap.exists()


def test_a_pickle_in_place_of_a_file_of_a_run_is_not_opened(trained, tmp_path):
    for name in ("weights.safetensors", "outliers.safetensors", "model.json", "encoder.json"):
        run, trap = Path(shutil.copytree(trained.path, tmp_path / name)), tmp_path / f"{name}.trap"
        (run / name).write_bytes(pickle.dumps(Trap(trap)))
        with pytest.raises((LesionfastError, ValueError)):
            Predictor(run)(b"")
        assert not trap.exists()


def test_no_module_that_loads_a_model_unpickles():
    package = Path(lesionfast.__file__).parent
    rooms = [*(package / "serving").glob("*.py"), package / "models" / "fusion.py"]
    for path in rooms:
        assert not re.search(
            r"(import|from) pickle|torch\.load|joblib\.load|allow_pickle=True", path.read_text()
        )


def test_a_committee_names_its_members(make_committee):
    with pytest.raises(LesionfastError, match="is a committee .* Name one of its members: a, b"):
        Bundle.of(make_committee)


@pytest.fixture
def make_committee(trained, tmp_path):
    from lesionfast.runs import Run

    run = Run(shutil.copytree(trained.path, tmp_path / "committee"))
    run.write_json("model.json", trained.model | {"members": ["a", "b"]})
    return run


def test_the_command_predicts_from_the_folder(exported, photos, tmp_path):
    command = [sys.executable, "-m", "lesionfast.cli", "predict", str(exported), photos[0]]
    done = subprocess.run(
        [*command, "--set", "age=55"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.startswith("image,decision,rule,p_akiec") and row.startswith(photos[0])
    failed = subprocess.run(
        [*command, str(exported / "README.md"), "--out", "out.jsonl"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert failed.returncode == 2 and "1 of 2 images have no prediction" in failed.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
