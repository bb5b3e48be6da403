"""--budget: the size and the epochs that fit into a time, by the speed measured here."""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.data.decoding import Task, decode_blocks
from lesionfast.data.images import is_cached
from lesionfast.errors import LesionfastError
from lesionfast.training.estimate import Estimate, estimate

logger = logging.getLogger("lesionfast")
SIZES = (64, 96, 128, 160, 192, 224)
ENOUGH, MOST = 4, 12  # epochs: a larger picture is worth it with ENOUGH, more than MOST overfit
SPARE = 0.9  # of the time, for what is not measured
DECODED = 64  # images that are decoded to measure the speed of it
UNITS = {"h": 3600, "m": 60, "s": 1}


def read_duration(text: str) -> float:
    """Return a time such as 90s, 10m or 1h30m in seconds; raises `LesionfastError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or seconds <= 0:
        example = f"{text}s or {text}m" if text.isdecimal() and int(text) else "one such as 10m"
        raise LesionfastError(f"--budget is '{text}', which is no time. Type {example}.")
    return seconds


def fit_to_budget(config: TrainConfig, df: pd.DataFrame) -> TrainConfig:
    """Return a configuration whose training of the split table `df` fits into its --budget.

    The largest size that leaves 4 epochs, with up to 12, else the smallest with as many as fit; a
    --size or --epochs other than the default stays. Raises `LesionfastError` if nothing fits.
    """
    if config.budget is None:
        return config
    given, chosen, started = read_duration(config.budget), None, time.perf_counter()
    for plan, fixed, epoch in plans(config, df):
        measuring = time.perf_counter() - started  # takes its share of the time
        seconds = given - measuring
        epochs = config.epochs
        if is_default("epochs", config):
            epochs = max(1, min(MOST, int((SPARE * seconds - fixed) / epoch)))
        needed = (fixed + epochs * epoch) / SPARE
        if needed > seconds or (chosen and is_default("epochs", config) and epochs < ENOUGH):
            break
        chosen = replace(plan, epochs=epochs, budget=None), needed
    if chosen is None:
        needed += measuring
        raise LesionfastError(
            f"--budget {config.budget} is too short: the smallest training takes about "
            f"{needed:.0f} s here. Type --budget {needed + 1:.0f}s, or another --arch."
        )
    plan, needed = chosen
    logger.info(
        "budget %s: %d pixels, %d epochs, about %.0f s by the speed measured here",
        *(config.budget, plan.size, plan.epochs, needed),
    )
    return plan


def plans(config: TrainConfig, df: pd.DataFrame) -> Iterator[tuple[TrainConfig, float, float]]:
    """Yield configurations by size, with the fixed seconds of each and those of an epoch."""
    for size in sizes(config):
        plan = replace(config, size=size)
        try:
            cost = estimate(plan, df)
        except LesionfastError:  # of a backbone that can't take this size
            if size == SIZES[-1] or not is_default("size", config):
                raise
            continue
        yield plan, decoding_seconds(plan, df) + cost.head + cost.predicting, epoch_seconds(cost)


def sizes(config: TrainConfig) -> tuple[int, ...]:
    """Return the sizes to try: the one that was typed, or all to which pictures can grow."""
    if not is_default("size", config):
        return (config.size,)
    return tuple(size for size in SIZES if size > (config.start_size or 0)) or (config.size,)


def epoch_seconds(cost: Estimate) -> float:
    """Return the seconds of one epoch through the backbone."""
    return cost.backbone / cost.epochs


def is_default(name: str, config: TrainConfig) -> bool:
    """Return whether an option was left as it is."""
    return getattr(config, name) == getattr(TrainConfig, name)


def decoding_seconds(config: TrainConfig, df: pd.DataFrame) -> float:
    """Return how long decoding the images will take; 0 if the cache has them."""
    paths = df["path"].tolist()
    if config.cache and is_cached(paths, config.size, config.resize):
        return 0.0
    started = time.perf_counter()
    for _ in decode_blocks(Task(paths[:DECODED], config.size, config.resize)):
        pass
    return (time.perf_counter() - started) * len(paths) / min(len(paths), DECODED)
