"""Sub-classes: a class is cut into visual clusters, trained as such, and merged in every output."""

import logging

import numpy as np
import pandas as pd
from fastai.data.core import DataLoaders

from lesionfast.console import counting_bar
from lesionfast.data.loaders import ReadTarget
from lesionfast.errors import LesionfastError
from lesionfast.models.features import kept_features
from lesionfast.models.fusion import FusionModel

logger = logging.getLogger("lesionfast")


def parents_of(wanted: dict[str, int], classes: list[str]) -> list[int]:
    """Return the class number of each output: the classes first, then what they are cut into more.

    `wanted` maps class names to numbers of sub-classes.
    """
    more = [[classes.index(name)] * (count - 1) for name, count in wanted.items()]
    return [*range(len(classes)), *(code for codes in more for code in codes)]


def assign_subclasses(dls: DataLoaders, model: FusionModel, seed: int) -> None:
    """Give the training targets in `dls` the numbers of the model's outputs, by cluster.

    The clusters are k-means of the backbone's features, one point a lesion, of training lesions
    only. Validation and test keep their class numbers. Raises `LesionfastError` for a backbone
    that is not pretrained, and a class with fewer lesions than sub-classes.
    """
    if model.backbone is None or not model.backbone.pretrained:
        raise LesionfastError(
            "--subclass clusters the features of a pretrained backbone, and this one has random "
            "weights. Type --weights auto, or a file or run with weights."
        )
    parents = np.array(model.parents)
    rows = dls.rows[dls.rows["split"] == "train"]
    targets = find_targets(dls)
    dls.train.parents = model.parents
    for code in np.flatnonzero(np.bincount(parents) > 1):
        name, outputs = dls.vocab[code], np.flatnonzero(parents == code)
        mine = rows[rows["target"] == name]
        cluster = cluster_lesions(dls, model, mine, len(outputs), seed)
        targets[mine["row"].to_numpy()] = outputs[cluster]
        sizes = ", ".join(map(str, np.bincount(cluster)))
        logger.info("class %s: %d sub-classes of %s images", name, len(outputs), sizes)


def find_targets(dls: DataLoaders) -> np.ndarray:
    """Return the array of class numbers that the loaders read, to be written to."""
    return next(t.array for t in dls.train_ds.tls[2].tfms if isinstance(t, ReadTarget))


def cluster_lesions(
    dls: DataLoaders, model: FusionModel, rows: pd.DataFrame, k: int, seed: int
) -> np.ndarray:
    """Return the cluster of each row (n,), 0 to k - 1, the same for all images of a lesion."""
    from sklearn.cluster import KMeans

    lesions, index = np.unique(rows["group"], return_inverse=True)
    if len(lesions) < k:
        raise LesionfastError(
            f"--subclass wants {k} parts of '{rows['target'].iloc[0]}', which has only "
            f"{len(lesions)} training lesions. Type a smaller number."
        )
    model.to(dls.device)
    with counting_bar("features for the sub-classes") as progress:
        features = kept_features(model, dls.pixels, rows["row"].to_numpy(), progress)
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    sums = np.zeros((len(lesions), features.shape[1]))
    np.add.at(sums, index, features)
    means = sums / np.bincount(index)[:, None]
    return KMeans(k, n_init=10, random_state=seed).fit_predict(means)[index]


def split_codes(dls: DataLoaders, split: str = "train") -> np.ndarray:
    """Return the class numbers of the rows of a split, int64 (n,)."""
    names = list(dls.vocab)
    targets = dls.rows.loc[dls.rows["split"] == split, "target"]
    return targets.map(names.index).to_numpy(dtype=np.int64)


def output_codes(dls: DataLoaders) -> np.ndarray:
    """Return the numbers of the outputs that the training rows are taught, int64 (n,)."""
    return find_targets(dls)[dls.rows.loc[dls.rows["split"] == "train", "row"].to_numpy()]
