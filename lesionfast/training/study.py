"""Study: configurations from a TOML file, trained over one split. Torch waits in the functions."""

import logging
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.config import DataConfig, SplitConfig, TrainConfig
from lesionfast.data.split import format_split, load_dataset, write_split
from lesionfast.errors import LesionfastError, TrainingInterrupted, did_you_mean
from lesionfast.evaluation.contribution import (
    WITHHELD,
    contribution_table,
    in_words,
    melanomas_missed,
)
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import sha256
from lesionfast.runs import Run

logger = logging.getLogger("lesionfast")

AUTHOR = Path(__file__).parent / "studies" / "author.toml"
AUTHOR_FROM_SCRATCH = AUTHOR.with_name("author_from_scratch.toml")
FIELDS = {each.name: each for each in fields(TrainConfig)}
SHARED = {each.name for each in fields(SplitConfig)} - {"metadata", "cache", "seed"}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


@dataclass(frozen=True)
class Entry:
    """One configuration of a study."""

    name: str
    config: TrainConfig

    @property
    def folder(self) -> str:
        """The name of its run directory: the name without what a path can't hold."""
        return folder_of(self.name)


@dataclass(frozen=True)
class Study:
    """Configurations over one split, which `base` describes: defaults and what was typed."""

    name: str
    base: TrainConfig
    entries: list[Entry]


@dataclass(frozen=True)
class Outcome:
    """What became of a study: the runs that ended, and why others did not, by name."""

    runs: list[Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def folder_of(name: str) -> str:
    """Return a name without what a path had better not hold: "a + b/c" is "a-b-c"."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")


def read_study(file: str | Path, given: Mapping[str, Any] | None = None) -> Study:
    """Return the study that a TOML file describes; `given` overrides its `[defaults]`.

    Raises `LesionfastError` for a file that is none, tables or fields that are not known, values
    of a wrong type, names that come twice, and runs with data or a split of their own.
    """
    file = Path(file)
    tables = read_tables(file)
    defaults = tables.get("defaults", {})
    check_fields(f"[defaults] of {file}", defaults)
    shared = {**as_typed(defaults), **(given or {})}
    entries = [
        read_entry(file, number, each, shared) for number, each in enumerate(tables["run"], 1)
    ]
    check_names(file, entries)
    return Study(file.stem, TrainConfig(**shared), entries)


def read_tables(file: Path) -> dict[str, Any]:
    """Return the TOML tables `defaults` and `run`; raises `LesionfastError` for anything else."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise LesionfastError(
            f"there is no file {file}. Type lesionfast study FILE.toml."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LesionfastError(f"{file} is no TOML: {error}. Mend that line.") from None
    known = ("defaults", "run")
    for name in tables:
        if name not in known:
            hint = did_you_mean(name, known)
            raise LesionfastError(
                f"'{name}' in {file} is not known.{hint} Fields go below [defaults]."
            )
    rows, defaults = tables.get("run"), tables.get("defaults", {})
    if not isinstance(defaults, dict) or not isinstance(rows, list) or not rows:
        raise LesionfastError(f'{file} has no runs. Write [[run]] and below it name = "first".')
    return tables


def read_entry(file: Path, number: int, table: Any, shared: Mapping[str, Any]) -> Entry:
    """Return one `[[run]]` table as an entry."""
    values = dict(table) if isinstance(table, dict) else {}
    name = values.pop("name", "")
    if not isinstance(name, str) or not folder_of(name):
        raise LesionfastError(
            f'[[run]] number {number} of {file} has no name. Write name = "first".'
        )
    where = f"[[run]] '{name}' of {file}"
    check_fields(where, values)
    own = sorted(SHARED & set(values))
    if own:
        raise LesionfastError(
            f"{where} has '{own[0]}', but all runs of a study share data and split. "
            "Move it to [defaults]."
        )
    config = TrainConfig(**{**shared, **as_typed(values)})
    if config.budget:
        raise LesionfastError(
            f"{where} has a budget, but what fits into it differs from one moment to the next. "
            "Write epochs and size."
        )
    return Entry(name, config)


def check_fields(where: str, table: Mapping[str, Any]) -> None:
    """Raise `LesionfastError` for a field that is not known, or a value of a wrong type."""
    for name, value in table.items():
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS)
            raise LesionfastError(
                f"{where} has a field '{name}', which is not known.{hint} "
                "Fields are the options of lesionfast train --help, with _ for -."
            )
        if not fits(FIELDS[name], value):
            wanted = " or ".join(WORDS[each] for each in kinds(FIELDS[name]))
            raise LesionfastError(f"{where} has {name} = {value!r}; write {wanted}.")


def kinds(each: Field) -> list[type]:
    """Return the types that a field takes, without None."""
    return [kind for kind in WORDS if kind in getattr(each.type, "__args__", (each.type,))]


def fits(each: Field, value: Any) -> bool:
    """Return whether a TOML value has a type that the field takes; a whole number is a number."""
    taken = kinds(each)
    return type(value) in taken or (type(value) is int and float in taken)


def as_typed(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with whole numbers as floats where the field is one."""
    return {
        name: float(value) if type(value) is int and float in kinds(FIELDS[name]) else value
        for name, value in table.items()
    }


def check_names(file: Path, entries: list[Entry]) -> None:
    """Raise `LesionfastError` for two runs of one name, or whose directories would be the same."""
    seen: dict[str, str] = {}
    for entry in entries:
        folder = entry.folder.lower()
        if folder in seen:
            raise LesionfastError(
                f"{file} has two runs '{seen[folder]}' and '{entry.name}', which share the "
                f"directory {entry.folder}. Rename one."
            )
        if folder == "comparison":
            raise LesionfastError(f"{file}: the directory {folder} is taken. Rename the run.")
        seen[folder] = entry.name


def state_of(entry: Entry, out: Path) -> str:
    """Return 'done', 'interrupted' or 'to do'.

    Raises `LesionfastError` if there is a run of that name with another configuration or split.
    """
    path = out / entry.folder
    if not (path / "config.json").is_file():
        return "to do"
    run = Run(path)
    check_unchanged(entry, run, out / "split.csv")
    return "done" if run.finished and run.metrics["status"] == "finished" else "interrupted"


def check_unchanged(entry: Entry, run: Run, split: Path) -> None:
    """Raise `LesionfastError` unless a run has the entry's configuration and the study's split."""
    stored, wanted = asdict(run.config), asdict(entry.config)
    changes = [
        f"{name} is {stored[name]!r} there, but {wanted[name]!r} in the study"
        for name in wanted
        if name != "split" and stored[name] != wanted[name]
    ]
    own = run.path / "split.csv"
    if not changes and own.is_file() and split.is_file() and sha256(own) != sha256(split):
        changes.append(f"its split.csv is another than {split}")
    if changes:
        raise LesionfastError(
            f"{run.path} was made from another configuration: {'; '.join(changes)}. Remove that "
            f"directory, or rename the run '{entry.name}' in the file."
        )


def run_study(study: Study, out: str | Path) -> Outcome:
    """Train what is not done yet, each in its own directory under `out`; resume what was stopped.

    A run that fails is noted and the next one begun. Raises `LesionfastError` before any training
    if a run has another configuration than the file says or the split has changed, and
    `TrainingInterrupted` after Ctrl-C.
    """
    out, outcome = Path(out), Outcome()
    states = {entry.name: state_of(entry, out) for entry in study.entries}
    if set(states.values()) != {"done"}:
        share_split(study, out)
    load = loaded_once(out / "split.csv")
    for number, entry in enumerate(study.entries, 1):
        logger.info("run %d of %d: %s, %s", number, len(states), entry.name, states[entry.name])
        try:
            outcome.runs.append(complete(entry, out, load))
        except TrainingInterrupted as error:
            raise TrainingInterrupted(
                f"the study was interrupted in the run '{entry.name}'. "
                "Type the same command again to go on."
            ) from error
        except LesionfastError as error:
            logger.warning("the run '%s' failed: %s", entry.name, error)
            outcome.failures[entry.name] = str(error)
    return outcome


def share_split(study: Study, out: Path) -> Path:
    """Write the split of the study once; raises `LesionfastError` if it is another one now."""
    path, df = out / "split.csv", load_dataset(study.base)
    if not path.is_file():
        write_split(df, path)
        return path
    if format_split(df).encode() != path.read_bytes():
        raise LesionfastError(
            f"data or split options have changed: they no longer give {path}. "
            "Type the options of before, or another --out for a new study."
        )
    return path


def loaded_once(split: Path) -> Callable[[TrainConfig], pd.DataFrame]:
    """Return a function that reads the data of a run, and what others have read only once."""
    kept: dict[tuple, pd.DataFrame] = {}

    def load(config: TrainConfig) -> pd.DataFrame:
        key = tuple(getattr(config, each.name) for each in fields(DataConfig))
        if key not in kept:
            kept[key] = load_dataset(config, split=split)
        return kept[key]

    return load


def complete(entry: Entry, out: Path, load: Callable[[TrainConfig], pd.DataFrame]) -> Run:
    """Return the finished run of an entry: trained, gone on with, or as it is."""
    path, state = out / entry.folder, state_of(entry, out)
    if state == "done":
        return Run.open(path)
    from lesionfast.training.experiment import only_trainer, resume, train

    if state == "interrupted" and not (path / "model.json").is_file():
        with only_trainer(Run(path)):
            logger.info("%s was stopped before its first step, so it starts again", path)
            shutil.rmtree(path)
        state = "to do"
    if state == "interrupted":
        run = resume(Run.open(path))
    else:
        config = replace(entry.config, split=str(out / "split.csv"))
        df = load(config)
        check_rows(len(df), out / "split.csv")
        run = train(df, config, out, name=entry.folder)
    if run.metrics["status"] == "interrupted":
        raise TrainingInterrupted(f"{run.path} was interrupted.")
    return run


def check_rows(n: int, split: Path) -> None:
    """Raise `LesionfastError` unless a run's data has all n images of the shared split."""
    shared = len(split.read_text(encoding="utf-8").splitlines()) - 1
    if n != shared:
        raise LesionfastError(
            f'it has {n} of the {shared} images of {split}: missing = "drop" leaves out other '
            'rows with other metadata columns. Write missing = "keep" below [defaults].'
        )


def plan_study(study: Study, out: str | Path) -> list[dict[str, Any]]:
    """Return name, arch, parameters, size, epochs, seconds (estimated) and state of each run.

    Writes nothing. Raises `LesionfastError` for what would keep a run from starting.
    """
    from lesionfast.training.speed.budget import estimate

    states = {entry.name: state_of(entry, Path(out)) for entry in study.entries}
    df = load_dataset(study.base) if set(states.values()) != {"done"} else None
    rows = []
    for entry in study.entries:
        config, state = entry.config, states[entry.name]
        if state == "done":
            run = Run(Path(out) / entry.folder)
            cost = (run.model.get("parameters"), run.metrics["train_seconds"])
        else:
            try:
                found = estimate(config, df)
            except LesionfastError as error:
                raise LesionfastError(f"the run '{entry.name}' can't start: {error}") from error
            cost = (found.parameters, found.seconds)
        told = {"name": entry.name, "arch": config.arch, "size": config.size}
        told |= {"epochs": config.epochs, "parameters": cost[0], "seconds": cost[1]}
        rows.append(told | {"state": state})
    return rows


IMAGE, METADATA = "image alone", "metadata alone"


@dataclass(frozen=True, eq=False)
class Contribution:
    """A fused run beside the same run with less to go by, over the same images."""

    run: Run
    others: dict[str, Run]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Metrics and paired differences from the fused run; see `contribution_table`."""
        split = "test" if "test" in self.run.metrics else "valid"
        read = {name: Interpretation.of(each, split) for name, each in self.others.items()}
        return contribution_table(Interpretation.of(self.run, split), read)

    def words(self) -> list[str]:
        """Return a sentence for each of the others, and what becomes of the melanomas."""
        columns = " and ".join(self.run.model["metadata"])
        loses = {
            IMAGE: f"training without {columns}",
            METADATA: "training without images",
            WITHHELD: f"withholding {columns} at prediction",
        }
        words = [in_words(self.table, name, loses[name]) for name in self.others]
        missed = melanomas_missed(self.table, self.run.model["metadata"])
        return [*words, missed] if missed else words


def ablate(run: Run, out: str | Path | None = None) -> Contribution:
    """Train a fused run anew on images alone and on metadata alone, and predict without metadata.

    Split, seed and all other options are those of the run. The runs lie under `out`, by default
    the run's own directory `ablation`; what is there already is kept, what was stopped goes on.
    Raises `LesionfastError` for a run that has not ended, is an ensemble, or fuses nothing.
    """
    check_fused(run)
    folder = Path(out) if out else run.path / "ablation"
    base = replace(run.config, split=str(run.path / "split.csv"), budget=None)
    outcome = run_study(Study(run.path.name, base, entries_of(base)), folder)
    if outcome.failures:
        told = "; ".join(f"'{name}': {why}" for name, why in outcome.failures.items())
        raise LesionfastError(f"the ablation did not end. {told}")
    image, metadata = outcome.runs
    withheld = predict_without_metadata(run, folder)
    return Contribution(run, {IMAGE: image, METADATA: metadata, WITHHELD: withheld})


def entries_of(base: TrainConfig) -> list[Entry]:
    """Return the two systems that are trained."""
    plain = TrainConfig().metadata_dropout  # there is none to withhold
    alone = replace(base, fusion="none", metadata="none", metadata_dropout=plain)
    return [
        Entry(IMAGE, alone),
        Entry(METADATA, replace(base, fusion="metadata", unfreeze="none")),
    ]


def check_fused(run: Run) -> None:
    """Raise `LesionfastError` unless a run has ended and fuses images with metadata."""
    if not run.finished:
        raise LesionfastError(
            f"{run.path} did not end. Go on with: lesionfast train --resume {run.path}"
        )
    if "members" in run.model:
        raise LesionfastError(f"{run.path} is an ensemble. Name one of its members.")
    if run.model["fusion"] in ("none", "metadata") or not run.model["metadata"]:
        raise LesionfastError(
            f"{run.path} has fusion '{run.model['fusion']}', so there is nothing to take away. "
            "Name a run that fuses images with metadata: lesionfast train --fusion concat"
        )


def predict_without_metadata(run: Run, folder: Path) -> Run:
    """Return a run of the same weights that predicted every age, sex and site as unknown.

    It has no weights of its own. One that is there already is kept.
    """
    path = folder / WITHHELD.replace(" ", "-")
    if Run(path).finished:
        return Run(path)
    from lesionfast.training.experiment import predict_again

    df = load_dataset(run.config, split=run.file("split.csv"))
    df = df.assign(**dict.fromkeys(run.model["metadata"], None))
    return predict_again(run, df, run.config, folder, path.name)
