"""Image features: kept in a run, read, computed where they are missing; lesions nearest by them.

Torch is imported only where the backbone has to run.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from lesionfast.console import counting_bar
from lesionfast.data.images import open_dataset_images, open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import DamageError, LesionfastError, did_you_mean, shell_quote
from lesionfast.files import damage_explained, parse_json
from lesionfast.run import FEATURES, Run, list_runs_of
from lesionfast.stats.ood import unit

COLUMNS = ["image_id", "group", "target", "similarity", "path", "age", "sex", "localization"]


def write_features(run: Run, image_ids: list[str], features: np.ndarray) -> None:
    """Keep the pooled image features (n, F) of a run, as float16 if none is too large for it."""
    header = {"image_ids": json.dumps(image_ids)}
    fits = np.abs(features).max(initial=0) <= np.finfo(np.float16).max
    kept = np.ascontiguousarray(features, np.float16 if fits else np.float32)
    run.write(FEATURES, lambda aside: save_file({"features": kept}, aside, header))


def featured_run(run: Run) -> Run:
    """Return the run whose image features stand for those of a run.

    It is the run itself; of an ensemble, the first of its models that sees images. Raises
    `DamageError` if members of an ensemble are missing.
    """
    if run.holds(FEATURES) or not run.holds("model.json"):
        return run
    leaves = list_runs_of(run)
    seeing = (leaf for leaf in leaves if leaf.model.get("fusion") not in (None, "metadata"))
    return next(seeing, leaves[0])


def keeps_features(run: Run) -> bool:
    """Return whether image features were kept with a run, or with a member of an ensemble."""
    try:
        return featured_run(run).holds(FEATURES)
    except DamageError:  # members are elsewhere
        return False


def read_features(run: Run) -> pd.DataFrame:
    """Return the features of a run's images, float32, one row an image, by image id.

    Those of an ensemble are those of `featured_run`. Raises `LesionfastError` if none were kept (a
    run without a backbone, an old run).
    """
    run = featured_run(run)
    if not run.holds(FEATURES):
        raise LesionfastError(
            f"{run.path} has no {FEATURES}: it is a model without an image, or a run "
            "of an early version. Train it again: "
            f"lesionfast train --config {shell_quote(run.path / 'config.json')}"
        )
    path = run.file(FEATURES)
    with damage_explained(path, run.remedy(FEATURES)), safe_open(path, framework="np") as file:
        ids = parse_json(file.metadata()["image_ids"])
        features = file.get_tensor("features").astype(np.float32)
        return pd.DataFrame(features, index=pd.Index(ids, name="image_id"))


def dataset_features(run: Run, df: pd.DataFrame) -> pd.DataFrame:
    """Return the features kept in a run, by image id; an old run computes and keeps them first."""
    run = featured_run(run)
    if not run.holds(FEATURES):
        config = run.config
        with counting_bar("decoding images") as progress:
            images = open_dataset_images(df, config, progress)
        rows = np.setdiff1d(np.arange(len(df)), list(images.bad))
        with counting_bar("computing image features") as progress:
            features = run_backbone(run, images.pixels, rows, progress)
        write_features(run, df["image_id"].iloc[rows].tolist(), features)
    return read_features(run)


def run_backbone(run: Run, pixels: np.ndarray, rows: np.ndarray, *more: Any) -> np.ndarray:
    """Return the features (n, F) of some rows of pixels by a run's model."""
    from lesionfast.models.features import Features
    from lesionfast.models.fusion import load_model

    precision = "auto" if run.config.precision == "float16" else run.config.precision
    return Features(load_model(run), pixels, precision).compute(rows, *more)


def nearest_lesions(run: Run, image: str, k: int = 5) -> pd.DataFrame:
    """Return an image and, below it, the k training lesions most similar to it.

    `image` is an image id of the dataset, or a file. Similarity is the cosine of the pooled
    features of the run's backbone, less the mean of the training images; a lesion counts with its
    most similar image. Columns: image_id, group, target, similarity, path, and age, sex and
    localization where the dataset has them. An old run computes the features once and keeps them.
    Raises `LesionfastError` for an image that is neither, and for a model without a backbone.
    """
    require_neighbours(run, k)
    df = load_dataset(run.config, split=run.file("split.csv"))
    run = featured_run(run)
    query = find_image(df, image).to_frame().T
    table = pd.concat([query.assign(similarity=1.0), *rank(run, df, query, k)], ignore_index=True)
    return table[[name for name in COLUMNS if name in table]]


def nearest_to_each(run: Run, rows: pd.DataFrame, k: int = 5) -> list[pd.DataFrame]:
    """Return the k training lesions most similar to each of many images, in their order.

    `rows` has image_id, group and path. See `nearest_lesions`.
    """
    if rows.empty:
        return []
    require_neighbours(run, k)
    df = load_dataset(run.config, split=run.file("split.csv"))
    return rank(featured_run(run), df, rows, k)


def require_neighbours(run: Run, k: int) -> None:
    """Raise `LesionfastError` unless k is a number of lesions and a run's model sees images."""
    if k < 1:
        raise LesionfastError(f"--k is {k}; type 1 or more.")
    if featured_run(run).model.get("fusion") in (None, "metadata"):
        raise LesionfastError(
            f"{run.path} has no image features to compare lesions by: it is a model of metadata "
            "alone, or of an early version. Name a run with a backbone."
        )


def rank(run: Run, df: pd.DataFrame, rows: pd.DataFrame, k: int) -> list[pd.DataFrame]:
    """Return the k training lesions of the dataset `df` most similar to each of the rows."""
    kept = dataset_features(run, df)
    is_kept = rows["image_id"].isin(kept.index).to_numpy()
    features = np.empty((len(rows), kept.shape[1]), np.float32)
    features[is_kept] = kept.loc[rows["image_id"][is_kept]]
    if not is_kept.all():
        paths = rows["path"][~is_kept].tolist()
        images = open_images(paths, run.config.size, resize=run.config.resize, cache=False)
        features[~is_kept] = run_backbone(run, images.pixels, np.arange(len(paths)))
    return rank_by_features(kept, df, features, rows["group"].tolist(), k)


def rank_by_features(
    kept: pd.DataFrame, df: pd.DataFrame, features: np.ndarray, groups: list[str], k: int
) -> list[pd.DataFrame]:
    """Return the k training lesions most similar to each of features (n, F), best first.

    `kept` are the features of the dataset `df` by image id, `groups` (n,) the lesions that do not
    count as similar to themselves.
    """
    train = df[(df["split"] == "train") & df["image_id"].isin(kept.index)].reset_index(drop=True)
    of_train = kept.loc[train["image_id"]].to_numpy()
    centre = of_train.mean(axis=0)  # what all skin has in common would make all alike
    of_train = unit(of_train - centre)
    tables = []
    for group, own in zip(groups, features, strict=True):
        others = train.assign(similarity=of_train @ unit(own - centre))
        others = others[others["group"] != group]
        best = others.sort_values("similarity", ascending=False, kind="stable")
        best = best.drop_duplicates("group").head(k).reset_index(drop=True)
        tables.append(best[[name for name in COLUMNS if name in best]])
    return tables


def find_image(df: pd.DataFrame, image: str) -> pd.Series:
    """Return the row of an image id, or one made up for a file; raises `LesionfastError`."""
    rows = df[df["image_id"] == image]
    if len(rows):
        return rows.iloc[0]
    if Path(image).is_file():
        path = str(Path(image).resolve())
        return pd.Series({"image_id": Path(image).name, "group": "", "target": "", "path": path})
    raise LesionfastError(
        f"'{image}' is neither an image id of this dataset nor a file."
        f"{did_you_mean(image, df['image_id'])} Type a path, or such as --nearest "
        f"{shell_quote(df['image_id'].iloc[0])}"
    )
