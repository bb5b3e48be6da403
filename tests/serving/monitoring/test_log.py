"""The log of predictions: whole lines, no names, none missing."""

import hashlib
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.serving.bundle import WEIGHTS
from lesionfast.serving.inputs import find_items
from lesionfast.serving.monitoring.drift import mean_probabilities
from lesionfast.serving.monitoring.log import (
    append_lines,
    check_log,
    classify,
    hash_input,
    read_log,
)
from lesionfast.serving.outputs import predict_inputs
from lesionfast.serving.predictor import Predictor
from lesionfast.serving.web.api import Service

AGE = {"name": "age", "kind": "number", "mean": 50.0, "scale": 20.0}
SEX = {"name": "sex", "kind": "text", "values": ["female", "male"]}


def stem(path: str) -> str:
    return Path(path).stem


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_metadata_is_kept_in_classes():
    ages = [classify(AGE, age) for age in (0, 4.5, 55, 59.9, 89, 90, 104, float("nan"), None)]
    assert ages == ["0-4", "0-4", "55-59", "55-59", "85-89", "90+", "90+", None, None]
    assert [classify(SEX, sex) for sex in ("male", "Frau Muster", None)] == ["male", None, None]
    diameter = AGE | {"name": "diameter"}
    assert [classify(diameter, size) for size in (50, 59, 61, 39)] == [
        *("50 to 60", "50 to 60", "60 to 70", "30 to 40")
    ]


def test_a_line_has_the_answer_and_nothing_that_names_anyone(exported, photos, tmp_path):
    log, broken = tmp_path / "log.jsonl", tmp_path / "muster.jpg"
    broken.write_bytes(b"no picture")
    inputs, out = [*photos[:3], str(broken)], tmp_path / "out.csv"
    predict_inputs(exported, inputs, out, "csv", metadata={"age": "57", "sex": "male"}, log=log)
    lines = lines_of(log)
    assert [line["input"] for line in lines] == [
        hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in inputs
    ]
    weights = hashlib.sha256((exported / WEIGHTS).read_bytes()).hexdigest()
    assert {line["model"] for line in lines} == {weights}
    assert len({(line["split"], line["decisions"]) for line in lines}) == 1
    assert [line["metadata"]["age"] for line in lines] == ["55-59"] * 3 + [None]
    assert list(lines[0]["metadata"]) == ["age", "sex"]
    assert lines[3]["answer"] is None
    row = Predictor(exported)(photos[0], age=57, sex="male")
    assert sum(lines[0]["answer"]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert lines[0]["answer"]["decision"] == row["decision"]
    text = log.read_text("utf-8")
    assert not [name for name in ("muster", *map(stem, photos[:3]), '"57') if name in text]


def test_a_picture_without_a_decision_is_logged_without_probabilities(exported, photos, tmp_path):
    log = tmp_path / "log.jsonl"
    predictor = Predictor(exported, log=log)
    predictor.bundle = replace(predictor.bundle, ood=replace(predictor.bundle.ood, threshold=-99.0))
    predictor(photos[0])
    [line] = read_log(log).lines  # and is read like any other
    assert line["answer"]["probabilities"] is None and line["answer"]["outlier"] is True
    assert mean_probabilities([line], predictor.bundle.classes).shape == (0, 7)


def test_bytes_of_the_app_are_logged_as_those_of_the_file(exported, photos, tmp_path):
    log = tmp_path / "log.jsonl"
    service = Service(exported, log=log)
    data = Path(photos[0]).read_bytes()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda age: service.row(data, {"age": str(age)}), range(20, 40)))
    lines = read_log(log).lines
    assert len(lines) == 20 and {line["input"] for line in lines} == {hash_input(data)}
    pixels = np.zeros((9, 8, 3), np.uint8)
    assert hash_input(pixels) != hash_input(pixels.transpose(1, 0, 2))


def test_a_picture_of_a_packed_file_is_logged_as_that_of_the_file(exported, photos, tmp_path):
    log, pack = tmp_path / "log.jsonl", tmp_path / "all.zip"
    with zipfile.ZipFile(pack, "w") as archive:
        archive.write(photos[0], "one.jpg")
    Predictor(exported, log=log)(f"{pack.as_posix()}/one.jpg")
    assert lines_of(log)[0]["input"] == hash_input(Path(photos[0]).read_bytes())


def test_an_export_has_the_decisions_of_its_run(trained, exported, photos, tmp_path):
    stated = {"cost": "missed_melanoma=50", "prior": "mel=0.02"}
    for name, source, more in (("a", trained, {}), ("b", exported, stated)):
        Predictor(source, log=tmp_path / name, **more)(photos[0])
    one, other = (lines_of(tmp_path / name)[0] for name in "ab")
    assert one["split"] == other["split"] and one["decisions"] == other["decisions"]
    assert other["costs"]["missed_melanoma"] == 50 and one["prior"] is None
    assert sum(other["prior"]) == pytest.approx(1)


def test_processes_append_whole_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from lesionfast.serving.monitoring.log import append_lines\n"
        "for n in range(40): append_lines(Path(sys.argv[1]), [sys.argv[2] * 9000 + '\\n'] * 2)"
    )
    command = [sys.executable, "-c", code, str(log)]
    started = [subprocess.Popen([*command, letter]) for letter in "abc"]
    assert [process.wait() for process in started] == [0, 0, 0]
    lines = log.read_text("utf-8").splitlines()
    assert len(lines) == 240 and {len(set(line)) for line in lines} == {1}
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_nothing_is_predicted_without_the_log(exported, photos, tmp_path, small_disk):
    for wrong in (tmp_path, tmp_path / "table.csv"):
        (tmp_path / "table.csv").write_text("image,age\n")
        with pytest.raises(LesionfastError, match="Without its log nothing is predicted"):
            Predictor(exported, log=wrong)
    log = small_disk / "log.jsonl"
    predictor = Predictor(exported, log=log)
    (small_disk / "rest").write_bytes(b"x" * 1_040_000)
    before, told = log.read_bytes(), []
    with pytest.raises(LesionfastError, match="the disk is full"):
        for _ in range(20):
            told += list(predictor.stream(find_items(photos[:4])))
    kept = log.read_bytes()
    assert kept.startswith(before) and kept.endswith((b"\n", b""))
    assert len(lines_of(log)) >= sum(map(len, told))


def test_a_torn_line_costs_that_line_only(exported, photos, tmp_path, caplog):
    log = tmp_path / "log.jsonl"
    predictor = Predictor(exported, log=log)
    predictor(photos[0])
    log.write_bytes(log.read_bytes() + log.read_bytes()[:50])
    predictor(photos[1])
    append_lines(log, ['{"time": "yesterday"}\n'])
    found = read_log(check_log(log))
    assert (len(found.lines), found.torn) == (2, 2)
    assert "2 lines can't be read" in caplog.text
    with pytest.raises(LesionfastError, match="there is no log"):
        read_log(tmp_path / "none.jsonl")
