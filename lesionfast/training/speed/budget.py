"""--budget: the image size and the epochs that fit into a time, at the speed measured here."""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lesionfast.config import TrainConfig
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import can_be_kept, is_cached
from lesionfast.data.loaders import pick_device
from lesionfast.errors import LesionfastError
from lesionfast.models.backbones import count_parameters
from lesionfast.models.fusion import FusionModel, build_model, stage_groups
from lesionfast.training.balancing import balances
from lesionfast.training.callbacks.inference import freed_memory_kept
from lesionfast.training.callbacks.schedule import Phase
from lesionfast.training.ensembles.inner import Part
from lesionfast.training.fitting import caches_features, plan_training
from lesionfast.training.record import memory_error_explained
from lesionfast.training.speed.bench import inference_step, time_decoding, time_step, training_step

logger = logging.getLogger("lesionfast")

SIZES = (64, 96, 112, 128, 160, 192, 224)
ENOUGH, MOST = 4, 12  # epochs: a larger image is worth it with ENOUGH, more than MOST overfit
SPARE = 0.9  # of the time, for what is not measured
DECODED = 64  # images that are decoded to measure how fast that is
UNITS = {"h": 3600, "m": 60, "s": 1}


def fit_to_budget(config: TrainConfig, df: pd.DataFrame) -> TrainConfig:
    """Return a configuration whose training of the split table `df` fits into its --budget.

    The largest size that leaves 4 epochs, with up to 12, else the smallest with as many as fit; a
    --size or --epochs other than the default stays. Raises `LesionfastError` if nothing fits.
    """
    if config.budget is None:
        return config
    given, chosen, started = read_duration(config.budget), None, time.perf_counter()
    for plan, fixed, epoch in plan_sizes(config, df):
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
        "budget %s: %d pixels, %d epochs, about %.0f s at the speed measured here",
        *(config.budget, plan.size, plan.epochs, needed),
    )
    return plan


def share_budget(config: TrainConfig, parts: Sequence[Part]) -> tuple[TrainConfig, list[Part]]:
    """Return the options of a run, and of the runs inside it, each with its share of the budget.

    They have one size and number of epochs, those that fit the first.
    """
    seconds = read_duration(config.budget or "") / (len(parts) + config.distill)
    first = fit_to_budget(replace(parts[0].config, budget=f"{seconds:.0f}s"), parts[0].df)
    found = {"size": first.size, "epochs": first.epochs, "budget": None}
    fitted = [replace(part, config=replace(part.config, **found)) for part in parts]
    return replace(config, **found), fitted


def read_duration(text: str) -> float:
    """Return a time such as 90s, 10m or 1h30m in seconds; raises `LesionfastError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or seconds <= 0:
        example = f"{text}s or {text}m" if text.isdecimal() and int(text) else "a time such as 10m"
        raise LesionfastError(f"--budget is '{text}', which is not a time. Type {example}.")
    return seconds


def is_default(name: str, config: TrainConfig) -> bool:
    """Return whether an option has its default value."""
    return getattr(config, name) == getattr(TrainConfig, name)


def plan_sizes(config: TrainConfig, df: pd.DataFrame) -> Iterator[tuple[TrainConfig, float, float]]:
    """Yield configurations by size, with the fixed seconds of each and those of an epoch."""
    paths = df["path"].tolist()
    for size in sizes_to_try(config):
        plan = replace(config, size=size)
        try:
            cost = estimate(plan, df)
        except LesionfastError:  # of a backbone that can't take this size
            if size == SIZES[-1] or not is_default("size", config):
                raise
            continue
        fixed, epoch = cost.head + cost.predicting, cost.backbone / cost.epochs
        if not (config.cache and is_cached(paths, size, config.resize)):
            decoding = time_decoding(paths[:DECODED], plan) * len(paths)
            fixed += decoding
            if config.cache and not can_be_kept(len(paths), size):
                epoch += decoding
        yield plan, fixed, epoch


def sizes_to_try(config: TrainConfig) -> tuple[int, ...]:
    """Return the size that was typed, or all to which images can grow from --start-size."""
    if not is_default("size", config):
        return (config.size,)
    return tuple(size for size in SIZES if size > (config.start_size or 0)) or (config.size,)


@dataclass(frozen=True)
class Estimate:
    """The seconds that a training takes here: epochs on cached features, and other epochs.

    `predicting` is the time for the predictions and the features at the end.
    """

    parameters: int
    epochs: int
    head: float
    backbone: float
    predicting: float

    @property
    def seconds(self) -> float:
        return self.head + self.backbone + self.predicting


def estimate(config: TrainConfig, df: pd.DataFrame) -> Estimate:
    """Return the number of parameters, and the seconds that a training takes here.

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
    n = count_drawn(train["target"], config.balance)
    size = min(config.batch_size, n)
    image = torch.rand(size, 3, config.size, config.size).to(memory_format=torch.channels_last)
    batch = (image, torch.rand(size, encoder.width), torch.zeros(size, dtype=torch.int64))
    batch = tuple(part.to(device) for part in batch)
    head = backbone = 0.0
    with memory_error_explained(config), freed_memory_kept(device):
        forward = time_validation(model, batch, config)
        for phase in unfreeze_by_phase(model, config):
            if phase.groups == 1 and caches_features(model, config):
                head += (config.views * len(train) + rows["valid"]) * forward
            else:
                step = time_training(model, batch, config)
                backbone += phase.epochs * (rows["valid"] * forward + n // size * step)
    features = 0 if config.fusion == "metadata" else len(train)  # kept with the run
    predicting = (config.tta * (rows["valid"] + rows.get("test", 0)) + features) * forward
    return Estimate(count_parameters(model), config.epochs, head, backbone, predicting)


def count_drawn(targets: pd.Series, balance: str) -> int:
    """Return how many training rows an epoch draws under a class balancing."""
    codes = targets.astype("category").cat.codes.to_numpy("int64")
    sampler = balances[balance](codes, targets.nunique()).sampler
    return len(codes) if sampler is None else len(sampler(Random(0)))


def unfreeze_by_phase(model: FusionModel, config: TrainConfig) -> Iterator[Phase]:
    """Yield each phase, with the model frozen as in that phase."""
    groups = stage_groups(model)
    for phase in plan_training(model, config).phases:
        for number, group in enumerate(groups, 1):
            for parameter in group:
                parameter.requires_grad_(number > len(groups) - phase.groups)
        yield phase


def time_training(model: FusionModel, batch: tuple[Tensor, ...], config: TrainConfig) -> float:
    """Return the seconds of one training step with what is unfrozen now."""
    step = training_step(model, batch, cross_entropy, config.precision)
    return time_step(step, batch[0].device)


def time_validation(model: FusionModel, batch: tuple[Tensor, ...], config: TrainConfig) -> float:
    """Return the seconds of a forward pass in inference mode, per image."""
    model.eval()
    step, n = inference_step(model, batch, config.precision)
    return time_step(step, batch[0].device) / n
