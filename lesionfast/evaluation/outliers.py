"""The OOD score of a run: fitted on its images, kept in a file, read, given for its images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from lesionfast.data.images import is_cached, open_dataset_images, open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import shell_quote
from lesionfast.evaluation.features import featured_run, read_features
from lesionfast.files import check_shape, damage_explained, parse_json
from lesionfast.run import Run
from lesionfast.stats.ood import Distance, NeighbourScorer, OODScorer, Scorer

MOST_FEATURES = 20_000  # training images of which the features are used
MOST_PICTURES = 2_000  # of which the pixels are, of training and of validation each
SPREAD = {"centre": float, "spread": float}
NUMBERS = {"level": float, "threshold": float}
SHAPE = (
    {"method": "mahalanobis", **NUMBERS, "features": SPREAD, "texture": SPREAD},
    {"method": "knn", **NUMBERS},  # of earlier versions
)


def fit_ood(run: Run) -> OODScorer:
    """Return the OOD score; raises `LesionfastError` without features, or with data elsewhere.

    That of an ensemble is that of the first of its models that sees images, fitted on the training
    and validation images of that. Of many images some are drawn at random.
    """
    run = featured_run(run)
    features = read_features(run)
    df = load_dataset(run.config, split=run.file("split.csv"))
    df = df[df["image_id"].isin(features.index)].reset_index(drop=True)
    train = draw(df[df["split"] == "train"], MOST_FEATURES)
    valid = draw(df[df["split"] == "valid"], MOST_PICTURES)
    pixels = open_some(run, df, pd.concat([train[:MOST_PICTURES], valid]))
    n = len(pixels) - len(valid)
    known = (features.loc[rows["image_id"]].to_numpy() for rows in (train, valid))
    return OODScorer.fit(*known, pixels[:n], pixels[n:])


def draw(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the rows in random order, at most so many."""
    return rows.sample(min(most, len(rows)), random_state=0)


def open_some(run: Run, df: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Return the pixels of some rows of a dataset as the model of a run sees them.

    They are read from the cache if the whole dataset is there, and else decoded.
    """
    config = run.config
    if config.cache and is_cached(df["path"].tolist(), config.size, config.resize):
        return open_dataset_images(df, config).pixels[rows.index.to_numpy()]
    paths = rows["path"].tolist()
    return open_images(paths, config.size, resize=config.resize, cache=False).pixels


def score_images(run: Run, scorer: Scorer, df: pd.DataFrame, image_ids: pd.Series) -> pd.Series:
    """Return the OOD scores of images of a run's dataset, as far as it keeps their features.

    The index is that of `image_ids`. Raises `LesionfastError` without features or images.
    """
    run = featured_run(run)
    features = read_features(run)
    image_ids = image_ids[image_ids.isin(features.index)]
    df = df[df["image_id"].isin(features.index)].reset_index(drop=True)
    places = pd.Series(df.index, index=df["image_id"])
    pixels = open_some(run, df, df.loc[places.loc[image_ids]])
    return pd.Series(scorer.score(features.loc[image_ids].to_numpy(), pixels), image_ids.index)


def save_ood(scorer: Scorer, path: Path) -> None:
    """Write an OOD score as safetensors."""
    about: dict[str, Any] = {"level": scorer.level, "threshold": scorer.threshold}
    if isinstance(scorer, NeighbourScorer):
        about |= {"method": "knn"}
        tensors = {"train": scorer.train.astype(np.float16)}
    else:
        about |= {"method": "mahalanobis"}
        for name, distance in scorer.parts.items():
            about[name] = {key: getattr(distance, key) for key in SPREAD}
        tensors = scorer.tensors
    save_file(tensors, path, {"outliers": json.dumps(about)})


def load_ood(path: Path) -> Scorer:
    """Read what `save_ood` wrote, into a run or an export; raises `DamageError`."""
    again = f"lesionfast interpret {shell_quote(path.parent)}"
    advice = f"If it is in a run: {again}; else copy it again."
    with damage_explained(path, advice), safe_open(path, framework="np") as file:
        about = parse_json(file.metadata()["outliers"])
        check_shape(about, SHAPE)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        numbers = {name: about[name] for name in NUMBERS}
        if about["method"] == "knn":
            scorer = NeighbourScorer(tensors["train"].astype(np.float32), **numbers)
            scorer.score(np.zeros((1, scorer.width), np.float32))  # it has the right form
            return scorer
        parts = {
            name: Distance(tensors[f"{name}_mean"], tensors[f"{name}_whitening"], **about[name])
            for name in ("features", "texture")
        }
        for part in parts.values():
            part.measure(np.zeros((1, len(part.mean)), np.float32))
        return OODScorer(**parts, **numbers)
