"""The fit of an experiment: its phases, its callbacks, and what is kept of it."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback

from lesionfast.config import TrainConfig
from lesionfast.console import counting_bar
from lesionfast.data.augment import augmentations
from lesionfast.data.split import PARTS
from lesionfast.errors import LesionfastError, TrainingInterrupted
from lesionfast.evaluation.interpretation import write_features
from lesionfast.files import read_json, sha256
from lesionfast.models.features import Features
from lesionfast.models.fusion import FusionModel
from lesionfast.models.inference import TorchEngine
from lesionfast.models.lineage import lineage_header
from lesionfast.models.precision import choose_dtype
from lesionfast.runs import WITHOUT_METADATA, Run
from lesionfast.stats.metrics import summarize
from lesionfast.training.callbacks.cached_features import CachedFeatures
from lesionfast.training.callbacks.checkpoint import Checkpoint
from lesionfast.training.callbacks.ema import EMA
from lesionfast.training.callbacks.inference import AugmentValid
from lesionfast.training.callbacks.progress import EpochBar, EpochLines, StopOnInterrupt
from lesionfast.training.callbacks.schedule import (
    OneCycle,
    Phase,
    ProgressiveResizing,
    ProgressiveUnfreezing,
    discriminative_lrs,
    plan_phases,
)
from lesionfast.training.callbacks.tracking import (
    EarlyStopping,
    KeepBest,
    StopOnNaN,
    WriteHistory,
)
from lesionfast.training.description import announce
from lesionfast.training.learner import FusionLearner, find_lr

logger = logging.getLogger("lesionfast")

FAR = 0.05  # of balanced accuracy, between the best epoch and the one that was kept
LR = "checkpoints/lr.json"  # of --lr auto, for a resumed training


def fit(learn: FusionLearner, run: Run, resume: bool = False) -> dict[str, Any]:
    """Train in phases, from where the run's checkpoint stands if `resume`.

    What is kept are the weights of the last epoch, or of the best one by the `monitor`.

    Writes history.csv and weights.safetensors; returns what metrics.json says of the training.
    Raises `TrainingInterrupted` when the user stops it before its first epoch ended.
    """
    config = run.config
    lrs = discriminative_lrs(
        highest_lr(learn, run), config.lr_decay, len(learn.splitter(learn.model))
    )
    one_cycle = OneCycle(lrs, head_lr=None if config.lr == "auto" else config.head_lr)
    announce(learn, run, phases_of(learn, config), lrs, one_cycle.head_lr)
    how = unfreezing(learn, config)
    interrupt, lines = StopOnInterrupt(), EpochLines()
    header = lineage_header(learn.dls.split, config.arch, config.weights)
    best = KeepBest(config.monitor, run.path / "weights.safetensors", header)
    cbs = [
        ProgressiveUnfreezing(how, config.head_epochs),
        one_cycle,
        StopOnNaN(),
        WriteHistory(run.path / "history.csv"),
        Checkpoint(run.path / "checkpoints" / "last.safetensors", resume),
        EpochBar(),
        interrupt,
        best,
        lines,
        *optional_callbacks(learn, config),
    ]
    with memory_error_explained(config), learn.no_bar(), learn.no_logging():
        learn.fit(total_epochs(how, config), lrs, cbs=cbs)
    check_trained(run, best)
    describe_kept(learn, best)
    announce_kept(Run(run.path).history.set_index("epoch"), best.best_epoch + 1)
    return {
        "train_seconds": round(lines.train_seconds, 2),
        "images_per_second": round(lines.images_per_second, 2),
        "best_epoch": best.best_epoch + 1,
        "status": "interrupted" if interrupt.interrupted else "finished",
    }


def optional_callbacks(learn: FusionLearner, config: TrainConfig) -> list[Callback]:
    """Return the callbacks that options ask for."""
    cbs: list[Callback] = []
    if config.ema:
        cbs.append(EMA(config.ema))
    if caches_features(learn.model, config):
        cbs.append(cached_features(learn, config))
    if config.augment_valid is not None:
        cbs.append(AugmentValid(augmentations[config.augment](), config.augment_valid))
    if config.start_size:
        cbs.append(ProgressiveResizing(config.start_size))
    if config.monitor and config.patience:  # without a monitor a cycle runs to its end
        cbs.append(EarlyStopping(config.monitor, config.patience))
    return cbs


def announce_kept(history: pd.DataFrame, epoch: int) -> None:
    """Log which epoch was kept, and warn if another was far better on validation."""
    logger.info("kept: the weights of epoch %d, phase %s", epoch, history["phase"][epoch])
    if "balanced_accuracy" not in history:
        return
    scores = history["balanced_accuracy"]
    if scores.max() - scores[epoch] >= FAR:
        logger.warning(
            "epoch %d had a validation balanced accuracy of %.3f, and the kept epoch %d has %.3f. "
            "Train longer (--epochs), or keep the best epoch with --monitor balanced_accuracy",
            *(scores.idxmax(), scores.max(), epoch, scores[epoch]),
        )


def unfreezing(learn: FusionLearner, config: TrainConfig) -> str:
    """Return how to unfreeze: 'auto' is fresh for a pretrained backbone, else none."""
    if config.unfreeze != "auto":
        return config.unfreeze
    backbone = learn.model.backbone
    return "fresh" if backbone is not None and backbone.pretrained else "none"


def phases_of(learn: FusionLearner, config: TrainConfig) -> list[Phase]:
    """Return the phases of a training; raises `LesionfastError` if --unfreeze does not fit."""
    n_groups, how = len(learn.splitter(learn.model)), unfreezing(learn, config)
    return plan_phases(how, n_groups, total_epochs(how, config), config.head_epochs)


def total_epochs(how: str, config: TrainConfig) -> int:
    """Return the epochs of all phases: those of the backbone, and of the head alone before them."""
    return config.epochs + (config.head_epochs if how != "none" else 0)


def starts_frozen(learn: FusionLearner, config: TrainConfig) -> bool:
    """Return whether the first phase trains a part of the model only."""
    return phases_of(learn, config)[0].groups < len(learn.splitter(learn.model))


def caches_features(model: FusionModel, config: TrainConfig) -> bool:
    """Return whether epochs of the head alone can learn from features that are computed once."""
    changes = config.mix != "none" or config.augment_valid is not None  # of images, batch by batch
    return model.backbone is not None and not changes


def cached_features(learn: FusionLearner, config: TrainConfig) -> CachedFeatures:
    """Return the callback that computes them, in the precision of the run.

    Pictures that grow have no feature maps that could be computed once.
    """
    dtype, grows = choose_dtype(config.precision, learn.dls.device), config.start_size is not None
    recipe = augmentations[config.augment]()
    return CachedFeatures(recipe, config.views, config.seed, dtype, maps=not grows)


def highest_lr(learn: FusionLearner, run: Run) -> float:
    """Return the highest learning rate of the head; one that was found holds for a resumed run."""
    if run.config.lr != "auto":
        return run.config.lr
    if not run.holds(LR):
        run.write_json(LR, find_lr(learn, starts_frozen(learn, run.config)))
    return read_json(run.file(LR), float, run.remedy(LR))


def describe_kept(learn: FusionLearner, best: KeepBest) -> None:
    """Say what the probabilities of the kept weights are; without class weights if it was early."""
    deferred = getattr(learn, "deferred_weights", None)
    if deferred is not None:
        deferred.switch(best.best_epoch)
        learn.train_then_validate.set_posterior()


def check_trained(run: Run, best: KeepBest) -> None:
    """Raise `TrainingInterrupted` if no epoch ended."""
    if best.best_epoch < 0:
        raise TrainingInterrupted(
            f"the training stopped before its first epoch ended, so there are no weights to keep. "
            f"Start it again: lesionfast train --resume {run.path}"
        )


@contextmanager
def memory_error_explained(config: TrainConfig) -> Iterator[None]:
    """Turn the GPU's out-of-memory error into one that says which batch size to try."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise LesionfastError(
            f"the device ran out of memory with {config.batch_size} images of {config.size} pixels "
            f"a step. Type --batch-size {max(1, config.batch_size // 2)}, or a smaller --size."
        ) from None


def evaluate(learn: FusionLearner, run: Run, training: dict[str, Any]) -> None:
    """Predict validation and test with the weights that were kept.

    Writes predictions, features and metrics. `training` is what `fit` returned.
    """
    logger.info("predicting validation and test images, %d views of each", run.config.tta)
    with memory_error_explained(run.config):
        predictions, without = predict_splits(learn, run.config)
        keep_features(learn, run)
    run.write("predictions.csv", partial(predictions.to_csv, index=False))
    if run.model["metadata"] and run.model["fusion"] != "none":
        run.write(WITHOUT_METADATA, partial(without.to_csv, index=False))
    run.manifest.record("history.csv", "weights.safetensors")  # the epochs wrote them
    run.write_json(
        "metrics.json",
        {
            "split_sha256": sha256(run.path / "split.csv"),
            **training,
            **{name: summary(learn, table) for name, table in predictions.groupby("split")},
        },
    )
    if training["status"] == "finished":
        run.remove(LR)
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def predict_splits(learn: FusionLearner, config: TrainConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row an image of validation and test, with a column `p_<class>` for each class.

    The second table has the probabilities of the same views with all metadata withheld.
    """
    dls, known, unknown = learn.dls, [], []
    engine = TorchEngine(learn.model, views=config.tta, precision=config.precision)
    for split in PARTS[1:]:
        rows = dls.rows[dls.rows["split"] == split]
        if rows.empty:
            continue
        metadata = dls.encoder.transform(rows)
        withheld = np.tile(dls.encoder.unknown, (len(rows), 1))
        found, _ = engine.run(dls.pixels, rows["row"].to_numpy(), metadata, withheld)
        known.append(with_scores(rows.drop(columns="row"), found[0], dls.vocab))
        keys = rows[["image_id", "target", "group", "split"]]
        unknown.append(with_scores(keys, found[1], dls.vocab))
    return pd.concat(known, ignore_index=True), pd.concat(unknown, ignore_index=True)


def with_scores(
    rows: pd.DataFrame, probabilities: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """Return rows (n) with their probabilities (n, k) as columns."""
    columns = [f"p_{name}" for name in classes]
    scores = pd.DataFrame(probabilities.astype(float), rows.index, columns)
    return pd.concat([rows, scores], axis=1)


def keep_features(learn: FusionLearner, run: Run) -> None:
    """Keep the image features of all splits, for similar images and OOD scores later."""
    if learn.model.backbone is None:
        return
    rows = learn.dls.rows
    dtype = choose_dtype(run.config.precision, learn.dls.device)
    with counting_bar("features of the images") as progress:
        source = Features(learn.model, learn.dls.pixels, dtype)
        features = source.compute(rows["row"].to_numpy(), progress)
    write_features(run, rows["image_id"].tolist(), features)


def summary(learn: FusionLearner, predictions: pd.DataFrame) -> dict[str, Any]:
    """Return the metrics of one split's predictions."""
    classes = learn.classes
    truth = predictions["target"].map(classes.index).to_numpy()
    probabilities = predictions[[f"p_{each}" for each in classes]].to_numpy()
    return summarize(truth, probabilities, classes, learn.prior)
