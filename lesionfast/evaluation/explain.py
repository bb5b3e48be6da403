"""What a model sees alike: the training lesions nearest to an image, by the run's own features."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lesionfast.console import counting_bar
from lesionfast.data.dataset import load_dataset
from lesionfast.data.images import open_images
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.canvas import GREY, new_figure, save
from lesionfast.evaluation.diagnoses import full_name
from lesionfast.evaluation.grids import patient, read_pixels
from lesionfast.models.features import image_features
from lesionfast.models.fusion import load_model
from lesionfast.runs import Run, write_atomically


def nearest_lesions(run: Run, image: str, k: int = 5) -> pd.DataFrame:
    """Return the k training lesions most similar to an image, and before them the image itself.

    `image` is an image id of the dataset, or a file. Similarity is the cosine of the pooled
    features of the run's backbone, less the mean of the training images, of each lesion its most
    similar image. Columns: image_id, group, target, similarity, path, and age, sex and
    localization where the dataset has them.
    The features of the training images are computed once and kept in the run. Raises
    `LesionfastError` for an image that is neither, and for a model without a backbone.
    """
    if k < 1:
        raise LesionfastError(f"--k is {k}; type 1 or more.")
    df = load_dataset(run.config, split=run.path / "split.csv")
    query = find_image(df, image)
    train = df[df["split"] == "train"].reset_index(drop=True)
    model = load_model(run)
    if model.backbone is None:
        raise LesionfastError(
            f"{run.path} looks at no image (fusion 'metadata'), so no lesion is like another. "
            "Name a run with a backbone."
        )
    kept = train_features(run, model, train)
    train = train[train["image_id"].isin(kept)].reset_index(drop=True)
    features = np.stack([kept[each] for each in train["image_id"]]).astype(np.float32)
    pixels = open_images([query["path"]], run.config.size, resize=run.config.resize, cache=False)
    own = image_features(model, pixels.pixels, np.arange(1))[0]
    centre = features.mean(axis=0)  # what all skin has in common would make all alike
    similarity = unit(features - centre) @ unit(own - centre)
    others = train.assign(similarity=similarity)[train["group"] != query["group"]]
    best = others.sort_values("similarity", ascending=False, kind="stable")
    best = best.drop_duplicates("group").head(k)
    table = pd.concat([query.to_frame().T.assign(similarity=1.0), best], ignore_index=True)
    columns = ["image_id", "group", "target", "similarity", "path", "age", "sex", "localization"]
    return table[[name for name in columns if name in table]]


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


def train_features(run: Run, model, train: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return image id -> features (F,), float16, kept in the run's features.safetensors."""
    path = run.path / "features.safetensors"
    if path.is_file():
        return read_features(path)
    config = run.config
    with counting_bar("decoding images") as progress:
        images = open_images(
            train["path"].tolist(),
            config.size,
            resize=config.resize,
            cache=config.cache,
            skip_bad=config.skip_bad,
            progress=progress,
        )
    rows = np.setdiff1d(np.arange(len(train)), list(images.bad))
    with counting_bar("features of the training images") as progress:
        features = image_features(model, images.pixels, rows, progress).astype(np.float16)
    ids = train["image_id"].iloc[rows].tolist()
    header = {"image_ids": json.dumps(ids)}
    write_atomically(path, lambda aside: save_file({"features": features}, aside, header))
    return dict(zip(ids, features, strict=True))


def read_features(path: Path) -> dict[str, np.ndarray]:
    """Return what `train_features` has written."""
    try:
        with safe_open(path, framework="np") as file:
            ids = json.loads(file.metadata()["image_ids"])
            return dict(zip(ids, file.get_tensor("features"), strict=True))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LesionfastError(
            f"{path} is broken ({error}). Delete it, and it is made again."
        ) from None


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (…, F) with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def draw_nearest(run: Run, table: pd.DataFrame, folder: Path | None = None) -> Path:
    """Draw the image beside its nearest training lesions as PNG; return the path."""
    name = Path(str(table["image_id"].iloc[0])).stem
    columns = min(len(table), 6)
    lines = -(-len(table) // columns)
    title = f"The training lesions most similar to {table['image_id'].iloc[0]}"
    figure = new_figure(
        2.5 * columns, 2.9 * lines + 0.8, title, "cosine of the image features, less their mean"
    )
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for place, (axis, (_, row)) in enumerate(zip(axes, table.iterrows(), strict=False)):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="black" if place == 0 else "0.8", linewidth=2 if place == 0 else 1)
        axis.imshow(read_pixels(row["path"]))
        axis.set_title(str(row["image_id"]), loc="left", fontsize=7.5, color=GREY, pad=3)
        told = "this image" if place == 0 else f"similarity {row['similarity']:.3f}"
        lines_of = [full_name(row["target"]) if row["target"] else "", patient(row), told]
        axis.set_xlabel("\n".join(filter(None, lines_of)), loc="left", fontsize=9)
    for axis in list(axes)[len(table) :]:
        axis.set_axis_off()
    return save(figure, (folder or run.path / "figures") / f"nearest_{name}.png")
