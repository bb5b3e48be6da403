"""How unlike a run's training images any image is, by the features of its backbone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import keep
from lesionfast.evaluation.explain import dataset_features
from lesionfast.models.features import Features
from lesionfast.models.fusion import FusionModel, load_model
from lesionfast.runs import Run
from lesionfast.stats.ood import LEVEL, METHOD, OUTLIERS, OutlierScorer


def fit_outliers(run: Run, method: str = METHOD, level: float = LEVEL) -> OutlierScorer:
    """Learn what a run's training images look like, and keep it in the run.

    The threshold is from the validation images; test images are not looked at. Raises
    `LesionfastError` for a model without a backbone.
    """
    model_of(run)
    df = load_dataset(run.config, split=run.file("split.csv"))
    features = dataset_features(run, df)
    scorer = OutlierScorer.fit_split(df, features, method=method, level=level)
    keep(run, lambda: run.write(OUTLIERS, scorer.save))
    return scorer


def outlier_scores(run: Run, images: Sequence[str | Path] | np.ndarray) -> np.ndarray:
    """Return how unlike the run's training images each image is, float64 (n,).

    `images` are files, or pixels uint8 (n, H, W, 3) as the run's own size and resize would give
    them. Compare with the `threshold` of `OutlierScorer.load(run.path / "outliers.safetensors")`;
    it is fitted if it is not there yet.
    """
    scorer = OutlierScorer.load(run.file(OUTLIERS)) if run.holds(OUTLIERS) else fit_outliers(run)
    return scorer.score(features_of(run, images))


def features_of(run: Run, images: Sequence[str | Path] | np.ndarray) -> np.ndarray:
    """Return the pooled features float32 (n, F) of files or pixels uint8 (n, H, W, 3)."""
    if not isinstance(images, np.ndarray):
        size, resize = run.config.size, run.config.resize
        images = open_images(list(images), size, resize=resize, cache=False).pixels
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise LesionfastError(
            f"pixels must be uint8 (images, height, width, 3); found {images.dtype} "
            f"{images.shape}. Pass such an array, or paths of files."
        )
    if not len(images):
        raise LesionfastError("there are no images to look at. Pass one or more.")
    return Features(model_of(run), images).compute(np.arange(len(images)))


def model_of(run: Run) -> FusionModel:
    """Return the model of a run; raises `LesionfastError` if it looks at no image."""
    model = load_model(run)
    if model.backbone is None:
        raise LesionfastError(
            f"{run.path} looks at no image (fusion 'metadata'), so none is unlike the others. "
            "Name a run with a backbone."
        )
    return model
