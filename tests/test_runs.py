import json
import shutil

import pytest

from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.files import write_atomically, write_json
from lesionfast.runs import Run, list_runs, newest_run


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
    with pytest.raises(LesionfastError, match="is no run"):
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
    with pytest.raises(LesionfastError, match="holds a directory first already"):
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
