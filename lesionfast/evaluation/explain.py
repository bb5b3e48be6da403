"""What a model sees alike: the training lesions nearest to an image, by the run's own features."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.console import counting_bar
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.interpretation import has_features, read_features, write_features
from lesionfast.runs import Run

COLUMNS = ["image_id", "group", "target", "similarity", "path", "age", "sex", "localization"]


def nearest_lesions(run: Run, image: str, k: int = 5) -> pd.DataFrame:
    """Return the k training lesions most similar to an image, and before them the image itself.

    `image` is an image id of the dataset, or a file. Similarity is the cosine of the pooled
    features of the run's backbone, less the mean of the training images, of each lesion its most
    similar image. Columns: image_id, group, target, similarity, path, and age, sex and
    localization where the dataset has them.
    The features of the images are computed once and kept in the run. Raises `LesionfastError` for
    an image that is neither, and for a model without a backbone.
    """
    require_k(k)
    df = load_dataset(run.config, split=run.file("split.csv"))
    query = find_image(df, image)
    best = find_nearest(run, df, query.to_frame().T, k)[0]
    table = pd.concat([query.to_frame().T.assign(similarity=1.0), best], ignore_index=True)
    return table[[name for name in COLUMNS if name in table]]


def nearest_of(run: Run, rows: pd.DataFrame, k: int = 5) -> list[pd.DataFrame]:
    """Return the k training lesions most similar to each of many images, as `nearest_lesions`.

    `rows` has image_id, group and path. The tables are in the order of the rows, without the
    images themselves.
    """
    require_k(k)
    if rows.empty:
        return []
    df = load_dataset(run.config, split=run.file("split.csv"))
    return find_nearest(run, df, rows, k)


def require_k(k: int) -> None:
    """Raise `LesionfastError` unless k is a number of lesions."""
    if k < 1:
        raise LesionfastError(f"--k is {k}; type 1 or more.")


def find_nearest(run: Run, df: pd.DataFrame, rows: pd.DataFrame, k: int) -> list[pd.DataFrame]:
    """Return the k training lesions of the dataset `df` most similar to each of the rows."""
    require_backbone(run)
    kept = dataset_features(run, df)
    return most_alike(kept, df, own_features(run, kept, rows), rows["group"].tolist(), k)


def most_alike(
    kept: pd.DataFrame, df: pd.DataFrame, features: np.ndarray, groups: list[str], k: int
) -> list[pd.DataFrame]:
    """Return the k training lesions most similar to each of features (n, F), best first.

    `kept` are the features of the dataset `df` by image id, `groups` (n,) the lesions that do not
    count as similar to themselves.
    """
    train = df[(df["split"] == "train") & df["image_id"].isin(kept.index)].reset_index(drop=True)
    known = kept.loc[train["image_id"]].to_numpy()
    centre = known.mean(axis=0)  # what all skin has in common would make all alike
    known = unit(known - centre)
    tables = []
    for group, own in zip(groups, features, strict=True):
        others = train.assign(similarity=known @ unit(own - centre))
        others = others[others["group"] != group]
        best = others.sort_values("similarity", ascending=False, kind="stable")
        best = best.drop_duplicates("group").head(k).reset_index(drop=True)
        tables.append(best[[name for name in COLUMNS if name in best]])
    return tables


def require_backbone(run: Run) -> None:
    """Raise `LesionfastError` if a run's model looks at no image, or it is an ensemble."""
    if run.model.get("fusion") in (None, "metadata"):
        raise LesionfastError(
            f"{run.path} looks at no image (an ensemble, or fusion 'metadata'), so no lesion is "
            "like another. Name a run with a backbone."
        )


def own_features(run: Run, kept: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Return the features (n, F) of images, those that are not kept from their files."""
    known = rows["image_id"].isin(kept.index).to_numpy()
    found = np.empty((len(rows), kept.shape[1]), np.float32)
    found[known] = kept.loc[rows["image_id"][known]]
    if not known.all():
        paths = rows["path"][~known].tolist()
        images = open_images(paths, run.config.size, resize=run.config.resize, cache=False)
        found[~known] = run_backbone(run, images.pixels, np.arange(len(paths)))
    return found


def find_image(df: pd.DataFrame, image: str) -> pd.Series:
    """Return the row of an image id, or one made up for a file; raises `LesionfastError`."""
    found = df[df["image_id"] == image]
    if len(found):
        return found.iloc[0]
    if Path(image).is_file():
        path = str(Path(image).resolve())
        return pd.Series({"image_id": Path(image).name, "group": "", "target": "", "path": path})
    raise LesionfastError(
        f"'{image}' is neither an image id of this dataset nor a file."
        f"{did_you_mean(image, df['image_id'])} Type --nearest {df['image_id'].iloc[0]}, or a path."
    )


def run_backbone(run: Run, pixels: np.ndarray, rows: np.ndarray, *more: Any) -> np.ndarray:
    """Return the features (n, F) of pixels by a run's model; torch is loaded for this alone."""
    from lesionfast.models.features import Features
    from lesionfast.models.fusion import load_model
    from lesionfast.models.precision import choose_dtype

    model, wanted = load_model(run), run.config.precision
    device = next(model.parameters()).device
    dtype = choose_dtype("auto" if wanted == "float16" else wanted, device)  # as it was trained
    return Features(model, pixels, dtype).compute(rows, *more)


def dataset_features(run: Run, df: pd.DataFrame) -> pd.DataFrame:
    """Return the features kept in a run, by image id; of an old run they are computed first."""
    if not has_features(run):
        config = run.config
        with counting_bar("decoding images") as progress:
            images = open_images(
                df["path"].tolist(),
                config.size,
                resize=config.resize,
                cache=config.cache,
                skip_bad=config.skip_bad,
                progress=progress,
            )
        rows = np.setdiff1d(np.arange(len(df)), list(images.bad))
        with counting_bar("features of the images") as progress:
            features = run_backbone(run, images.pixels, rows, progress)
        write_features(run, df["image_id"].iloc[rows].tolist(), features)
    return read_features(run)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (…, F) with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
