"""Run: what a run directory holds, and how to read it. Free of torch."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.files import disk_errors, is_text, readable_name
from lesionfast.manifest import Manifest

if TYPE_CHECKING:
    import pandas as pd
    from fastai.learner import Learner

WITHOUT_METADATA = "predictions_without_metadata.csv"


def create_directory(root: str | Path, what: str, name: str | None = None) -> Path:
    """Make a new directory `root/name`, or without a name `root/YYYYMMDD-HHMMSS-WHAT`.

    Raises `LesionfastError` if there is one of that name, for a name that is a path, and where
    nothing can be written.
    """
    if name:
        check_name(name)
    if not is_text(str(root)):
        raise LesionfastError(f"the name {readable_name(str(root))} is not UTF-8. Choose another.")
    usual = f"{datetime.now():%Y%m%d-%H%M%S}-{what.replace(':', '-').replace('/', '-')}"
    for each in [name] if name else [usual, *(f"{usual}-{i}" for i in range(2, 100))]:
        path = Path(root) / each
        try:
            with disk_errors(path, advice="Choose another --out."):
                path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    why = f"a directory {name} already" if name else "99 runs of this second"
    raise LesionfastError(f"{root} holds {why}. Choose another --out.")


def check_name(name: str) -> None:
    """Raise `LesionfastError` for a name that would lead out of its folder, or be hidden in it."""
    if name.startswith((".", "-")) or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise LesionfastError(
            f"{name!r} can't name a directory: it holds a slash, a backslash or a control "
            "character, or begins with a dot or a hyphen. Type letters, digits, - and _, such as "
            "--name first-try"
        )


class Run:
    """A run directory. Tables and JSON are read on first use and kept."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = Manifest(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, root: str | Path, config: TrainConfig, name: str | None = None) -> "Run":
        """Make a new directory that holds only config.json.

        It is `root/name`, or without a name `root/YYYYMMDD-HHMMSS-ARCH`. Raises `LesionfastError`
        if there is one of that name.
        """
        run = cls(create_directory(root, config.arch, name))
        try:
            Manifest.start(run.path)
            run.write_text("config.json", config.to_json())
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Return the run at `path`; raises `LesionfastError` if there is none."""
        if not Path(path).is_dir():
            raise LesionfastError(f"there is no run {path}. `lesionfast runs` lists the runs here.")
        if (Path(path) / "pretrain.json").is_file():
            raise LesionfastError(
                f"{path} is a pretraining, which has no predictions. Train from it: "
                f"lesionfast train --weights {path}"
            )
        if not (Path(path) / "config.json").is_file():
            raise LesionfastError(
                f"{path} is no run: it has no config.json. `lesionfast runs` lists the runs here."
            )
        return cls(path)

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Call `write` with a path aside, rename it to the file `name` of the run, and list that.

        This, `write_text` and `write_json` are the only ways to write what is read later: a file
        that manifest.json does not list counts as damaged. Not listed are log.txt, which grows,
        and what no command reads: figures and reports.
        """
        return self.manifest.write(name, write)

    def write_text(self, name: str, text: str) -> Path:
        """Write `text` into the run as `write` does, as UTF-8."""
        data = text.encode()
        return self.write(name, lambda aside: aside.write_bytes(data))

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` into the run as `write` does, as indented JSON."""
        return self.write_text(name, json.dumps(value, indent=2) + "\n")

    def remove(self, *names: str) -> None:
        """Remove files of the run, those that are there."""
        self.manifest.remove(*names)

    @cached_property
    def config(self) -> TrainConfig:
        """The configuration that made this run."""
        text = (self.path / "config.json").read_text(encoding="utf-8")
        return TrainConfig.from_json(text, of_run=True)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device and start time."""
        return self._json("environment.json")

    @cached_property
    def model(self) -> dict[str, Any]:
        """Architecture, classes, preprocessing, training prior and decision rule."""
        return self._json("model.json")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Metrics per split and decision rule; written when the run ends."""
        return self._json("metrics.json")

    @cached_property
    def split(self) -> "pd.DataFrame":
        """One row an image: image id, lesion id, split."""
        return self._csv("split.csv")

    @cached_property
    def history(self) -> "pd.DataFrame":
        """One row an epoch."""
        return self._csv("history.csv")

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """One row an image of validation and test: split, target, `p_<class>`, metadata."""
        return self._csv("predictions.csv")

    @cached_property
    def predictions_without_metadata(self) -> "pd.DataFrame | None":
        """The same with all metadata withheld; None if the run has none, or is of old."""
        there = (self.path / WITHOUT_METADATA).is_file()
        return self._csv(WITHOUT_METADATA) if there else None

    @property
    def finished(self) -> bool:
        """Whether the run has ended properly, so that it can be interpreted."""
        return (self.path / "metrics.json").is_file()

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the probabilities."""
        return self.model["classes"]

    def learner(self) -> "Learner":
        """Return a fastai Learner over this run's data, with its weights.

        Raises `LesionfastError` if the data is no longer where it was.
        """
        # The one way up from here: torch and fastai are loaded by those alone who ask for it.
        return import_module("lesionfast.training.experiment").trained_learner(self)

    def _require(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise LesionfastError(
                f"{self.path} has no {name}: the run did not end. "
                f"Go on with: lesionfast train --resume {self.path}"
            )
        return path

    def _json(self, name: str) -> dict[str, Any]:
        return json.loads(self._require(name).read_text(encoding="utf-8"))

    def _csv(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        text = {"image_id": str, "group": str, "target": str, "phase": str}
        return pd.read_csv(
            self._require(name),
            dtype=text,
            keep_default_na=False,
            na_values={column: [""] for column in self._columns(name) - set(text)},
            float_precision="round_trip",
        )

    def _columns(self, name: str) -> set[str]:
        with (self.path / name).open(encoding="utf-8", newline="") as file:
            return set(next(csv.reader(file)))


def list_runs(root: str | Path) -> list[Run]:
    """Return all runs under `root`, oldest first."""
    found = [Run(path.parent) for path in Path(root).glob("*/config.json")]
    return sorted(found, key=lambda run: (run.path / "config.json").stat().st_mtime_ns)


def newest_run(root: str | Path) -> Run:
    """Return the newest run under `root` that has ended; raises `LesionfastError` if none has."""
    ended = [run for run in list_runs(root) if run.finished]
    if not ended:
        raise LesionfastError(f"there is no finished run in {root}. Make one: lesionfast train")
    return ended[-1]


def own_version() -> str:
    """Return the version of lesionfast, "from source" where it is not installed."""
    try:
        return version("lesionfast")
    except PackageNotFoundError:
        return "from source"
