"""Two towers: a backbone that is trained and one that stays frozen, whose probabilities blend."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.data.split import format_split
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError
from lesionfast.files import sha256
from lesionfast.models.archs import archs
from lesionfast.models.backbones import create_backbone, native_size
from lesionfast.run import Run
from lesionfast.stats.pooling import best_weights
from lesionfast.training.ensembles.combining import (
    collect_votes,
    describe,
    describe_pool,
    move_votes,
    pool_predictions,
    write_results,
)
from lesionfast.training.ensembles.inner import Composite, Part, Trainer, changed_data, train_parts
from lesionfast.training.heads import SOLVED

logger = logging.getLogger("lesionfast")

NAME = "tower-{}"
JOINED = "+"
FROZEN_HEAD = "logistic"  # of the second tower, unless --head names another
PATCHES = (14, 16, 32)  # pixels: sides of what vision transformers see images as


def has_towers(config: TrainConfig) -> bool:
    """Return whether the architecture is two, joined by a plus."""
    return JOINED in config.arch and config.arch not in archs


def split_towers(config: TrainConfig) -> list[TrainConfig]:
    """Return the options of each tower, or those of the one architecture.

    The first tower has all options. The second has those that a solved head takes: its backbone
    stays frozen. Raises `LesionfastError` unless there are two, with weights for each.
    """
    if not has_towers(config):
        return [config]
    names = config.arch.split(JOINED)
    if len(names) != 2 or not all(names):
        raise LesionfastError(
            f"--arch {config.arch} joins {len(names)} architectures; type two, such as "
            "tf_efficientnet_lite0+vit_small_patch14_dinov2."
        )
    if config.budget:
        raise LesionfastError(
            f"--budget can't be kept with the two towers of --arch {config.arch}. Type --epochs."
        )
    plain, weights = TrainConfig(), split_weights(config)
    idle = {f.name: getattr(plain, f.name) for f in fields(plain) if f.name not in SOLVED}
    frozen = FROZEN_HEAD if config.head == plain.head else config.head
    trained = {"head": plain.head, "pool": "auto" if config.pool == "cls" else config.pool}
    return [
        replace(config, arch=names[0], weights=weights[0], **trained),
        replace(config, arch=names[1], weights=weights[1], head=frozen, **idle),
    ]


def split_weights(config: TrainConfig) -> list[str]:
    """Return the --weights of each tower; raises `LesionfastError` unless they are two."""
    if config.weights in ("auto", "none"):
        return [config.weights] * 2
    names = split_names(config.weights)
    if len(names) != 2:
        raise LesionfastError(
            f"--weights {config.weights} names {len(names)}, and the two towers of --arch "
            f"{config.arch} take two. Type both with a comma between, such as auto,FILE."
        )
    return names


def fit_size(config: TrainConfig) -> TrainConfig:
    """Return the options of a frozen tower, with the size nearest to --size that it can take.

    Raises `LesionfastError` for an unknown architecture, or one that takes no size near it.
    """
    problem: LesionfastError | None = None
    for size in list_sizes(config):
        try:
            create_backbone(config.arch, size=size, weights="none")
        except LesionfastError as error:
            problem = problem or error
            continue
        if size != config.size:
            logger.info("%s sees images of %d pixels: %s", config.arch, size, problem)
        return replace(config, size=size)
    assert problem is not None
    raise problem


def list_sizes(config: TrainConfig) -> Iterator[int]:
    """Yield the size of --size, the multiples of patches around it, and the backbone's own."""
    yield config.size
    around = {config.size // patch * patch + more for patch in PATCHES for more in (0, patch)}
    yield from sorted(around - {0, config.size}, key=lambda size: abs(size - config.size))
    yield native_size(config.arch)


def list_towers(df: pd.DataFrame, config: TrainConfig) -> list[Part]:
    """Return the runs of two towers."""
    first, second = split_towers(config)
    towers = [first, fit_size(second)]
    return [
        Part(NAME.format(number), f"tower {number + 1} of 2 ({one.arch})", df, one)
        for number, one in enumerate(towers)
    ]


def prepare_towers(df: pd.DataFrame, config: TrainConfig) -> tuple[str, list[Part]]:
    """Return the split.csv of a run of two towers, and the runs in it."""
    return format_split(df), list_towers(df, config)


def continue_towers(run: Run, df: pd.DataFrame, config: TrainConfig) -> list[Part]:
    """Return the runs of two towers that have begun.

    Raises `LesionfastError` if the data is not that of the beginning.
    """
    if format_split(df).encode() != run.file("split.csv").read_bytes():
        raise changed_data(run)
    return list_towers(df, config)


def finish_towers(run: Run, parts: Sequence[Part], trainer: Trainer) -> None:
    """Train the towers that are missing, and write the predictions and metrics of the run.

    The probabilities are the arithmetic mean, with the weights of least log loss on validation.
    """
    members, status = train_parts(run, parts, trainer)
    prior, weights = np.array(members[0].model["prior"]), np.ones(1)
    if len(members) > 1:
        valid = move_votes(collect_votes(members, "valid"), members, prior)
        weights = best_weights(valid.probabilities, valid.truth, prior, "arithmetic")
    chosen = {"arch": run.config.arch, "of": "towers", "weights_from": "validation"}
    model = describe(members, prior, weights, **chosen) | {"rule": run.config.rule}
    logger.info("%s", describe_pool(model, [member.config.arch for member in members]))
    digest = sha256(run.path / "split.csv")
    write_results(run, members, model, pool_predictions, digest, status)


TOWERS = Composite(
    prepare_towers, continue_towers, finish_towers, lambda config: config.arch, every_part=True
)
