"""Trackers by name: where a run is recorded besides its own folder. Free of torch."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, extra_missing
from lesionfast.registry import Registry, calling_module
from lesionfast.stats.metrics import ALL

trackers = Registry("tracker", "--log")
PROJECT = "lesionfast"  # of the runs in a tracker, unless an environment variable names another
Row = dict[str, Any]


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run when it begins.

    `name` is that of the run, "NAME/fold-0" for one inside another, whose name is `group`; `path`
    is its folder, and `root` the folder of all runs. `config` are its options, `environment` the
    versions and the device. `id` is what the tracker called it before an interruption, `epoch` the
    last one that it has of it, and `parent` what it calls the run around it.
    """

    name: str
    path: str
    root: str
    config: dict[str, Any]
    split_sha256: str
    environment: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    id: str | None = None
    epoch: int = 0
    parent: str | None = None


class Tracker:
    """Base of trackers: one records one run. Whatever it raises becomes one warning.

    It is made and called in a thread of its own, beside the training. With `own_process` that is in
    a process of its own, for a service that has threads and settings of its own; it imports the
    module that registered the tracker. Where its `package` is not installed, a training with it
    raises `LesionfastError` before it begins.

    >>> class Lines(lf.Tracker):
    ...     def write_epoch(self, epoch, phase, values):
    ...         print(epoch, phase, values["valid_loss"])
    """

    package: str | None = None  # that it needs, and the extra of lesionfast that installs it
    own_process = False
    seconds_to_open = 10.0  # after which an ended training does not wait for it
    id: str | None = None  # what the tracker calls the run, to go on with it later

    def __init__(self, about: About) -> None:
        self.about = about

    @classmethod
    def look(cls, about: About) -> str:
        """Return where the record is, and what to type to look at it."""
        return ""

    def write_epoch(self, epoch: int, phase: str, values: dict[str, float]) -> None:
        """Record one epoch, counted from 1: losses and metrics by name, as in history.csv."""

    def write_results(self, rows: list[Row]) -> None:
        """Record the final metrics: rows of split, metric, of, n, value, low and high."""

    def write_figure(self, name: str, path: str) -> None:
        """Record a figure, a PNG file."""

    def close(self, status: str) -> None:
        """End the record; the status is finished, interrupted, pruned (of a search) or failed."""


def register_tracker(name: str) -> Callable[[type[Tracker]], type[Tracker]]:
    """Return a decorator that makes a class a tracker: `log=name`, `--log NAME`.

    The class derives from `Tracker`, and is made once for each run. A second registration replaces
    the first. Raises `LesionfastError` for a name that can't be typed as an option.

    >>> @lf.register_tracker("lines")
    ... class Lines(lf.Tracker):
    ...     def close(self, status):
    ...         print(self.about.name, status)
    """
    return trackers.register(name, calling_module())


def name_trackers(log: Any) -> Any:
    """Return --log with the names of classes that were passed; each is registered by its own.

    Raises `LesionfastError` for what is neither a name nor a class that derives from `Tracker`.
    """
    if log is None or isinstance(log, str):
        return log
    names = []
    for thing in log if isinstance(log, list | tuple) else [log]:
        if not isinstance(thing, str) and not (
            isinstance(thing, type) and issubclass(thing, Tracker)
        ):
            raise LesionfastError(
                f"log is {thing!r}; it takes names of trackers, or classes that derive from "
                "lesionfast.Tracker."
            )
        names.append(thing if isinstance(thing, str) else trackers.name_passed(thing))
    return names


def read_names(log: str | None) -> list[str]:
    """Return the trackers that --log names, each once; none for nothing and for 'none'."""
    names = [name.strip() for part in split_names(log or "") for name in part.split(",")]
    return [name for name in dict.fromkeys(names) if name and name != "none"]


def check_tracker(name: str) -> None:
    """Raise `LesionfastError` for an unknown tracker, or one whose package is not installed."""
    package = getattr(trackers[name], "package", None)
    if package is not None and not is_installed(package):
        raise extra_missing(package, package, f"--log {name}")


def is_installed(package: str) -> bool:
    """Return whether a package is installed; a folder of its name, such as wandb, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def curves(phase: str, values: dict[str, float]) -> dict[str, float]:
    """Return the curves that an epoch adds a point to: each whole, and for its phase alone.

    Undefined values are left out.
    """
    defined = {name: value for name, value in values.items() if math.isfinite(value)}
    return defined | {f"{phase}/{name}": value for name, value in defined.items()}


def flat_results(rows: Sequence[Row]) -> dict[str, float]:
    """Return final metrics by name, such as "test/balanced_accuracy" and "test/mel/auc".

    The ends of the 95 % interval have `_low` and `_high` behind that. Undefined ones are left out.
    """
    flat: dict[str, float] = {}
    for row in rows:
        part = row["split"] if row["of"] == ALL else f"{row['split']}/{row['of']}"
        for column, end in (("value", ""), ("low", "_low"), ("high", "_high")):
            if row[column] is not None and math.isfinite(row[column]):
                flat[f"{part}/{row['metric']}{end}"] = row[column]
    return flat


def flat_config(about: About) -> dict[str, Any]:
    """Return the options, the split's SHA-256 and the environment by name; what is unset is not."""
    environment = {f"environment/{name}": value for name, value in about.environment.items()}
    given = {**about.config, "split_sha256": about.split_sha256, **environment}
    return {name: value for name, value in given.items() if value is not None}


def short_path(path: str | Path) -> str:
    """Return a path as it is typed here: relative if it is below this folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
