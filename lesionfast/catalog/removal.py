"""Removing runs: only runs, never what a link names, nothing that is in use or needed by others."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lesionfast.catalog.listing import walk_runs
from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError, list_first
from lesionfast.files import (
    LOCK,
    LOCKED,
    REASONS,
    UNFINISHED,
    disk_errors,
    load_json,
    only_process,
    workspace,
)
from lesionfast.run import Run, is_run, outermost

OPTIONS = {setting.name for setting in fields(TrainConfig)}
KNOWN = {"arch", "seed", "epochs"}  # options that every config.json has, of whatever version


@dataclass(frozen=True)
class Removal:
    """A run that may be removed: its files, their bytes, and how many runs are in it."""

    path: Path
    files: int
    size: int
    inner: int


def remove_runs(
    runs: Run | str | Path | Sequence[Run | str | Path],
    root: str | Path | None = None,
    force: bool = False,
) -> list[Path]:
    """Remove runs with everything in them; return their paths.

    Nothing is removed unless all can be. Raises `LesionfastError` for a folder that is not a run, a
    symbolic link, a run that another process trains or writes, and, without `force`, one that
    another run needs: as its member, as its teacher, or as a part of it. Those are looked for
    beside the runs, and under `root`.

    >>> lf.remove_runs(lf.train(df, arch="test_resnet", size=32, epochs=1, weights="none"))
    [...Path('runs/...-test_resnet')]
    """
    planned = plan_removal([runs] if isinstance(runs, Run | str | Path) else runs, root, force)
    for one in planned:
        remove(one.path)
    return [one.path for one in planned]


def plan_removal(
    runs: Sequence[Run | str | Path], root: str | Path | None = None, force: bool = False
) -> list[Removal]:
    """Return what `remove_runs` would remove, each run once, or raise what it would raise."""
    given = [Path(run.path if isinstance(run, Run) else run) for run in runs]
    named = {check_is_run(path): path for path in given}
    paths = [place for place in named if not any(parent in named for parent in place.parents)]
    for path in paths:
        with hold(path):
            pass
    if not force:
        check_needed(paths, root)
    return [measure(named[place] if named[place].name else place) for place in paths]


def check_is_run(path: Path) -> Path:
    """Return the place of a run, with no link in it; raises `LesionfastError` if it is none."""
    if not os.path.lexists(path):
        raise LesionfastError(f"there is no run {path}. `lesionfast runs` lists the runs here.")
    if path.name in ("", ".."):
        path = path.resolve()
    if path.is_symlink():
        raise LesionfastError(
            f"{path} is a symbolic link to {os.readlink(path)}, which is not followed. Name that "
            f"run, or remove the link with: unlink {path}"
        )
    place = path.parent.resolve() / path.name
    if not is_run(place) or not looks_like_a_run(place):
        what = "a pretraining" if (place / "pretrain.json").is_file() else "a folder"
        what = what if place.is_dir() else "a file"
        raise LesionfastError(
            f"{path} is {what}, not a run: it has no config.json of a training. `lesionfast runs` "
            "lists the runs here."
        )
    return place


def looks_like_a_run(folder: Path) -> bool:
    """Return whether a folder has a manifest, or a config.json with the options of a training.

    Programs of all kinds name a file config.json.
    """
    manifest = folder / "manifest.json"
    if manifest.is_file() and b'"config.json"' in manifest.read_bytes():
        return True
    return set(read_values(folder / "config.json")) >= KNOWN


def read_values(file: Path) -> dict[str, Any]:
    """Return the values of a JSON file, none if there is no such file or it is damaged."""
    with suppress(OSError, ValueError):
        values = load_json(file)
        return values if isinstance(values, dict) else {}
    return {}


def check_needed(paths: Sequence[Path], root: str | Path | None) -> None:
    """Raise `LesionfastError` if a run that stays needs one of those at `paths`."""
    gone = set(paths)
    roots = {outermost(path) for path in paths} | ({Path(root).resolve()} if root else set())
    needed: dict[tuple[Path, Path], str] = {}
    for run in sorted({run for folder in roots for run in walk_runs(folder, inside=True)}):
        if gone.isdisjoint((run, *run.parents)):
            for other, why in list_needs(run, roots):
                for one in gone.intersection((other, *other.parents)):
                    needed.setdefault((one, run), f"{from_here(one)} ({why} {from_here(run)})")
    if needed:
        raise LesionfastError(
            f"other runs need what would be removed: {list_first(needed.values())}. Remove those "
            "as well, or type --force."
        )


def from_here(path: Path) -> Path:
    """Return a path as seen from the working directory, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def list_needs(run: Path, roots: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the places that a run reads from, and what they are to it."""
    model, config = read_values(run / "model.json"), read_values(run / "config.json")
    for member in model.get("members", ()):
        yield Path(os.path.realpath(run / member)), "a member of"
    named = {"teacher": "the teacher of"}
    if not (run / "metrics.json").is_file():
        named["weights"] = "the first weights of the unfinished run"
    for option, why in named.items():
        if isinstance(value := config.get(option), str):
            for folder in (Path(), *(root.parent for root in roots)):  # it was typed in one of them
                yield (folder / value).resolve(), why
    for path in run.iterdir():
        if is_run(path):
            yield path, "a part of"


def list_locks(path: Path) -> Iterator[Path]:
    """Yield the files that are held by who trains or writes a run or a run inside it."""
    yield path / f"{LOCKED}training"
    for folder, _, names in os.walk(path):
        for name in names:
            unfinished = name == LOCK and Path(folder).name.startswith(UNFINISHED)
            if unfinished or name.startswith(LOCKED):
                yield Path(folder) / name


def hold(path: Path) -> ExitStack:
    """Hold all locks of a run; raises `LesionfastError` if another process has one."""
    busy = f"another process is training or writing {path}. Wait for it, or stop it first."
    with disk_errors(path, advice=f"See who may: ls -ld {path}"), ExitStack() as held:
        for lock in dict.fromkeys(list_locks(path)):
            with suppress(FileNotFoundError):  # its writer has just ended
                held.enter_context(only_process(lock, busy, patience=0.1))
        return held.pop_all()


def measure(path: Path) -> Removal:
    """Return how much a run contains."""
    sizes = [
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(path)
        for name in names
    ]
    return Removal(path, len(sizes), sum(sizes), sum(1 for _ in walk_runs(path, inside=True)))


def remove(path: Path) -> None:
    """Remove a run: at once under its name, then its files, so that no half of it is ever read."""
    try:
        with workspace(path.parent) as aside:
            with hold(path):
                path.rename(aside / "run")
            shutil.rmtree(aside / "run")
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise LesionfastError(
            f"{path} can't be removed: {reason}. See who may write there with: ls -ld {path.parent}"
        ) from error
