"""What a trained Learner predicts of validation and test: predictions, features and metrics."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pandas as pd
import torch

from lesionfast.console import counting_bar
from lesionfast.data.splits import PARTS
from lesionfast.evaluation.features import write_features
from lesionfast.evaluation.metrics import summarize
from lesionfast.files import sha256
from lesionfast.models.features import image_features
from lesionfast.models.precision import dtype_of
from lesionfast.runs import WITHOUT_METADATA, Run
from lesionfast.training.callbacks import PredictWithoutMetadata, Turned
from lesionfast.training.fitting import LR, memory_error_explained
from lesionfast.training.learner import FusionLearner

logger = logging.getLogger("lesionfast")


def evaluate(learn: FusionLearner, run: Run, training: dict[str, Any]) -> None:
    """Predict validation and test with the weights that were kept.

    Writes predictions, features and metrics. `training` is what `fit` returned.
    """
    logger.info("predicting validation and test images, %d views of each", run.config.tta)
    with memory_error_explained(run.config), learn.no_bar(), same_weights(learn):
        predictions, without = predict_splits(learn, run.config.tta)
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


def same_weights(learn: FusionLearner) -> AbstractContextManager[None]:
    """Return a context in which the model is made for inference once, and not for each view."""
    fast = getattr(learn, "fast_inference", None)  # none where the model is compiled
    return fast.same_weights() if fast else nullcontext()


def predict_splits(learn: FusionLearner, views: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row an image of validation and test, with a column `p_<class>` for each class.

    The probabilities are the mean over the first `views` elements of the dihedral group. The second
    table has those of the same views with all metadata withheld.
    """
    known, unknown = [], []
    for index, name in enumerate(PARTS):
        rows = learn.dls.rows[learn.dls.rows["split"] == name].drop(columns="row")
        if name == "train" or rows.empty:
            continue
        found = [predict_view(learn, index, view) for view in range(views)]
        first, second = (torch.stack(each).mean(dim=0) for each in zip(*found, strict=True))
        known.append(with_scores(rows, first, learn.dls.vocab))
        keys = rows[["image_id", "target", "group", "split"]]
        unknown.append(with_scores(keys, second, learn.dls.vocab))
    return pd.concat(known, ignore_index=True), pd.concat(unknown, ignore_index=True)


def predict_view(learn: FusionLearner, index: int, view: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities (n, k) of a part's images in one view, with and without metadata."""
    twice = PredictWithoutMetadata(learn.dls.encoder.unknown)
    return learn.get_preds(ds_idx=index, cbs=[Turned(view), twice])[0], torch.cat(twice.found)


def with_scores(
    rows: pd.DataFrame, probabilities: torch.Tensor, classes: Sequence[str]
) -> pd.DataFrame:
    """Return rows (n) with their probabilities (n, k) as columns."""
    columns = [f"p_{each}" for each in classes]
    scores = pd.DataFrame(probabilities.numpy().astype(float), rows.index, columns)
    return pd.concat([rows, scores], axis=1)


def keep_features(learn: FusionLearner, run: Run) -> None:
    """Keep the image features of all parts, from which pictures and outliers are found later."""
    if learn.model.backbone is None:
        return
    dtype = dtype_of(run.config.precision, learn.dls.device)
    rows = learn.dls.rows
    with counting_bar("features of the images") as progress:
        features = image_features(
            learn.model, learn.dls.pixels, rows["row"].to_numpy(), progress, dtype=dtype
        )
    write_features(run, rows["image_id"].tolist(), features)


def summary(learn: FusionLearner, predictions: pd.DataFrame) -> dict[str, Any]:
    """Return the metrics of one split's predictions."""
    classes = learn.classes
    truth = predictions["target"].map(classes.index).to_numpy()
    probabilities = predictions[[f"p_{each}" for each in classes]].to_numpy()
    return summarize(truth, probabilities, classes, learn.balance.prior)
