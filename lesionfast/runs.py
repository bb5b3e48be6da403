"""Run: what a run directory holds, and how to read it. Free of torch."""

import csv
import errno
import json
import os
import platform
import re
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import Classes
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.files import (
    damage_explained,
    disk_errors,
    read_json,
    readable_name,
    sweep,
    sweep_once,
    workspace,
)
from lesionfast.manifest import SCHEMA as MANIFEST_SCHEMA
from lesionfast.manifest import SCHEMAS, UPGRADE, Manifest

if TYPE_CHECKING:
    import pandas as pd

WITHOUT_METADATA = "predictions_without_metadata.csv"
CONFIGS = ("config.json", "pretrain.json")  # of a run, and of a pretraining
FEATURES = "features.safetensors"
FITTED = (  # what is chosen on validation, and features, which the model computes
    *("operating.json", "calibration.json", "conformal.json", "referral.json"),
    *("outliers.safetensors", FEATURES),
)
LEARNED = (
    *("history.csv", "weights.safetensors", "predictions.csv", WITHOUT_METADATA),
    "metrics.json",
)
OF_THE_WEIGHTS = ("metrics.json", "predictions.csv", WITHOUT_METADATA, *FITTED)  # of these weights
GIVEN = (*CONFIGS, "environment.json", "split.csv", "encoder.json", "model.json")
NUMBER = (float, None)
SUMMARY = {
    "n": int,
    "counts": {str: int},
    "macro_auc": NUMBER,
    "auc": {str: NUMBER},
    "average_precision": {str: NUMBER},
    "rules": {
        str: {
            "balanced_accuracy": NUMBER,
            "accuracy": NUMBER,
            "macro_f1": NUMBER,
            "mel_sensitivity?": NUMBER,
            **{name: {str: NUMBER} for name in ("sensitivity", "precision", "specificity")},
        }
    },
}
SHAPES = {
    "metrics.json": {
        "split_sha256": str,
        "train_seconds": float,
        "status": str,
        "valid?": SUMMARY,
        "test?": SUMMARY,
    },
    "model.json": {
        "classes": [str],
        "prior": [float],
        "rule": str,
        **{f"{name}?": str for name in ("arch", "resize", "fusion", "pool", "weights_origin")},
        **{f"{name}?": int for name in ("schema", "size", "tta", "n_metadata")},
        "dropout?": float,
        "parameters?": (int, None),
        "metadata?": [str],
        "parents?": ([int], None),
        "members?": [str],
    },
    "environment.json": {str: object},
}
COLUMNS = {
    **dict.fromkeys(("predictions.csv", WITHOUT_METADATA), ("image_id", "split", "target")),
    "history.csv": ("epoch", "phase"),
    "split.csv": ("image_id", "split"),
}
TEXTS = ("image_id", "group", "target", "phase", "split")


def create_directory(
    root: str | Path, what: str, name: str | None = None, *, file: str, text: str
) -> Path:
    """Make a new directory with one file: `root/name`, or `root/YYYYMMDD-HHMMSS-WHAT`.

    It appears with the file in it; what killed processes left in other runs goes. Raises
    `LesionfastError` if there is one of that name, for a name that is a path, and where nothing
    can be written.
    """
    if name:
        check_name(name)
    if (readable := readable_name(str(root))) != str(root):
        raise LesionfastError(f"the name {readable} is not UTF-8. Choose another.")
    usual = f"{datetime.now():%Y%m%d-%H%M%S}-{what.replace(':', '-').replace('/', '-')}"
    names = [name] if name else [usual, *(f"{usual}-{i}" for i in range(2, 100))]
    refused = disk_errors(Path(root) / names[0], advice="Choose another --out.")
    with refused, workspace(Path(root)) as aside:
        sweep_runs(Path(root))
        made = aside / "run"
        made.mkdir()
        Manifest.start(made).write(file, lambda path: path.write_bytes(text.encode()))
        for path in (Path(root) / each for each in names):
            if rename_to_new(made, path):
                return path
    why = f"a directory {name} already" if name else "99 runs of this second"
    raise LesionfastError(f"{root} holds {why}. Choose another --out.")


def sweep_runs(root: Path) -> None:
    """Remove what killed processes left unfinished in the runs and pretrainings under `root`."""
    for run in root.iterdir():
        if any((run / name).is_file() for name in CONFIGS):
            for folder in (run, run / "figures", run / "checkpoints"):
                sweep(folder)


def rename_to_new(made: Path, path: Path) -> bool:
    """Rename a folder unless something has that name; return whether it was renamed."""
    if os.path.lexists(path):
        return False
    try:
        made.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
            return False
        raise
    return True


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
        first = {"file": "config.json", "text": config.to_json()}
        return cls(create_directory(root, config.arch, name, **first))

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Return the run at `path`; raises `LesionfastError` if there is none.

        Its files are checked as they are read.
        """
        if not Path(path).is_dir():
            raise LesionfastError(f"there is no run {path}. `lesionfast runs` lists the runs here.")
        if (Path(path) / "pretrain.json").is_file():
            raise LesionfastError(
                f"{path} is a pretraining, which has no predictions. Train from it: "
                f"lesionfast train --weights {path}"
            )
        sweep_once(Path(path).absolute())  # what a killed process left there
        run = cls(path)
        if not run.holds("config.json"):
            raise LesionfastError(
                f"{path} is no run: it has no config.json. `lesionfast runs` lists the runs here."
            )
        return run

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
        path = self.file("config.json")
        with damage_explained(path, self.remedy("config.json")):
            return TrainConfig.from_json(path.read_text(encoding="utf-8"), of_run=True)

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
        return self._predictions("predictions.csv")

    @cached_property
    def predictions_without_metadata(self) -> "pd.DataFrame | None":
        """The same with all metadata withheld; None if the run has none, or is of old."""
        return self._predictions(WITHOUT_METADATA) if self.holds(WITHOUT_METADATA) else None

    @property
    def finished(self) -> bool:
        """Whether the run has ended properly, so that it can be interpreted."""
        return self.holds("metrics.json")

    @cached_property
    def classes(self) -> Classes:
        """Class names, in the order of the probabilities, and what they mean."""
        return Classes.of_model(self.model)

    def holds(self, name: str) -> bool:
        """Return whether the run has a file, or should have it: who reads it learns of damage."""
        return (self.path / name).is_file() or self.manifest.lists(name)

    def file(self, name: str) -> Path:
        """Return the path of a file of the run, which is what was written.

        Raises `DamageError` if it is not, and `LesionfastError` if there is none yet.
        """
        if not self.holds(name):
            raise LesionfastError(
                f"{self.path} has no {name}: the run did not end. "
                f"Go on with: lesionfast train --resume {self.path}"
            )
        return self.manifest.require(name, self.remedy(name))

    def problem(self, name: str) -> str | None:
        """Return what is wrong with a file of the run, in words; None if it is what was written."""
        return self.manifest.problem(name)

    def remedy(self, name: str) -> str:
        """Return what to type when a file is damaged."""
        if name in FITTED:
            return f"Rebuild it with: lesionfast interpret {self.path}"
        ways = [f"Copy {self.path} again"]
        if name in LEARNED and (self.path / "weights.safetensors").is_file():
            again = "train it" if name in ("history.csv", "weights.safetensors") else "predict"
            ways.append(f"{again} again: lesionfast train --resume {self.path}")
        if name in GIVEN:
            ways.append("train it again with lesionfast train")
        return f"{', or '.join(ways)}."

    def damaged(self) -> dict[str, str]:
        """Return what is wrong with each file that is not what was written, in words."""
        there = [name for name in (*GIVEN, *LEARNED, *FITTED) if (self.path / name).exists()]
        found = {name: self.problem(name) for name in {*self.manifest.names, *there}}
        found = dict(sorted(found.items()))
        return {name: why for name, why in found.items() if why is not None}

    def condition(self) -> tuple[str, dict[str, str]]:
        """Return the state of the files in a word, and what is wrong with those that are damaged.

        The states: 'whole', 'not ended', 'not verifiable' (by an earlier version) and 'damaged'.
        """
        try:
            problems = self.damaged()
            if problems:
                return "damaged", problems
            if not self.manifest.exists:
                return "not verifiable", {}
            ended = self.finished or self.holds("pretrain.json")
            return "whole" if ended else "not ended", {}
        except DamageError as error:
            return "damaged", {self.manifest.path.name: str(error)}

    def seal(self) -> None:
        """Take all files as they are now for right, whatever the manifest said."""
        self.manifest.seal(*GIVEN, *LEARNED, *FITTED)

    def _json(self, name: str) -> dict[str, Any]:
        found = read_json(self.file(name), SHAPES[name], self.remedy(name))
        if found.get("schema", 1) > SCHEMAS.get(name, 1):
            raise DamageError(f"{self.path / name} was written by a newer lesionfast. {UPGRADE}")
        return found

    def _csv(self, name: str) -> "pd.DataFrame":
        path = self.file(name)
        with damage_explained(path, self.remedy(name)):
            if not self.manifest.exists:
                check_rows(path)
            table = read_csv(path)
            for column in COLUMNS[name]:
                if column not in table:
                    raise ValueError(f"it has no column '{column}'")
                if table[column].isin(["", None]).any():
                    raise ValueError(f"its column '{column}' has gaps")
        return table

    def _predictions(self, name: str) -> "pd.DataFrame":
        table = self._csv(name)
        with damage_explained(self.path / name, self.remedy(name)):
            for column in table.columns[table.columns.str.startswith("p_")]:
                if not table[column].astype(float).between(0, 1 + 1e-6).all():
                    raise ValueError(f"column '{column}' holds values that are not probabilities")
        return table


def check_rows(path: Path) -> None:
    """Raise `ValueError` unless all rows of a CSV file are as long as its header."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, strict=True)
        width = len(next(rows, []))
        for row in rows:
            if len(row) != width:
                raise ValueError(f"line {rows.line_num} has {len(row)} fields of {width}")


def read_csv(path: Path) -> "pd.DataFrame":
    """Return a table of a run, numbers as exact as they were written."""
    import pandas as pd

    header = pd.read_csv(path, nrows=0, encoding="utf-8").columns
    return pd.read_csv(
        path,
        encoding="utf-8",
        dtype=dict.fromkeys(TEXTS, str),
        keep_default_na=False,
        na_values={column: [""] for column in header if column not in TEXTS},
        float_precision="round_trip",
        index_col=False,
    )


def list_runs(root: str | Path) -> list[Run]:
    """Return all runs under `root`, oldest first."""
    found = [Run(path) for path in sorted(Path(root).glob("*")) if is_run(path)]
    return sorted(found, key=lambda run: time_of(run.path))


def empty_folders(root: str | Path) -> list[Path]:
    """Return the folders under `root` that hold nothing: of runs that stopped before they began."""
    folders = [path for path in sorted(Path(root).glob("*")) if path.is_dir()]
    return [path for path in folders if not any(path.iterdir())]


def is_run(path: Path) -> bool:
    """Return whether a folder is a run, or what is left of one, and no pretraining."""
    if (path / "config.json").is_file():
        return True
    manifest = path / "manifest.json"
    return manifest.is_file() and b'"config.json"' in manifest.read_bytes()


def time_of(path: Path) -> int:
    """Return when a run was begun, in nanoseconds: the time of its oldest file.

    So a file that is replaced later makes no run the newest.
    """
    there = [path / name for name in (*GIVEN, *LEARNED) if (path / name).is_file()]
    return min(file.stat().st_mtime_ns for file in there or [path / "manifest.json"])


def newest_run(root: str | Path) -> Run:
    """Return the newest run under `root` that has ended; raises `LesionfastError` if none has."""
    ended = [run for run in list_runs(root) if run.finished]
    if not ended:
        raise LesionfastError(f"there is no finished run in {root}. Make one: lesionfast train")
    return ended[-1]


def describe_software(*packages: str) -> dict[str, Any]:
    """Return start time, platform, and the versions of Python and of packages."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "manifest": MANIFEST_SCHEMA,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: installed_version(name) for name in packages},
    }


def installed_version(package: str = "lesionfast") -> str:
    """Return the version of a package; "from source" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "from source"
