"""What a trained Learner predicts of validation and test: predictions, features and metrics."""

import logging
import shutil
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
from lesionfast.runs import Run
from lesionfast.training.callbacks import Turned
from lesionfast.training.fitting import LR, memory_error_explained
from lesionfast.training.learner import FusionLearner

logger = logging.getLogger("lesionfast")


def evaluate(learn: FusionLearner, run: Run, training: dict[str, Any]) -> None:
    """Predict validation and test with the weights that were kept.

    Writes predictions, features and metrics. `training` is what `fit` returned.
    """
    logger.info("predicting validation and test images, %d views of each", run.config.tta)
    with memory_error_explained(run.config), learn.no_bar():
        predictions = predict_splits(learn, run.config.tta)
        keep_features(learn, run)
    run.write("predictions.csv", lambda aside: predictions.to_csv(aside, index=False))
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
    classes = list(learn.dls.vocab)
    truth = predictions["target"].map(classes.index).to_numpy()
    probabilities = predictions[[f"p_{each}" for each in classes]].to_numpy()
    return summarize(truth, probabilities, classes, learn.balance.prior)
