"""kill -9 at any instant loses nothing: the command typed again ends as if nothing had happened.

Each command is killed at seeded instants and typed again; then its files are those of a run that
was left alone, and nothing unfinished lies about. Slow: `pytest -m kill -n 0`.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

INSTANTS = int(os.environ.get("LESIONFAST_KILLS", "10"))  # of each command
TINY = [
    *("--arch", "test_resnet", "--weights", "none", "--size", "32", "--precision", "float32"),
    *("--batch-size", "32", "--tta", "2"),
]
TIMES = {  # what tells of the time, and nothing else
    "metrics.json": {"train_seconds", "images_per_second"},
    "environment.json": {"started"},
}
OTHERS = ("log.txt", "manifest.json", ".manifest.lock")  # the manifest has the hashes of those

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


def start(arguments: list, folder: Path) -> int:
    """Run a command in a process forked from this one, which has loaded what is slow to load."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"../{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        os.environ["LESIONFAST_CACHE"] = str(folder.parent / "cache")
        sys.argv = ["lesionfast", *map(str, arguments)]
        from lesionfast.cli import main

        main()
        os._exit(0)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def run(arguments: list, folder: Path, kill_after: float | None = None) -> int | None:
    """Run a command to its end, or kill it after some seconds: then None."""
    pid = start(arguments, folder)
    until = time.monotonic() + (kill_after if kill_after is not None else 600)
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert kill_after is not None, f"{arguments} hangs"
    return None


def told(folder: Path) -> str:
    """The last lines that a command of this folder wrote to stderr."""
    file = folder.parent / "stderr"
    return "\n".join(file.read_text().splitlines()[-12:]) if file.exists() else ""


def contents(root: Path) -> dict[str, str]:
    """Name -> hash of every file below a folder, without what tells of the time."""
    found = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name in OTHERS:
            continue
        data = path.read_bytes()
        if path.name in TIMES:
            kept = {k: v for k, v in json.loads(data).items() if k not in TIMES[path.name]}
            data = json.dumps(kept, sort_keys=True).encode()
        found[path.relative_to(root).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def assert_same(found: dict[str, str], expected: dict[str, str]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a finished run, its sample and caches, from which each try begins."""
    import lesionfast.cli.training
    import lesionfast.training.experiment  # noqa: F401  loaded once, before any fork

    folder = tmp_path_factory.mktemp("made") / "work"
    folder.mkdir()
    assert run(["train", *TINY, "--epochs", "2", "--name", "done"], folder) == 0, told(folder)
    return folder


COMMANDS = {  # a command, and the files that it makes
    "train": (["train", *TINY, "--epochs", "3", "--name", "killed"], "runs/killed"),
    "cache": (["train", *TINY, "--epochs", "1", "--name", "killed", "--size", "80"], "runs/killed"),
    "folds": (
        ["train", *TINY, "--epochs", "1", "--folds", "2", "--all", "--name", "killed"],
        "runs/killed",
    ),
    "interpret": (["interpret", "runs/done"], "runs/done"),
    "export": (["export", "runs/done", "--to", "model"], "model"),
    "predict": (["predict", "runs/done", "photos", "--out", "found.csv", "--resume"], "found.csv"),
    "shard": (
        ["predict", "runs/done", "photos", "--shard", "1/2", "--out", "part.csv", "--resume"],
        "part.csv",
    ),
    "pretrain": (["pretrain", *TINY[:-2], "--epochs", "2", "--out", "pre"], "pre"),
}


def type_again(command: list, where: str, folder: Path) -> None:
    """Type what a person types after a command was killed, as the errors say."""
    path = folder / where
    if command[0] == "train":
        if run(["train", "--resume", path], folder) in (0, 2) and (path / "metrics.json").exists():
            return  # it went on to its end, or had ended
        shutil.rmtree(path, ignore_errors=True)  # it stopped before its training began
    elif command[0] == "export" and path.exists():
        return  # it had ended
    assert run(command, folder) == 0, told(folder)


def prepare(made: Path, root: Path) -> Path:
    """A copy of what was made; of the photos a folder."""
    shutil.copytree(made.parent, root)
    folder = root / "work"
    photos = folder / "photos"
    photos.mkdir()
    rows = pd.read_csv(folder / "runs" / "done" / "predictions.csv")
    for path in rows["path"].head(60):
        shutil.copy(path, photos)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_typed_again_ends_as_one_left_alone(made, tmp_path, name):
    command, where = COMMANDS[name]
    folder = prepare(made, tmp_path / "try")  # always the same, for tables name their images
    started = time.monotonic()
    assert run(command, folder) == 0, told(folder)
    seconds = time.monotonic() - started
    expected, usual = contents_at(newest(folder / where, name)), unfinished(folder)
    instants = np.random.default_rng(0).uniform(0.02, 1.02, INSTANTS) * seconds
    killed = 0
    for instant in instants:
        shutil.rmtree(folder.parent)
        prepare(made, folder.parent)
        killed += run(command, folder, float(instant)) is None
        type_again(command, where, folder)
        time.sleep(0.3)  # for children of the killed process to end
        assert "Traceback" not in told(folder), told(folder)
        assert unfinished(folder) <= usual
        assert_same(contents_at(newest(folder / where, name)), expected)
        assert run(["runs", "--verify"], folder) == 0, told(folder)
    assert killed >= INSTANTS // 2, "the instants came too late"


def newest(path: Path, name: str) -> Path:
    """The folder of the last pretraining, for each gets its own; else the path itself."""
    return max(path.iterdir()) if name == "pretrain" else path


def contents_at(path: Path) -> dict[str, str]:
    if path.is_file():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    return contents(path)


def unfinished(folder: Path) -> set[str]:
    """Files of locks and of what is being written: under the work, beside it, and in the cache."""
    odd = ("unfinished", "-lock-", ".partial", ".tmp")
    names = (path.relative_to(folder.parent).as_posix() for path in folder.parent.rglob("*"))
    return {name for name in names if any(each in name.rpartition("/")[2] for each in odd)}
