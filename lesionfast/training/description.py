"""What a run says of itself before it starts: model, environment, phases."""

import logging
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lesionfast.config import TrainConfig
from lesionfast.data.encoder import describe_missing
from lesionfast.data.split import PARTS
from lesionfast.diagnoses import Classes, join_names
from lesionfast.manifest import SCHEMA
from lesionfast.models.precision import choose_precision, describe_precision
from lesionfast.runs import Run
from lesionfast.training.callbacks.schedule import Phase
from lesionfast.training.learner import FusionLearner
from lesionfast.training.objective import default_cost, shifting_options

logger = logging.getLogger("lesionfast")

PACKAGES = ("lesionfast", "fastai", "torch", "torchvision", "timm", "numpy", "pandas")


def describe_model(learn: FusionLearner, config: TrainConfig) -> dict[str, Any]:
    """Return what another program needs to build the model and to decide as this run does."""
    names = ("arch", "size", "resize", "fusion", "dropout", "rule", "tta", "metadata_dropout")
    backbone = learn.model.backbone
    classes = Classes.chosen(list(learn.dls.vocab), config.melanoma, config.malignant)
    return {
        "schema": 1,
        **{name: getattr(config, name) for name in names},
        "pool": learn.model.pool_name,
        "metadata": config.metadata_columns,
        "n_metadata": learn.dls.encoder.width,
        "parameters": sum(p.numel() for p in learn.model.parameters()),
        "classes": list(classes),
        "melanoma": classes.melanoma,
        "malignant": classes.malignant,
        "parents": learn.model.parents,
        "prior": learn.prior.tolist(),
        "undo": learn.model.posterior.undo,
        "not_undone": shifting_options(config),
        "weights_origin": "no backbone" if backbone is None else backbone.origin,
    }


def describe_environment(learn: FusionLearner, config: TrainConfig) -> dict[str, Any]:
    """Return start time, versions, device and precision."""
    device = learn.dls.device
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "manifest": SCHEMA,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: installed_version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": choose_precision(config.precision, device),
    }


def announce_gaps(learn: FusionLearner, config: TrainConfig) -> None:
    """Log which images were skipped, and for how many metadata is missing."""
    for name, reason in learn.dls.bad.items():
        logger.info("left out: %s, %s", name, reason)
    for name in config.metadata_columns:
        if missing := int(learn.dls.rows[name].isna().sum()):
            logger.info("%s", describe_missing(name, missing, len(learn.dls.rows)))


def announce_balance(learn: FusionLearner, config: TrainConfig) -> None:
    """Log what class balancing does: rows of each class, rows an epoch, and weights."""
    objective, weight = learn.objective, learn.loss_func.weight
    told = [
        f"{name} {count} to {drawn}" + ("" if weight is None else f", weight {weight[i]:.3g}")
        for i, (name, count, drawn) in enumerate(
            zip(learn.dls.vocab, objective.counts, objective.drawn, strict=True)
        )
    ]
    logger.info("balance %s, rows an epoch: %s", config.balance, "; ".join(told))


def announce_diagnoses(classes: Classes, config: TrainConfig) -> None:
    """Log which classes count as melanoma and as malignant; warn where that looks wrong."""
    malignant = join_names(classes.malignant) or "none"
    logger.info("melanoma: %s; malignant: %s", classes.melanoma or "none", malignant)
    if config.malignant is None and classes.doubtful:
        logger.warning(
            "counted as benign: %s. If one of them is malignant, type --malignant with the names "
            "of all malignant classes, and --melanoma with that of melanoma",
            join_names(classes.doubtful),
        )
    elif config.malignant is None and not classes.malignant:
        logger.warning(
            "no class counts as malignant: %s. If one is, name it with --malignant or --melanoma",
            join_names(classes),
        )


def announce_phases(
    learn: FusionLearner, phases: list[Phase], lrs: list[float], head_lr: float | None
) -> None:
    """Log the epochs, learning rates and trainable parameters of each phase."""
    sizes = [sum(p.numel() for p in group) for group in learn.splitter(learn.model)]
    for phase in phases:
        alone = phase.groups == 1 < len(lrs)
        rates = [head_lr] if alone and head_lr else lrs[-phase.groups :]
        span = f"{rates[0]:.2g} to {rates[-1]:.2g}" if len(rates) > 1 else f"{rates[0]:.2g}"
        logger.info(
            "phase %-20s epochs %d-%d  learning rate %s  %s trainable parameters",
            phase.name,
            phase.first + 1,
            phase.end,
            span,
            f"{sum(sizes[-phase.groups :]):,}",
        )


def installed_version(package: str) -> str:
    """Return the version of a package, also where lesionfast runs from its source alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def images_by_split(learn: FusionLearner) -> str:
    """Return how many images each split has, in words."""
    counts = learn.dls.rows["split"].value_counts()
    return ", ".join(f"{name} {counts.get(name, 0)}" for name in PARTS)


def announce(
    learn: FusionLearner,
    run: Run,
    phases: list[Phase],
    lrs: list[float],
    head_lr: float | None = None,
) -> None:
    """Log what is about to happen: data, model, and the phases with rates and parameters.

    `head_lr` is the rate of the head while it learns alone, if it is another.
    """
    config = run.config
    logger.info("run %s", run.path)
    logger.info("images: %s", images_by_split(learn))
    announce_gaps(learn, config)
    announce_diagnoses(run.classes, config)
    logger.info(
        "model: %s, %d pixels, fusion %s; %s",
        config.arch,
        config.size,
        config.fusion,
        run.model["weights_origin"],
    )
    told = describe_precision(config.precision, learn.dls.device)
    logger.info("device %s: %s", learn.dls.device, told)
    if (
        learn.objective.drawn != learn.objective.counts
    ).any() or learn.loss_func.weight is not None:
        announce_balance(learn, config)
    if config.loss == "asymmetric":
        logger.info("costs, truth:decision: %s", default_cost(config, list(learn.dls.vocab)))
    if shifting := shifting_options(config):
        logger.info("probabilities and decisions are shifted by %s", " and ".join(shifting))
    if config.head != "linear":
        logger.info(
            "head %s: solved once; epochs, rates and augmentation play no part", config.head
        )
    announce_phases(learn, phases, lrs, head_lr)
