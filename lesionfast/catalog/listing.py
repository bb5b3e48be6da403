"""Lists of runs: filtered and sorted by metrics and options, as a table. No pandas, no torch."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lesionfast.catalog.conditions import Condition, find_name, is_number, show_value
from lesionfast.config import EARLIER, TrainConfig
from lesionfast.console import Cell, Table, cell
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.files import read_json
from lesionfast.run import SUMMARY, Run, begun_at, is_run, list_runs

PARTS = ("valid", "test")  # the later is shown if a run has both
SHOWN = {  # the metrics that the table always has
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "mel_sensitivity": "melanoma sensitivity",
}
ALWAYS = {*SHOWN, "run", "status", "note"}
USUAL = [  # metrics that may be asked for where no run has them
    *(
        name.rstrip("?")
        for name, kind in (SUMMARY | SUMMARY["rules"][str]).items()
        if not isinstance(kind, dict)
    ),
    "log_loss",
]
DEFAULTS = {setting.name: setting.default for setting in fields(TrainConfig)} | EARLIER
LESS = re.compile(r"(^|[._])(loss|brier|ece|error)($|[._])")  # metrics of which less is better
NEITHER = "on test images (else validation)"
DEEPEST = 6  # folders to look into for runs: a folder of runs may be a home directory
LONGEST = 80  # letters of a note in the table


@dataclass(frozen=True, eq=False)
class Row:
    """A run in a list: its values by name, or what is damaged.

    `metrics` are those of its parts, 'macro_auc' and 'valid.macro_auc'; `options` are those of its
    config.json and what else it has by name.
    """

    run: Run
    name: str
    part: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    damage: str | None = None

    @classmethod
    def read(cls, run: Run, name: str, whole: bool = True) -> "Row":
        """Return the row of a run; without `whole` it has no more than the table always shows."""
        shown: dict[str, Any] = {"run": name, "note": None}
        try:
            shown["note"] = run.note or None
            told = run.metrics if run.finished and run.classes else {}
            part, metrics = read_metrics(run, told, whole)
            own = dict(flatten({k: v for k, v in told.items() if k not in PARTS}))
            shown |= {"status": "not ended"} | own
            return cls(run, name, part, metrics, (read_options(run) if whole else {}) | shown)
        except LesionfastError as error:  # of damage, or of rights: the others are listed
            return cls(run, name, options=shown | {"status": "damaged"}, damage=str(error))

    def value(self, name: str) -> Any:
        """Return a number, a text, a truth value, or None for what is missing."""
        return self.metrics.get(name, self.options.get(name))

    def meets(self, conditions: Sequence[Condition]) -> bool:
        """Return whether the run meets all conditions."""
        return all(one.holds(self.value(one.name)) for one in conditions)

    def to_dict(self, columns: Sequence[str] = ()) -> dict[str, Any]:
        """Return its path, metrics.json, note and the named columns as JSON-safe values."""
        row: dict[str, Any] = {"run": str(self.run.path)}
        if self.damage is None:
            row |= self.run.metrics if self.part or self.run.finished else {}
        else:
            row["damaged"] = self.damage
        row |= {"note": self.options["note"]} if self.options["note"] else {}
        return row | ({"columns": {n: self.value(n) for n in columns}} if columns else {})


def read_metrics(run: Run, told: dict[str, Any], whole: bool) -> tuple[str | None, dict[str, Any]]:
    """Return the part whose metrics are shown, and the metrics by name, under the run's rule."""
    parts = [part for part in PARTS if part in told]
    if not parts:
        return None, {}
    rule, plain = run.rule_name, {}
    for part in parts:
        named = told[part] | told[part]["rules"].get(rule, {})
        plain[part] = dict(flatten(named)) if whole else {name: named.get(name) for name in SHOWN}
    metrics = {f"{part}.{name}": v for part in parts for name, v in plain[part].items()}
    return parts[-1], metrics | plain[parts[-1]]


def flatten(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested objects with their names, such as "auc.mel"; lists have none."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{before}{name}.")
        elif not isinstance(value, list):
            yield before + name, value


def read_options(run: Run) -> dict[str, Any]:
    """Return the options of a run as its config.json has them, 'none' for those that are not set.

    Options from before or after this version are among them.
    """
    told = read_json(run.file("config.json"), {str: object}, run.remedy("config.json"))
    return {name: "none" if v is None else v for name, v in (DEFAULTS | told).items()}


class Listing(list[Run]):
    """Runs in an order; in a notebook it shows their table.

    `rows` has the values of each, `columns` the names that the table shows besides the usual ones.
    """

    def __init__(self, rows: list[Row], title: str, columns: Sequence[str], note: str) -> None:
        super().__init__(row.run for row in rows)
        self.rows, self.title, self.columns, self.note = rows, title, columns, note

    @property
    def damages(self) -> list[str]:
        """What is damaged, one text a run."""
        return [row.damage for row in self.rows if row.damage is not None]

    def to_table(self) -> Table:
        """Return one row a run: its metrics under its rule, what was named, and its note."""
        with_notes = any(row.options["note"] for row in self.rows)
        extra = [name for name in self.columns if name not in ALWAYS]
        heads = ["run", *SHOWN.values(), "min", "status", *extra, *(["note"] * with_notes)]
        notes = [f"{say_part(self.rows)}, by the run's rule; min: minutes of training", self.note]
        table = Table(self.title, heads, note="\n".join(filter(None, notes)))
        for row in self.rows:
            seconds = row.value("train_seconds")
            minutes = None if seconds is None else cell(seconds / 60, ".1f")
            own = [row.value("run"), *map(row.value, SHOWN), minutes, row.value("status")]
            own += [show_cell(row, name) for name in extra]
            table.add(*own, *([note_line(row.options["note"])] * with_notes))
        return table

    def _repr_html_(self) -> str:
        return self.to_table().to_html()


def say_part(rows: Sequence[Row]) -> str:
    """Return which images the metrics of rows are of, in words."""
    parts = [row.part for row in rows if row.part]
    if len(set(parts)) == 1:
        return f"on {'validation' if parts[0] == 'valid' else 'test'} images"
    n = parts.count("valid")
    return f"on test images ({pluralize(n, 'run')} without any: on validation)" if n else NEITHER


def show_cell(row: Row, name: str) -> Cell | str | None:
    """Return a metric with three decimals, an option as it is typed."""
    value = row.value(name)
    if value is None or name in row.metrics:
        return cell(value)
    return Cell(show_value(value), float(value) if is_number(value) else None)


def note_line(note: str | None) -> str | None:
    """Return a note on one line, cut where it is long."""
    if note is None:
        return None
    line = " ".join("".join(c if c.isprintable() else " " for c in note).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def runs(
    root: str | Path = "runs",
    where: str | Sequence[str] = (),
    sort: str | None = None,
    nested: bool = False,
) -> Listing:
    """Return the runs under a folder, oldest first; a damaged run is among them.

    `where` are conditions that must all hold, such as "balanced_accuracy>0.7", "valid.log_loss<1",
    "arch=densenet121" or "note~baseline": on metrics, of the test part where a run has one, else of
    validation, and on options of config.json; see `Condition`. `sort` is a metric, the best first,
    or an option; "-NAME" turns the order round. No condition leaves out a damaged run, but it comes
    last then. With `nested`, runs in folders below are listed too, such as those of studies, but
    not the runs that a run consists of. Raises `LesionfastError` for a condition that makes no
    sense, and for a name that no run has.

    >>> [run.path.name for run in lf.runs("runs", where="run=one", sort="balanced_accuracy")]
    ['one']
    """
    found = find_runs(root) if nested else list_runs(root)
    return select_runs(found, root, where, sort)


def find_runs(root: str | Path) -> list[Run]:
    """Return the runs under a folder and the folders in it, oldest first; none inside a run."""
    return sorted(map(Run, walk_runs(Path(root))), key=begun_at)


def walk_runs(root: Path, inside: bool = False, depth: int = DEEPEST) -> Iterator[Path]:
    """Yield the runs under a folder, by name; with `inside` also those that a run contains.

    A link to a run is one, but no link is followed to look for more.
    """
    try:
        folders = sorted(entry.path for entry in os.scandir(root) if is_open(entry))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for path in map(Path, folders):
        found = is_run(path)
        if found:
            yield path
        if depth > 1 and not path.is_symlink() and (inside or not found):
            yield from walk_runs(path, inside, depth - 1)


def is_open(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder that is not hidden."""
    return not entry.name.startswith(".") and entry.is_dir()


def folders_of_runs(root: str | Path) -> list[str]:
    """Return the names of the folders under `root` that are no runs but hold some."""
    inside = [path for path in sorted(Path(root).glob("*")) if path.is_dir() and not is_run(path)]
    return [
        path.name
        for path in inside
        if not path.is_symlink() and not path.name.startswith(".") and any(walk_runs(path))
    ]


def select_runs(
    found: Sequence[Run],
    root: str | Path = "runs",
    where: str | Sequence[str] = (),
    sort: str | None = None,
) -> Listing:
    """Return those runs that meet all conditions, sorted; `runs` says how both are written."""
    typed = [Condition.parse(text) for text in ([where] if isinstance(where, str) else where)]
    whole = bool(typed or sort)
    rows = [Row.read(run, name_of(run, root), whole) for run in found]
    metrics, options = known_names(rows) if whole else ([], [])
    conditions = [replace(one, name=find_name(one.name, metrics, options)) for one in typed]
    for one in conditions:
        one.check(row.value(one.name) for row in rows)
    kept = [row for row in rows if row.damage or row.meets(conditions)]
    title, columns = "Runs, oldest first", [one.name for one in conditions]
    if sort:
        name = find_name(sort.removeprefix("-"), metrics, options)
        kept, order = sort_rows(kept, name, name in metrics, turned=sort.startswith("-"))
        title, columns = f"Runs by {name}, {order}", [*columns, name]
    elif conditions:
        kept.sort(key=lambda row: row.damage is not None)
    n = sum(row.damage is None for row in kept)
    note = f"{n:,} of {pluralize(len(rows), 'run')} with {' and '.join(map(str, conditions))}"
    return Listing(kept, title, list(dict.fromkeys(columns)), note if conditions else "")


def name_of(run: Run, root: str | Path) -> str:
    """Return the path of a run as seen from a folder, or its last part if it lies elsewhere."""
    return str(run.path.relative_to(root)) if run.path.is_relative_to(root) else run.path.name


def known_names(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the names of the metrics and of the options that rows, or runs of now, have."""
    usual = [*USUAL, *(f"{part}.{name}" for part in PARTS for name in USUAL)]
    metrics = dict.fromkeys([*usual, *(name for row in rows for name in row.metrics)])
    options = {*DEFAULTS, "train_seconds", *(name for row in rows for name in row.options)}
    return list(metrics), sorted(options)


def sort_rows(
    rows: Sequence[Row], name: str, is_metric: bool, turned: bool
) -> tuple[list[Row], str]:
    """Return rows by a value, and their order in words.

    Rows without the value come after the others, damaged runs last.
    """
    values = {row: None if row.damage else row.value(name) for row in rows}
    numbers = [row for row in rows if is_number(values[row])]
    texts = [row for row in rows if values[row] is not None and not is_number(values[row])]
    missing = [row for row in rows if values[row] is None]
    numbers.sort(key=lambda row: values[row], reverse=turned != (is_metric and not is_less(name)))
    texts.sort(key=lambda row: show_value(values[row]).lower(), reverse=turned)
    missing.sort(key=lambda row: row.damage is not None)
    if is_metric:
        words = "best first", "worst first"
    else:
        words = ("smallest first", "largest first") if numbers else ("A to Z", "Z to A")
    return [*numbers, *texts, *missing], words[turned]


def is_less(metric: str) -> bool:
    """Return whether less of a metric is better, as of losses and calibration errors."""
    return LESS.search(metric) is not None


def verified_table(
    conditions: Mapping[Run, tuple[str, dict[str, str]]], title: str, root: str | Path
) -> Table:
    """Return one row a run: whether its files are what was written, and what is wrong."""
    table = Table(title, ["run", "state", "what is wrong"])
    for run, (state, problems) in conditions.items():
        wrong = "\n".join(f"{name}: {why}" for name, why in problems.items())
        table.add(name_of(run, root), state, wrong)
    return table
