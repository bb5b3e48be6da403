"""What a Learner writes into a run, and says about it: model, environment, predictions, metrics."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner

from lesionfast.config import TrainConfig
from lesionfast.console import counting_bar
from lesionfast.data.corrections.applying import (
    ORIGINAL,
    Effect,
    describe_effect,
    held_out,
    is_corrected,
    kept_data,
    restore,
)
from lesionfast.data.encoder import describe_missing
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import PARTS, format_split
from lesionfast.diagnoses import Classes, join_names, probability_columns, quote
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.evaluation.features import write_features
from lesionfast.evaluation.labelling.corrected import record_corrections
from lesionfast.evaluation.melanoma import announce_melanomas, settle_rule
from lesionfast.files import sha256, sha256_once, write_csv
from lesionfast.models.backbones import count_parameters
from lesionfast.models.features import FeatureEngine, Features
from lesionfast.models.fusion import REGISTRIES
from lesionfast.models.inference import TorchEngine
from lesionfast.models.lineage import lineage_header
from lesionfast.models.precision import choose_precision, describe_precision
from lesionfast.run import CORRECTIONS, UNCORRECTED, WITHOUT_METADATA, Run, describe_software
from lesionfast.training.callbacks.tracking import history_header, history_line, save_tensors
from lesionfast.training.objective import default_cost, shifting_options
from lesionfast.training.processes import gather, process

logger = logging.getLogger("lesionfast")

CHECKPOINT = "checkpoints/last.safetensors"
LR = "checkpoints/lr.json"  # of --lr auto, for a resumed training


def write_run(learn: Learner, path: str | Path, epochs: Sequence[str], seconds: float) -> Run:
    """Return a new run of a Learner that was trained by hand; see `Run.from_learner`.

    `epochs` are the lines of its history, `seconds` is how long they took.
    """
    if not isinstance(learn.dls, LesionDataLoaders):
        raise LesionfastError(
            "a run keeps the split and the metadata of its data, which only LesionDataLoaders "
            "know. Make them with LesionDataLoaders.from_df(df)."
        )
    if not len(learn.dls.split):
        raise LesionfastError(
            "this Learner was exported without its data, and a run keeps predictions of it. Make "
            "the run from the Learner that was trained."
        )
    path = Path(path)
    run = Run.create(path.parent, learn.config, path.name)
    write_preparation(learn, run)
    options = learn.config
    header = lineage_header(learn.dls.split, options.arch, options.weights, options.teacher)
    run.write(
        "weights.safetensors",
        lambda aside: save_tensors(learn.model.state_dict(), aside, header),
    )
    if not epochs:
        with learn.no_bar():
            values = [float("nan"), *learn.validate()]
        epochs = [history_line(0, "not trained by fit", None, values)]
    run.write_text("history.csv", "\n".join([history_header(learn), *epochs]) + "\n")
    training = {"train_seconds": round(seconds, 2), "best_epoch": len(epochs), "status": "finished"}
    evaluate(learn, run, training)
    return Run(run.path)


def write_preparation(learn: Learner, run: Run) -> None:
    """Write what is fixed before the first step: split, encoder, environment and model."""
    keep_corrections(run, learn.dls.split)
    run.write_text("split.csv", format_split(learn.dls.split))
    run.write_text("encoder.json", learn.dls.encoder.to_json())
    run.write_json("environment.json", describe_environment(learn, run.config))
    run.write_json("model.json", describe_model(learn, run.config))


def keep_corrections(run: Run, df: pd.DataFrame) -> None:
    """Keep the corrections of a table in a run, as they were read."""
    if data := kept_data(df):
        run.write(CORRECTIONS, lambda aside: aside.write_bytes(data))


def describe_model(learn: Learner, config: TrainConfig) -> dict[str, Any]:
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
        **({"arch_config": backbone.arch_config} if backbone and backbone.arch_config else {}),
        **describe_registered(config),
    }


def describe_registered(config: TrainConfig) -> dict[str, Any]:
    """Return the modules that registered what the options name, and digests of their source."""
    names = {option: getattr(config, option) for option in REGISTRIES}
    modules = {option: REGISTRIES[option].modules.get(name) for option, name in names.items()}
    registered = {option: module for option, module in modules.items() if module}
    digests = {option: REGISTRIES[option].digests[names[option]] for option in registered}
    return {"registered": registered, "registered_digest": digests} if registered else {}


def describe_environment(learn: Learner, config: TrainConfig) -> dict[str, Any]:
    """Return start time, versions, device and precision."""
    device = learn.dls.device
    packages = ("lesionfast", "fastai", "torch", "torchvision", "timm", "numpy", "pandas")
    return {
        **describe_software(*packages),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": process.size,
        "precision": choose_precision(config.precision, device),
        **({"teacher_sha256": hash_teacher(config.teacher)} if config.teacher else {}),
    }


def hash_teacher(teacher: str | Path) -> str | None:
    """Return the SHA-256 of what a teacher predicts, which a student's targets are made of."""
    return sha256_once(Path(teacher) / "predictions.csv")


def announce(learn: Learner, run: Run) -> None:
    """Log what is about to be trained: images, classes, model, device and objective."""
    config, device = run.config, learn.dls.device
    logger.info("run %s", run.path)
    logger.info("images: %s", count_images(learn))
    if is_corrected(learn.dls.split):
        told = describe_effect(learn.dls.split)
        logger.info(
            "corrections %s (sha256 %s): %s",
            told["file"],
            told["sha256"],
            Effect.of(learn.dls.split),
        )
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
    if process.size > 1:
        logger.info("%d processes share the %d images of a step", process.size, learn.dls.train.bs)
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


def count_images(learn: Learner) -> str:
    """Return how many images each split has, as "train 350, valid 75, test 75"."""
    counts = learn.dls.rows["split"].value_counts()
    return ", ".join(f"{name} {counts.get(name, 0)}" for name in PARTS)


def announce_classes(classes: Classes, config: TrainConfig) -> None:
    """Log which classes count as melanoma and as malignant; warn where that looks wrong."""
    malignant = join_names(classes.malignant) or "none"
    logger.info("melanoma: %s; malignant: %s", classes.melanoma or "none", malignant)
    if config.melanoma is None and (others := classes.other_melanomas):
        logger.warning(
            "these classes are melanoma too: %s. They count as malignant, but %s. To make them one "
            "class, type --map %s for each",
            join_names(others),
            f"the metrics of melanoma are those of '{classes.melanoma}' alone"
            if classes.melanoma
            else "without one of them in --melanoma there are no metrics of melanoma",
            shell_quote(f"{quote(others[0])}={quote(classes.melanoma or 'melanoma')}"),
        )
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


def announce_balance(learn: Learner, config: TrainConfig) -> None:
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


@contextmanager
def memory_error_explained(config: TrainConfig) -> Iterator[None]:
    """Turn the GPU's out-of-memory error into one that suggests a batch size."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise LesionfastError(
            f"the device ran out of memory with {config.batch_size} images of {config.size} pixels "
            f"per step. Type --batch-size {max(1, config.batch_size // 2)}, or a smaller --size."
        ) from None


def evaluate(learn: Learner, run: Run, training: dict[str, Any]) -> None:
    """Predict validation and test with the weights that were kept.

    Writes predictions, features and metrics. `training` is what `fit` returned.
    """
    logger.info("predicting validation and test images, %d views of each", run.config.tta)
    with memory_error_explained(run.config):
        everything, without, seen = predict_splits(learn, run.config)
        keep_features(learn, run, seen)
    predictions = keep_predictions(run, everything)
    read = settle_rule(run, predictions)
    learn.decision_rule = run.decision_rule
    if run.model["metadata"] and run.model["fusion"] != "none":
        run.write(WITHOUT_METADATA, partial(write_csv, without))
    run.manifest.record("history.csv", "weights.safetensors")  # the epochs wrote them
    run.write_json(
        "metrics.json",
        {
            "split_sha256": sha256(run.path / "split.csv"),
            **training,
            **{name: one.metrics for name, one in read.items()},
            **(record_corrections(run, learn.dls.split) if is_corrected(learn.dls.split) else {}),
        },
    )
    announce_melanomas(read)
    if training["status"] == "finished":
        run.remove(LR)
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def predict_splits(
    learn: Learner, config: TrainConfig
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, np.ndarray]]:
    """Return one row per image of validation and test, with a column `p_<class>` for each class.

    Images that corrections leave out of them are among the rows.

    The second table has the probabilities of the same views with all metadata withheld; then come
    the image features (n, F) of each split.
    """
    dls, complete, withheld, seen = learn.dls, [], [], {}
    kept = config.keeps_backbone and learn.model.backbone is not None
    build = FeatureEngine if kept else TorchEngine
    engine = build(learn.model, views=config.tta, precision=config.precision)
    for split in PARTS[1:]:
        rows = held_out(dls.rows, split).copy()
        if rows.empty:
            continue
        metadata = dls.encoder.transform(rows)
        unknown = np.tile(dls.encoder.unknown, (len(rows), 1))
        positions = rows.pop("row").to_numpy()
        (first, second), features = shared(engine, dls.pixels, positions, metadata, unknown)
        measured = (rows["split"] == split).to_numpy()
        seen[split] = features[measured]
        complete.append(with_scores(rows, first, dls.vocab))
        keys = rows[["image_id", "target", "group", "split"]]
        withheld.append(with_scores(keys, second, dls.vocab)[measured])
    tables = (pd.concat(parts, ignore_index=True) for parts in (complete, withheld))
    return *tables, seen


def keep_predictions(run: Run, everything: pd.DataFrame) -> pd.DataFrame:
    """Write the predictions of held-out images, and return them.

    After corrections these are without what is left out, and a second file has all of them with
    their original labels and lesions.
    """
    predictions = everything
    if is_corrected(everything):
        whole = restore(everything)
        run.write(UNCORRECTED, partial(write_csv, whole))
        measured = everything["split"].isin(PARTS)
        dropped = [ORIGINAL["group"], ORIGINAL["split"]]
        predictions = everything[measured].drop(columns=dropped).reset_index(drop=True)
    run.write("predictions.csv", partial(write_csv, predictions))
    return predictions


def shared(
    engine: TorchEngine, pixels: np.ndarray, positions: np.ndarray, *metadata: np.ndarray
) -> Any:
    """Return what an engine finds of the images at positions (n,); each process runs its share."""
    if len(positions) < process.size or isinstance(engine, FeatureEngine):
        return engine.run(pixels, positions, *metadata)
    own = process.share("rows").of_epoch(len(positions))
    found = engine.run(pixels, positions[own], *(table[own] for table in metadata))
    probabilities, features = zip(*gather(found), strict=True)
    joined = [np.concatenate(parts) for parts in zip(*probabilities, strict=True)]
    return joined, None if features[0] is None else np.concatenate(features)


def with_scores(
    rows: pd.DataFrame, probabilities: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """Return rows (n) with their probabilities (n, k) as columns."""
    columns = probability_columns(classes)
    scores = pd.DataFrame(probabilities.astype(float), rows.index, columns)
    return pd.concat([rows, scores], axis=1)


def keep_features(learn: Learner, run: Run, seen: dict[str, np.ndarray]) -> None:
    """Keep the image features of all splits, for similar images and OOD scores later.

    Those of the splits that were predicted are `seen`, so only the training images are run.
    """
    if learn.model.backbone is None:
        return
    images = learn.dls.rows.groupby("split")
    with counting_bar("features of the training images") as progress:
        source = Features(learn.model, learn.dls.pixels, run.config.precision)
        rows = images.get_group("train")["row"].to_numpy()
        if run.config.keeps_backbone:
            seen = seen | {"train": source.kept(rows, progress)}
        else:
            own = rows[process.share("rows").of_epoch(len(rows))]
            seen = seen | {"train": np.concatenate(gather(source.compute(own, progress)))}
    names = [name for split in seen for name in images.get_group(split)["image_id"]]
    write_features(run, names, np.concatenate(list(seen.values())))
