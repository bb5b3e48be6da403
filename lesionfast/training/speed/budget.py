"""--budget: the size and the epochs that fit into a time, by the speed measured here."""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import pandas as pd
import torch
from torch import Tensor, nn

from lesionfast.config import TrainConfig
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import Task, decode_blocks, is_cached
from lesionfast.data.loaders import images_at_once, pick_device
from lesionfast.errors import LesionfastError
from lesionfast.models.fusion import FusionModel, build_model, stage_groups
from lesionfast.models.precision import autocast
from lesionfast.training.balancing import balances
from lesionfast.training.callbacks.inference import freed_memory_kept
from lesionfast.training.callbacks.schedule import Phase
from lesionfast.training.fitting import caches_features, memory_error_explained, plan_training
from lesionfast.training.speed.bench import time_one

logger = logging.getLogger("lesionfast")


@dataclass(frozen=True)
class Estimate:
    """What a training will take here: seconds of epochs on cached features, and of the others.

    `predicting` is the time for the predictions and the features at the end.
    """

    parameters: int
    epochs: int
    head: float
    backbone: float
    predicting: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.head + self.backbone + self.predicting


def estimate(config: TrainConfig, df: pd.DataFrame) -> Estimate:
    """Return the number of parameters, and the seconds that a training will take here.

    `df` is the split table. Each phase is measured with its own frozen stages, and so is
    validation; decoding the images is not, nor are epochs on features that are computed once.
    Raises `LesionfastError` for a model that can't be built.
    """
    device, rows = pick_device(config.device), df["split"].value_counts()
    train = df[df["split"] == "train"]
    encoder = MetadataEncoder(config.metadata_columns).fit(train)
    torch.manual_seed(config.seed)
    fresh = replace(config, weights="none")
    model = build_model(fresh, encoder.width, df["target"].nunique())
    if model.backbone is not None:
        model.backbone.pretrained = config.weights != "none"  # for the plan of its phases
    model.to(device, memory_format=torch.channels_last)
    n = rows_an_epoch(train["target"], config.balance)
    size = min(config.batch_size, n)
    batch = random_batch(config.size, encoder.width, size, device)
    head = backbone = 0.0
    with memory_error_explained(config), freed_memory_kept(device):
        forward = time_validation(model, batch, config)
        for phase in unfreeze_by_phase(model, config):
            if phase.groups == 1 and caches_features(model, config):
                head += (config.views * len(train) + rows["valid"]) * forward
            else:
                step = time_training(model, batch, config)
                backbone += phase.epochs * (rows["valid"] * forward + n // size * step)
    features = 0 if config.fusion == "metadata" else len(df)  # kept with the run
    predicting = (config.tta * (rows["valid"] + rows.get("test", 0)) + features) * forward
    parameters = sum(p.numel() for p in model.parameters())
    return Estimate(parameters, config.epochs, head, backbone, predicting)


def unfreeze_by_phase(model: FusionModel, config: TrainConfig) -> Iterator[Phase]:
    """Yield each phase, the model frozen as the phase has it."""
    groups = stage_groups(model)
    for phase in plan_training(model, config).phases:
        for number, group in enumerate(groups, 1):
            for each in group:
                each.requires_grad_(number > len(groups) - phase.groups)
        yield phase


def rows_an_epoch(targets: pd.Series, balance: str) -> int:
    """Return how many training rows an epoch has under a class balancing."""
    codes = targets.astype("category").cat.codes.to_numpy("int64")
    sampler = balances[balance](codes, targets.nunique()).sampler
    return len(codes) if sampler is None else len(sampler(Random(0)))


def random_batch(side: int, width: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return images (B, 3, side, side), metadata (B, width) and class numbers (B,), all 0."""
    image = torch.rand(size, 3, side, side).to(memory_format=torch.channels_last)
    target = torch.zeros(size, dtype=torch.int64)
    return image.to(device), torch.rand(size, width).to(device), target.to(device)


def time_training(model: FusionModel, batch: tuple[Tensor, ...], config: TrainConfig) -> float:
    """Return the seconds of one training step with what is unfrozen now."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), fused=True)
    image, metadata, target = batch
    model.train()

    def step() -> None:
        with autocast(config.precision, image.device):
            loss = nn.functional.cross_entropy(model(image, metadata), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return time_one(step, image.device)


def time_validation(model: FusionModel, batch: tuple[Tensor, ...], config: TrainConfig) -> float:
    """Return the seconds of a forward pass alone, per image."""
    image, metadata, _ = batch
    image = image[: images_at_once(image.device)]
    model.eval()

    def step() -> None:
        with torch.inference_mode(), autocast(config.precision, image.device):
            model(image, metadata[: len(image)])

    return time_one(step, image.device) / len(image)


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
