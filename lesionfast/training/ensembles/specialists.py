"""Specialists for an ensemble: runs like a base in which one class weighs more."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import join_names, read_weights, split_names, write_weights
from lesionfast.errors import LesionfastError, did_you_mean, shell_quote
from lesionfast.run import Run
from lesionfast.training.experiment import train

TIMES = 3.0  # how much heavier a specialist's class is than in the base


def add_specialists(base: Sequence[Run], classes: str, root: str | Path = "runs") -> list[Run]:
    """Train one run for each named class, weighted three times; return the base and them.

    `classes` are names with commas between, `base` holds a single run, whose split, seed and
    configuration they keep. Raises `LesionfastError` for several runs, a base that has not ended
    or is an ensemble, a class that it does not have, and a training that is interrupted.
    """
    if len(base) != 1:
        raise LesionfastError(
            f"--specialists takes one RUN, the base; found {len(base)}. Type one, or leave "
            "--specialists out to combine them."
        )
    names = check_classes(base[0], classes)
    return [base[0], *(train_specialist(base[0], name, root) for name in names)]


def check_classes(base: Run, classes: str) -> list[str]:
    """Return the named classes; raises `LesionfastError` for one that the base does not have."""
    if "members" in base.model or not base.finished:
        why = "is an ensemble" if "members" in base.model else "is not finished"
        raise LesionfastError(f"{base.path} {why}. Name a trained run as the base of specialists.")
    names = list(dict.fromkeys(split_names(classes)))
    for name in names or [""]:
        if name not in base.classes:
            raise LesionfastError(
                f"--specialists names '{name}', which is not a class of {base.path}."
                f"{did_you_mean(name, base.classes)} Type some of: {join_names(base.classes, ',')}."
            )
    return names


def train_specialist(base: Run, name: str, root: str | Path) -> Run:
    """Train and return the specialist of one class, on the base's own split."""
    weights = read_weights(base.config.class_weight)
    weights[name] = weights.get(name, 1.0) * TIMES
    split = str(base.path / "split.csv")
    config = replace(base.config, split=split, class_weight=write_weights(weights))
    config = replace(config, pool=base.pool, melanoma_sensitivity=base.melanoma_sensitivity)
    run = train(load_dataset(config, split=base.file("split.csv")), config, root)
    if run.metrics["status"] == "interrupted":
        raise LesionfastError(
            f"the training of the specialist for {name} was interrupted. Continue with: lesionfast "
            f"train --resume {shell_quote(run.path)}; then combine the runs: lesionfast ensemble "
            f"{shell_quote(base.path, run.path)}"
        )
    return run
