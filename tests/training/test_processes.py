"""Two processes on the CPU learn what one does, started as a user starts them."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.core import TensorImage
from typer.testing import CliRunner

from lesionfast.cli import app
from lesionfast.data.augment import BatchAugment, Share, standard
from lesionfast.errors import LesionfastError
from lesionfast.run import Run
from lesionfast.training.experiment import check_resumable
from lesionfast.training.processes import as_first, check_launch, gather

SCRIPT = Path(__file__).parent / "distributed_losses.py"
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
QUICK = ("--device", "cpu", "--arch", "test_resnet", "--weights", "none", "--size", "32")
QUICK += ("--tta", "1", "--metadata", "none", "--unfreeze", "none")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What one process and two saw of the same trainings."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, *TWO, str(SCRIPT), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = [runpy.run_path(str(SCRIPT))["train_all"](folder / "one"), json.loads(ended.stdout)]
    assert [answer.pop("processes") for answer in found] == [1, 2]
    return found


@pytest.mark.parametrize("case", ["weights", "uneven", "unused", "frozen"])
def test_two_processes_learn_what_one_does(answers, case):
    one, two = (answer[case] for answer in answers)
    assert len(two["losses"]) == len(one["losses"]) > 4
    assert abs(two["losses"][0] - one["losses"][0]) < 1e-5
    np.testing.assert_allclose(two["losses"][:3], one["losses"][:3], atol=1e-4)
    assert one["losses"][0] != pytest.approx(one["losses"][-1], abs=0.01)  # it did learn
    assert abs(two["own"] - one["own"] / 2) <= len(one["losses"])  # a half of each step


@pytest.mark.parametrize("case", ["weights", "uneven", "unused", "frozen"])
def test_each_validation_image_counts_once(answers, case):
    one, two = (answer[case] for answer in answers)
    assert two["rows"] == one["rows"] and one["rows"][0][0] == len(one["rows"][0][1])
    if case != "weights":  # a weighted mean of batches depends on how they are cut
        np.testing.assert_allclose(two["valid"], one["valid"], atol=1e-4)


def test_batch_norm_by_shares_is_that_of_all_rows(answers):
    norms = answers[1]["norms"]
    most = {case: 2e-2 if case == "bfloat16" else 1e-5 for case in norms}
    assert len(norms) == 5 and all(len(errors) == 2 for errors in norms.values())
    assert not {case: errors for case, errors in norms.items() if max(errors) > most[case]}


def test_ctrl_c_ends_all_and_one_process_goes_on(tmp_path):
    command = [sys.executable, "-m", "lesionfast", "train", *QUICK, "--gpus", "2", "--epochs", "12"]
    with (tmp_path / "log").open("w") as log:
        trained = subprocess.Popen(
            [*command, "--out", str(tmp_path / "runs"), "--name", "stopped"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        run = tmp_path / "runs" / "stopped"
        wait_for(lambda: (run / "checkpoints" / "last.safetensors").is_file(), trained)
        os.killpg(trained.pid, signal.SIGINT)
        trained.wait(120)
    assert "interrupted; continue with" in (tmp_path / "log").read_text()
    before = (run / "history.csv").read_text()
    assert Run.open(run).metrics["status"] == "interrupted" and len(before.splitlines()) < 13
    ended = CliRunner().invoke(app, ["train", "--resume", str(run)])
    assert ended.exit_code == 0, ended.output
    resumed = Run(run)
    assert resumed.metrics["status"] == "finished" and len(resumed.history) == 12
    assert (run / "history.csv").read_text().startswith(before)


def test_a_process_that_is_killed_ends_all_and_leaves_a_run_to_resume(tmp_path):
    command = [sys.executable, "-m", "lesionfast", "train", *QUICK, "--gpus", "2", "--epochs", "50"]
    with (tmp_path / "log").open("w") as log:
        trained = subprocess.Popen(
            [*command, "--out", str(tmp_path), "--name", "killed"], stdout=log, stderr=log
        )
        run = tmp_path / "killed"
        wait_for(lambda: (run / "checkpoints" / "last.safetensors").is_file(), trained)
        ranks = find_ranks(trained.pid)
        os.kill(ranks["1"], signal.SIGKILL)
        assert trained.wait(60) == 2
    said = (tmp_path / "log").read_text()
    assert "error: a process was ended by signal 9" in said.splitlines()[-1]
    assert "lesionfast train --resume RUN" in said.splitlines()[-1]
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    check_resumable(Run.open(run))
    assert 1 <= len(Run(run).history) < 50 and not Run(run).finished


def find_ranks(launcher: int) -> dict[str, int]:
    """The processes that a launcher has started, by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(launcher):
                lines = (folder / "environ").read_bytes().split(b"\0")
                found |= {x[5:].decode(): int(folder.name) for x in lines if x[:5] == b"RANK="}
    return found


def wait_for(happened, process):
    until = time.monotonic() + 300
    while not happened():
        assert process.poll() is None and time.monotonic() < until, "the training did not begin"
        time.sleep(0.1)


@pytest.mark.parametrize("n", [3, 4, 7, 64])
def test_shares_are_parts_of_the_whole(n):
    shares = [Share(rank, 3) for rank in range(3)]
    rows = np.arange(n)
    assert np.concatenate([rows[share.of_batch(n)] for share in shares]).tolist() == [*range(n)]
    assert all(share.of_epoch(n) == slice(0, n) for share in shares)
    blocks = [Share(rank, 3, "rows") for rank in range(3)]
    assert np.concatenate([rows[share.of_epoch(n)] for share in blocks]).tolist() == [*range(n)]
    assert Share(2, 3).of_batch(2) == slice(0, 2)  # fewer rows than processes: all have them


def test_a_share_is_augmented_as_in_the_whole_batch():
    images = TensorImage(torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    whole = BatchAugment(standard(), 5).encodes(images)
    parts = []
    for rank in range(3):
        own = BatchAugment(standard(), 5)
        own.take(Share(rank, 3), 7)
        parts.append(own.encodes(images[Share(rank, 3).of_batch(7)]))
    torch.testing.assert_close(
        torch.cat(parts).as_subclass(torch.Tensor), whole.as_subclass(torch.Tensor)
    )


def test_one_process_is_alone():
    assert gather("x") == ["x"] and as_first(3) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--gpus", "99"], "PyTorch finds"),
        (["train", "--gpus", "0", "--device", "cpu"], "from 1"),
    ],
)
def test_gpus_that_are_not_there(arguments, words):
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, LesionfastError) and words in str(error)


def test_an_error_of_all_processes_is_the_error_of_the_command():
    command = [sys.executable, "-m", "lesionfast", "train", *QUICK, "--gpus", "2"]
    ended = subprocess.run([*command, "--arch", "nosuch"], capture_output=True, text=True)
    assert ended.returncode == 2 and "--arch is 'nosuch'" in ended.stderr
    assert "signal" not in ended.stderr and "Traceback" not in ended.stderr


def test_only_train_shares_its_work(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = CliRunner().invoke(app, ["runs"]).exception
    assert isinstance(error, LesionfastError) and "lesionfast runs several times" in str(error)


def test_a_launch_that_cannot_work(monkeypatch):
    with pytest.raises(LesionfastError, match="share Apple's GPU"):
        check_launch("mps", 0)
    with pytest.raises(LesionfastError, match="process 100 of this machine has no GPU"):
        check_launch("cuda", 99)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(LesionfastError, match="--precision bfloat16"):
        check_launch("cpu", 0)
