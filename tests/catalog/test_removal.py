"""What is removed, and above all what is not."""

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lesionfast as lf
from lesionfast.catalog.removal import plan_removal, remove_runs
from lesionfast.cli.base import app
from lesionfast.errors import LesionfastError
from lesionfast.files import LOCKED
from lesionfast.run import Run


def state(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def add(file: Path, **values) -> None:
    """Add values to a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_runs_are_removed_whole_and_no_other_file(root):
    Run(root / "good").note = "x"
    (root / "mine.txt").write_text("mine")
    before = state(root)
    assert lf.remove_runs([root / "good", Run(root / "bad"), root / "good"]) == [
        root / "good",
        root / "bad",
    ]
    assert state(root) == {name for name in before if name.split("/")[0] in ("middle", "mine.txt")}
    assert sorted(path.name for path in root.iterdir()) == ["middle", "mine.txt"]


def test_the_runs_inside_a_run_go_with_it(make):
    outer = make("outer")
    make("outer/fold-0")
    make("outer/fold-1")
    (planned,) = plan_removal([outer.path, outer.path / "fold-0"])
    assert planned.path == outer.path and planned.inner == 2
    assert planned.files == len(state(outer.path)) > 10 and planned.size > 1000
    remove_runs(outer)
    assert not outer.path.exists()


def test_what_is_no_run_is_not_removed(root, tmp_path):
    for name, text in (("model", '{"model_type": "vit"}'), ("list", "[1]"), ("torn", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "pretrain.json").write_text("{}")
    before = state(tmp_path)
    for path, message in [
        (tmp_path / "none", "there is no run"),
        (tmp_path / "model", "is a folder, not a run: it has no config.json of a training"),
        (tmp_path / "list", "is a folder, not a run"),
        (tmp_path / "torn", "is a folder, not a run"),
        (tmp_path / "pre", "is a pretraining, not a run"),
        (root, "is a folder, not a run"),
        (root / "good" / "config.json", "is a file, not a run"),
        (root / "good" / "..", "is a folder, not a run"),
    ]:
        with pytest.raises(LesionfastError, match=message):
            remove_runs([root / "bad", path], force=True)
    assert state(tmp_path) == before


def test_a_run_that_lost_its_config_is_known_by_its_manifest(tmp_path):
    run = Run.create(tmp_path, lf.TrainConfig(), "first")
    (run.path / "config.json").write_text("{")
    remove_runs(run.path)
    again = Run.create(tmp_path, lf.TrainConfig(), "first")
    (again.path / "config.json").unlink()
    remove_runs(again.path)
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(root, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "image.jpg").write_text("mine")
    (root / "good" / "figures").symlink_to(tmp_path / "data")
    (root / "good" / "image.jpg").symlink_to(tmp_path / "data" / "image.jpg")
    (root / "link").symlink_to(root / "middle")
    with pytest.raises(LesionfastError, match="link is a symbolic link to .*middle.*unlink"):
        remove_runs([root / "good", root / "link"], force=True)
    assert (root / "good").is_dir() and (root / "middle").is_dir()
    remove_runs(root / "good")
    assert (tmp_path / "data" / "image.jpg").read_text() == "mine"
    (tmp_path / "elsewhere").symlink_to(root)  # a folder of runs may well be a link
    remove_runs(tmp_path / "elsewhere" / "bad")
    assert not (root / "bad").exists() and (tmp_path / "elsewhere").is_symlink()


@pytest.mark.parametrize("inside", ["", "fold-0"])
def test_a_run_that_is_being_trained_is_not_removed(make, inside):
    run, other = make("outer"), make("other")
    make("outer/fold-0")
    lock = run.path / inside / f"{LOCKED}training"
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom lesionfast.files import only_process\n"
        "with only_process(Path(sys.argv[1]), 'busy'):\n    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", hold, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        before = state(run.path)
        for force in (False, True):
            with pytest.raises(LesionfastError, match="another process is training or writing"):
                remove_runs([other, run], force=force)
        assert other.path.is_dir() and state(run.path) == before
        process.kill()
    remove_runs([other, run])  # the lock of a dead process is none
    assert not run.path.exists()


def test_a_file_that_is_being_written_holds_the_run(root):
    from lesionfast.files import write_atomically

    started, go_on = threading.Event(), threading.Event()

    def write(aside: Path) -> None:
        aside.write_text("x")
        started.set()
        go_on.wait(600)

    writer = threading.Thread(target=write_atomically, args=(root / "good" / "log.txt", write))
    writer.start()
    started.wait(600)
    try:
        with pytest.raises(LesionfastError, match="another process is training or writing"):
            remove_runs(root / "good")
    finally:
        go_on.set()
        writer.join()
    remove_runs(root / "good")


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("a member of", lambda root: add(root / "bad" / "model.json", members=["../good"])),
        ("a member of", lambda root: add(root / "bad" / "model.json", members=["../good/fold-0"])),
        ("the teacher of", lambda root: add(root / "bad" / "config.json", teacher="runs/good")),
        ("a part of", lambda root: (root / "good").rename(root / "bad" / "good")),
    ],
)
def test_a_run_that_another_needs_is_removed_only_with_it_or_by_force(root, why, change):
    change(root)
    path = root / "good" if (root / "good").is_dir() else root / "bad" / "good"
    with pytest.raises(LesionfastError, match=rf"good \({why} .*bad\). Remove .* or type --force"):
        remove_runs([root / "middle", path])
    assert (root / "middle").is_dir()
    assert len(plan_removal([path, root / "bad"])) >= 1
    remove_runs(path, force=True)
    assert not path.exists()


def test_a_run_elsewhere_that_needs_it_is_found_under_the_root(root, make):
    study = make("study/ensemble")
    add(study.path / "model.json", members=["../../good"])
    with pytest.raises(LesionfastError, match="a member of .*study/ensemble"):
        remove_runs(root / "good")
    other = make("study/alone")
    add(root / "good" / "model.json", members=["../study/alone"])
    with pytest.raises(LesionfastError, match="a member of .*good"):
        remove_runs(other, root)


def test_the_command_removes_nothing_without_a_yes(root, invoke):
    with pytest.raises(LesionfastError, match="nothing says which runs to remove"):
        invoke("runs", "rm", "--yes", "--out", root)
    with pytest.raises(LesionfastError, match=r"nothing was removed of 2 runs, .*kB.*type --yes"):
        invoke("runs", "rm", root / "good", root / "bad", "--out", root)
    assert len(lf.runs(root)) == 3
    shown = invoke("runs", "rm", root / "good", root / "bad", "--yes", "--out", root)
    assert shown.stdout.splitlines() == [str(root / "good"), str(root / "bad")]
    assert [run.path.name for run in lf.runs(root)] == ["middle"]


def test_the_command_removes_what_meets_the_conditions_but_nothing_damaged(root, invoke):
    (root / "middle" / "metrics.json").write_text("{")
    words = ["runs", "rm", "--where", "size>10", "--yes", "--out", root]
    assert "no run meets that" in invoke(*words, "--where", "size>999").output
    shown = invoke(*words, root / "good", root / "middle")
    assert shown.stdout.splitlines() == [str(root / "good")]
    assert invoke(*words).stdout.splitlines() == [str(root / "bad")]
    assert (root / "middle").is_dir()


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_on_a_terminal_it_asks(root, answer):
    terminal, own = pty.openpty()
    command = [sys.executable, "-m", "lesionfast", "runs", "rm", str(root / "good")]
    os.write(terminal, f"{answer}\n".encode())
    done = subprocess.run(command, stdin=own, capture_output=True, text=True)
    os.close(own)
    os.close(terminal)
    assert "Remove 1 run, " in done.stderr and str(root / "good") in done.stderr
    assert done.returncode == (0 if answer == "y" else 2)
    assert (root / "good").exists() == (answer != "y")


def test_a_run_that_can_not_be_removed_is_said(root, read_only):
    read_only(root)
    with pytest.raises(LesionfastError, match="(can't be removed|can't be written): .*ls -ld"):
        remove_runs(root / "good")
    assert (root / "good" / "metrics.json").is_file()


def test_a_killed_removal_leaves_no_half_run(root, monkeypatch):
    def stop(path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lesionfast.catalog.removal.shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        remove_runs(root / "good")
    monkeypatch.undo()
    assert [run.path.name for run in lf.runs(root)] == ["middle", "bad"]
    assert CliRunner().invoke(app, ["runs", "--out", str(root)]).exit_code == 0
