"""Comparison: runs side by side, and what an input contributes, over the same resampled lesions."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.config import SplitConfig, TrainConfig
from lesionfast.console import Cell, Table, cell, count, duration, estimate
from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation, records
from lesionfast.files import write_sheet
from lesionfast.run import Run, list_runs, newest_run
from lesionfast.stats.bootstrap import (
    RESAMPLES,
    Found,
    interval,
    resampled,
    share_interval,
)
from lesionfast.stats.measures import SHARES, count_lesions_behind, weighted_metrics
from lesionfast.stats.metrics import ALL, mean_defined, metric_name, ratio, weighted_recall
from lesionfast.stats.rules import DecisionRule

logger = logging.getLogger("lesionfast")

LABEL_WIDTH = 34  # characters
ALIKE = (  # options that do not make a difference between models
    *("arch", "fusion", "split", "cache", "device", "precision", "workers", "compile", "log"),
    *(field.name for field in fields(SplitConfig) if field.name not in ("seed", "corrections")),
)
SEEDS = ("seed", "split_seed", "split", "cache", "device", "workers", "log")  # not of a repetition
ORIGINAL, CORRECTED = "original labels", "corrected labels"
REPEATED = ("balanced_accuracy", "macro_auc", "macro_f1", "mel_to_nv")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Runs on the same images, the best first.

    `table` has one row a run: name, path, arch, options (in which the runs differ), fusion,
    parameters, train_seconds, status, rule, below_argmax (whether the rule finds fewer of the
    validation melanomas than argmax does), macro_auc, macro_f1, and, each with the ends of its
    95 % interval under `_low` and `_high`, balanced_accuracy, difference (of it to the best run),
    mel_to_nv (the share of the melanomas taken for nevi) and sensitivity_<class>.
    """

    split: str
    split_sha256: str
    resamples: int
    seed: int
    interpretations: list[Interpretation]
    table: pd.DataFrame

    @classmethod
    def from_runs(
        cls, runs: Sequence[Run], split: str = "test", *, resamples: int = RESAMPLES, seed: int = 0
    ) -> "Comparison":
        """Compare finished runs, each under its own rule, on one split's predictions.

        Runs of different splits can be compared on test images if their test parts are one, such as
        a run of folds with one of its folds. Runs of different corrections are measured by the
        original labels, and `corrections` says what these change. Raises `LesionfastError` if a run
        did not finish, or the runs differ in split, images, diagnoses or classes.
        """
        check_split(runs, split)
        read = read_alike(runs, split)
        drawn = resample_runs(read, align_images(read), resamples, seed)
        accuracy = [one.metrics["rules"][one.rule]["balanced_accuracy"] for one in read]
        ranking = sorted(range(len(read)), key=lambda i: (-accuracy[i], read[i].run.path.name))
        options = describe_options(runs)
        table = pd.DataFrame(
            build_row(read[i], options[i]) | estimate_metrics(read[i], drawn, i, ranking[0])
            for i in ranking
        )
        table["difference"] = table["balanced_accuracy"] - table["balanced_accuracy"].iloc[0]
        table["parameters"] = table["parameters"].astype("Int64")  # old runs have no count
        digest = runs[0].metrics["split_sha256"]
        return cls(split, digest, resamples, seed, [read[i] for i in ranking], table)

    def __repr__(self) -> str:
        return f"Comparison({self.split!r}, {list(self.table['name'])})"

    @property
    def runs(self) -> list[Run]:
        """The runs, the best first."""
        return [read.run for read in self.interpretations]

    def __str__(self) -> str:
        return "\n".join(table.to_markdown() for table in comparison_tables(self))

    def _repr_html_(self) -> str:
        return "".join(table.to_html() for table in comparison_tables(self))

    @property
    def by_original_labels(self) -> bool:
        """Whether the runs have different corrections, and are measured by the original labels."""
        return len(set(map(find_corrections, self.runs))) > 1

    @cached_property
    def corrections(self) -> pd.DataFrame:
        """What training with corrections changes, by the original and by the corrected labels.

        One run with corrections is compared with one without: of the same other options if there is
        one, else the best. The columns are those of `contribution_table` with run, plain (the one
        without) and labels. Empty unless there are runs of both kinds.
        """
        plain = [run for run in self.runs if find_corrections(run) is None]
        tables = []
        for run in self.runs if plain else []:
            if find_corrections(run) is not None:
                alike = [other for other in plain if differ_in_corrections(run, other)]
                tables.append(measure_gain(run, (alike or plain)[0], self.split))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """The mean and the standard deviation of runs that differ in their seed and nothing else.

        One row per group of two or more, if no seed occurs twice in it: name (of its best run),
        runs (how many), and for balanced_accuracy, macro_auc, macro_f1, mel_to_nv and
        sensitivity_<class> the mean, and under `_sd` the standard deviation of a sample.
        """
        runs = {str(run.path): run for run in self.runs if is_repeatable(run)}
        kept = self.table[self.table["path"].isin(runs)]
        keys = [repeated_options(runs[path]) for path in kept["path"]]
        shown = [*REPEATED, *(f"sensitivity_{name}" for name in self.interpretations[0].classes)]
        rows = []
        for _, group in kept.groupby(keys, sort=False):
            drawn = {runs[path].config.seed for path in group["path"]}
            if len(drawn) == len(group) > 1:
                numbers = group[[name for name in shown if name in group]].astype(float)
                spread = numbers.std(ddof=1).add_suffix("_sd")
                about = {"name": group["name"].iloc[0], "runs": len(group)}
                rows.append({**about, **numbers.mean(), **spread})
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-safe values; what is missing or undefined is None."""
        names = ("split", "split_sha256", "resamples", "seed")
        about = {name: getattr(self, name) for name in names}
        tables = {"runs": records(self.table), "seeds": records(self.seeds)}
        tables |= {"corrections": records(self.corrections)} if len(self.corrections) else {}
        return {**about, "images": len(self.interpretations[0].rows), **tables}

    def write_csv(self, path: Path) -> Path:
        """Write the table as CSV, atomically, and return its path."""
        return write_sheet(path, self.table)


def comparison_table(comparison: Comparison) -> Table:
    """Return one row a run, the best first, with 95 % intervals."""
    melanoma = comparison.interpretations[0].classes.melanoma
    labels = f" by their {ORIGINAL}" if comparison.by_original_labels else ""
    table = Table(
        f"{comparison.split}: {len(comparison.interpretations[0].rows)} images{labels}, the best "
        "run first",
        ["run", "balanced accuracy", "macro AUC, F1", "difference to the best"],
        note=f"in brackets: 95 % intervals of {comparison.resamples:,} resamples of the lesions, "
        "the same for all runs; time: of the training; "
        f"split sha256 {comparison.split_sha256[:12]}",
    )
    of_melanoma = {
        f"sensitivity_{melanoma}": "melanoma sensitivity",
        "mel_to_nv": "melanomas taken for nevi",
    }
    of_melanoma = {key: name for key, name in of_melanoma.items() if key in comparison.table}
    table.columns[3:3] = of_melanoma.values()
    table.columns.append("parameters, time")
    for place, row in enumerate(comparison.table.to_dict("records")):
        ranking = cell(row["macro_auc"]), cell(row["macro_f1"])
        size = count(row["parameters"]), duration(row["train_seconds"])
        table.add(
            describe_run(row),
            estimate(row, "balanced_accuracy"),
            stack(*ranking),
            *(estimate(row, key) for key in of_melanoma),
            estimate(row, "difference", "+.3f") if place else "best",
            stack(*size),
        )
        table.add_line()
    return table


def gains_table(comparison: Comparison) -> Table:
    """Return what training with corrections changes, by the original and the corrected labels."""
    table = Table(
        f"{comparison.split}: what training with corrections changes",
        ["run", "metric", "labels", "without", "with", "difference"],
        note="difference: paired, over the same resamples of the lesions; without: the run "
        + ", ".join(dict.fromkeys(comparison.corrections["plain"])),
    )
    classes = comparison.interpretations[0].classes
    keys = ["run", "metric", "of"]
    for (run, metric, of), rows in comparison.corrections.groupby(keys, sort=False):
        for labels, pair in rows.groupby("labels", sort=False):
            plain, changed = (pair[pair["system"] == kind].iloc[0] for kind in ("whole", CORRECTED))
            cells = estimate(plain), estimate(changed), estimate(changed, "difference", "+.3f")
            table.add(run, metric_name(metric, of, classes), labels.split()[0], *cells)
    return table


def seeds_table(comparison: Comparison) -> Table:
    """Return the means of runs that differ in seed alone, and how far they spread."""
    melanoma = comparison.interpretations[0].classes.melanoma
    names = {
        "balanced_accuracy": "balanced accuracy",
        "macro_auc": "macro AUC",
        f"sensitivity_{melanoma}": "melanoma sensitivity",
        "mel_to_nv": "melanomas taken for nevi",
    }
    names = {key: name for key, name in names.items() if key in comparison.seeds}
    title = f"{comparison.split}: mean ± standard deviation of runs that differ in seed alone"
    table = Table(title, ["the best of them", "runs", *names.values()])
    for row in comparison.seeds.to_dict("records"):
        spread = [f"{cell(row[key])} ± {cell(row[f'{key}_sd'])}" for key in names]
        table.add(row["name"], row["runs"], *spread)
    return table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the table of the runs, of what corrections change, and of the means over seeds."""
    tables = [comparison_table(comparison)]
    tables += [gains_table(comparison)] if len(comparison.corrections) else []
    return [*tables, seeds_table(comparison)] if len(comparison.seeds) else tables


def stack(first: Cell, second: Cell) -> Cell:
    """Return two cells as one of two lines, sorted by the first."""
    return Cell(f"{first.text}\n{second.text}", first.number)


def describe_run(row: dict[str, Any]) -> str:
    """Return name, architecture, fusion, rule and options of a run, some lines."""
    built = f"{cell(row['arch'])}, {cell(row['fusion'])}, rule {row['rule']}"
    built += "\nfewer melanomas than by argmax" if row["below_argmax"] else ""
    status = "" if row["status"] in ("finished", None) else f" ({row['status']})"
    lines = (f"{row['name']}{status}", built, fill(row["options"], LABEL_WIDTH))
    return "\n".join(filter(None, lines))


def is_repeatable(run: Run) -> bool:
    """Return whether options make a run: not one that averages runs that were named."""
    return not run.model.get("members") or run.model.get("of") in ("folds", "towers")


def repeated_options(run: Run) -> str:
    """Return the options of a run without its seed, and what a user registered, as text."""
    options = {k: v for k, v in asdict(run.config).items() if k not in SEEDS}
    registered = run.model.get("registered_digest", run.model.get("registered"))
    return json.dumps([options, registered])


def compare(
    runs: Run | str | Path | Sequence[Run | str | Path] | None = None,
    split: str = "test",
    out: str | Path = "runs",
) -> Comparison:
    """Compare runs of one split, each metric with its interval; the best run comes first.

    `runs` are runs or their paths, by default all under `out` with the split of the newest. The
    intervals hold 95 % of 2,000 bootstrap resamples of the lesions, the same for all runs, so the
    differences are paired. Raises `LesionfastError` for runs that can't be compared.

    >>> lf.compare([run, other]).table[["name", "balanced_accuracy"]].shape
    (2, 2)
    """
    if runs is None:
        return Comparison.from_runs(comparable_runs(out), split)
    named = [runs] if isinstance(runs, Run | str | Path) else runs
    return Comparison.from_runs([Run.open(run) for run in named], split)


def comparable_runs(root: str | Path) -> list[Run]:
    """Return all finished runs under `root` with the split of the newest one, oldest first.

    How many are left out is logged. Raises `LesionfastError` if none has finished.
    """
    digest, runs = newest_run(root).metrics["split_sha256"], list_runs(root)
    finished = [run for run in runs if run.finished]
    comparable = [run for run in finished if run.metrics["split_sha256"] == digest]
    reasons = {
        "they have another split than the newest run": len(finished) - len(comparable),
        "they did not finish": len(runs) - len(finished),
    }
    for reason, n in reasons.items():
        if n:
            logger.warning("%d of %d runs in %s are left out: %s", n, len(runs), root, reason)
    return comparable


def check_split(runs: Sequence[Run], split: str | None = None) -> None:
    """Raise `LesionfastError` unless the runs have one split, and each is named once.

    For the `split` 'test' it is enough that they have one test part.
    """
    if not runs:
        raise LesionfastError("there is no run to compare. Name some: lesionfast compare RUN RUN")
    paths = [run.path.resolve() for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise LesionfastError(f"{run.path} is named twice. Name each run once.")
    first = runs[0].metrics["split_sha256"]
    others = [run for run in runs if run.metrics["split_sha256"] != first]
    if others and not (split == "test" and have_one_test(runs)):
        named = ", ".join(f"{run.path} ({run.metrics['split_sha256'][:12]})" for run in others)
        raise LesionfastError(
            f"the runs have different splits: {runs[0].path} ({first[:12]}) and {named}. "
            "Name runs of one split; to train on an existing split, type --split RUN/split.csv."
        )


def have_one_test(runs: Sequence[Run]) -> bool:
    """Return whether the splits of runs have the same test images, of the same lesions."""

    def rows(run: Run) -> set[tuple[str, ...]]:
        tested = run.split[run.split["split"] == "test"]
        names = [name for name in ("image_id", "group") if name in tested]
        return set(tested[names].itertuples(index=False, name=None))

    first, *others = (rows(run) for run in runs)
    return bool(first) and all(one == first for one in others)


def find_corrections(run: Run) -> str | None:
    """Return the SHA-256 of the corrections that a run was trained with, None without any."""
    return run.metrics.get("corrections", {}).get("sha256")


def differ_in_corrections(one: Run, other: Run) -> bool:
    """Return whether two runs have the same options but for their corrections."""
    configs = [replace(run.config, corrections=None) for run in (one, other)]
    return configs[0] == configs[1]


def read_alike(runs: Sequence[Run], split: str) -> list[Interpretation]:
    """Return the predictions of runs by labels that they share: the original ones, if need be."""
    if len(set(map(find_corrections, runs))) == 1:
        return [Interpretation.from_run(run, split) for run in runs]
    return [read_originally(run, split) for run in runs]


def read_originally(run: Run, split: str) -> Interpretation:
    """Return the predictions of a run by the original labels."""
    return Interpretation.before_corrections(run, split) or Interpretation.from_run(run, split)


def measure_gain(run: Run, plain: Run, split: str) -> pd.DataFrame:
    """Return what a run with corrections gains over one without, as `Comparison.corrections`.

    By the corrected labels, what they leave out is left out for both.
    """
    now, base = Interpretation.from_run(run, split), read_originally(plain, split)
    labels = now.table.set_index("image_id")[["target", "group"]]
    rows = base.table[base.table["image_id"].isin(labels.index)].reset_index(drop=True)
    own = labels.loc[rows["image_id"]]
    rows = rows.assign(target=own["target"].to_numpy(), group=own["group"].to_numpy())
    pairs = {
        ORIGINAL: (base, read_originally(run, split)),
        CORRECTED: (Interpretation.from_table(plain, rows, split), now),
    }
    tables = [
        contribution_table(first, {CORRECTED: second}).assign(labels=name)
        for name, (first, second) in pairs.items()
    ]
    return pd.concat(tables, ignore_index=True).assign(run=run.path.name, plain=plain.path.name)


def align_images(read: Sequence[Interpretation]) -> list[np.ndarray]:
    """Return the order (n,) that sorts each run's rows by image id.

    Raises `LesionfastError` unless all have the same images, diagnoses and classes.
    """
    ids = [one.rows["image_id"].to_numpy(str) for one in read]
    orders = [np.argsort(names, kind="stable") for names in ids]
    first, expected, truth = read[0], ids[0][orders[0]], read[0].truth[orders[0]]
    for one, names, order in zip(read, ids, orders, strict=True):
        pair = f"{first.run.path} and {one.run.path}"
        if one.classes != first.classes:
            raise LesionfastError(
                f"{pair} have different classes: {', '.join(first.classes)}; and "
                f"{', '.join(one.classes)}. Name runs of the same classes."
            )
        if not np.array_equal(names[order], expected):
            only = sorted(set(expected) ^ set(names)) or ["one that occurs twice"]
            raise LesionfastError(
                f"{pair} predict different {first.split} images: {len(expected)} and "
                f"{len(names)}; {len(only)} are in one run only, such as {only[0]}. Name runs on "
                "the same images (--skip-bad and --missing drop leave some out)."
            )
        if not np.array_equal(one.truth[order], truth):
            raise LesionfastError(
                f"{pair} have different diagnoses of the same images. Name runs on the same data."
            )
    return orders


def resample_runs(
    read: Sequence[Interpretation], orders: Sequence[np.ndarray], resamples: int, seed: int
) -> Found:
    """Return each metric of each run, by name and number, in the same resamples of the lesions."""
    classes, pair = read[0].classes, read[0].classes.costliest
    truth, lesions = read[0].truth[orders[0]], read[0].lesions[orders[0]]
    decisions = [one.decision[order] for one, order in zip(read, orders, strict=True)]
    recalls = [weighted_recall(truth, decision, len(classes)) for decision in decisions]

    def find(weights: np.ndarray) -> Found:
        found: Found = {}
        for number, (recall, decision) in enumerate(zip(recalls, decisions, strict=True)):
            shares = recall(weights)
            found["balanced_accuracy", number] = mean_defined(shares)
            found |= {
                (f"sensitivity_{name}", number): share
                for name, share in zip(classes, shares.T, strict=True)
            }
            if pair:
                melanoma, nevus = map(classes.index, pair)
                taken = (truth == melanoma) & (decision == nevus)
                found["mel_to_nv", number] = ratio(weights @ taken, weights @ (truth == melanoma))
        return found

    return resampled(find, truth, lesions, resamples=resamples, seed=seed)[1]


def describe_options(runs: Sequence[Run]) -> list[str]:
    """Return the options of each run in which the runs differ, as "loss focal, size 64".

    Architecture, fusion, data, split and machine are left out. An ensemble has its number of
    members.
    """
    configs, defaults = [asdict(run.config) for run in runs], asdict(TrainConfig())
    names = [name for name in defaults if name not in ALIKE]
    differing = [name for name in names if len({str(config[name]) for config in configs}) > 1]
    descriptions = []
    for run, config in zip(runs, configs, strict=True):
        changed = [name for name in differing if config[name] != defaults[name]]
        options = ", ".join(f"{name.replace('_', ' ')} {config[name]}" for name in changed)
        if members := len(run.model.get("members", ())):
            options = describe_members(run, members)
        descriptions.append(options)
    return descriptions


def describe_members(run: Run, members: int) -> str:
    """Return what a run averages: "mean of 5 folds", "towers 0.71 and 0.29"."""
    if run.model.get("of") == "folds":
        return f"mean of {members} folds"
    if run.model.get("of") == "towers":
        return f"towers {' and '.join(f'{weight:.2f}' for weight in run.model['weights'])}"
    return f"ensemble of {members}"


def build_row(read: Interpretation, options: str) -> dict[str, Any]:
    """Return what a row of the table has without an interval."""
    run, metrics = read.run, read.metrics
    return {
        "name": run.path.name,
        "path": str(run.path),
        "arch": run.model.get("arch"),
        "options": options,
        "fusion": run.model.get("fusion"),
        "parameters": run.model.get("parameters"),
        "train_seconds": run.metrics.get("train_seconds"),
        "status": run.metrics.get("status"),
        "rule": read.rule,
        "below_argmax": finds_fewer(run),
        "macro_auc": metrics["macro_auc"],
        "macro_f1": metrics["rules"][read.rule]["macro_f1"],
    }


def finds_fewer(run: Run) -> bool:
    """Return whether a run's rule finds fewer of the validation melanomas than argmax does."""
    rules = run.metrics.get("valid", {}).get("rules", {})
    names = run.decision_rule.name, "argmax"
    found, by_argmax = (rules.get(name, {}).get("mel_sensitivity") for name in names)
    return found is not None and by_argmax is not None and found < by_argmax


def estimate_metrics(read: Interpretation, drawn: Found, number: int, best: int) -> dict[str, Any]:
    """Return each metric of a run with an interval, as NAME, NAME_low and NAME_high.

    The difference is that to run number `best`.
    """
    metrics, balanced = read.metrics["rules"][read.rule], drawn["balanced_accuracy", number]
    estimates = {
        "balanced_accuracy": (metrics["balanced_accuracy"], interval(balanced)),
        "difference": (None, interval(balanced - drawn["balanced_accuracy", best])),
    }
    shares = {f"sensitivity_{name}": (name, metrics["sensitivity"][name]) for name in read.classes}
    if pair := read.classes.costliest:
        shares["mel_to_nv"] = pair[0], read.confusion(normalize=True).loc[pair]
    lesions = pd.Series(read.lesions).groupby(read.rows["truth"]).nunique()
    for name, (of, value) in shares.items():
        value = float("nan") if value is None else float(value)
        estimates[name] = value, share_interval(value, drawn[name, number], int(lesions.get(of, 0)))
    return {
        f"{name}{end}": share
        for name, (value, ends) in estimates.items()
        for end, share in zip(("", "_low", "_high"), (value, *ends), strict=True)
    }


WITHHELD = "metadata withheld"
ENDS = ("difference", "difference_low", "difference_high")


def without_metadata(
    run: Run, split: str, rule: str | DecisionRule | None = None
) -> Interpretation | None:
    """Return the predictions of a split with all metadata withheld; None if the run has none.

    `rule` is the run's own unless given.
    """
    table = run.predictions_without_metadata
    if table is None:
        return None
    rows = table[table["split"] == split].reset_index(drop=True)
    return None if rows.empty else Interpretation.from_table(run, rows, split, rule)


def contribution_table(
    whole: Interpretation,
    others: Mapping[str, Interpretation],
    wanted: Sequence[tuple[str, str | None]] | None = None,
) -> pd.DataFrame:
    """Return the metrics of a run and of others by name, and their paired differences from it.

    `wanted` are metrics and what each is of, by default `contribution_metrics`. Columns: system,
    metric, of, value, low, high, and difference, difference_low and difference_high: the other less
    the whole, over the same resamples of lesions, so that what both get wrong alike does not widen
    the interval. Raises `LesionfastError` for runs of other images, diagnoses or classes.
    """
    read = {"whole": whole, **others}
    orders = align_images(list(read.values()))
    truth, lesions = whole.truth[orders[0]], whole.lesions[orders[0]]
    wanted = contribution_metrics(whole.classes) if wanted is None else wanted
    metrics = {
        name: weighted_metrics(truth, one.probabilities[order], one.decision[order], one.classes)
        for (name, one), order in zip(read.items(), orders, strict=True)
    }

    def find(weights: np.ndarray) -> Found:
        return {
            (name, *key): value
            for name, measure in metrics.items()
            for key, value in measure(weights).items()
            if key in wanted
        }

    values, drawn = resampled(find, truth, lesions)
    rows = []
    for (name, *key), value in values.items():
        own, first, one = drawn[name, *key], drawn["whole", *key], read[name]
        ends = interval(own)
        if key[0] in SHARES:
            about = one.truth, one.decision, one.lesions, one.classes
            ends = share_interval(value, own, count_lesions_behind(*key, *about))
        difference = value - values["whole", *key]
        rows.append((name, *key, value, *ends, difference, *interval(own - first)))
    columns = ["system", "metric", "of", "value", "low", "high", *ENDS]
    return pd.DataFrame(rows, columns=columns)


def contribution_metrics(classes: Classes) -> tuple[tuple[str, str | None], ...]:
    """Return the metrics of the table, and what each is of."""
    overall = (("balanced_accuracy", ALL), ("macro_auc", ALL))
    return *overall, ("sensitivity", classes.melanoma), ("auc", classes.cancer)


def describe_loss(table: pd.DataFrame, system: str, loses: str) -> str:
    """Return what a system loses of balanced accuracy, "no measurable change: +0.3 points […]".

    And of melanoma sensitivity, where its interval excludes 0.
    """
    low, high, change = describe_change(table, system, "balanced_accuracy", "balanced accuracy")
    verdict = f"{loses}: no measurable change: {change}"
    if low > 0:
        verdict = f"{loses} is a gain: {change}"
    elif high < 0:
        verdict = f"{loses} costs: {change}"
    if "sensitivity" not in set(table["metric"]):
        return verdict
    low, high, change = describe_change(table, system, "sensitivity", "melanoma sensitivity")
    return f"{verdict}; and {change}" if low > 0 or high < 0 else verdict


def describe_change(
    table: pd.DataFrame, system: str, metric: str, name: str
) -> tuple[float, float, str]:
    """Return both ends of a difference in per cent, and "+0.3 points [-0.9, 1.5] of the name"."""
    row = table[(table["system"] == system) & (table["metric"] == metric)]
    change, low, high = (100 * row[end].item() for end in ENDS)
    return low, high, f"{change:+.1f} points [{low:.1f}, {high:.1f}] of {name}"


def describe_missed_melanomas(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return melanoma sensitivity with and without metadata, and a warning if it falls.

    '' if the table has none.
    """
    rows = table[table["metric"] == "sensitivity"].set_index("system")
    if rows.empty:
        return ""
    names, (change, low, high) = " and ".join(columns), 100 * rows.loc[WITHHELD, list(ENDS)]
    with_it, without = (
        f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for _, row in rows.loc[["whole", WITHHELD]].iterrows()
    )
    words = (
        f"Melanoma sensitivity is {with_it} with {names}, and {without} without: {change:+.1f} "
        f"points [{low:.1f}, {high:.1f}], paired."
    )
    if high >= 0:
        return words
    return (
        f"{words} Warning: without {names} the model misses melanomas that it finds with them. "
        f"Give {names} when you predict, or train with a higher --metadata-dropout."
    )
