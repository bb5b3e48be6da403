"""Specialists: members of a committee that give one class more weight than their base does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lesionfast.config import TrainConfig
from lesionfast.emphasis import parse_weights, write_weights
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.quoting import join_names, split_names
from lesionfast.runs import Run

TIMES = 3.0  # as heavy as in the base


def add_specialists(base: Sequence[Run], classes: str, root: str | Path = "runs") -> list[Run]:
    """Train one run for each named class, that class thrice as heavy; return the base and them.

    `classes` are names with commas between, `base` holds a single run, whose split, seed and
    configuration they keep. Raises `LesionfastError` for several runs, a base that has not ended
    or is a committee, a class that it does not have, and a training that is interrupted.
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
        why = "is a committee" if "members" in base.model else "did not end"
        raise LesionfastError(f"{base.path} {why}. Name a trained run as the base of specialists.")
    names = list(dict.fromkeys(split_names(classes)))
    for name in names or [""]:
        if name not in base.classes:
            raise LesionfastError(
                f"--specialists names '{name}', which is no class of {base.path}."
                f"{did_you_mean(name, base.classes)} Type some of: {join_names(base.classes, ',')}."
            )
    return names


def specialist_config(base: Run, name: str) -> TrainConfig:
    """Return the base's configuration on its own split, with one class three times as heavy."""
    weights = parse_weights(base.config.class_weight)
    weights[name] = weights.get(name, 1.0) * TIMES
    split = str(base.path / "split.csv")
    return replace(base.config, split=split, class_weight=write_weights(weights))


def train_specialist(base: Run, name: str, root: str | Path) -> Run:
    """Train and return the specialist of one class."""
    from lesionfast.data.dataset import load_dataset
    from lesionfast.training.experiment import train

    config = specialist_config(base, name)
    run = train(load_dataset(config, split=base.file("split.csv")), config, root)
    if run.metrics["status"] == "interrupted":
        raise LesionfastError(
            f"the training of the specialist for {name} was interrupted. Go on with: lesionfast "
            f"train --resume {run.path}; then combine the runs: lesionfast committee {base.path} "
            f"{run.path}"
        )
    return run
