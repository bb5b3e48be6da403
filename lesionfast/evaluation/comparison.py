"""Comparison: runs over one split, side by side, with intervals from the same resampled lesions."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.config import SplitConfig, TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation, records
from lesionfast.files import write_atomically
from lesionfast.runs import Run, list_runs, newest_run
from lesionfast.stats.bootstrap import RESAMPLES, Resamples, interval, resample, share_interval

logger = logging.getLogger("lesionfast")

ALIKE = (  # options that are no difference between models
    *("arch", "fusion", "split", "cache", "device", "precision", "workers", "compile"),
    *(each.name for each in fields(SplitConfig)),
)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Runs on the same images, the best first.

    `table` has one row a run: name, path, arch, options (in which the runs differ), fusion,
    parameters, train_seconds, status, rule, macro_auc, macro_f1, and, each with the ends of its
    95 % interval under `_low` and `_high`, balanced_accuracy, difference (of it to the best run),
    mel_to_nv (the share of the melanomas taken for nevi) and sensitivity_<class>. What a run does
    not tell is missing.
    """

    split: str
    split_sha256: str
    resamples: int
    seed: int
    interpretations: list[Interpretation]
    table: pd.DataFrame

    @classmethod
    def of(
        cls, runs: Sequence[Run], split: str = "test", *, resamples: int = RESAMPLES, seed: int = 0
    ) -> "Comparison":
        """Compare finished runs, each under its own deciding rule, on one split's predictions.

        Raises `LesionfastError` if a run has not ended, or the runs differ in split, images,
        diagnoses or classes.
        """
        check_split(runs)
        read = [Interpretation.of(run, split) for run in runs]
        orders = check_images(read)
        drawn = resample_all(read, orders, resamples, seed)
        accuracy = [each.metrics["rules"][each.rule]["balanced_accuracy"] for each in read]
        ranking = sorted(range(len(read)), key=lambda i: (-accuracy[i], read[i].run.path.name))
        told = distinctions(runs)
        rows = [describe(read[i], drawn, i, ranking[0], told[i]) for i in ranking]
        table = pd.DataFrame(rows)
        table["difference"] = table["balanced_accuracy"] - table["balanced_accuracy"].iloc[0]
        table["parameters"] = table["parameters"].astype("Int64")  # old runs have no count
        digest = runs[0].metrics["split_sha256"]
        return cls(split, digest, resamples, seed, [read[i] for i in ranking], table)

    def __repr__(self) -> str:
        return f"Comparison({self.split!r}, {list(self.table['name'])})"

    @property
    def runs(self) -> list[Run]:
        """The runs, the best first."""
        return [each.run for each in self.interpretations]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-safe values; what is missing or undefined is None."""
        names = ("split", "split_sha256", "resamples", "seed")
        told = {name: getattr(self, name) for name in names}
        return {**told, "images": len(self.interpretations[0].rows), "runs": records(self.table)}

    def write_csv(self, path: Path) -> Path:
        """Write the table as CSV, atomically, and return its path."""
        return write_atomically(path, lambda aside: self.table.to_csv(aside, index=False))


def comparable_runs(root: str | Path) -> list[Run]:
    """Return all finished runs under `root` with the split of the newest one, oldest first.

    How many are left out is logged. Raises `LesionfastError` if none has ended.
    """
    digest, found = newest_run(root).metrics["split_sha256"], list_runs(root)
    ended = [run for run in found if run.finished]
    chosen = [run for run in ended if run.metrics["split_sha256"] == digest]
    reasons = {
        "with another split than the newest": len(ended) - len(chosen),
        "that did not end": len(found) - len(ended),
    }
    for reason, number in reasons.items():
        if number:
            logger.warning("left out: %d of %d runs in %s, %s", number, len(found), root, reason)
    return chosen


def check_split(runs: Sequence[Run]) -> None:
    """Raise `LesionfastError` unless the runs have one split, named once each."""
    if not runs:
        raise LesionfastError("there is no run to compare. Name some: lesionfast compare RUN RUN")
    paths = [run.path.resolve() for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise LesionfastError(f"{run.path} is named twice. Name each run once.")
    first = runs[0].metrics["split_sha256"]
    others = [run for run in runs if run.metrics["split_sha256"] != first]
    if others:
        named = ", ".join(f"{run.path} ({run.metrics['split_sha256'][:12]})" for run in others)
        raise LesionfastError(
            f"the runs have different splits: {runs[0].path} has sha256 {first[:12]}, but not "
            f"{named}. Name runs of one split; train on an earlier one with --split RUN/split.csv."
        )


def check_images(read: Sequence[Interpretation]) -> list[np.ndarray]:
    """Return the order (n,) that puts each run's rows by image id.

    Raises `LesionfastError` unless all have the same images, diagnoses and classes.
    """
    orders = [np.argsort(each.rows["image_id"].to_numpy(str), kind="stable") for each in read]
    first = read[0]
    ids, truth = first.rows["image_id"].to_numpy(str)[orders[0]], first.truth[orders[0]]
    for each, order in zip(read, orders, strict=True):
        pair = f"{first.run.path} and {each.run.path}"
        if each.classes != first.classes:
            raise LesionfastError(
                f"{pair} have different classes: {', '.join(first.classes)}; and "
                f"{', '.join(each.classes)}. Name runs of the same classes."
            )
        found = each.rows["image_id"].to_numpy(str)[order]
        if not np.array_equal(found, ids):
            only = sorted(set(ids) ^ set(found)) or ["one that comes twice"]
            raise LesionfastError(
                f"{pair} predict different {first.split} images: {len(ids)} and {len(found)}, "
                f"{len(only)} of them in one alone, such as {only[0]}. Name runs on the same "
                "images (--skip-bad and --missing drop leave some out)."
            )
        if not np.array_equal(each.truth[order], truth):
            raise LesionfastError(
                f"{pair} have different diagnoses of the same images. Name runs on the same data."
            )
    return orders


def resample_all(
    read: Sequence[Interpretation], orders: Sequence[np.ndarray], resamples: int, seed: int
) -> Resamples:
    """Resample the lesions once, for all runs alike."""
    first, classes = read[0], read[0].classes
    return resample(
        first.truth[orders[0]],
        [each.decision[order] for each, order in zip(read, orders, strict=True)],
        first.lesions[orders[0]],
        len(classes),
        taken=tuple(map(classes.index, classes.costliest)) if classes.costliest else None,
        resamples=resamples,
        seed=seed,
    )


def distinctions(runs: Sequence[Run]) -> list[str]:
    """Return of each run the options in which the runs differ, as "loss focal, size 64".

    Architecture and fusion are left out, and so are data, split and machine. Of an ensemble it is
    the number of its members.
    """
    found = [asdict(run.config) for run in runs]
    names = [each.name for each in fields(TrainConfig) if each.name not in ALIKE]
    differing = [name for name in names if len({str(each[name]) for each in found}) > 1]
    plain = TrainConfig()
    told = [
        ", ".join(
            f"{name.replace('_', ' ')} {each[name]}"
            for name in differing
            if each[name] != getattr(plain, name)
        )
        for each in found
    ]
    members = [len(run.model.get("members", ())) for run in runs]
    return [f"ensemble of {n}" if n else each for n, each in zip(members, told, strict=True)]


def describe(
    read: Interpretation, drawn: Resamples, index: int, best: int, options: str
) -> dict[str, Any]:
    """Return the row of run number `index`, its difference that to run number `best`."""
    run, metrics = read.run, read.metrics
    told = {
        "name": run.path.name,
        "path": str(run.path),
        "arch": run.model.get("arch"),
        "options": options,
        "fusion": run.model.get("fusion"),
        "parameters": run.model.get("parameters"),
        "train_seconds": run.metrics.get("train_seconds"),
        "status": run.metrics.get("status"),
        "rule": read.rule,
        "macro_auc": metrics["macro_auc"],
        "macro_f1": metrics["rules"][read.rule]["macro_f1"],
    }
    for name, (value, ends) in estimates(read, drawn, index, best).items():
        told |= {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return told


def estimates(
    read: Interpretation, drawn: Resamples, index: int, best: int
) -> dict[str, tuple[float | None, tuple[float, float]]]:
    """Return each metric that has an interval: its value, and the ends of the interval."""
    metrics, balanced = read.metrics["rules"][read.rule], drawn.balanced_accuracy
    found = {
        "balanced_accuracy": (metrics["balanced_accuracy"], interval(balanced[index])),
        "difference": (None, interval(balanced[index] - balanced[best])),
    }
    lesions = pd.Series(read.lesions).groupby(read.truth).nunique()
    shares = {
        f"sensitivity_{name}": (metrics["sensitivity"][name], drawn.sensitivity[index, :, number])
        for number, name in enumerate(read.classes)
    }
    behind = dict(zip(shares, range(len(shares)), strict=True))
    if pair := read.classes.costliest:
        shares["mel_to_nv"] = read.confusion(normalize=True).loc[pair], drawn.taken[index]
        behind["mel_to_nv"] = read.classes.index(pair[0])
    for name, (value, resampled) in shares.items():
        value = float("nan") if value is None else float(value)
        ends = share_interval(value, resampled, int(lesions.get(behind[name], 0)))
        found[name] = (value, ends)
    return found
