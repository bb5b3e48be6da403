"""train(): the whole experiment, in order; resume(): what is left of it."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lesionfast.config import TrainConfig, check_choice
from lesionfast.console import counting_bar
from lesionfast.data.augment import augmentations
from lesionfast.data.dataset import load_dataset
from lesionfast.data.leaks import check_weights
from lesionfast.data.loaders import SPLITS, build_dls
from lesionfast.data.splits import write_split
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.metrics import summarize
from lesionfast.models.backbones import check_arch
from lesionfast.models.fusion import fusions
from lesionfast.runs import Run, sha256, write_atomically, write_json, write_text
from lesionfast.training.balancing import balances
from lesionfast.training.callbacks import OneCycle, ProgressiveUnfreezing
from lesionfast.training.checkpoint import Checkpoint
from lesionfast.training.description import announce, describe_environment, describe_model
from lesionfast.training.learner import FusionLearner, fusion_learner
from lesionfast.training.losses import losses
from lesionfast.training.lr_finder import find_lr
from lesionfast.training.progress import EpochBar, EpochLines, StopOnInterrupt
from lesionfast.training.schedule import discriminative, plan_phases
from lesionfast.training.tracking import EarlyStopping, KeepBest, StopOnNaN, WriteHistory

logger = logging.getLogger("lesionfast")


def train(df: pd.DataFrame, config: TrainConfig | None = None, root: str | Path = "runs") -> Run:
    """Train on a split table and return the run, a new directory under `root`.

    `df` comes from `load_dataset(config)`, or from `read_metadata` and `assign_split`. Raises
    `LesionfastError` for whatever the user can fix, and when the training is interrupted before
    its first epoch ended.
    """
    config = config or TrainConfig()
    learn = prepare_learner(df, config)
    run = Run.create(root, config)
    with logging_to(run.path / "log.txt"):
        write_preparation(learn, run)
        evaluate(learn, run, fit(learn, run))
    return run


def resume(run: Run) -> Run:
    """Go on with an interrupted run after its last finished epoch, and end it.

    Raises `LesionfastError` if the run has ended already, or its data is gone or has changed.
    """
    if run.finished and run.metrics["status"] == "finished":
        raise LesionfastError(
            f"{run.path} has ended: nothing is left to do. "
            f"Look at it with: lesionfast interpret {run.path}"
        )
    df = load_dataset(run.config, split=run.path / "split.csv")
    learn = prepare_learner(df, run.config)
    run = Run(run.path)
    with logging_to(run.path / "log.txt"):
        evaluate(learn, run, fit(learn, run, resume=True))
    return run


def prepare_learner(df: pd.DataFrame, config: TrainConfig) -> FusionLearner:
    """Return the Learner of an experiment; bad names are found before any image is decoded."""
    check_arch(config.arch)
    for registry, name in (
        (losses, config.loss),
        (balances, config.balance),
        (fusions, config.fusion),
        (augmentations, config.augment),
    ):
        registry[name]
    check_weights(df, config.weights)
    with counting_bar("decoding images") as progress:
        dls = build_dls(df, config, progress)
    learn = fusion_learner(dls, config)
    columns = ("train_loss", "valid_loss", *learn.metrics.attrgot("name"))
    check_choice("monitor", config.monitor, columns)
    plan_phases(unfreezing(learn, config), len(learn.splitter(learn.model)), config.epochs)
    return learn


def write_preparation(learn: FusionLearner, run: Run) -> None:
    """Write what is known before the first step: split, encoder, environment and model."""
    write_split(learn.dls.split, run.path / "split.csv")
    write_text(run.path / "encoder.json", learn.dls.encoder.to_json())
    write_json(run.path / "environment.json", describe_environment(learn, run.config))
    write_json(run.path / "model.json", describe_model(learn, run.config))


def unfreezing(learn: FusionLearner, config: TrainConfig) -> str:
    """Return how to unfreeze: 'auto' is gradual for a pretrained backbone, else none."""
    if config.unfreeze != "auto":
        return config.unfreeze
    backbone = learn.model.backbone
    return "gradual" if backbone is not None and backbone.pretrained else "none"


def fit(learn: FusionLearner, run: Run, resume: bool = False) -> dict[str, Any]:
    """Train in phases, from where the run's checkpoint stands if `resume`; keep the best weights.

    Writes history.csv and weights.safetensors; returns what metrics.json says of the training.
    Raises `LesionfastError` when it is interrupted before its first epoch ended.
    """
    config = run.config
    how, n_groups = unfreezing(learn, config), len(learn.splitter(learn.model))
    phases = plan_phases(how, n_groups, config.epochs)
    lr = find_lr(learn, phases[0].groups < n_groups) if config.lr == "auto" else config.lr
    lrs = discriminative(lr, config.lr_decay, n_groups)
    announce(learn, run, phases, lrs)
    interrupt, lines = StopOnInterrupt(), EpochLines()
    best = KeepBest(config.monitor, run.path / "weights.safetensors")
    cbs = [
        ProgressiveUnfreezing(how),
        OneCycle(lrs),
        StopOnNaN(),
        WriteHistory(run.path / "history.csv"),
        Checkpoint(run.path / "checkpoints" / "last.safetensors", resume),
        EpochBar(),
        interrupt,
        best,
        lines,
    ]
    if config.patience:
        cbs.append(EarlyStopping(config.monitor, config.patience))
    with memory_error_explained(config), learn.no_bar(), learn.no_logging():
        learn.fit(config.epochs, lrs, cbs=cbs)
    if best.best_epoch < 0:
        raise LesionfastError(
            f"the training stopped before its first epoch ended, so there are no weights to keep. "
            f"Start it again: lesionfast train --resume {run.path}"
        )
    return {
        "train_seconds": round(lines.train_seconds, 2),
        "images_per_second": round(lines.images_per_second, 2),
        "best_epoch": best.best_epoch + 1,
        "status": "interrupted" if interrupt.interrupted else "finished",
    }


def evaluate(learn: FusionLearner, run: Run, training: dict[str, Any]) -> None:
    """Predict validation and test with the best weights; write predictions and metrics.

    `training` is what `fit` returned.
    """
    with memory_error_explained(run.config), learn.no_bar():
        predictions = predict_splits(learn)
    write_atomically(run.path / "predictions.csv", lambda p: predictions.to_csv(p, index=False))
    write_json(
        run.path / "metrics.json",
        {
            "split_sha256": sha256(run.path / "split.csv"),
            **training,
            **{name: summary(learn, table) for name, table in predictions.groupby("split")},
        },
    )
    if training["status"] == "finished":
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def predict_splits(learn: FusionLearner) -> pd.DataFrame:
    """Return one row an image of validation and test, with a column `p_<class>` for each class."""
    tables = []
    for index, name in enumerate(SPLITS):
        rows = learn.dls.rows[learn.dls.rows["split"] == name].drop(columns="row")
        if name == "train" or rows.empty:
            continue
        probabilities, _ = learn.get_preds(ds_idx=index)
        columns = [f"p_{each}" for each in learn.dls.vocab]
        scores = pd.DataFrame(probabilities.numpy().astype(float), rows.index, columns)
        tables.append(pd.concat([rows, scores], axis=1))
    return pd.concat(tables, ignore_index=True)


def summary(learn: FusionLearner, predictions: pd.DataFrame) -> dict[str, Any]:
    """Return the metrics of one split's predictions."""
    classes = list(learn.dls.vocab)
    truth = predictions["target"].map(classes.index).to_numpy()
    probabilities = predictions[[f"p_{each}" for each in classes]].to_numpy()
    return summarize(truth, probabilities, classes, learn.balance.prior)


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


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append what lesionfast logs to a file, whatever the console shows."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
