"""Several runs of one split: studies of many configurations, and ablations of one fused run.

Torch is imported in the functions that train.
"""

import logging
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.config import DataConfig, SplitConfig, TrainConfig
from lesionfast.data.split import format_split, keep_options, load_dataset, write_split
from lesionfast.data.table import read_table
from lesionfast.errors import LesionfastError, TrainingInterrupted, did_you_mean, shell_quote
from lesionfast.evaluation.comparison import (
    WITHHELD,
    contribution_table,
    describe_loss,
    describe_missed_melanomas,
)
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import read_small_text, sha256
from lesionfast.run import Run

logger = logging.getLogger("lesionfast")

MOST_TOML = 2**20  # bytes: a study of a thousand runs that differ in ten options has 300 kB
MOST_DOTS = 100  # in a key: reading one takes the square of them, in time and memory
AUTHOR = Path(__file__).parent / "studies" / "author.toml"
AUTHOR_FROM_SCRATCH = AUTHOR.with_name("author_from_scratch.toml")
FIELDS = {field.name: field for field in fields(TrainConfig)}
SHARED = {field.name for field in fields(SplitConfig)} - {"metadata", "cache", "seed"}
IMAGE, METADATA = "image alone", "metadata alone"


@dataclass(frozen=True)
class Entry:
    """One configuration of a study."""

    name: str
    config: TrainConfig

    @property
    def folder(self) -> str:
        """The name of its run directory, without spaces and slashes: "a + b/c" is "a-b-c"."""
        return re.sub(r"[^\w.]+", "-", self.name).strip("-.")


@dataclass(frozen=True)
class Study:
    """Configurations over one split, which `base` describes: defaults and typed options."""

    name: str
    base: TrainConfig
    entries: list[Entry]


@dataclass(frozen=True)
class Outcome:
    """The runs of a study that ended, and why others failed, by name."""

    runs: list[Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def read_study(file: str | Path, given: Mapping[str, Any] | None = None) -> Study:
    """Return the study that a TOML file describes; `given` overrides its `[defaults]`.

    Raises `LesionfastError` for a file that is not TOML, unknown tables or fields, wrong values,
    two runs of one name, and runs with data or a split of their own.
    """
    file = Path(file)
    tables = read_tables(file)
    where, shared = f"[defaults] of {file}", {**tables.get("defaults", {}), **(given or {})}
    base = read_config(where, shared, {})
    entries = [
        read_entry(file, number, table, shared) for number, table in enumerate(tables["run"], 1)
    ]
    check_folders(file, entries)
    return Study(file.stem, base, entries)


def read_tables(file: Path) -> dict[str, Any]:
    """Return the TOML tables `defaults` and `run`; raises `LesionfastError` for anything else."""
    tables = read_toml(file, "Type lesionfast study FILE.toml.")
    for name in tables:
        if name not in ("defaults", "run"):
            hint = did_you_mean(name, ("defaults", "run"))
            raise LesionfastError(
                f"{file} has an unknown table or field '{name}'.{hint} "
                "Fields belong below [defaults] or [[run]]."
            )
    runs, defaults = tables.get("run"), tables.get("defaults", {})
    if not isinstance(defaults, dict) or not isinstance(runs, list) or not runs:
        raise LesionfastError(f'{file} has no runs. Write [[run]] and below it name = "first".')
    return tables


def read_toml(file: Path, advice: str) -> dict[str, Any]:
    """Return what a TOML file holds; `advice` is for one that is not there.

    Raises `LesionfastError` for that, and for a file that is not TOML.
    """
    try:
        text = read_small_text(file, MOST_TOML)
        if any(part.count(".") > MOST_DOTS for part in re.split(r"[=,\n#]", text)):
            raise RecursionError
        return tomllib.loads(text)
    except OSError:
        raise LesionfastError(f"there is no file {file}. {advice}") from None
    except tomllib.TOMLDecodeError as error:
        raise LesionfastError(f"{file} is not valid TOML: {error}. Correct that line.") from None
    except RecursionError:
        raise LesionfastError(
            f"{file} is not valid TOML: it is nested too deep. {advice}"
        ) from None
    except UnicodeDecodeError:
        raise LesionfastError(
            f"{file} is not valid TOML: it is not UTF-8. Save it as UTF-8."
        ) from None
    except ValueError as error:
        raise LesionfastError(f"{file} can't be read: {error}. {advice}") from None


def read_entry(file: Path, number: int, table: Any, shared: Mapping[str, Any]) -> Entry:
    """Return one `[[run]]` table as an entry."""
    values = dict(table) if isinstance(table, dict) else {}
    name = values.pop("name", "")
    entry = Entry(name if isinstance(name, str) else "", TrainConfig())
    if not entry.folder:
        raise LesionfastError(
            f'[[run]] number {number} of {file} has no name. Write name = "first".'
        )
    where = f"[[run]] '{name}' of {file}"
    if own := sorted(SHARED & set(values)):
        raise LesionfastError(
            f"{where} has '{own[0]}', but all runs of a study share data and split. "
            "Move it to [defaults]."
        )
    config = read_config(where, values, shared)
    if config.budget:
        raise LesionfastError(
            f"{where} has a budget, but what fits into a budget depends on the load of the "
            "machine. Write epochs and size."
        )
    return replace(entry, config=config)


def read_config(where: str, table: Mapping[str, Any], shared: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of a table on top of `shared`; errors say `where` it is."""
    for name in table:
        if name not in FIELDS:
            raise LesionfastError(
                f"{where} has an unknown field '{name}'.{did_you_mean(name, FIELDS)} "
                "Fields are the options of lesionfast train --help, with _ for -."
            )
    values = {
        name: float(value) if FIELDS[name].type is float and type(value) is int else value
        for name, value in {**shared, **table}.items()
    }
    try:
        return TrainConfig(**values)
    except LesionfastError as error:
        raise LesionfastError(f"{where}: {error}") from error


def check_folders(file: Path, entries: list[Entry]) -> None:
    """Raise `LesionfastError` for runs whose directories would be the same, or are reserved."""
    seen: dict[str, str] = {}
    for entry in entries:
        folder = entry.folder.lower()
        if folder in seen:
            raise LesionfastError(
                f"{file} has two runs '{seen[folder]}' and '{entry.name}', which share the "
                f"directory {entry.folder}. Rename one."
            )
        if folder == "comparison":
            raise LesionfastError(f"{file}: the directory {folder} is reserved. Rename the run.")
        seen[folder] = entry.name


def plan_study(study: Study, out: str | Path) -> list[dict[str, Any]]:
    """Return name, arch, size, epochs, parameters, seconds (estimated) and state of each run.

    Writes nothing. Raises `LesionfastError` for what would keep a run from starting.
    """
    from lesionfast.training.speed.budget import estimate

    states = {entry.name: read_state(entry, Path(out)) for entry in study.entries}
    df = load_dataset(study.base) if set(states.values()) != {"done"} else None
    rows = []
    for entry in study.entries:
        config, state = entry.config, states[entry.name]
        if state == "done":
            run = Run(Path(out) / entry.folder)
            parameters, seconds = run.model.get("parameters"), run.metrics["train_seconds"]
        else:
            try:
                cost = estimate(config, df)
            except LesionfastError as error:
                raise LesionfastError(f"the run '{entry.name}' can't start: {error}") from error
            parameters, seconds = cost.parameters, cost.seconds
        row = {"name": entry.name, "arch": config.arch, "size": config.size}
        row |= {"epochs": config.epochs, "parameters": parameters, "seconds": seconds}
        rows.append(row | {"state": state})
    return rows


def run_study(study: Study, out: str | Path) -> Outcome:
    """Train what is not done yet, each in its own directory under `out`; resume what was stopped.

    A run that fails does not stop the next. Raises `LesionfastError` before any training if a run
    has another configuration than the study or the split has changed, and `TrainingInterrupted`
    after Ctrl-C.
    """
    out, outcome = Path(out), Outcome()
    from lesionfast.training.ensembles.towers import has_towers

    several = [e.name for e in study.entries if e.config.all or has_towers(e.config)]
    if several:
        raise LesionfastError(
            f"the run '{several[0]}' has all = true or two towers, and a study trains one model a "
            "run. Leave it out, or train that run with lesionfast train."
        )
    states = {entry.name: read_state(entry, out) for entry in study.entries}
    load = SharedData(out / "split.csv")
    if set(states.values()) != {"done"}:
        load.keep(share_split(study, out), study.base)
    for number, entry in enumerate(study.entries, 1):
        logger.info("run %d of %d: %s, %s", number, len(states), entry.name, states[entry.name])
        try:
            outcome.runs.append(complete(entry, out, load))
        except TrainingInterrupted as error:
            raise TrainingInterrupted(
                f"the study was interrupted in the run '{entry.name}'. "
                "Type the same command again to continue."
            ) from error
        except LesionfastError as error:
            logger.warning("the run '%s' failed: %s", entry.name, error)
            outcome.failures[entry.name] = str(error)
    return outcome


def read_state(entry: Entry, out: Path) -> str:
    """Return 'done', 'interrupted' or 'to do'.

    Raises `LesionfastError` if there is a run of that name with another configuration or split.
    """
    run, split = Run(out / entry.folder), out / "split.csv"
    if not (run.path / "config.json").is_file():
        return "to do"
    stored, wanted = asdict(run.config), asdict(entry.config)
    if wanted["pool"] != "auto" and run.holds("model.json"):
        stored["pool"] = run.pool
    found_in_data = ("metadata", "fusion") if entry.config.metadata == "auto" else ()
    changes = [
        f"{name} is {stored[name]!r} there, but {wanted[name]!r} in the study"
        for name in wanted
        if name not in ("split", "log", *found_in_data) and stored[name] != wanted[name]
    ]
    own = run.path / "split.csv"
    if not changes and own.is_file() and split.is_file() and sha256(own) != sha256(split):
        changes.append(f"its split.csv differs from {split}")
    if changes:
        raise LesionfastError(
            f"{run.path} was made from another configuration: {'; '.join(changes)}. Remove that "
            f"directory, or rename the run '{entry.name}' in the file."
        )
    return "done" if run.finished and run.metrics["status"] == "finished" else "interrupted"


def share_split(study: Study, out: Path) -> pd.DataFrame:
    """Write the split of the study once, and return its table.

    Raises `LesionfastError` if it is another one now.
    """
    path, df = out / "split.csv", load_dataset(study.base)
    if not path.is_file():
        write_split(df, path)
    elif format_split(df).encode() != path.read_bytes():
        raise LesionfastError(
            f"data or split options have changed: they no longer give {path}. "
            "Type the earlier options, or another --out for a new study."
        )
    return df


class SharedData:
    """Reads the data of runs on one split; runs that read the same share a table.

    A call raises `LesionfastError` for a run that has not all images of the split.
    """

    def __init__(self, split: Path) -> None:
        self.split = split
        self._tables: dict[tuple, pd.DataFrame] = {}

    def keep(self, df: pd.DataFrame, config: TrainConfig) -> None:
        """Keep a table that the split was written from, so that no run reads it again."""
        config = replace(config, split=str(self.split))
        self._tables[data_options(config)] = keep_options(df, config)

    def __call__(self, config: TrainConfig) -> pd.DataFrame:
        """Return the table of a run with these options."""
        key = data_options(config)
        if key not in self._tables:
            df = load_dataset(config, split=self.split)
            shared = count_images(self.split)
            if len(df) != shared:
                raise LesionfastError(
                    f"it has {len(df)} of the {shared} images of {self.split}: missing = "
                    '"drop" leaves out other rows with other metadata columns. Write missing = '
                    '"keep" below [defaults].'
                )
            self._tables[key] = df
        return self._tables[key]


def count_images(split: Path) -> int:
    """Return how many images a split.csv has; a name may have any character."""
    return len(read_table(split, {"image_id": ""}, option="--split"))


def data_options(config: TrainConfig) -> tuple:
    """Return the options that say what is read."""
    return tuple(getattr(config, field.name) for field in fields(DataConfig))


def complete(entry: Entry, out: Path, load: SharedData) -> Run:
    """Return the finished run of an entry: trained, resumed, or as it is."""
    run, state = Run(out / entry.folder), read_state(entry, out)
    if state == "done":
        return Run.open(run.path)
    from lesionfast.training.experiment import only_trainer, resume, train

    if state == "interrupted" and (run.path / "model.json").is_file():
        run = resume(Run.open(run.path))
    else:
        if state == "interrupted":
            with only_trainer(run):
                logger.info("%s was stopped before its first step, so it starts again", run.path)
                shutil.rmtree(run.path)
        split = out / "split.csv"
        config = replace(entry.config, split=str(split))
        run = train(load(config), config, out, name=entry.folder)
    if run.metrics["status"] == "interrupted":
        raise TrainingInterrupted(f"{run.path} was interrupted.")
    return run


@dataclass(frozen=True, eq=False)
class Contribution:
    """A fused run beside the same run with fewer inputs, over the same images."""

    run: Run
    others: dict[str, Run]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Metrics and paired differences from the fused run; see `contribution_table`."""
        split = "test" if "test" in self.run.metrics else "valid"
        others = {name: Interpretation.from_run(run, split) for name, run in self.others.items()}
        return contribution_table(Interpretation.from_run(self.run, split), others)

    def words(self) -> list[str]:
        """Return a sentence for each of the others, and one about melanoma sensitivity."""
        columns = " and ".join(self.run.model["metadata"])
        loses = {
            IMAGE: f"training without {columns}",
            METADATA: "training without images",
            WITHHELD: f"withholding {columns} at prediction",
        }
        words = [describe_loss(self.table, name, loses[name]) for name in self.others]
        missed = describe_missed_melanomas(self.table, self.run.model["metadata"])
        return [*words, missed] if missed else words


def ablate(run: Run, out: str | Path | None = None) -> Contribution:
    """Train a fused run again on images alone and on metadata alone, and predict without metadata.

    Split, seed and all other options are those of the run. The runs lie under `out`, by default
    the run's own directory `ablation`; a run that is there is kept, an interrupted one resumed.
    Raises `LesionfastError` for a run that has not ended, is an ensemble, or fuses nothing.
    """
    check_fused(run)
    folder = Path(out) if out else run.path / "ablation"
    base = replace(run.config, split=str(run.path / "split.csv"), budget=None)
    base = replace(base, melanoma_sensitivity=run.melanoma_sensitivity)
    plain = TrainConfig().metadata_dropout  # there is no metadata to withhold
    alone = replace(base, fusion="none", metadata="none", metadata_dropout=plain, pool=run.pool)
    entries = [
        Entry(IMAGE, alone),
        Entry(METADATA, replace(base, fusion="metadata", unfreeze="none")),
    ]
    outcome = run_study(Study(run.path.name, base, entries), folder)
    if outcome.failures:
        reasons = "; ".join(f"'{name}': {why}" for name, why in outcome.failures.items())
        raise LesionfastError(f"the ablation failed. {reasons}")
    image, metadata = outcome.runs
    withheld = predict_without_metadata(run, folder)
    return Contribution(run, {IMAGE: image, METADATA: metadata, WITHHELD: withheld})


def check_fused(run: Run) -> None:
    """Raise `LesionfastError` unless a run is finished and fuses images with metadata."""
    if not run.finished:
        raise LesionfastError(
            f"{run.path} is not finished. Continue with: "
            f"lesionfast train --resume {shell_quote(run.path)}"
        )
    if "members" in run.model:
        members = ", ".join(os.path.normpath(run.path / path) for path in run.model["members"])
        raise LesionfastError(f"{run.path} is an ensemble. Name one of its members: {members}")
    if run.model["fusion"] in ("none", "metadata") or not run.model["metadata"]:
        raise LesionfastError(
            f"{run.path} has fusion '{run.model['fusion']}', so there is nothing to ablate. "
            "Name a run that fuses images with metadata: lesionfast train --fusion concat"
        )


def predict_without_metadata(run: Run, folder: Path) -> Run:
    """Return a run, without weights, of a run's predictions with every age, sex and site unknown.

    One that is there already is kept.
    """
    path = folder / WITHHELD.replace(" ", "-")
    if Run(path).finished:
        return Run(path)
    from lesionfast.training.experiment import predict_again

    df = load_dataset(run.config, split=run.file("split.csv"))
    df = df.assign(**dict.fromkeys(run.model["metadata"], None))
    return predict_again(run, df, run.config, folder, path.name)
