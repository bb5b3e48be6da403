"""train(): the whole experiment, in order; resume(): what is left of it."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback
from filelock import FileLock, Timeout

from lesionfast.config import WHERE, TrainConfig, check_choice
from lesionfast.console import counting_bar
from lesionfast.data.augment import augmentations
from lesionfast.data.dataset import load_dataset
from lesionfast.data.leaks import check_weights
from lesionfast.data.loaders import build_dls, pick_device
from lesionfast.data.splits import PARTS, split_text, write_split
from lesionfast.errors import LesionfastError, TrainingInterrupted
from lesionfast.evaluation.metrics import summarize
from lesionfast.models.backbones import check_arch
from lesionfast.models.fusion import FusionModel, check_metadata, fusions
from lesionfast.runs import Run, sha256, write_atomically, write_json, write_text
from lesionfast.training.averaging import WeightAverage
from lesionfast.training.callbacks import (
    AugmentValid,
    OneCycle,
    ProgressiveResizing,
    ProgressiveUnfreezing,
    Turned,
)
from lesionfast.training.checkpoint import Checkpoint
from lesionfast.training.description import announce, describe_environment, describe_model
from lesionfast.training.frozen import CachedFeatures
from lesionfast.training.heads import check_head, solve_head
from lesionfast.training.learner import FusionLearner, fusion_learner, history_names
from lesionfast.training.lr_finder import find_lr
from lesionfast.training.objective import check_objective
from lesionfast.training.precision import precision
from lesionfast.training.progress import EpochBar, EpochLines, StopOnInterrupt
from lesionfast.training.schedule import Phase, discriminative, plan_phases
from lesionfast.training.tracking import EarlyStopping, KeepBest, StopOnNaN, WriteHistory

logger = logging.getLogger("lesionfast")


def train(
    df: pd.DataFrame,
    config: TrainConfig | None = None,
    root: str | Path = "runs",
    name: str | None = None,
) -> Run:
    """Train on a split table and return the run, a new directory under `root`.

    `df` comes from `load_dataset(config)`, or from `read_metadata` and `assign_split`; `name` is
    that of the directory, by default time and architecture. Raises `LesionfastError` for whatever
    the user can fix, and `TrainingInterrupted` when it is stopped before its first epoch ended.
    """
    config = config or TrainConfig()
    if config.budget:
        from lesionfast.training.budget import fit_to_budget

        config = fit_to_budget(config, df)
    learn = prepare_learner(df, config)
    run = Run.create(root, config, name)
    with only_trainer(run), logging_to(run.path / "log.txt"):
        write_preparation(learn, run)
        evaluate(learn, run, learn_weights(learn, run))
    return run


def resume(run: Run, **moved: str) -> Run:
    """Go on with an interrupted run after its last finished epoch, and end it.

    `moved` are the options that name the data (data, csv, images), where it lies elsewhere now.
    Raises `LesionfastError` if the run has ended already, or its data is gone or has changed.
    """
    check_resumable(run)
    with only_trainer(run):
        elsewhere = dict.fromkeys(WHERE) | moved if moved else {}
        config = replace(run.config, **elsewhere)
        df = load_dataset(config, split=run.path / "split.csv")
        learn = prepare_learner(df, config)
        check_same_data(learn, run)
        for name in ("metrics.json", "predictions.csv"):  # they tell of other weights
            (run.path / name).unlink(missing_ok=True)
        run = Run(run.path)
        with logging_to(run.path / "log.txt"):
            evaluate(learn, run, learn_weights(learn, run, resume=True))
    return run


def check_resumable(run: Run) -> None:
    """Raise `LesionfastError` if a run has ended, or stopped before it had begun."""
    if run.finished and run.metrics["status"] == "finished":
        raise LesionfastError(
            f"{run.path} has ended: nothing is left to do. "
            f"Look at it with: lesionfast interpret {run.path}"
        )
    if not (run.path / "model.json").is_file():
        raise LesionfastError(
            f"{run.path} stopped before its training began, so there is nothing to go on with. "
            f"Start it again: lesionfast train --config {run.path / 'config.json'}"
        )


def check_same_data(learn: FusionLearner, run: Run) -> None:
    """Raise `LesionfastError` unless the data is what the run began with."""
    begun = {
        "split.csv": split_text(learn.dls.split),
        "encoder.json": learn.dls.encoder.to_json(),
    }
    for name, text in begun.items():
        if (run.path / name).read_text(encoding="utf-8") != text:
            raise LesionfastError(
                f"the data has changed since {run.path} began: it no longer gives its {name}. "
                f"Bring the old data back, or start anew: lesionfast train --config "
                f"{run.path / 'config.json'}"
            )


@contextmanager
def only_trainer(run: Run) -> Iterator[None]:
    """Hold a run, so that no second process trains it at the same time."""
    folder = run.path / "checkpoints"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise LesionfastError(
            f"another process is training {run.path}. Wait for it, or stop it first."
        ) from None


def prepare_learner(df: pd.DataFrame, config: TrainConfig) -> FusionLearner:
    """Return the Learner of an experiment; bad names are found before any image is decoded."""
    check_arch(config.arch)
    check_head(config)
    for registry, name in (
        (fusions, config.fusion),
        (augmentations, config.augment),
    ):
        registry[name]
    check_metadata(config.fusion, len(config.metadata_columns))
    check_weights(df, config.weights, config.arch)
    classes = sorted(df["target"].unique())
    check_objective(config, classes)
    check_choice("monitor", config.monitor, history_names(classes))
    precision(config.precision, pick_device(config.device))
    with counting_bar("decoding images") as progress:
        dls = build_dls(df, config, progress)
    learn = fusion_learner(dls, config)
    if config.compile:
        learn.model.compile()
    phases_of(learn, config)
    return learn


def write_preparation(learn: FusionLearner, run: Run) -> None:
    """Write what is known before the first step: split, encoder, environment and model."""
    write_split(learn.dls.split, run.path / "split.csv")
    write_text(run.path / "encoder.json", learn.dls.encoder.to_json())
    write_json(run.path / "environment.json", describe_environment(learn, run.config))
    write_json(run.path / "model.json", describe_model(learn, run.config))


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


def learn_weights(learn: FusionLearner, run: Run, resume: bool = False) -> dict[str, Any]:
    """Train, or solve a head that is solved; return what metrics.json says of the training."""
    return fit(learn, run, resume) if run.config.head == "linear" else solve_head(learn, run)


def fit(learn: FusionLearner, run: Run, resume: bool = False) -> dict[str, Any]:
    """Train in phases, from where the run's checkpoint stands if `resume`; keep the best weights.

    Writes history.csv and weights.safetensors; returns what metrics.json says of the training.
    Raises `TrainingInterrupted` when the user stops it before its first epoch ended.
    """
    config = run.config
    lrs = discriminative(highest_lr(learn, run), config.lr_decay, len(learn.splitter(learn.model)))
    one_cycle = OneCycle(lrs, head_lr=None if config.lr == "auto" else config.head_lr)
    announce(learn, run, phases_of(learn, config), lrs, one_cycle.head_lr)
    how = unfreezing(learn, config)
    interrupt, lines = StopOnInterrupt(), EpochLines()
    best = KeepBest(config.monitor, run.path / "weights.safetensors")
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
    ]
    if config.ema:
        cbs.append(WeightAverage(config.ema))
    if caches_features(learn.model, config):
        cbs.append(cached_features(learn, config))
    if config.augment_valid is not None:
        cbs.append(AugmentValid(augmentations[config.augment](), config.augment_valid))
    if config.start_size:
        cbs.append(ProgressiveResizing(config.start_size))
    if config.patience:
        cbs.append(EarlyStopping(config.monitor, config.patience))
    with memory_error_explained(config), learn.no_bar(), learn.no_logging(), cleaned_up(learn, cbs):
        learn.fit(total_epochs(how, config), lrs, cbs=cbs)
    check_trained(run, best)
    return {
        "train_seconds": round(lines.train_seconds, 2),
        "images_per_second": round(lines.images_per_second, 2),
        "best_epoch": best.best_epoch + 1,
        "status": "interrupted" if interrupt.interrupted else "finished",
    }


def caches_features(model: FusionModel, config: TrainConfig) -> bool:
    """Return whether epochs of the head alone can learn from features that are computed once."""
    changes = config.mix != "none" or config.augment_valid is not None  # of images, batch by batch
    return model.backbone is not None and not changes


def cached_features(learn: FusionLearner, config: TrainConfig) -> CachedFeatures:
    """Return the callback that computes them, in the precision of the run."""
    dtype = getattr(torch, precision(config.precision, learn.dls.device))
    return CachedFeatures(augmentations[config.augment](), config.views, config.seed, dtype)


def highest_lr(learn: FusionLearner, run: Run) -> float:
    """Return the highest learning rate of the head; one that was found holds for a resumed run."""
    if run.config.lr != "auto":
        return run.config.lr
    file = run.path / "checkpoints" / "lr.json"
    if not file.is_file():
        write_json(file, find_lr(learn, starts_frozen(learn, run.config)))
    return json.loads(file.read_text(encoding="utf-8"))


def check_trained(run: Run, best: KeepBest) -> None:
    """Raise `TrainingInterrupted` if no epoch ended."""
    if best.best_epoch < 0:
        raise TrainingInterrupted(
            f"the training stopped before its first epoch ended, so there are no weights to keep. "
            f"Start it again: lesionfast train --resume {run.path}"
        )


@contextmanager
def cleaned_up(learn: FusionLearner, cbs: list[Callback]) -> Iterator[None]:
    """Give back what the callbacks took over, also after an error, where fastai calls no event."""
    try:
        yield
    finally:
        for cb in [*learn.cbs, *cbs]:
            if hasattr(cb, "clean_up"):
                cb.clean_up()


def evaluate(learn: FusionLearner, run: Run, training: dict[str, Any]) -> None:
    """Predict validation and test with the best weights; write predictions and metrics.

    `training` is what `fit` returned.
    """
    with memory_error_explained(run.config), learn.no_bar(), cleaned_up(learn, []):
        predictions = predict_splits(learn, run.config.tta)
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


def predict_splits(learn: FusionLearner, views: int) -> pd.DataFrame:
    """Return one row an image of validation and test, with a column `p_<class>` for each class.

    The probabilities are the mean over the first `views` elements of the dihedral group.
    """
    tables = []
    for index, name in enumerate(PARTS):
        rows = learn.dls.rows[learn.dls.rows["split"] == name].drop(columns="row")
        if name == "train" or rows.empty:
            continue
        found = [learn.get_preds(ds_idx=index, cbs=Turned(view))[0] for view in range(views)]
        probabilities = torch.stack(found).mean(dim=0)
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
