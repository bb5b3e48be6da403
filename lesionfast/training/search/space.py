"""The space of a search: which options are tried, and which values of each. Torch-free."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionfast.config import TrainConfig, check_choice
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import parse_json
from lesionfast.training.study import FIELDS, SHARED, read_config, read_toml

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

SPACES = Path(__file__).parents[1] / "studies"
DEFAULT, HEADS = SPACES / "search.toml", SPACES / "search_heads.toml"
TABLES = ("defaults", "space", "final")
FIXED = {  # what no search tries
    *(*SHARED, "seed", "all", "distill", "teacher", "budget", "device", "precision", "workers"),
    "log",
}
OBJECTIVES = {  # of a metric: the column of the history that prunes, and whether more is better
    "macro_auc": ("macro_auc", True),
    "balanced_accuracy": ("balanced_accuracy", True),
    "log_loss": ("valid_loss", False),
}
SAMPLERS = ("tpe", "random")
PRUNERS = ("asha", "hyperband", "none")
KINDS = ("range", "log")
LENGTHS = ("epochs", "head_epochs", "start_size")  # options that change what an epoch is
LOSSES = ("loss", "balance", "tau", "beta", "class_weight", "cost", "hardest", "label_smoothing")
OF_THE_MACHINE = {"device": "auto", "precision": "auto", "workers": 0, "cache": True, "log": None}


@dataclass(frozen=True)
class Dimension:
    """The values of one option: one of a list, or a number from low to high ("range", "log")."""

    name: str
    kind: str
    values: tuple[Any, ...]

    def has(self, value: Any) -> bool:
        """Return whether a trial may have tried a value."""
        if self.kind == "choice":
            return any(type(value) is type(one) and value == one for one in self.values)
        low, high = self.values
        if type(value) not in (int, float):
            return False  # a sampler's rounding may leave the range by a hair
        return math.isclose(value, min(max(value, low), high))

    def suggest(self, trial: "BaseTrial") -> Any:
        """Return the value that a trial tries."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, list(self.values))
        low, high = self.values
        if FIELDS[self.name].type is int:
            return trial.suggest_int(self.name, low, high, log=self.kind == "log")
        return trial.suggest_float(self.name, low, high, log=self.kind == "log")


@dataclass(frozen=True)
class Settings:
    """What a search is: the options that stay, those that are tried, and how they are judged.

    `final` are the options that only the training of the best trial has, such as more epochs.
    """

    base: TrainConfig
    space: tuple[Dimension, ...]
    final: Mapping[str, Any]
    by: str = "macro_auc"
    sampler: str = "tpe"
    pruner: str = "asha"

    def __post_init__(self) -> None:
        check_choice("by", self.by, tuple(OBJECTIVES))
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("prune", self.pruner, PRUNERS)

    @property
    def unpruned(self) -> str:
        """Why no trial can be stopped early, '' if it can: epochs have to compare across trials."""
        searched = {one.name: one.values for one in self.space}
        lengths = [name for name in LENGTHS if name in searched]
        if self.pruner == "none":
            return "--prune none was typed"
        if "head" in searched.get("unfreeze", [self.base.unfreeze]):
            return "trials of the head alone take seconds"
        if lengths:
            return f"trials of different {' and '.join(lengths)} can't be compared by epoch"
        if self.by == "log_loss" and (losses := [name for name in LOSSES if name in searched]):
            return f"the losses of different {' and '.join(losses)} can't be compared"
        return ""

    @property
    def more_is_better(self) -> bool:
        """Whether the best trial has the highest value."""
        return OBJECTIVES[self.by][1]

    def configure(self, values: Mapping[str, Any], final: bool = False) -> TrainConfig:
        """Return the options of a trial with such values, `final` with those of the last training.

        Raises `LesionfastError` for values that no training takes.
        """
        return replace(self.base, **values, **(self.final if final else {}))

    def to_json(self) -> str:
        """Return all of it as indented JSON, the same for the same search."""
        space = {one.name: [one.kind, *one.values] for one in self.space}
        judged = {"by": self.by, "sampler": self.sampler, "pruner": self.pruner}
        about = {"base": asdict(self.base), "space": space, "final": dict(self.final), **judged}
        return json.dumps(about, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote."""
        about = parse_json(text)
        base = TrainConfig.from_json(about.pop("base"), of_run=True)
        space = [Dimension(name, kind, tuple(v)) for name, (kind, *v) in about.pop("space").items()]
        return cls(base, tuple(space), **about)


def read_settings(
    space: str | Path | Mapping[str, Any] | None,
    given: Mapping[str, Any],
    *,
    heads: bool = False,
    **judged: str,
) -> Settings:
    """Return the search that a TOML file describes; options that were typed override it.

    A mapping is what a file has below [space]. Without either it is the default space, with `heads`
    that of heads on a frozen backbone. An option that was typed is not searched. Raises
    `LesionfastError` for a file that is not TOML, for unknown tables and options, and for values
    that an option can't have.
    """
    if isinstance(space, Mapping):
        path, tables = Path("the space"), {"space": dict(space)}
    else:
        path = Path(space) if space else HEADS if heads else DEFAULT
        tables = read_tables(path)
    if not tables["space"]:
        raise LesionfastError(f"{path} is empty. Name an option and its values: lr=[1e-3, 1e-2].")
    defaults = read_tables(HEADS)["defaults"] if heads else {}
    shared = {**defaults, **tables.get("defaults", {}), **given}
    base = read_config(f"[defaults] of {path}", shared, {})
    if base.folds:
        base = replace(base, all=True)
    dimensions = [
        read_dimension(path, name, value, shared)
        for name, value in tables["space"].items()
        if name not in given
    ]
    if not dimensions:
        raise LesionfastError(
            f"all options of [space] in {path} were typed, so there is nothing to search. Leave "
            "one of them out."
        )
    final = {k: v for k, v in tables.get("final", {}).items() if k not in given}
    read_config(f"[final] of {path}", final, shared)
    return Settings(base, tuple(dimensions), final, **judged)


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """Return the TOML tables of a search; raises `LesionfastError` for anything else."""
    tables = read_toml(path, "Type --space FILE.toml, or leave it out.")
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            raise LesionfastError(
                f"{path} has an unknown table or field '{name}'.{did_you_mean(name, TABLES)} "
                "Fields belong below [defaults], [space] or [final]."
            )
    if not tables.get("space"):
        raise LesionfastError(
            f"{path} has nothing to search. Write [space] and below it, for example, "
            "lr = {log = [1e-4, 1e-2]}."
        )
    return tables


def read_dimension(path: Path, name: str, value: Any, shared: Mapping[str, Any]) -> Dimension:
    """Return one line below [space]; each of its values has to be one that the option takes."""
    where = f"'{name}' below [space] of {path}"
    if name in FIXED:
        raise LesionfastError(
            f"{where} can't be searched: all trials share data, split, seed and machine. Move it "
            "to [defaults]."
        )
    if isinstance(value, list | tuple) and value:
        dimension = Dimension(name, "choice", tuple(value))
    elif isinstance(value, dict) and len(value) == 1 and next(iter(value)) in KINDS:
        ((kind, ends),) = value.items()
        dimension = Dimension(name, kind, read_ends(where, name, kind, ends))
    else:
        raise LesionfastError(
            f"{where} is {value!r}. Write a list of values, {{range = [low, high]}} or "
            "{log = [low, high]}."
        )
    others = {key: each for key, each in shared.items() if key != name}
    for one in dimension.values:
        read_config(where, {name: one}, others)
    return dimension


def read_ends(where: str, name: str, kind: str, ends: Any) -> tuple[float, float]:
    """Return the two ends of a range of numbers; raises `LesionfastError` for anything else."""
    of = FIELDS[name].type if name in FIELDS else None
    numbers = isinstance(ends, list) and all(type(one) in (int, float) for one in ends)
    if name in FIELDS and of not in (int, float, float | str):
        raise LesionfastError(f"{where} is not numeric. Write a list of its values.")
    if not numbers or len(ends) != 2 or not ends[0] < ends[1] or (kind == "log" and ends[0] <= 0):
        raise LesionfastError(
            f"{where} is {ends!r}. Write two numbers, the lower one first"
            f"{' and above 0' if kind == 'log' else ''}."
        )
    low, high = ends if of is int else map(float, ends)
    return low, high


def find_difference(old: Settings, new: Settings) -> str:
    """Return the first thing in which two searches differ, '' for the same one."""
    first, second = (replace(one.base, **OF_THE_MACHINE) for one in (old, new))
    for name in FIELDS:
        before, now = getattr(first, name), getattr(second, name)
        if before != now:
            return f"{name} was {before!r} and is {now!r} now"
    for name in ("space", "final", "by", "sampler", "pruner"):
        if getattr(old, name) != getattr(new, name):
            return f"its {name} was another"
    return ""
