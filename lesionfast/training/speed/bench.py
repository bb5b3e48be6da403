"""How fast each part of a training is on this machine, beside the bare model."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from safetensors.torch import save_file
from torch import Tensor, nn

from lesionfast.config import TrainConfig
from lesionfast.console import Table, cell
from lesionfast.data.augment import augment, augmentations
from lesionfast.data.images import Task, decode_blocks
from lesionfast.data.loaders import build_dls, images_at_once
from lesionfast.files import temporary_folder
from lesionfast.models.features import Features
from lesionfast.models.precision import autocast, choose_precision
from lesionfast.serving.bundle import WEIGHTS, Bundle
from lesionfast.serving.inputs import Item
from lesionfast.serving.predictor import Predictor
from lesionfast.training.callbacks.cached_features import FeatureLoader
from lesionfast.training.callbacks.ema import EMA
from lesionfast.training.callbacks.inference import freed_memory_kept
from lesionfast.training.callbacks.schedule import OneCycle
from lesionfast.training.description import describe_model
from lesionfast.training.learner import FusionLearner, fusion_learner


def waiter(device: torch.device) -> Callable[[], None]:
    """Return the function that waits until a device has done what it was told."""
    waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return waits.get(device.type, lambda: None)


def timed(function: Callable[[], Any], device: torch.device, times: int) -> float:
    """Return the mean seconds of a function over so many calls."""
    wait = waiter(device)
    wait()
    started = time.perf_counter()
    for _ in range(times):
        function()
    wait()
    return (time.perf_counter() - started) / times


def time_one(
    step: Callable[[], Any], device: torch.device, most: int = 5, enough: float = 3.0
) -> float:
    """Return the mean seconds of a step, after one that is not counted.

    The steps are `most`, or as many as begin in `enough` seconds: of slow ones fewer say as much.
    """
    timed(step, device, 1)
    seconds = [timed(step, device, 1)]
    while len(seconds) < most and sum(seconds) < enough:
        seconds.append(timed(step, device, 1))
    return sum(seconds) / len(seconds)


class StepClock(Callback):
    """Measure so many training steps of a fit, reading of the batches included, then end it.

    The first step is not counted, nor is the validation between two epochs.
    """

    order = 100

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def before_fit(self) -> None:
        """Start anew."""
        self.seconds = []

    def before_train(self) -> None:
        """Start the clock of an epoch."""
        self.last = time.perf_counter()

    def after_batch(self) -> None:
        """Note the seconds of a training step; end the fit after enough of them."""
        if not self.training:
            return
        waiter(self.dls.device)()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        if len(self.seconds) > self.steps:
            raise CancelFitException

    @property
    def mean(self) -> float:
        """The mean seconds of the steps that count."""
        return sum(self.seconds[1:]) / len(self.seconds[1:])


ROUNDS, STEPS = 5, 4  # the parts of a ratio take turns, for machines are noisy
ENOUGH, PREDICTING = 1.0, 2.0  # seconds for the parts that are no ratio, and for a prediction
WHOLE = ("bare step", "step", "bare forward", "prediction", "files", "features")
DECODED, PREDICTED = 256, 1024  # images
EPOCH = 8500  # rows of an epoch on cached features


def bench(config: TrainConfig, df: pd.DataFrame) -> dict[str, Any]:
    """Return the speed of each part of a training over a split table, and the machine.

    `parts` maps names to images per second; `step_share` and `prediction_share` are medians over
    rounds in which the bare model and lesionfast take turns: the whole training step over the bare
    one (model, loss, backward pass and AdamW on a batch in memory), and prediction over the bare
    forward pass in inference mode. Both compute as lesionfast does: in its precision, and in freed
    memory. `compile_gain`, with --compile, is that of the compiled bare step over the bare one.
    `feature_epoch_seconds` is an epoch of the head over 8,500 rows of cached features,
    `peak_memory` in bytes. Raises `LesionfastError` for bad data.
    """
    config = replace(config, patience=0)
    decode = decoding_rate(config, df)
    dls = build_dls(df, config)
    learn = fusion_learner(dls, config)
    learn.model.to(dls.device, memory_format=torch.channels_last)
    with freed_memory_kept(dls.device), learn.no_bar(), learn.no_logging():
        found = {
            "machine": machine(learn, config),
            "parts": {"decode": decode, **batch_rates(learn, config)},
            "features": feature_rate(learn, config),
            **training_rates(learn, config),
            **prediction_rates(learn, config),
            **file_rates(learn, config, df),
            "feature_epoch_seconds": feature_epoch(learn),
            **(compile_rates(learn, config) if config.compile else {}),
        }
    found["parts"] |= {k: found.pop(k) for k in WHOLE}
    return {**found, "peak_memory": peak_memory(dls.device)}


def machine(learn: FusionLearner, config: TrainConfig) -> dict[str, Any]:
    """Return what the figures depend on."""
    device = learn.dls.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": choose_precision(config.precision, device),
        "torch": torch.__version__,
        "arch": config.arch,
        "size": config.size,
        "batch_size": learn.dls.train.bs,
    }


def decoding_rate(config: TrainConfig, df: pd.DataFrame) -> float:
    """Return how many images a second are decoded and resized."""
    paths = df["path"].tolist()[:DECODED]
    started = time.perf_counter()
    for _ in decode_blocks(Task(paths, config.size, config.resize)):
        pass
    return len(paths) / (time.perf_counter() - started)


def batch_rates(learn: FusionLearner, config: TrainConfig) -> dict[str, float]:
    """Return the images per second of reading and augmenting a batch, forward and backward."""
    dls, (image, *others) = learn.dls, batch_of(learn)
    rows = np.random.default_rng(0).permutation(len(dls.pixels))[: len(image)]
    recipe, generator = augmentations[config.augment](), torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        return loss_of(learn, config, image, *others)

    backward = statistics.median(timed(loss().backward, image.device, 1) for _ in range(STEPS + 1))
    return {
        "read": rate(lambda: torch.from_numpy(dls.pixels[rows]).to(image.device), image),
        "augment": rate(lambda: augment(image, recipe, generator), image),
        "forward": rate(loss, image),
        "backward": len(image) / backward,
    }


def batch_of(learn: FusionLearner) -> tuple[Tensor, Tensor, Tensor]:
    """Return one training batch in memory: image, metadata and target."""
    return tuple(each.as_subclass(Tensor) for each in learn.dls.one_batch())


def loss_of(
    learn: FusionLearner, config: TrainConfig, *batch: Tensor, model: nn.Module | None = None
) -> Tensor:
    """Return the loss of the bare model in training mode."""
    image, metadata, target = batch
    model = learn.model if model is None else model
    model.train()
    with autocast(config.precision, image.device):
        logits = model(image, metadata)
    return learn.loss_func(logits.float(), target)


def bare_step(learn: FusionLearner, config: TrainConfig, model: nn.Module) -> Callable[[], None]:
    """Return a function that takes one step on a batch in memory, after the first has been."""
    batch = batch_of(learn)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def bare() -> None:
        loss_of(learn, config, *batch, model=model).backward()
        optimizer.step()
        optimizer.zero_grad()

    learn.unfreeze()
    bare()
    return bare


def training_rates(learn: FusionLearner, config: TrainConfig) -> dict[str, float]:
    """Return the images per second of the bare and of the whole step, and their ratio."""
    bare, device = bare_step(learn, config, learn.model), learn.dls.device
    seconds = [(timed(bare, device, STEPS), whole_step(learn, config.ema)) for _ in range(ROUNDS)]
    n = learn.dls.train.bs
    return {
        "bare step": n / statistics.median(first for first, _ in seconds),
        "step": n / statistics.median(second for _, second in seconds),
        "step_share": statistics.median(first / second for first, second in seconds),
    }


def compile_rates(learn: FusionLearner, config: TrainConfig) -> dict[str, float]:
    """Return what torch.compile makes of the bare step, and the seconds of its first step."""
    device, started = learn.dls.device, time.perf_counter()
    compiled = bare_step(learn, config, torch.compile(learn.model))
    seconds = time.perf_counter() - started
    bare = bare_step(learn, config, learn.model)
    rounds = [(timed(bare, device, STEPS), timed(compiled, device, STEPS)) for _ in range(ROUNDS)]
    gain = statistics.median(first / second for first, second in rounds)
    return {"compile_gain": gain, "compile_seconds": seconds}


def whole_step(learn: FusionLearner, ema: float) -> float:
    """Return the seconds of one step of the Learner over its loader, as in a training."""
    clock = StepClock(STEPS)
    average = [EMA(ema)] if ema else []
    learn.fit(ceil((STEPS + 1) / len(learn.dls.train)), 1e-5, cbs=[clock, OneCycle(), *average])
    return clock.mean


def prediction_rates(learn: FusionLearner, config: TrainConfig) -> dict[str, float]:
    """Return the images per second of prediction and of the bare forward pass, and their ratio."""

    def predict(n: int) -> None:
        learn.get_preds(dl=learn.dls.valid.new(n=n))

    rounds = in_turns(learn, config, predict, len(learn.dls.valid_ds))
    return {
        "bare forward": statistics.median(alone for alone, _ in rounds),
        "prediction": statistics.median(whole for _, whole in rounds),
        "prediction_share": statistics.median(whole / alone for alone, whole in rounds),
    }


def file_rates(learn: FusionLearner, config: TrainConfig, df: pd.DataFrame) -> dict[str, float]:
    """Return the images per second of `lesionfast predict` on files, and their share of the bare.

    That is decoding, one view of each, and all that is said of them, as from an exported model.
    """
    paths = df["path"].tolist()
    with temporary_folder() as folder:
        predictor = exported_predictor(learn, config, folder)

    def predict(n: int) -> None:
        for _ in predictor.stream(Item(path, path) for path in paths[:n]):
            pass

    rounds = in_turns(learn, config, predict, len(paths))
    return {
        "files": statistics.median(files for _, files in rounds),
        "file_share": statistics.median(files / alone for alone, files in rounds),
    }


def in_turns(
    learn: FusionLearner, config: TrainConfig, predict: Callable[[int], None], most: int
) -> list[tuple[float, float]]:
    """Return the images per second of the bare forward pass and of predicting n images, by round.

    n is what the bare model does in 2 seconds, at most 1,024 and what there is.
    """
    image, metadata = (each[: images_at_once(learn.dls.device)] for each in batch_of(learn)[:2])

    def bare() -> None:
        with torch.inference_mode(), autocast(config.precision, image.device):
            learn.model(image, metadata)

    learn.model.eval()
    enough = int(PREDICTING * len(image) / time_one(bare, image.device))
    n, rounds = min(max(enough, len(image)), PREDICTED, most), []
    for _ in range(ROUNDS):
        learn.model.eval()
        alone = len(image) / timed(bare, image.device, max(1, n // len(image)))
        rounds.append((alone, n / timed(lambda: predict(n), image.device, 1)))
    return rounds


def exported_predictor(learn: FusionLearner, config: TrainConfig, folder: Path) -> Predictor:
    """Return what predicts with the model as it is, by one view."""
    weights = {name: each.cpu().contiguous() for name, each in learn.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    bundle = Bundle(
        name="bench",
        model=describe_model(learn, config),
        image_column=config.image,
        precision=config.precision,
        encoder=learn.dls.encoder,
    )
    bundle.write(folder)
    return Predictor(folder, views=1, device=config.device)


def feature_rate(learn: FusionLearner, config: TrainConfig) -> float:
    """Return of how many images a second the frozen backbone's features are computed."""
    rows = learn.dls.rows["row"].to_numpy()[:PREDICTED]
    started = time.perf_counter()
    Features(learn.model, learn.dls.pixels, config.precision).compute(rows)
    return len(rows) / (time.perf_counter() - started)


def feature_epoch(learn: FusionLearner) -> float:
    """Return the seconds of an epoch of the head over 8,500 rows of cached features."""
    draw = np.random.default_rng(0)
    loaders = [
        FeatureLoader(
            [draw.random((n, learn.model.n_features), np.float32)],
            draw.random((n, learn.dls.encoder.width), np.float32),
            draw.integers(len(learn.dls.vocab), size=n),
            learn.dls.device,
        )
        for n in (EPOCH, len(learn.dls.valid_ds))
    ]
    images, learn.dls = learn.dls, DataLoaders(*loaders, device=learn.dls.device)
    try:
        learn.freeze()
        started = time.perf_counter()
        learn.fit(2, 1e-5)
        return (time.perf_counter() - started) / 2
    finally:
        learn.dls = images
        learn.unfreeze()


def rate(function: Callable[[], Any], image: Tensor) -> float:
    """Return the images a second of a function over a batch, after one call that is not counted."""
    return len(image) / time_one(function, image.device, most=1000, enough=ENOUGH)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak of this process in bytes, and of the GPU where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.max_memory_allocated(device)
    return found


PARTS_OF_A_TRAINING = {  # as of training.bench
    "decode": "decode and resize files, once",
    "read": "read a batch from the cache",
    "augment": "augment a batch",
    "forward": "forward pass, in training mode",
    "backward": "backward pass",
    "bare step": "bare step: forward, backward, AdamW",
    "step": "whole training step",
    "bare forward": "bare forward pass, in inference mode",
    "prediction": "prediction of the validation images",
    "files": "lesionfast predict on files, one view",
    "features": "features of the frozen backbone, once",
}


def bench_table(found: dict[str, Any]) -> Table:
    """Return what `bench` found, one row a part."""
    about = found["machine"]
    title = "{arch} at {size} pixels, {batch_size} a step".format(**about)
    note = "{device}, {threads} threads, {precision}, torch {torch}".format(**about)
    table = Table(title, ["part", "images a second", "share"], note=note)
    shares = {"step": found["step_share"], "prediction": found["prediction_share"]}
    shares["files"] = found["file_share"]
    for name, label in PARTS_OF_A_TRAINING.items():
        share = f"{shares[name]:.2f} of the bare" if name in shares else ""
        table.add(label, cell(found["parts"][name], ",.0f"), share)
    seconds = f"{found['feature_epoch_seconds']:.2f} s"
    table.add("head epoch, 8,500 cached features", seconds, "")
    if "compile_gain" in found:
        gain = f"{found['compile_gain']:.2f} of the bare"
        table.add("step with --compile", f"{found['compile_seconds']:.0f} s at first", gain)
    for where, size in found["peak_memory"].items():
        table.add(f"peak memory, {where}", f"{size / 2**30:.2f} GiB", "")
    return table
