"""Runs inside a run: each is an ordinary run, trained, resumed or left as it is."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.console import part_of_work
from lesionfast.errors import DamageError, LesionfastError, TrainingInterrupted, shell_quote
from lesionfast.evaluation.distilled import NAME as STUDENT
from lesionfast.run import FITTED, GIVEN, LEARNED, OF_THE_WEIGHTS, Run, is_run

logger = logging.getLogger("lesionfast")

Train = Callable[[pd.DataFrame, TrainConfig, Any, str], Run]
Resume = Callable[..., Run]


@dataclass(frozen=True, eq=False)
class Part:
    """One of the runs inside a run: its folder, what it is called, its table and its options."""

    name: str
    title: str
    df: pd.DataFrame
    config: TrainConfig


@dataclass(frozen=True, eq=False)
class Trainer:
    """How one run is trained, and how one that is there is resumed.

    `moved` are the options that name the data, if it has moved since.
    """

    train: Train
    resume: Resume
    moved: dict[str, str]


@dataclass(frozen=True, eq=False)
class Composite:
    """A kind of run that is made of runs inside it.

    `prepare(df, config)` returns its split.csv and its parts, `go_on(run, df, config)` the parts of
    one that has begun, `finish(run, parts, trainer)` trains what is missing and writes the results,
    `name(config)` is what its folder is called. `every_part` says whether the options of each part
    have to be checked before the first is trained, or whether they are alike.
    """

    prepare: Callable[[pd.DataFrame, TrainConfig], tuple[str, list[Part]]]
    go_on: Callable[[Run, pd.DataFrame, TrainConfig], list[Part]]
    finish: Callable[[Run, Sequence[Part], Trainer], None]
    name: Callable[[TrainConfig], str]
    every_part: bool = False


def changed_data(run: Run) -> LesionfastError:
    """Return the error for data that is not that of the beginning of a run."""
    return LesionfastError(
        f"the data has changed since {run.path} began: it no longer gives its split.csv. Restore "
        "the old data, or start again: "
        f"lesionfast train --config {shell_quote(run.path / 'config.json')}"
    )


def train_parts(run: Run, parts: Sequence[Part], trainer: Trainer) -> tuple[list[Run], str]:
    """Train what is missing of the runs inside a run; return those with predictions, and a status.

    The status is that of metrics.json: "interrupted" after Ctrl-C, when runs may be missing. Raises
    `TrainingInterrupted` if there is none.
    """
    done: list[Run] = []
    for part in parts:
        try:
            with part_of_work(part.title):
                logger.info("%s: %s", part.title, run.path / part.name)
                done.append(complete(run, part, trainer))
        except TrainingInterrupted:
            if not done:
                raise TrainingInterrupted(
                    "the training stopped before its first epoch ended, so there are no weights to "
                    f"keep. Continue with: lesionfast train --resume {shell_quote(run.path)}"
                ) from None
            return done, "interrupted"
        if done[-1].metrics["status"] == "interrupted":
            return done, "interrupted"
    return done, "finished"


def complete(run: Run, part: Part, trainer: Trainer) -> Run:
    """Return the run of a part, trained to its end, unless Ctrl-C stops it."""
    inner = Run(run.path / part.name)
    if is_whole(inner):
        return inner
    if inner.holds("model.json") or any(inner.path.glob("*/model.json")):
        return trainer.resume(inner, **trainer.moved)
    shutil.rmtree(inner.path, ignore_errors=True)  # it stopped before its training began
    return trainer.train(part.df, part.config, run.path, part.name)


def is_whole(run: Run) -> bool:
    """Return whether a run, and all inside it, is finished and undamaged."""
    damaged = [name for name in run.damaged() if name.rpartition("/")[2] not in FITTED]
    if not run.finished or damaged or run.metrics["status"] != "finished":
        return False
    student = run.metrics.get(STUDENT)
    return not run.config.distill or (student is not None and is_whole(Run(run.path / STUDENT)))


def check_given(run: Run) -> None:
    """Raise `DamageError` for a damaged file of a run, or of one inside it, that no resuming mends.

    Such are all but what training and prediction write; model.json is written again for a run that
    is made of several.
    """
    inner = [Run(path) for path in sorted(run.path.glob("*")) if is_run(path)]
    mended = {*LEARNED, *FITTED, *(["model.json"] if inner else [])}
    for name in sorted({*run.manifest.names, *GIVEN} - mended):
        run.manifest.require(name, run.remedy(name))
    for one in inner:
        try:
            check_given(one)
        except DamageError as error:
            raise DamageError(
                f"{error} Or delete {one.path}, then train it again: lesionfast train --resume "
                f"{shell_quote(run.path)}"
            ) from None


def forget_results(run: Run) -> Run:
    """Remove what depends on runs inside a run that are about to change; return the run.

    model.json stays where it is whole, for it has the melanoma sensitivity that was asked for.
    """
    run.remove(*OF_THE_WEIGHTS)
    if run.manifest.problem("model.json"):
        run.remove("model.json")
    return Run(run.path)
