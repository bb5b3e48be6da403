import json
import shutil

import pandas as pd
import pytest

from lesionfast.cli.training import read_settings
from lesionfast.config import TrainConfig
from lesionfast.data.split import read_split
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.files import UNFINISHED, write_atomically, write_json
from lesionfast.run import Run, empty_folders, list_runs, newest_run


def test_create_never_shares_a_directory(tmp_path):
    runs = [Run.create(tmp_path, TrainConfig(arch="timm:resnet18")) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert all(run.path.name.split("-", 2)[2].startswith("timm-resnet18") for run in runs)
    assert Run.open(runs[0].path).config == TrainConfig(arch="timm:resnet18")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_json(tmp_path / "file.json", {"a": 1})

    def fail(aside):
        aside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


def test_newest_is_the_newest_that_ended(tmp_path):
    with pytest.raises(LesionfastError, match="no finished run.*lesionfast train"):
        newest_run(tmp_path)
    first, _ = Run.create(tmp_path, TrainConfig()), Run.create(tmp_path, TrainConfig())
    write_json(first.path / "metrics.json", {})
    assert len(list_runs(tmp_path)) == 2
    assert newest_run(tmp_path).path == first.path


def test_what_is_no_run_or_did_not_end_says_what_to_type(tmp_path):
    with pytest.raises(LesionfastError, match="is not a run"):
        Run.open(tmp_path)
    with pytest.raises(LesionfastError, match="there is no run .*nowhere"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "pretrain.json").write_text("{}")
    with pytest.raises(LesionfastError, match=r"is a pretraining.*train --weights"):
        Run.open(tmp_path)
    run = Run.create(tmp_path, TrainConfig())
    with pytest.raises(LesionfastError, match=r"no predictions.csv.*train --resume"):
        _ = run.predictions


def test_a_run_can_have_a_name_that_no_other_has(tmp_path):
    assert Run.create(tmp_path, TrainConfig(), "first").path == tmp_path / "first"
    with pytest.raises(LesionfastError, match="already has a directory first"):
        Run.create(tmp_path, TrainConfig(), "first")


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", "..", ".", ".x", "a\\b", "a\nb", "a\0b", "-x"]
)
def test_a_name_does_not_lead_out_of_the_folder_of_the_runs(tmp_path, name):
    with pytest.raises(LesionfastError, match="can't name a directory.*--name first-try"):
        Run.create(tmp_path / "runs", TrainConfig(), name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_runs_that_can_not_be_made_is_said(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(LesionfastError, match="is a file, not a folder. Choose another --out"):
        Run.create(tmp_path / "runs", TrainConfig())
    with pytest.raises(LesionfastError, match="the name is too long"):
        Run.create(tmp_path, TrainConfig(), "x" * 300)


def test_a_full_disk_leaves_no_run_without_a_configuration(small_disk):
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(LesionfastError, match="can't be written: the disk is full"):
        Run.create(small_disk / "runs", TrainConfig(), "first")
    assert not (small_disk / "runs" / "first").exists()


def test_a_folder_of_runs_that_is_not_utf8_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(LesionfastError, match=r"r\\xe9 is not UTF-8"):
        Run.create(tmp_path / "r\udce9", TrainConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_run_appears_with_its_config_or_not_at_all(tmp_path, monkeypatch):
    def stop(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("lesionfast.run.rename_to_new", stop)
    with pytest.raises(KeyboardInterrupt):
        Run.create(tmp_path, TrainConfig(), "first")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_lost_its_config_or_its_metrics_is_still_listed_and_is_an_error(tmp_path):
    """It would be another run that is the newest, in silence."""
    for name in ("first", "second"):
        told = {"split_sha256": "", "train_seconds": 1.0, "status": "finished"}
        Run.create(tmp_path, TrainConfig(), name).write_json("metrics.json", told)
    (tmp_path / "second" / "metrics.json").unlink()
    newest = newest_run(tmp_path)
    assert newest.path.name == "second"
    with pytest.raises(DamageError, match="metrics.json is damaged: it is missing"):
        _ = newest.metrics
    (tmp_path / "second" / "config.json").unlink()
    assert {run.path.name for run in list_runs(tmp_path)} == {"first", "second"}
    assert Run.open(tmp_path / "second").condition()[0] == "damaged"


def test_a_folder_of_a_run_that_never_began_is_told_with_how_to_remove_it(tmp_path):
    Run.create(tmp_path, TrainConfig(), "first")
    (tmp_path / "20260102-030405-resnet18").mkdir()
    assert [path.name for path in empty_folders(tmp_path)] == ["20260102-030405-resnet18"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "not an object"),
        ("{", "damaged"),
        ('{"classes": ["mel"], "prior": [1]}', "no 'rule'"),
        ('{"classes": ["mel"], "prior": [NaN], "rule": "argmax"}', "nan"),
        ('{"classes": "mel", "prior": [1], "rule": "argmax"}', "not a list"),
        ('{"classes": ["mel"], "prior": [1], "rule": "argmax", "schema": 9}', "newer lesionfast"),
    ],
)
def test_a_broken_file_of_an_old_run_is_named_with_what_to_type(tmp_path, text, why):
    (tmp_path / "config.json").write_text(TrainConfig().to_json())
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(DamageError, match=rf"model.json .*{why}.*(Copy|Upgrade)"):
        _ = Run.open(tmp_path).model


def test_a_run_whose_melanoma_is_none_of_its_classes_is_damaged(tmp_path):
    (tmp_path / "config.json").write_text(TrainConfig().to_json())
    model = {"classes": ["mel", "nv"], "prior": [0.5, 0.5], "rule": "argmax", "melanoma": "x"}
    (tmp_path / "model.json").write_text(json.dumps(model))
    run = Run.open(tmp_path)
    for name in ("classes", "decision_rule"):
        with pytest.raises(DamageError, match="model.json is damaged: 'x' is not one of its"):
            getattr(run, name)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "No columns"),
        (b"image_id,split\n1,test\n", "no column 'target'"),
        (
            b"image_id,split,target,p_mel\n1,test,mel,0.5\n2,test\n",
            "line 3 has 2 fields instead of 4",
        ),
        (
            b"image_id,split,target,p_mel\n1,test,mel,7.5\n",
            "'p_mel' holds values that are not probabilities",
        ),
        (b"image_id,split,target,p_mel\n1,test,mel,half\n", "half"),
        (b"image_id,split,target,p_mel\n1,test,\xff,0.5\n", "utf-8"),
    ],
)
def test_a_broken_table_of_an_old_run_is_named_with_what_to_type(tmp_path, data, why):
    (tmp_path / "config.json").write_text(TrainConfig().to_json())
    (tmp_path / "predictions.csv").write_bytes(data)
    with pytest.raises(DamageError, match=rf"predictions.csv is damaged: .*{why}.*Copy"):
        _ = Run.open(tmp_path).predictions


def test_what_is_read_from_a_run_without_opening_it_is_checked_too(tmp_path):
    run = Run.create(tmp_path, TrainConfig(), "first")
    run.write_text("split.csv", "image_id,split\n1,train\n")
    for name in ("split.csv", "config.json"):
        path = run.path / name
        path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(DamageError, match=r"split.csv is damaged.*--split"):
        read_split(pd.DataFrame({"image_id": ["1"]}), run.path / "split.csv")
    with pytest.raises(DamageError, match=r"config.json is damaged.*copy it out of the run"):
        read_settings({}, run.path / "config.json")


def test_a_file_that_is_replaced_makes_no_run_the_newest(tmp_path):
    for name in ("first", "second"):
        told = {"split_sha256": "", "train_seconds": 1.0, "status": "finished"}
        Run.create(tmp_path, TrainConfig(), name).write_json("metrics.json", told)
    path = tmp_path / "first" / "config.json"
    path.write_text(path.read_text())
    assert newest_run(tmp_path).path.name == "second"


def test_an_image_that_comes_twice_in_the_split_of_an_old_run_is_named(tmp_path):
    file = tmp_path / "split.csv"
    file.write_text("image_id,group,target,split\n1,a,mel,train\n1,a,mel,train\n")
    df = pd.DataFrame({"image_id": ["1"], "group": ["a"], "target": ["mel"]})
    with pytest.raises(LesionfastError, match=r"image '1' is in .*split\.csv"):
        read_split(df, file, with_groups=True)


def test_a_new_run_removes_what_killed_processes_left_in_others_and_looks_nowhere_else(tmp_path):
    root = tmp_path / "runs"
    earlier = Run.create(root, TrainConfig(), "earlier")
    left = [earlier.path / f"{UNFINISHED}a", earlier.path / "figures" / f"{UNFINISHED}b"]
    foreign = root / "photos" / f"{UNFINISHED}c"
    for folder in (*left, foreign):
        folder.mkdir(parents=True)
    Run.create(root, TrainConfig(), "later")
    assert not any(folder.exists() for folder in left) and foreign.exists()
