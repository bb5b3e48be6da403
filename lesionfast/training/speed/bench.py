"""How fast each part of a training is on this machine, beside the bare model."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
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
from lesionfast.data.augment import augment, build_recipe
from lesionfast.data.images import Task, decode_blocks
from lesionfast.data.loaders import LesionDataLoaders, images_at_once
from lesionfast.files import temporary_folder
from lesionfast.models.features import Features
from lesionfast.models.precision import autocast
from lesionfast.serving.bundle import WEIGHTS, Bundle
from lesionfast.serving.inputs import Item
from lesionfast.serving.predictor import Predictor
from lesionfast.training.callbacks.cached_features import FeatureLoader
from lesionfast.training.callbacks.inference import freed_memory_kept
from lesionfast.training.callbacks.regularization import EMA
from lesionfast.training.callbacks.schedule import OneCycle
from lesionfast.training.learner import LesionLearner, lesion_learner
from lesionfast.training.record import describe_environment, describe_model

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = Sequence[Tensor]  # images, metadata and targets
ROUNDS, STEPS = 5, 4  # the two parts of a ratio take turns, because machines are noisy
ENOUGH, PREDICTING = 1.0, 2.0  # seconds for the other parts, and for a prediction
DECODED, PREDICTED = 256, 1024  # images
EPOCH = 8500  # rows of an epoch on cached features
PARTS = {
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
    decode = 1 / time_decoding(df["path"].tolist()[:DECODED], config)
    dls = LesionDataLoaders.from_df(df, config)
    learn = lesion_learner(dls, config=config)
    learn.model.to(dls.device, memory_format=torch.channels_last)

    def predict(n: int) -> None:
        learn.get_preds(dl=dls.valid.new(n=n))

    with freed_memory_kept(dls.device), learn.no_bar(), learn.no_logging():
        measured = {
            "decode": decode,
            **batch_rates(learn, config),
            **training_rates(learn, config),
            **prediction_rates(learn, config, predict, len(dls.valid_ds)),
            **file_rates(learn, config, df),
            "feature_epoch_seconds": time_feature_epoch(learn),
            **(compile_rates(learn, config) if config.compile else {}),
        }
    parts = {name: measured.pop(name) for name in PARTS}
    environment = describe_environment(learn, config)
    machine = {name: environment[name] for name in ("device", "threads", "precision", "torch")}
    machine |= {"arch": config.arch, "size": config.size, "batch_size": dls.train.bs}
    return {"machine": machine, "parts": parts, **measured, "peak_memory": peak_memory(dls.device)}


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)()


def time_calls(function: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Return the mean seconds of a function over a number of calls."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / times


def time_step(
    step: Callable[[], Any], device: torch.device, most: int = 5, enough: float = 3.0
) -> float:
    """Return the mean seconds of a step after the first: of `most` steps, or `enough` seconds."""
    time_calls(step, device)
    seconds = [time_calls(step, device)]
    while len(seconds) < most and sum(seconds) < enough:
        seconds.append(time_calls(step, device))
    return sum(seconds) / len(seconds)


def time_decoding(paths: Sequence[str], config: TrainConfig) -> float:
    """Return the seconds that decoding and resizing takes, per image."""
    started = time.perf_counter()
    for _ in decode_blocks(Task(list(paths), config.size, config.resize)):
        pass
    return (time.perf_counter() - started) / len(paths)


def compute_loss(model: nn.Module, batch: Batch, loss_func: Loss, precision: str) -> Tensor:
    """Return the loss of a model in training mode on images, metadata and targets."""
    image, metadata, target = batch
    model.train()
    with autocast(precision, image.device):
        logits = model(image, metadata)
    return loss_func(logits.float(), target)


def training_step(
    model: nn.Module, batch: Batch, loss_func: Loss, precision: str
) -> Callable[[], None]:
    """Return a function that takes one AdamW step on a batch in memory, with what is unfrozen."""
    learning = (p for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)

    def step() -> None:
        compute_loss(model, batch, loss_func, precision).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(
    model: nn.Module, batch: Batch, precision: str
) -> tuple[Callable[[], None], int]:
    """Return a function that runs a model in inference mode, and over how many images."""
    image, metadata = (part[: images_at_once(part.device)] for part in batch[:2])

    def step() -> None:
        with torch.inference_mode(), autocast(precision, image.device):
            model(image, metadata)

    return step, len(image)


def take_batch(learn: LesionLearner) -> tuple[Tensor, Tensor, Tensor]:
    """Return one training batch in memory: image, metadata and target."""
    return tuple(part.as_subclass(Tensor) for part in learn.dls.one_batch())


def batch_rates(learn: LesionLearner, config: TrainConfig) -> dict[str, float]:
    """Return the images per second of what is done with a batch, and of frozen features."""
    pixels, batch = learn.dls.pixels, take_batch(learn)
    image, device, n = batch[0], batch[0].device, len(batch[0])
    rows = np.random.default_rng(0).permutation(len(pixels))[:n]
    recipe, generator = build_recipe(config.augment), torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        return compute_loss(learn.model, batch, learn.loss_func, config.precision)

    def rate(function: Callable[[], Any]) -> float:
        return n / time_step(function, device, most=1000, enough=ENOUGH)

    backward = statistics.median(time_calls(loss().backward, device) for _ in range(STEPS + 1))
    features = Features(learn.model, pixels, config.precision)
    used = learn.dls.rows["row"].to_numpy()[:PREDICTED]
    return {
        "read": rate(lambda: torch.from_numpy(pixels[rows]).to(device)),
        "augment": rate(lambda: augment(image, recipe, generator)),
        "forward": rate(loss),
        "backward": n / backward,
        "features": len(used) / time_calls(lambda: features.compute(used), device),
    }


def training_rates(learn: LesionLearner, config: TrainConfig) -> dict[str, float]:
    """Return the images per second of the bare and of the whole step, and their ratio."""
    bare, device, n = bare_step(learn, config, learn.model), learn.dls.device, learn.dls.train.bs
    epochs, rounds = ceil((STEPS + 1) / len(learn.dls.train)), []
    for _ in range(ROUNDS):
        alone, clock = time_calls(bare, device, STEPS), StepClock(STEPS)
        average = [EMA(config.ema)] if config.ema else []
        learn.fit(epochs, 1e-5, cbs=[clock, OneCycle(), *average])
        rounds.append((alone / n, clock.mean / n))
    return name_medians(rounds, "bare step", "step", "step_share")


def bare_step(learn: LesionLearner, config: TrainConfig, model: nn.Module) -> Callable[[], None]:
    """Return the step of a bare, unfrozen model, after a first one."""
    learn.unfreeze()
    step = training_step(model, take_batch(learn), learn.loss_func, config.precision)
    step()
    return step


def name_medians(
    rounds: list[tuple[float, float]], bare: str, whole: str, share: str
) -> dict[str, float]:
    """Return the median rates of both parts, and the median share of the whole in the bare.

    `rounds` holds the seconds per image of the bare part and of the whole one.
    """
    return {
        bare: statistics.median(1 / alone for alone, _ in rounds),
        whole: statistics.median(1 / both for _, both in rounds),
        share: statistics.median(alone / both for alone, both in rounds),
    }


class StepClock(Callback):
    """Measure a number of training steps of a fit, reading of the batches included, then end it.

    The first step is not counted, nor is the validation between two epochs.
    """

    order = 100

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def before_fit(self) -> None:
        self.seconds = []

    def before_train(self) -> None:
        self.last = time.perf_counter()

    def after_batch(self) -> None:
        """Note the seconds of a training step; end the fit after enough of them."""
        if not self.training:
            return
        synchronize(self.dls.device)
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        if len(self.seconds) > self.steps:
            raise CancelFitException

    @property
    def mean(self) -> float:
        """The mean seconds of the steps that count."""
        return sum(self.seconds[1:]) / len(self.seconds[1:])


def prediction_rates(
    learn: LesionLearner, config: TrainConfig, predict: Callable[[int], None], most: int
) -> dict[str, float]:
    """Return the images per second of `predict` and of the bare forward pass, and their ratio.

    It predicts as many images as the bare model does in 2 seconds, at most 1,024 and `most`.
    """
    device = learn.dls.device
    bare, at_once = inference_step(learn.model, take_batch(learn), config.precision)
    learn.model.eval()
    enough = int(PREDICTING * at_once / time_step(bare, device))
    n, rounds = min(max(enough, at_once), PREDICTED, most), []
    for _ in range(ROUNDS):
        learn.model.eval()
        alone = time_calls(bare, device, max(1, n // at_once)) / at_once
        rounds.append((alone, time_calls(lambda: predict(n), device) / n))
    return name_medians(rounds, "bare forward", "prediction", "prediction_share")


def file_rates(learn: LesionLearner, config: TrainConfig, df: pd.DataFrame) -> dict[str, float]:
    """Return the images per second of `lesionfast predict` on files, and their share of the bare.

    That is decoding, one view of each, and all output columns, as from an exported model.
    """
    paths = df["path"].tolist()
    with temporary_folder() as folder:
        predictor = export_predictor(learn, config, folder)

    def predict(n: int) -> None:
        for _ in predictor.stream(Item(path, path) for path in paths[:n]):
            pass

    rates = prediction_rates(learn, config, predict, len(paths))
    return {"files": rates["prediction"], "file_share": rates["prediction_share"]}


def export_predictor(learn: LesionLearner, config: TrainConfig, folder: Path) -> Predictor:
    """Return a predictor of the model as it is, by one view."""
    weights = {name: w.cpu().contiguous() for name, w in learn.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    bundle = Bundle(
        name="bench",
        model=describe_model(learn, config),
        image_column=config.image or "image_id",
        precision=config.precision,
        encoder=learn.dls.encoder,
    )
    bundle.write(folder)
    return Predictor(folder, views=1, device=config.device)


def time_feature_epoch(learn: LesionLearner) -> float:
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
        return time_calls(lambda: learn.fit(2, 1e-5), images.device) / 2
    finally:
        learn.dls = images
        learn.unfreeze()


def compile_rates(learn: LesionLearner, config: TrainConfig) -> dict[str, float]:
    """Return the gain of torch.compile for the bare step, and the seconds of its first step."""
    device, started = learn.dls.device, time.perf_counter()
    compiled = bare_step(learn, config, torch.compile(learn.model))
    seconds = time.perf_counter() - started
    bare = bare_step(learn, config, learn.model)
    gain = statistics.median(
        time_calls(bare, device, STEPS) / time_calls(compiled, device, STEPS) for _ in range(ROUNDS)
    )
    return {"compile_gain": gain, "compile_seconds": seconds}


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak of this process in bytes, and of the GPU where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak


def bench_table(measured: dict[str, Any]) -> Table:
    """Return what `bench` measured, one row per part."""
    machine = measured["machine"]
    title = "{arch} at {size} pixels, {batch_size} per step".format(**machine)
    note = "{device}, {threads} threads, {precision}, torch {torch}".format(**machine)
    table = Table(title, ["part", "images per second", "share"], note=note)
    shares = {"step": "step_share", "prediction": "prediction_share", "files": "file_share"}
    for name, label in PARTS.items():
        share = f"{measured[shares[name]]:.2f} of the bare model" if name in shares else ""
        table.add(label, cell(measured["parts"][name], ",.0f"), share)
    seconds = f"{measured['feature_epoch_seconds']:.2f} s"
    table.add("head epoch, 8,500 cached features", seconds, "")
    if "compile_gain" in measured:
        share = f"{measured['compile_gain']:.2f} of the bare model"
        first = f"first step: {measured['compile_seconds']:.0f} s"
        table.add("step with --compile", first, share)
    for where, size in measured["peak_memory"].items():
        table.add(f"peak memory, {where}", f"{size / 2**30:.2f} GiB", "")
    return table
