"""Studies from a TOML file: read, planned, trained over one split, interrupted and gone on with."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import write_split
from lesionfast.errors import LesionfastError, TrainingInterrupted
from lesionfast.files import sha256
from lesionfast.run import Run, list_runs
from lesionfast.training import study as module
from lesionfast.training.experiment import only_trainer
from lesionfast.training.study import (
    AUTHOR,
    AUTHOR_FROM_SCRATCH,
    count_images,
    plan_study,
    read_study,
    run_study,
)

TINY = """
[defaults]
arch = "test_resnet"
weights = "none"
size = 32
epochs = 1
batch_size = 64
lr = 1

[[run]]
name = "image alone"
fusion = "none"

[[run]]
name = "with age/sex + site"
metadata = "age,sex,localization"
seed = 7
"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a study file and returns its path."""

    def write(text: str = TINY) -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that has ended: its file, its directory, its outcome."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(TINY)
    study = read_study(folder / "tiny.toml")
    return study, folder / "out", run_study(study, folder / "out")


def test_typed_options_override_the_defaults_and_runs_override_both(write):
    study = read_study(write(), {"epochs": 3, "seed": 5})
    first, second = (entry.config for entry in study.entries)
    assert study.name == "tiny" and study.base.epochs == first.epochs == second.epochs == 3
    assert (study.base.seed, first.seed, second.seed) == (5, 5, 7)
    assert first.lr == 1.0 and type(first.lr) is float and first.fusion == "none"
    assert [entry.folder for entry in study.entries] == ["image-alone", "with-age-sex-site"]


def test_the_study_of_the_author_is_shipped_and_has_his_systems():
    study = read_study(AUTHOR, {"data": "HAM10000"})
    told = {entry.name: entry.config for entry in study.entries}
    assert list(told) == [
        *("vanilla", "vanilla + age/sex", "densenet"),
        *("vgg16", "vgg16 + age/sex", "default"),
    ]
    assert told["default"] == TrainConfig(data="HAM10000")
    assert all(told[name].balance == "author" for name in told if name != "default")
    scratch = [name for name in told if told[name].weights == "none"]
    assert scratch == ["vanilla", "vanilla + age/sex", "densenet"]
    assert told["vgg16 + age/sex"].unfreeze == "last:1"
    offline = {e.name: e.config for e in read_study(AUTHOR_FROM_SCRATCH).entries}
    assert list(offline) == list(told) and offline["default"] == TrainConfig()
    for name in list(told)[:-1]:
        assert (offline[name].arch, offline[name].fusion) == (told[name].arch, told[name].fusion)
        assert offline[name].weights == "none" and offline[name].size == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[run]]\nname = 'a'\nepoch = 2", "unknown field 'epoch'. Did you mean 'epochs'"),
        ("[default]\nepochs = 2\n[[run]]\nname = 'a'", "Did you mean 'defaults'"),
        ("[defaults]\narc = 'x'\n[[run]]\nname = 'a'", "Did you mean 'arch'"),
        (
            "[[run]]\nname = 'a'\nepochs = '2'",
            "'a' of .*: --epochs is '2'; it takes a whole number",
        ),
        ("[[run]]\nname = 'a'\nlr = true", "--lr is True; it takes a number or text"),
        ("[defaults]\nfolds = 2.5\n[[run]]\nname = 'a'", "--folds is 2.5; it takes a whole number"),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'a'", "two runs 'a' and 'a'"),
        ("[[run]]\nname = 'a b'\n[[run]]\nname = 'A/B'", "share the directory"),
        ("[[run]]\nname = 'a'\ndata = 'x'", "share data and split. Move it to"),
        ("[[run]]\narch = 'vgg16'", "number 1 of .* has no name"),
        ("[[run]]\nname = '..'", "has no name"),
        ("[[run]]\nname = 'comparison'", "is reserved. Rename"),
        ("[defaults]\nepochs = 2", "has no runs"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_a_wrong_file_says_what_to_write(write, text, message):
    with pytest.raises(LesionfastError, match=message):
        read_study(write(text))


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(LesionfastError, match="there is no file"):
        read_study(tmp_path / "none.toml")


def test_the_plan_measures_and_writes_nothing(write, tmp_path):
    rows = plan_study(read_study(write()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [row["state"] for row in rows] == ["to do", "to do"]
    assert all(0 < row["seconds"] < 600 and row["size"] == 32 for row in rows)
    assert 0 < rows[0]["parameters"] < rows[1]["parameters"]
    bad = read_study(write(TINY + '[[run]]\nname = "typo"\narch = "test_resne"'))
    with pytest.raises(LesionfastError, match="the run 'typo' can't start.*Did you mean"):
        plan_study(bad, tmp_path / "out")


def test_every_run_has_its_directory_and_the_one_split(done):
    study, out, outcome = done
    assert [run.path for run in outcome.runs] == [out / entry.folder for entry in study.entries]
    assert not outcome.failures
    for run, entry in zip(outcome.runs, study.entries, strict=True):
        metadata = entry.config.metadata.replace("auto", "age,sex")  # as the data has them
        assert run.config == replace(entry.config, split=str(out / "split.csv"), metadata=metadata)
        assert run.metrics["split_sha256"] == sha256(out / "split.csv")


def test_what_the_plan_says_of_parameters_is_so(done):
    study, out, outcome = done
    planned = plan_study(study, out)
    assert [row["state"] for row in planned] == ["done", "done"]
    assert [row["parameters"] for row in planned] == [r.model["parameters"] for r in outcome.runs]


def test_what_is_done_is_not_done_again(done, monkeypatch):
    study, out, _ = done
    monkeypatch.setattr(module, "load_dataset", None)  # not even the data is read
    before = {run.path: sha256(run.path / "metrics.json") for run in list_runs(out)}
    assert len(run_study(study, out).runs) == 2
    assert {run.path: sha256(run.path / "metrics.json") for run in list_runs(out)} == before


def test_another_configuration_of_a_done_run_is_refused(done, write):
    _, out, _ = done
    changed = read_study(write(), {"epochs": 2})
    for function in (run_study, plan_study):
        with pytest.raises(LesionfastError, match=r"epochs is 1 there, but 2 .*[Rr]emove.*rename"):
            function(changed, out)


def test_another_split_is_refused_before_any_training(done, write, tmp_path):
    study, out, _ = done
    (tmp_path / "split.csv").write_bytes((out / "split.csv").read_bytes())
    with pytest.raises(LesionfastError, match="another --out"):
        run_study(read_study(write(), {"seed": 1}), tmp_path)
    table = pd.read_csv(out / "split.csv")
    table["group"] = "x" + table["group"].astype(str)
    other = tmp_path / "other"
    other.mkdir()
    table.to_csv(other / "split.csv", index=False)
    (other / study.entries[0].folder).symlink_to(out / study.entries[0].folder)
    with pytest.raises(LesionfastError, match=r"its split.csv differs from"):
        run_study(study, other)


def test_a_run_that_fails_does_not_stop_the_next(write, tmp_path, monkeypatch, caplog):
    trained = pretend(monkeypatch)
    text = TINY.replace('name = "image alone"', 'name = "image alone"\nloss = "nope"')
    outcome = run_study(read_study(write(text)), tmp_path / "out")
    assert [name for name, _ in trained] == ["image-alone", "with-age-sex-site"]
    assert list(outcome.failures) == ["image alone"] and len(outcome.runs) == 1
    assert "image alone" in caplog.text


def pretend(monkeypatch, status: str = "finished") -> list[tuple[str, str]]:
    """Let no training happen, only be noted; a loss 'nope' fails. Returns the notes."""
    notes = []

    def end(run):
        run.write_json("model.json", {"classes": ["mel"], "prior": [1], "rule": "argmax"})
        told = {"split_sha256": "", "train_seconds": 0, "status": status}
        run.write_json("metrics.json", told)
        return Run(run.path)

    def train(df, config, root, name):
        notes.append((name, "train"))
        if config.loss == "nope":
            raise LesionfastError("there is no loss 'nope'")
        return end(Run.create(root, config, name))

    def resume(run):
        notes.append((run.path.name, "resume"))
        return end(run)

    monkeypatch.setattr("lesionfast.training.experiment.train", train)
    monkeypatch.setattr("lesionfast.training.experiment.resume", resume)
    return notes


def test_an_interrupted_study_stops_and_goes_on_where_it_was(write, tmp_path, monkeypatch):
    study, out = read_study(write()), tmp_path / "out"
    notes = pretend(monkeypatch, "interrupted")
    with pytest.raises(TrainingInterrupted, match="'image alone'.*same command again"):
        run_study(study, out)
    assert notes == [("image-alone", "train")]
    assert [row["state"] for row in plan_study(study, out)] == ["interrupted", "to do"]
    notes = pretend(monkeypatch)
    assert len(run_study(study, out).runs) == 2
    assert notes == [("image-alone", "resume"), ("with-age-sex-site", "train")]


def test_a_run_killed_before_its_first_step_is_begun_anew(write, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "lesionfast")
    study, out = read_study(write()), tmp_path / "out"
    Run.create(out, study.entries[0].config, "image-alone")
    notes = pretend(monkeypatch)
    run_study(study, out)
    assert notes[0] == ("image-alone", "train") and "starts again" in caplog.text


def test_runs_that_drop_other_rows_fail(write, tmp_path, monkeypatch):
    pretend(monkeypatch)
    text = TINY.replace("lr = 1", 'missing = "drop"\nmetadata = "age"')
    text = text.replace('fusion = "none"', 'fusion = "none"\nmetadata = "age,sex"')
    outcome = run_study(read_study(write(text)), tmp_path / "out")
    assert "images" in json.dumps(outcome.failures["image alone"])


def test_a_run_that_another_process_has_just_begun_is_not_deleted(write, tmp_path, monkeypatch):
    study, out = read_study(write()), tmp_path / "out"
    begun = Run.create(out, study.entries[0].config, "image-alone")
    pretend(monkeypatch)
    with only_trainer(begun):
        outcome = run_study(study, out)
    assert "another process is training" in outcome.failures["image alone"]
    assert begun.config


def test_images_are_counted_whatever_their_names_are(tmp_path):
    names = ["a", "b\x85c", "d\u2028e", "f\x0cg", "h\x1ei"]
    df = pd.DataFrame({"image_id": names, "group": names, "target": "nv", "split": "train"})
    write_split(df, tmp_path / "split.csv")
    assert count_images(tmp_path / "split.csv") == 5
