"""What a model from a stranger may do: an exported folder, an ONNX file, a run, a weights file.

Each is refused with a sentence, in bounded time and memory, or predicts; nothing else is touched.
"""

import copy
import json
import logging
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.run import Run
from lesionfast.serving.bundle import hash_description
from lesionfast.serving.export import export
from lesionfast.serving.predictor import Predictor

TINY = TrainConfig(
    arch="test_resnet", weights="none", size=32, epochs=1, head_epochs=0, tta=1, precision="float32"
)
PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
GROWTH = 600 * 2**20  # bytes that an attack may cost


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = {
    "null": None,
    "true": True,
    **{"minus one": -1, "zero": 0, "half": 0.5, "seven": 7, "10^9": 10**9, "10^400": 10**400},
    **{"NaN": float("nan"), "infinity": float("inf"), "1e308": 1e308},
    **{"text": "x", "nothing": "", "path": "../../../../etc/passwd", "absolute": "/etc/passwd"},
    **{"drive": "C:\\Windows\\win.ini", "NUL": "a\0b\n", "URL": "http://127.0.0.1:9/x"},
    **{"hub": "hf-hub:owner/name", "local hub": "transformers:/etc", "module": "os:system"},
    **{"list": [], "object": {}, "list of null": [None], "ones": [1] * 7, "huge": [1e308] * 7},
    **{"negative": [-1.0] * 7, "many": list(range(50_000)), "deep": nested(300)},
}


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path to every part of a JSON value; of a list the first two."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from places(value[index], (*path, index))


def replaced(told: dict, path: tuple, value: object) -> dict:
    """A copy with another value there."""
    told = inner = copy.deepcopy(told)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return told


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_folder) -> Run:
    """A run of a tiny model, as a stranger may have one."""
    from lesionfast.training.experiment import train

    return train(load_dataset(TINY), TINY, tmp_path_factory.mktemp("runs"), "run")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """That run, exported; a prediction has warmed everything up."""
    made = export(run, tmp_path_factory.mktemp("made") / "model")
    Predictor(made)(PHOTO)
    return made


@pytest.fixture
def model(folder, tmp_path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def write_description(folder: Path, told: dict) -> None:
    """Write a model.json whose own SHA-256 is right: a stranger can compute it too."""
    text = json.dumps(told | {"sha256": hash_description(told)})
    (folder / "model.json").write_text(text, "utf-8")


def attempt(source: Path) -> str:
    """'refused', or 'answered' with probabilities; anything else is raised."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        row = Predictor(source)(PHOTO, age=50)
    except LesionfastError as error:
        outcome, message = "refused", str(error)
        assert message[-1] not in ":," and "Traceback" not in message and len(message) < 1500
    else:
        found = [value for name, value in row.items() if name.startswith("p_")]
        assert all(0 <= value <= 1 for value in found) and sum(found) == pytest.approx(1, abs=1e-3)
        outcome = "answered"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < GROWTH
    return outcome


def campaign(model: Path, names: tuple[str, ...]) -> Counter:
    """Replace each field of model.json by each value, and count what comes of it."""
    told = json.loads((model / "model.json").read_text("utf-8"))
    del told["sha256"]
    outcomes: Counter = Counter()
    for path in places(told):
        for name in names if path and path[0] != "files" else ():
            write_description(model, replaced(told, path, VALUES[name]))
            try:
                outcomes[attempt(model)] += 1
            except Exception as error:
                pytest.fail(f"{'.'.join(map(str, path))} = {name}: {error!r}")
    return outcomes


@pytest.fixture
def in_silence(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lesionfast"), "disabled", True)


def test_a_field_of_another_kind_is_refused_or_harmless(model, in_silence):
    outcomes = campaign(model, ("null", "10^9", "1e308", "deep"))
    assert outcomes["refused"] > 300 and sum(outcomes.values()) > 400


@pytest.mark.attack
def test_every_field_with_every_value_is_refused_or_harmless(model, in_silence):
    outcomes = campaign(model, tuple(VALUES))
    print(f"{dict(outcomes)} of {len(VALUES)} values")
    assert outcomes["refused"] > 2000
