"""The fit of a run, in phases, and the predictions that follow it."""

import logging
from dataclasses import dataclass
from typing import Any

import pandas as pd
from fastai.callback.core import Callback

from lesionfast.config import TrainConfig
from lesionfast.data.augment import build_recipe
from lesionfast.errors import TrainingInterrupted, shell_quote
from lesionfast.files import read_json
from lesionfast.models.archs import find_arch
from lesionfast.models.fusion import FusionModel, stage_groups
from lesionfast.models.lineage import lineage_header
from lesionfast.run import Run
from lesionfast.training.callbacks.cached_features import CachedFeatures
from lesionfast.training.callbacks.distribution import distribution_callbacks
from lesionfast.training.callbacks.inference import AugmentValid
from lesionfast.training.callbacks.progress import EpochBar, EpochLines, StopOnInterrupt
from lesionfast.training.callbacks.regularization import EMA
from lesionfast.training.callbacks.schedule import (
    OneCycle,
    Phase,
    ProgressiveResizing,
    ProgressiveUnfreezing,
    discriminative_lrs,
    plan_phases,
)
from lesionfast.training.callbacks.tracking import (
    Checkpoint,
    EarlyStopping,
    KeepBest,
    StopOnNaN,
    WriteHistory,
)
from lesionfast.training.learner import LesionLearner, find_lr
from lesionfast.training.processes import as_first, gather
from lesionfast.training.record import CHECKPOINT, LR, memory_error_explained

logger = logging.getLogger("lesionfast")

TRAINED = 3  # stages of a pretrained backbone
FAR = 0.05  # in balanced accuracy, between the best epoch and the one that was kept


@dataclass(frozen=True)
class Plan:
    """How a training unfreezes the `n_groups` parameter groups of a model, and in which phases."""

    unfreeze: str
    phases: list[Phase]
    n_groups: int

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.phases[-1].end

    @property
    def starts_frozen(self) -> bool:
        """Whether the first phase trains only a part of the model."""
        return self.phases[0].groups < self.n_groups


def plan_training(model: FusionModel, config: TrainConfig) -> Plan:
    """Return the plan of a training; `--unfreeze auto` is fresh:3 if pretrained, else none.

    The first stages see the most pixels: without them a step takes less than half of the time.
    Backbones that are not of torchvision, timm or a hub train all stages (fresh). Raises
    `LesionfastError` if --unfreeze does not fit the model.
    """
    how, n_groups = config.unfreeze, len(stage_groups(model))
    if how == "auto":
        own = find_arch(config.arch)[0] == "lesionfast"
        trained = "fresh" if own else f"fresh:{min(TRAINED, n_groups - 1)}"
        how = trained if model.backbone is not None and model.backbone.pretrained else "none"
    epochs = (config.epochs if how != "head" else 0) + (config.head_epochs if how != "none" else 0)
    return Plan(how, plan_phases(how, n_groups, epochs, config.head_epochs), n_groups)


def fit(learn: LesionLearner, run: Run, resume: bool = False) -> dict[str, Any]:
    """Train in phases, with `resume` from the run's checkpoint; return what metrics.json records.

    Writes history.csv and weights.safetensors: the weights of the last epoch, or of the best one
    by the `monitor`. Raises `TrainingInterrupted` if it is stopped before its first epoch ended.
    """
    config, plan = run.config, plan_training(learn.model, run.config)
    lrs = discriminative_lrs(highest_lr(learn, run), config.lr_decay, plan.n_groups)
    one_cycle = OneCycle(lrs, head_lr=None if config.lr == "auto" else config.head_lr)
    announce_phases(learn, plan, lrs, one_cycle.head_lr)
    cbs = [
        ProgressiveUnfreezing(plan.unfreeze, config.head_epochs),
        one_cycle,
        Checkpoint(run.path / CHECKPOINT, resume),
        *optional_callbacks(learn, config),
    ]
    again = f"lesionfast train --resume {shell_quote(run.path)}"
    best, training = run_epochs(learn, run, config, plan.epochs, lrs, cbs, again)
    learn.apply_objective.set_epoch(best.best_epoch)  # it may be before the class weights came on
    announce_kept(Run(run.path).history.set_index("epoch"), best.best_epoch + 1)
    return training


def run_epochs(
    learn: LesionLearner,
    run: Run,
    config: TrainConfig,
    epochs: int,
    lrs: list[float],
    cbs: list[Callback],
    again: str,
) -> tuple[KeepBest, dict[str, Any]]:
    """Fit; log and write each epoch, keep the best weights, and stop on NaN, patience or Ctrl-C.

    `again` is the command that starts it again. Returns the callback that kept the weights, and
    what metrics.json records. Raises `TrainingInterrupted` if no epoch ended.
    """
    interrupt, lines = StopOnInterrupt(), EpochLines()
    header = lineage_header(learn.dls.split, config.arch, config.weights, config.teacher)
    best = KeepBest(config.monitor, run.path / "weights.safetensors", header)
    history = WriteHistory(run.path / "history.csv")
    cbs = [
        *cbs,
        *distribution_callbacks(),
        StopOnNaN(),
        history,
        EpochBar(),
        interrupt,
        best,
        lines,
    ]
    if config.monitor and config.patience:  # without a monitor a cycle runs to its end
        cbs.append(EarlyStopping(config.monitor, config.patience))
    with memory_error_explained(config), learn.no_bar(), learn.no_logging():
        learn.fit(epochs, lrs, cbs=cbs)
    if best.best_epoch < 0:
        raise TrainingInterrupted(
            "the training stopped before its first epoch ended, so there are no weights to keep. "
            f"Start it again: {again}"
        )
    return best, {
        "train_seconds": round(lines.train_seconds, 2),
        "images_per_second": round(lines.images_per_second, 2),
        "best_epoch": best.best_epoch + 1,
        "status": "interrupted" if any(gather(interrupt.interrupted)) else "finished",
    }


def optional_callbacks(learn: LesionLearner, config: TrainConfig) -> list[Callback]:
    """Return the callbacks that options ask for."""
    cbs: list[Callback] = []
    if config.ema:
        cbs.append(EMA(config.ema))
    if caches_features(learn.model, config):
        grows = config.start_size is not None  # then no feature map can be computed once
        recipe = build_recipe(config.augment)
        how = (config.views, config.seed, config.precision)
        cbs.append(CachedFeatures(recipe, *how, maps=not grows))
    if config.augment_valid is not None:
        cbs.append(AugmentValid(build_recipe(config.augment), config.augment_valid))
    if config.start_size:
        cbs.append(ProgressiveResizing(config.start_size))
    return cbs


def caches_features(model: FusionModel, config: TrainConfig) -> bool:
    """Return whether epochs of the head alone can learn from features that are computed once."""
    changes = config.mix != "none" or config.augment_valid is not None  # of images, batch by batch
    return model.backbone is not None and not changes


def highest_lr(learn: LesionLearner, run: Run) -> float:
    """Return the peak learning rate of the head; a resumed run keeps the one that was found."""
    if run.config.lr != "auto":
        return run.config.lr
    if not run.holds(LR):
        starts_frozen = plan_training(learn.model, run.config).starts_frozen
        run.write_json(LR, as_first(find_lr(learn, starts_frozen)))
    return read_json(run.file(LR), float, run.remedy(LR))


def announce_phases(
    learn: LesionLearner, plan: Plan, lrs: list[float], head_lr: float | None
) -> None:
    """Log the epochs, learning rates and trainable parameters of each phase."""
    sizes = [sum(p.numel() for p in group) for group in learn.splitter(learn.model)]
    for phase in plan.phases:
        alone = phase.groups == 1 < len(lrs)
        rates = [head_lr] if alone and head_lr else lrs[-phase.groups :]
        span = f"{rates[0]:.2g} to {rates[-1]:.2g}" if len(rates) > 1 else f"{rates[0]:.2g}"
        trainable = f"{sum(sizes[-phase.groups :]):,}"
        logger.info(
            "phase %-20s epochs %d-%d  learning rate %s  %s trainable parameters",
            *(phase.name, phase.first + 1, phase.end, span, trainable),
        )


def announce_kept(history: pd.DataFrame, epoch: int) -> None:
    """Log which epoch was kept, and warn if another was far better on validation."""
    logger.info("kept the weights of epoch %d, phase %s", epoch, history["phase"][epoch])
    if "balanced_accuracy" not in history:
        return
    scores = history["balanced_accuracy"]
    if scores.max() - scores[epoch] >= FAR:
        logger.warning(
            "epoch %d had a validation balanced accuracy of %.3f, but the kept epoch %d has %.3f. "
            "Train longer (--epochs), or keep the best epoch with --monitor balanced_accuracy",
            *(scores.idxmax(), scores.max(), epoch, scores[epoch]),
        )


def best_epoch(history: pd.DataFrame, monitor: str | None) -> int:
    """Return the epoch whose weights a training has kept: the last, or the best by `monitor`."""
    if monitor is None:
        return int(history["epoch"].iloc[-1])
    column = history[monitor]
    best = column.idxmin() if monitor.endswith("loss") else column.idxmax()
    return int(history["epoch"][best])
