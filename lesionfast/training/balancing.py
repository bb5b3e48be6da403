"""Which rows an epoch draws and how much each class weighs; how a class is cut into subclasses."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pandas as pd
from fastai.data.core import DataLoaders

from lesionfast.console import counting_bar
from lesionfast.data.loaders import LesionDataLoaders, ReadTarget
from lesionfast.errors import LesionfastError
from lesionfast.models.features import Features
from lesionfast.models.fusion import FusionModel
from lesionfast.registry import Registry

logger = logging.getLogger("lesionfast")

balances = Registry("class balancing", "--balance")


@dataclass(frozen=True)
class Balance:
    """What class balancing does to a training.

    `weights` (K,) are class weights of the loss with mean 1 over the rows, `sampler` draws the
    positions of an epoch, and `prior` (K,) are the class shares that the loss sees in the end.
    """

    prior: np.ndarray
    weights: np.ndarray | None = None
    sampler: Callable[[Random], list[int]] | None = None


@balances.register("none")
def none(codes: np.ndarray, n_classes: int) -> Balance:
    """No balancing: every training row once per epoch, equal class weights."""
    return Balance(shares(np.bincount(codes, minlength=n_classes)))


@balances.register("weights")
def weights(codes: np.ndarray, n_classes: int) -> Balance:
    """Every row once; the loss weights each class by its inverse frequency."""
    counts = np.bincount(codes, minlength=n_classes)
    return Balance(shares(counts > 0), weights=inverse_frequency(counts))


@balances.register("effective")
def effective(codes: np.ndarray, n_classes: int, beta: float = 0.999) -> Balance:
    """Weights by effective number of rows, beta 0.999 (Cui et al. 2019, arXiv:1901.05555).

    The weight of a class of n rows is (1 - beta) / (1 - beta^n), eq. 4, scaled to mean 1 over the
    rows. For beta 1 it is the limit 1 / n, which is the balance 'weights'.
    """
    counts = np.bincount(codes, minlength=n_classes)
    n = np.maximum(counts, 1)
    with np.errstate(divide="ignore"):  # log 0 of beta 0
        effective_number = n if beta == 1 else -np.expm1(n * np.log(beta)) / (1 - beta)
    raw = np.where(counts > 0, 1 / effective_number, 0.0)
    scaled = raw * counts.sum() / (raw * counts).sum()
    return Balance(shares(scaled * counts), weights=scaled)


@balances.register("sampler")
def sampler(codes: np.ndarray, n_classes: int) -> Balance:
    """Draw as many rows as there are, with replacement, every class equally often."""
    members = [np.flatnonzero(codes == code).tolist() for code in np.unique(codes)]

    def draw(rng: Random) -> list[int]:
        return [rng.choice(members[i % len(members)]) for i in shuffled(range(len(codes)), rng)]

    return Balance(shares(np.bincount(codes, minlength=n_classes) > 0), sampler=draw)


@balances.register("downsample")
def downsample(codes: np.ndarray, n_classes: int) -> Balance:
    """Downsample the largest class to the size of the second, with new rows in each epoch."""
    counts = np.bincount(codes, minlength=n_classes)
    return resampled(codes, np.minimum(counts, second_largest(counts)))


@balances.register("upsample")
def upsample(codes: np.ndarray, n_classes: int) -> Balance:
    """Repeat every class up to the size of the largest."""
    counts = np.bincount(codes, minlength=n_classes)
    return resampled(codes, np.where(counts > 0, counts.max(), 0))


@balances.register("author")
def author(codes: np.ndarray, n_classes: int) -> Balance:
    """As in the original study: downsample the largest class, repeat the others, then weights.

    The largest class is downsampled to the size of the second, the others are repeated to at most
    twice their rows and no more than that, and the loss weights them by one over what results.
    """
    counts = np.bincount(codes, minlength=n_classes)
    limit = second_largest(counts)
    wanted = np.minimum(np.where(counts == counts.max(), limit, 2 * counts), limit)
    return replace(
        resampled(codes, wanted), weights=inverse_frequency(wanted), prior=shares(wanted > 0)
    )


def second_largest(counts: np.ndarray) -> int:
    """Return the size of the second class, or of the only one."""
    return int(np.sort(counts)[-2:][0])


def resampled(codes: np.ndarray, wanted: np.ndarray) -> Balance:
    """Return the balance that draws `wanted` (K,) rows of each class, other ones in each epoch.

    A class is drawn whole as often as it fits, and by chance for the rest.
    """
    members = [np.flatnonzero(codes == code).tolist() for code in range(len(wanted))]

    def draw(rng: Random) -> list[int]:
        rows: list[int] = []
        for own, count in zip(members, wanted.tolist(), strict=True):
            whole, rest = divmod(count, max(len(own), 1))
            rows += own * whole + rng.sample(own, rest)
        return shuffled(rows, rng)

    return Balance(shares(wanted), sampler=draw)


def inverse_frequency(counts: np.ndarray) -> np.ndarray:
    """Return class weights (K,), one over the counts with mean 1 over the rows; 0 without rows."""
    present = counts > 0
    return np.where(present, counts.sum() / np.maximum(counts, 1) / present.sum(), 0.0)


def shares(counts: np.ndarray) -> np.ndarray:
    """Return counts (K,) as float64 shares that sum to 1."""
    return counts / counts.sum()


def shuffled(items: range | list[int], rng: Random) -> list[int]:
    return rng.sample(items, len(items))


def find_parents(subclasses: dict[str, int], classes: list[str]) -> list[int]:
    """Return the class number of each output: the classes first, then their further subclasses.

    `subclasses` maps class names to the number of subclasses of each.
    """
    more = [[classes.index(name)] * (count - 1) for name, count in subclasses.items()]
    return [*range(len(classes)), *(code for codes in more for code in codes)]


def assign_subclasses(dls: DataLoaders, model: FusionModel, seed: int) -> None:
    """Cluster classes into subclasses, and make the model's outputs for them the training targets.

    The clusters are k-means of the backbone's features, one point per lesion, of training lesions
    only. Validation and test keep their class numbers. Raises `LesionfastError` for a backbone
    that is not pretrained, and a class with fewer lesions than subclasses.
    """
    if model.backbone is None or not model.backbone.pretrained:
        raise LesionfastError(
            "--subclass clusters the features of a pretrained backbone, but this one has random "
            "weights. Type --weights auto, or a file or run with weights."
        )
    parents = np.array(model.parents)
    rows = dls.rows[dls.rows["split"] == "train"]
    targets = find_targets(dls)
    dls.train.parents = model.parents
    for code in np.flatnonzero(np.bincount(parents) > 1):
        name, outputs = dls.vocab[code], np.flatnonzero(parents == code)
        own = rows[rows["target"] == name]
        cluster = cluster_lesions(dls, model, own, len(outputs), seed)
        targets[own["row"].to_numpy()] = outputs[cluster]
        sizes = ", ".join(map(str, np.bincount(cluster)))
        logger.info("class %s: %d subclasses of %s images", name, len(outputs), sizes)


def cluster_lesions(
    dls: DataLoaders, model: FusionModel, rows: pd.DataFrame, k: int, seed: int
) -> np.ndarray:
    """Return the cluster of each row (n,), 0 to k - 1, the same for all images of a lesion."""
    from sklearn.cluster import KMeans

    lesions, index = np.unique(rows["group"], return_inverse=True)
    if len(lesions) < k:
        raise LesionfastError(
            f"--subclass asks for {k} subclasses of '{rows['target'].iloc[0]}', which has only "
            f"{len(lesions)} training lesions. Type a smaller number."
        )
    model.to(dls.device)
    with counting_bar("features for the subclasses") as progress:
        features = Features(model, dls.pixels).kept(rows["row"].to_numpy(), progress)
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    sums = np.zeros((len(lesions), features.shape[1]))
    np.add.at(sums, index, features)
    means = sums / np.bincount(index)[:, None]
    return KMeans(k, n_init=10, random_state=seed).fit_predict(means)[index]


def find_targets(dls: DataLoaders) -> np.ndarray:
    """Return the array of numbers by row that the loaders read as targets; it can be written to."""
    return next(t.array for t in dls.train_ds.tls[2].tfms if isinstance(t, ReadTarget))


def output_codes(dls: DataLoaders) -> np.ndarray:
    """Return the model's output that is the target of each training row, int64 (n,)."""
    if not isinstance(dls, LesionDataLoaders):
        return class_codes(dls)
    return find_targets(dls)[dls.rows.loc[dls.rows["split"] == "train", "row"].to_numpy()]


def class_codes(dls: DataLoaders, split: str = "train") -> np.ndarray:
    """Return the class number of each row of a split, int64 (n,); of other DataLoaders of training.

    Their images are read only if there is no other way to the targets.
    """
    if isinstance(dls, LesionDataLoaders):
        targets = dls.rows.loc[dls.rows["split"] == split, "target"]
        return targets.map(list(dls.vocab).index).to_numpy(np.int64, copy=True)
    if hasattr(dls.train_ds, "tls"):
        return np.array([int(code) for code in dls.train_ds.tls[-1]], np.int64)
    batches = dls.train.new(shuffle=False, drop_last=False)
    return np.concatenate([np.asarray(batch[-1].cpu(), np.int64) for batch in batches])
