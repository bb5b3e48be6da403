"""Run: what a run directory holds, and how to read, create and list runs. Torch-free."""

import csv
import errno
import json
import math
import os
import platform
import re
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from html import escape
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionfast.config import MOST_PIXELS, TrainConfig
from lesionfast.diagnoses import Classes, name_rule, probability_columns
from lesionfast.errors import DamageError, LesionfastError, did_you_mean, shell_quote
from lesionfast.files import (
    NUMBER,
    damage_explained,
    disk_errors,
    load_json,
    read_json,
    readable_name,
    sha256_once,
    sweep,
    sweep_once,
    workspace,
    write_text,
)
from lesionfast.manifest import SCHEMA as MANIFEST_SCHEMA
from lesionfast.manifest import SCHEMAS, UPGRADE, Manifest
from lesionfast.notebook import predictions_html

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from lesionfast.stats.rules import DecisionRule

WITHOUT_METADATA = "predictions_without_metadata.csv"
UNCORRECTED = "predictions_before_corrections.csv"
CORRECTIONS = "corrections.csv"
CONFIGS = ("config.json", "pretrain.json")  # of a run, and of a pretraining
FEATURES = "features.safetensors"
FITTED = (  # what was chosen on validation, and the features of the images
    *("operating.json", "calibration.json", "conformal.json", "referral.json"),
    *("outliers.safetensors", FEATURES),
)
WEIGHTS = ("history.csv", "weights.safetensors")
PREDICTED = ("metrics.json", "predictions.csv", WITHOUT_METADATA, UNCORRECTED)
LEARNED = (*WEIGHTS, *PREDICTED)
OF_THE_WEIGHTS = (*PREDICTED, *FITTED)  # what changes with the weights, metrics.json first
GIVEN = (*CONFIGS, "environment.json", CORRECTIONS, "split.csv", "encoder.json", "model.json")
DATED = {*GIVEN, *LEARNED, "manifest.json"}  # what says when a run was begun
NOTE = "note.txt"  # not in the manifest: whoever wrote it may edit it, in any run
MOST_INPUTS = 100_000  # numbers that the metadata of one image becomes
DEEPEST, MOST_MEMBERS = 5, 1_000  # ensembles of ensembles, and runs that one averages
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
        "corrections?": {"file": str, "sha256": str, str: object},
        "before_corrections?": {"valid?": SUMMARY, "test?": SUMMARY},
    },
    "model.json": {
        "classes": [str],
        "prior": [float],
        "melanoma?": (str, None),
        "malignant?": ([str], None),
        "rule": str,
        **{f"{name}?": str for name in ("arch", "fusion", "pool", "weights_origin")},
        "resize?": ("crop", "squish"),
        "schema?": int,
        "size?": range(1, MOST_PIXELS + 1),
        "tta?": range(1, 9),
        "n_metadata?": range(MOST_INPUTS),
        **{f"{name}?": float for name in ("dropout", "melanoma_weight", "melanoma_sensitivity")},
        "metadata_dropout?": float,
        "parameters?": (int, None),
        "metadata?": [str],
        "parents?": ([int], None),
        "undo?": ({str: [float]}, None),
        "members?": [str],
        "member_weights?": [(str, None)],
        "of?": str,
        "out_of_fold?": bool,
        **{f"{name}?": {str: str} for name in ("registered", "registered_digest")},
        "arch_config?": {str: object},
    },
    "environment.json": {str: object},
}
COLUMNS = {
    **dict.fromkeys(
        ("predictions.csv", WITHOUT_METADATA, UNCORRECTED), ("image_id", "split", "target")
    ),
    "history.csv": ("epoch", "phase"),
    "split.csv": ("image_id", "split"),
}
MOST_LOSS = 1e30  # in history.csv: what is larger overflows where it is drawn
TEXTS = ("image_id", "group", "target", "phase", "split", "original_target", "correction")


class Run:
    """A run directory: what a training kept. Tables and JSON are read on first use.

    `config` holds its options, `metrics` the metrics of each split, `predictions` one row per image
    of validation and test with the probabilities `p_<class>`, `history` one row per epoch. In a
    notebook it shows its headline metrics. Raises `LesionfastError` for what is missing or damaged.

    >>> lf.Run(run.path).predictions.filter(like="p_").shape[1]
    7
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = Manifest(self.path)
        self._depth, self._count = 0, [0]  # of an ensemble in an ensemble, and of all its runs

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(
        cls, root: str | Path, config: TrainConfig, name: str | None = None, what: str | None = None
    ) -> "Run":
        """Make a new run that holds only config.json, as `create_directory` does."""
        first = {"file": "config.json", "text": config.to_json()}
        return cls(create_directory(root, what or config.arch, name, **first))

    @classmethod
    def open(cls, path: "str | Path | Run") -> "Run":
        """Return the run at `path`, or a run as it is; raises `LesionfastError` if there is none.

        Its files are checked as they are read.
        """
        if isinstance(path, Run):
            return path
        if not isinstance(path, str | Path):
            raise LesionfastError(
                f"{path!r} is not a run. Name one run: its path, or what train returned."
            )
        run = cls(path)
        if not run.path.is_dir():
            raise LesionfastError(f"there is no run {path}. `lesionfast runs` lists the runs here.")
        if (run.path / "pretrain.json").is_file():
            raise LesionfastError(
                f"{path} is a pretraining, which has no predictions. Train from it: "
                f"lesionfast train --weights {shell_quote(path)}"
            )
        sweep_once(run.path.absolute())  # what a killed process left there
        if not run.holds("config.json"):
            raise LesionfastError(
                f"{path} is not a run: it has no config.json. `lesionfast runs` lists the runs "
                "here."
            )
        return run

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Call `write` with a temporary path, rename it to the file `name`, and list that.

        This, `write_text` and `write_json` are the only ways to write what is read later: a file
        that manifest.json does not list counts as damaged. log.txt, which grows, and note.txt,
        which a person may edit, are not listed, and neither are figures and reports, which no
        command reads.
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
        """Remove files of the run, if they exist."""
        self.manifest.remove(*names)

    @cached_property
    def config(self) -> TrainConfig:
        """The configuration that made this run."""
        path = self.file("config.json")
        with damage_explained(path, self.remedy("config.json")):
            return TrainConfig.from_json(load_json(path), of_run=True)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device and start time."""
        return self._json("environment.json")

    @cached_property
    def model(self) -> dict[str, Any]:
        """Architecture, classes, preprocessing, training prior and decision rule."""
        model = self._json("model.json")
        earlier = model.get("arch") == "committee"  # what earlier versions called an ensemble
        return model | {"arch": "ensemble"} if earlier else model

    @property
    def decision_rule(self) -> "DecisionRule":
        """How the run decides: its rule, for the prior of its probabilities, with its weight."""
        from lesionfast.stats.rules import DecisionRule

        with damage_explained(self.path / "model.json", self.remedy("model.json")):
            return DecisionRule.of_model(self.model)

    @property
    def rule_name(self) -> str:
        """What tables and metrics.json call its rule; it needs no NumPy."""
        return name_rule(self.model["rule"], self.model.get("melanoma_weight", 1.0))

    @property
    def melanoma_sensitivity(self) -> float:
        """What its rule was asked for last, by the training or after it; 0 if for nothing."""
        return self.model.get("melanoma_sensitivity", self.config.melanoma_sensitivity)

    @property
    def pool(self) -> str:
        """The pooling of its model; what 'auto' in its config meant then it may not mean now."""
        return self.model.get("pool", self.config.pool)

    @cached_property
    def members(self) -> "list[Run]":
        """The runs that an ensemble averages; none for a run of one model.

        Raises `DamageError` if one is not where it was.
        """
        paths = [os.path.normpath(self.path / path) for path in self.model.get("members", ())]
        if gone := [path for path in paths if not os.path.isdir(path)]:
            raise DamageError(
                f"{self.path} averages {len(paths)} runs, and {gone[0]} is missing. Copy it there "
                "again, or make the ensemble again."
            )
        self._count[0] += len(paths)
        if self._depth == DEEPEST or self._count[0] > MOST_MEMBERS:
            raise DamageError(
                f"{self.path} averages itself, or more than {MOST_MEMBERS} runs, or runs of runs "
                f"{DEEPEST} deep. Make the ensemble again."
            )
        members = [Run(path) for path in paths]
        for member in members:
            member._depth, member._count = self._depth + 1, self._count
        return members

    @cached_property
    def full_model(self) -> dict[str, Any]:
        """Its model.json; for an ensemble with each member's in place of its path.

        That of one model in it has its precision too, and the SHA-256 of its weights.
        """
        if not self.members:
            more = {"precision": self.config.precision, "resize": self.config.resize}
            weights = self.file("weights.safetensors")
            return self.model | more | {"weights_sha256": sha256_once(weights)}
        members = [member.full_model for member in self.members]
        sizes = {name: max(member[name] for member in members) for name in ("size", "tta")}
        inputs = [name for member in members for name in member["metadata"]]
        about = sizes | {"metadata": list(dict.fromkeys(inputs)), "resize": members[0]["resize"]}
        dropped = min(member.get("metadata_dropout", 0.0) for member in members)
        return about | {"metadata_dropout": dropped} | self.model | {"members": members}

    @property
    def is_out_of_fold(self) -> bool:
        """Whether its validation predictions are out of fold: of all images that are not test."""
        return self.model.get("out_of_fold", False)

    @cached_property
    def classes(self) -> Classes:
        """Class names, in the order of the probabilities, with melanoma and malignant classes."""
        with damage_explained(self.path / "model.json", self.remedy("model.json")):
            return Classes.of_model(self.model)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Metrics per split and decision rule; written when the run ends."""
        return self._json("metrics.json")

    @cached_property
    def split(self) -> "pd.DataFrame":
        """One row per image: image id, lesion id, split."""
        return self._csv("split.csv")

    @cached_property
    def history(self) -> "pd.DataFrame":
        """One row per epoch."""
        return self._csv("history.csv")

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """One row per image of validation and test: split, target, `p_<class>`, metadata."""
        return self._csv("predictions.csv")

    @cached_property
    def predictions_without_metadata(self) -> "pd.DataFrame | None":
        """The same with all metadata withheld; None if the run has none, or is an old one."""
        return self._csv(WITHOUT_METADATA) if self.holds(WITHOUT_METADATA) else None

    @cached_property
    def predictions_before_corrections(self) -> "pd.DataFrame | None":
        """The predictions of all held-out images with their original labels and lesions.

        None for a run without corrections.
        """
        return self._csv(UNCORRECTED) if self.holds(UNCORRECTED) else None

    def predictions_of(self, split: str) -> "pd.DataFrame":
        """Return the predictions of one split; raises `LesionfastError` if there are none."""
        predictions = self.predictions
        rows = predictions[predictions["split"] == split].reset_index(drop=True)
        if rows.empty:
            splits = sorted(predictions["split"].unique())
            raise LesionfastError(
                f"{self.path} has no predictions of the split '{split}'; it has: "
                f"{', '.join(splits)}.{did_you_mean(split, splits)} Choose one with --split."
            )
        return rows

    def read_probabilities(self, predictions: "pd.DataFrame") -> "tuple[np.ndarray, np.ndarray]":
        """Return class numbers (n,) and probabilities (n, k) in the order of the classes.

        Raises `LesionfastError` for predictions of other classes.
        """
        columns = probability_columns(self.classes)
        missing = [name for name in columns if name not in predictions]
        numbers = {name: number for number, name in enumerate(self.classes)}
        truth = predictions["target"].astype(str).map(numbers)
        if missing or truth.isna().any():
            unknown = predictions.loc[truth.isna(), "target"].astype(str).unique().tolist()
            raise LesionfastError(
                f"predictions.csv and model.json of {self.path} do not match: missing columns "
                f"{missing}, unknown classes {unknown}. Use both as the training wrote them."
            )
        return truth.to_numpy("int64"), predictions[columns].to_numpy("float64")

    def _repr_html_(self) -> str:
        """Return the headline metrics with their intervals and the confusion matrix."""
        if not self.finished:
            return f"<p>{escape(str(self.path))}: not finished</p>"
        split = "test" if "test" in self.metrics else "valid"
        rows, rule = self.predictions_of(split), self.decision_rule
        truth, probabilities = self.read_probabilities(rows)
        decision = rule.decide(probabilities)
        lesions = rows["group" if "group" in rows else "image_id"].to_numpy(str)
        title = f"{self.path}: {split}, {len(rows)} images, rule {rule.name}"
        return predictions_html(title, truth, probabilities, decision, lesions, self.classes)

    @classmethod
    def from_learner(cls, learn: Any, path: str | Path) -> "Run":
        """Return a new run at `path` of a Learner that was trained by hand, as it is now.

        `learn` comes from `lesion_learner` over `LesionDataLoaders`. Its weights predict validation
        and test, and all that works on a run works on this one: interpret, compare, predict,
        export. Optimizer, callbacks and own transforms are not kept. Raises `LesionfastError` if
        the directory exists, or for another Learner.

        >>> lf.Run.from_learner(learn, "runs/by-hand").metrics["status"]
        'finished'
        """
        if not hasattr(learn, "to_run"):
            raise LesionfastError(
                f"a run takes a Learner of lesion_learner, not {type(learn).__name__}. Make one "
                "with lesion_learner(dls, arch)."
            )
        return learn.to_run(path)

    @property
    def note(self) -> str:
        """What a person wrote about the run; `''` if nothing. Assign text to it to keep that.

        An empty text removes the note. It is in note.txt, which any editor may change.
        """
        path = self.path / NOTE
        if not path.is_file():
            return ""
        again = f"Write it again with: lesionfast runs note {shell_quote(self.path)}"
        with damage_explained(path, again):
            return path.read_text(encoding="utf-8", errors="replace").strip()

    @note.setter
    def note(self, text: str) -> None:
        if text := readable_name(text.strip()):
            write_text(self.path / NOTE, text + "\n")
            return
        with disk_errors(self.path / NOTE):
            (self.path / NOTE).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the run has ended and can be interpreted."""
        return self.holds("metrics.json")

    def holds(self, name: str) -> bool:
        """Return whether the run has a file, or should have it: reading it reports damage."""
        return (self.path / name).is_file() or self.manifest.lists(name)

    def file(self, name: str) -> Path:
        """Return the path of a file of the run.

        Raises `DamageError` if it is not what was written, and `LesionfastError` if there is none.
        """
        if not self.holds(name):
            raise LesionfastError(
                f"{self.path} has no {name}: the run is not finished. "
                f"Continue with: lesionfast train --resume {shell_quote(self.path)}"
            )
        return self.manifest.require(name, self.remedy(name))

    def remedy(self, name: str) -> str:
        """Return what to type when a file is damaged."""
        if name in FITTED:
            return f"Rebuild it with: lesionfast interpret {shell_quote(self.path)}"
        ways = [f"Copy {self.path} again"]
        if name in LEARNED and (self.path / "weights.safetensors").is_file():
            again = "train it again" if name in WEIGHTS else "predict again"
            ways.append(f"{again}: lesionfast train --resume {shell_quote(self.path)}")
        if name in GIVEN:
            ways.append("train it again with lesionfast train")
        return f"{', or '.join(ways)}."

    def damaged(self) -> dict[str, str]:
        """Return what is wrong with each file that is not what was written, in words."""
        present = [name for name in (*GIVEN, *LEARNED, *FITTED) if (self.path / name).exists()]
        problems = {name: self.manifest.problem(name) for name in {*self.manifest.names, *present}}
        found = {name: why for name, why in sorted(problems.items()) if why is not None}
        return found if "model.json" in found else found | self._damaged_members()

    def _damaged_members(self) -> dict[str, str]:
        """Return what is wrong with the files of members, by their paths as seen from here."""
        if not self.holds("model.json"):
            return {}
        found, names = {}, self.model.get("members", ())
        digests = self.model.get("member_weights") or [None] * len(names)
        for name, digest in zip_longest(names, digests[: len(names)]):
            if not is_inside(name):
                continue  # a run of its own
            member = Run(self.path / name)
            if not member.path.is_dir():
                found[name] = "it is missing"
                continue
            found |= {f"{name}/{file}": why for file, why in member.damaged().items()}
            weights = f"{name}/weights.safetensors"
            if digest not in (None, sha256_once(self.path / weights)):
                found.setdefault(weights, "it is not the one that was averaged")
        return found

    def condition(self) -> tuple[str, dict[str, str]]:
        """Return the state of the files in a word, and what is wrong with those that are damaged.

        The states: 'whole', 'not ended', 'not verifiable' (by an earlier version) and 'damaged'.
        """
        try:
            if problems := self.damaged():
                return "damaged", problems
            if not self.manifest.exists:
                return "not verifiable", {}
            ended = self.finished or self.holds("pretrain.json")
            return "whole" if ended else "not ended", {}
        except DamageError as error:
            return "damaged", {self.manifest.path.name: str(error)}

    def seal(self) -> None:
        """Accept all files as they are, whatever the manifests list; those of inner runs too."""
        self.manifest.seal(*GIVEN, *LEARNED, *FITTED)
        for path in sorted(self.path.glob("*")):
            if is_run(path) and not path.is_symlink():
                Run(path).seal()

    def _json(self, name: str) -> dict[str, Any]:
        content = read_json(self.file(name), SHAPES[name], self.remedy(name))
        if content.get("schema", 1) > SCHEMAS.get(name, 1):
            raise DamageError(f"{self.path / name} was written by a newer lesionfast. {UPGRADE}")
        return content

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
                    raise ValueError(f"its column '{column}' has empty cells")
            if name == "history.csv":
                check_history(table)
            for column in table.columns[table.columns.str.startswith("p_")]:
                check_numeric(table[column])
                if not table[column].between(0, 1 + 1e-6).all():
                    raise ValueError(f"column '{column}' holds values that are not probabilities")
        return table


def check_history(table: "pd.DataFrame") -> None:
    """Raise `ValueError` unless a table has a row for each epoch, and numbers that can be drawn."""
    if table.empty:
        raise ValueError("it has no epochs")
    for column in table.columns.drop("phase"):
        check_numeric(table[column])
        values = table[column].abs()  # a loss may be infinite, or missing
        if (values[values < math.inf] > MOST_LOSS).any():
            raise ValueError(f"its column '{column}' has numbers that no training gives")
    if not table["epoch"].between(0, MOST_LOSS).all():  # 0: before any, of what was not trained
        raise ValueError("its column 'epoch' does not count epochs")


def check_numeric(column: "pd.Series") -> None:
    """Raise `ValueError` unless a column was read as numbers: "1_000" is a text."""
    if column.dtype.kind not in "iuf":
        texts = ", ".join(str(value)[:40] for value in column.unique()[:3])
        raise ValueError(f"its column '{column.name}' is not numeric: {texts}")


def is_inside(name: str) -> bool:
    """Return whether the path of a member is that of a run inside the run."""
    return os.path.normpath(name).split(os.sep)[0] not in ("", ".", "..")


def list_runs_of(run: Run) -> list[Run]:
    """Return the runs of the models that a run averages, the run itself if it has one model."""
    return [leaf for member in run.members for leaf in list_runs_of(member)] or [run]


def list_leaves(about: dict[str, Any], weight: float = 1.0) -> list[tuple[dict[str, Any], float]]:
    """Return the description of each model in that of a whole model, and what each counts for.

    `about` is a `full_model`.
    """
    if "members" not in about:
        return [(about, weight)]
    pairs = zip(about["members"], about["weights"], strict=True)
    return [leaf for member, part in pairs for leaf in list_leaves(member, weight * part)]


def list_looks(about: dict[str, Any]) -> list[tuple[int, str]]:
    """Return the different sizes, and ways of making images square, that a whole model sees."""
    looks = [(leaf["size"], leaf["resize"]) for leaf, _ in list_leaves(about)]
    return list(dict.fromkeys(looks))


def check_rows(path: Path) -> None:
    """Raise `ValueError` unless all rows of a CSV file are as long as its header."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, strict=True)
        width = len(next(rows, []))
        for row in rows:
            if len(row) != width:
                raise ValueError(f"line {rows.line_num} has {len(row)} fields instead of {width}")


def read_csv(path: Path) -> "pd.DataFrame":
    """Return a table of a run, with numbers as exact as they were written."""
    import pandas as pd

    header = pd.read_csv(path, nrows=0, encoding="utf-8").columns
    missing = ["", "nan"] if path.name == "history.csv" else [""]  # a metric may be undefined
    return pd.read_csv(
        path,
        encoding="utf-8",
        dtype=dict.fromkeys(TEXTS, str),
        keep_default_na=False,
        na_values={column: missing for column in header if column not in TEXTS},
        float_precision="round_trip",
        index_col=False,
    )


def create_directory(
    root: str | Path, what: str, name: str | None = None, *, file: str, text: str
) -> Path:
    """Make a new directory with one file: `root/name`, or `root/YYYYMMDD-HHMMSS-WHAT`.

    It appears with the file in it; what killed processes left in other runs is removed. Raises
    `LesionfastError` if the name is taken or is a path, and if nothing can be written.
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
    if name:
        raise LesionfastError(f"{root} already has a directory {name}. Choose another name.")
    raise LesionfastError(f"{root} has 99 runs of this second. Choose another --out.")


def check_name(name: str) -> None:
    """Raise `LesionfastError` for a name that would lead out of its folder, or be hidden in it."""
    if name.startswith((".", "-")) or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise LesionfastError(
            f"{name!r} can't name a directory: it has a slash, a backslash or a control "
            "character, or begins with a dot or a hyphen. Type letters, digits, - and _, such as "
            "--name first-try"
        )


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


def list_runs(root: str | Path = "runs") -> list[Run]:
    """Return all runs under the folder `root`, oldest first; a broken run is among them.

    Nothing of them is read yet.
    """
    return sorted(
        (Run(path) for path in sorted(Path(root).glob("*")) if is_run(path)), key=begun_at
    )


def is_run(path: Path) -> bool:
    """Return whether a folder is a run, or what is left of one, and not a pretraining."""
    if (path / "config.json").is_file():
        return True
    manifest = path / "manifest.json"
    return manifest.is_file() and b'"config.json"' in manifest.read_bytes()


def outermost(run: Path) -> Path:
    """Return the folder that a run lies in; of a run in a run that of the outer one."""
    folder = run.parent
    while is_run(folder):
        folder = folder.parent
    return folder


def begun_at(run: Run) -> int:
    """Return when a run was begun, in nanoseconds: the time of its oldest file.

    A file that is replaced later does not make a run the newest. 0 if it was just removed.
    """
    try:
        with os.scandir(run.path) as entries:
            files = {file.name: file for file in entries if file.name in DATED and file.is_file()}
    except FileNotFoundError:
        return 0
    present = [file for name, file in files.items() if name != run.manifest.path.name]
    return min(file.stat().st_mtime_ns for file in present or files.values())


def newest_run(root: str | Path) -> Run:
    """Return the newest run under `root` that has ended; raises `LesionfastError` if none has."""
    ended = [run for run in list_runs(root) if run.finished]
    if not ended:
        raise LesionfastError(f"there is no finished run in {root}. Make one: lesionfast train")
    return ended[-1]


def empty_folders(root: str | Path) -> list[Path]:
    """Return the empty folders under `root`: runs that stopped before they began."""
    folders = [path for path in sorted(Path(root).glob("*")) if path.is_dir()]
    return [path for path in folders if not any(path.iterdir())]


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
