"""What a run says about itself: model and environment as JSON, and the log lines of its start."""

import logging
from typing import Any

import torch

from lesionfast.config import TrainConfig
from lesionfast.data.encoder import describe_missing
from lesionfast.data.split import PARTS
from lesionfast.diagnoses import Classes, join_names
from lesionfast.models.backbones import count_parameters
from lesionfast.models.precision import choose_precision, describe_precision
from lesionfast.runs import Run, describe_software
from lesionfast.training.learner import LesionLearner
from lesionfast.training.objective import default_cost, shifting_options

logger = logging.getLogger("lesionfast")


def describe_model(learn: LesionLearner, config: TrainConfig) -> dict[str, Any]:
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
        "parameters": count_parameters(learn.model),
        "classes": list(classes),
        "melanoma": classes.melanoma,
        "malignant": classes.malignant,
        "parents": learn.model.parents,
        "prior": learn.prior.tolist(),
        "undo": learn.model.posterior.undo,
        "not_undone": shifting_options(config),
        "weights_origin": "no backbone" if backbone is None else backbone.origin,
    }


def describe_environment(learn: LesionLearner, config: TrainConfig) -> dict[str, Any]:
    """Return start time, versions, device and precision."""
    device = learn.dls.device
    packages = ("lesionfast", "fastai", "torch", "torchvision", "timm", "numpy", "pandas")
    return {
        **describe_software(*packages),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": choose_precision(config.precision, device),
    }


def announce(learn: LesionLearner, run: Run) -> None:
    """Log what is about to be trained: images, classes, model, device and objective."""
    config, device = run.config, learn.dls.device
    logger.info("run %s", run.path)
    logger.info("images: %s", count_images(learn))
    for name, reason in learn.dls.bad.items():
        logger.info("skipped image %s: %s", name, reason)
    for name in config.metadata_columns:
        if missing := int(learn.dls.rows[name].isna().sum()):
            logger.info("%s", describe_missing(name, missing, len(learn.dls.rows)))
    announce_classes(run.classes, config)
    logger.info(
        "model: %s, %d pixels, fusion %s; %s",
        *(config.arch, config.size, config.fusion, run.model["weights_origin"]),
    )
    logger.info("device %s: %s", device, describe_precision(config.precision, device))
    announce_balance(learn, config)
    if config.loss == "asymmetric":
        logger.info("costs (truth:decision): %s", default_cost(config, list(learn.dls.vocab)))
    if shifting := shifting_options(config):
        logger.info("these options shift probabilities and decisions: %s", " and ".join(shifting))
    if config.head != "linear":
        logger.info(
            "head %s: solved in one step; epochs, learning rates and augmentation have no effect",
            config.head,
        )


def count_images(learn: LesionLearner) -> str:
    """Return how many images each split has, as "train 350, valid 75, test 75"."""
    counts = learn.dls.rows["split"].value_counts()
    return ", ".join(f"{name} {counts.get(name, 0)}" for name in PARTS)


def announce_classes(classes: Classes, config: TrainConfig) -> None:
    """Log which classes count as melanoma and as malignant; warn where that looks wrong."""
    malignant = join_names(classes.malignant) or "none"
    logger.info("melanoma: %s; malignant: %s", classes.melanoma or "none", malignant)
    if config.malignant is None and classes.doubtful:
        logger.warning(
            "these classes count as benign: %s. If one of them is malignant, list all malignant "
            "classes with --malignant, and name the class of melanoma with --melanoma",
            join_names(classes.doubtful),
        )
    elif config.malignant is None and not classes.malignant:
        logger.warning(
            "no class counts as malignant: %s. If one is malignant, name it with --malignant or "
            "--melanoma",
            join_names(classes),
        )


def announce_balance(learn: LesionLearner, config: TrainConfig) -> None:
    """Log the rows, rows per epoch and weight of each class where balancing changes them."""
    counts, drawn = learn.objective.counts, learn.objective.drawn
    weight = learn.loss_func.weight
    if weight is None and (drawn == counts).all():
        return
    weights = [""] * len(counts) if weight is None else [f", weight {w:.3g}" for w in weight]
    classes = zip(learn.dls.vocab, counts, drawn, weights, strict=True)
    logger.info(
        "balance %s, training rows and rows per epoch: %s",
        config.balance,
        "; ".join(f"{name} {count} to {n}{weight}" for name, count, n, weight in classes),
    )
