"""Epochs in which the first stages, or all of the backbone, do not learn: run them once, not often.

An epoch of the head alone reads pooled features; one that trains the last stages reads the feature
maps below them.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from math import ceil, prod
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

from lesionfast.cache import open_array
from lesionfast.console import counting_bar
from lesionfast.data.augment import VERSION as AUGMENTATION
from lesionfast.data.augment import Recipe, augment
from lesionfast.data.loaders import Sampler
from lesionfast.models.features import (
    Features,
    can_be_cut,
    frozen_stages,
    fused_features,
    resume_maps,
)
from lesionfast.models.lineage import lineage_header
from lesionfast.registry import Registry
from lesionfast.runs import Run
from lesionfast.training.balancing import class_codes, output_codes, shuffled
from lesionfast.training.callbacks.checkpoint import save_tensors
from lesionfast.training.callbacks.inference import Borrowing
from lesionfast.training.callbacks.tracking import history_columns
from lesionfast.training.description import announce
from lesionfast.training.learner import FusionLearner

logger = logging.getLogger("lesionfast")

BATCH = 256  # rows a step of the head alone: it is small


class FeatureLoader:
    """Batches of features (B, F) or maps (B, C, h, w), metadata (B, width), class numbers (B,).

    `features` has the array of all rows, or what computes it, for each view; an epoch draws one
    view a row. Rows are drawn by `sampler(rng)`, or come in order without one.
    """

    def __init__(
        self,
        features: list["np.ndarray | ComputedMaps"],
        metadata: np.ndarray,
        targets: np.ndarray,
        device: torch.device,
        sampler: Sampler | None = None,
        batch_size: int = BATCH,
    ) -> None:
        self.features, self.device, self.sampler = features, device, sampler
        self.metadata, self.targets = torch.tensor(metadata), torch.tensor(targets)
        self.n = len(targets) if sampler is None else len(sampler(Random(0)))
        self.batch_size = batch_size
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Make the next epoch's order and views those that belong to `seed`."""
        self.rng = Random(seed)

    def __len__(self) -> int:
        return ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        positions = list(range(self.n)) if self.sampler is None else self.sampler(self.rng)
        views = np.array(self.rng.choices(range(len(self.features)), k=self.n))
        for start in range(0, self.n, self.batch_size):
            rows = np.array(positions[start : start + self.batch_size])
            features = self.pick(views[start : start + self.batch_size], rows)
            batch = (features, self.metadata[rows], self.targets[rows])
            yield tuple(each.to(self.device) for each in batch)

    def pick(self, views: np.ndarray, rows: np.ndarray) -> Tensor:
        """Return the features (B, ...) of rows (B,), of each the view (B,), as float32."""
        found = np.empty((len(rows), *self.features[0].shape[1:]), np.float32)
        for view in np.unique(views):
            found[views == view] = self.features[view][rows[views == view]]
        tensor = torch.from_numpy(found)
        last = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        return tensor.contiguous(memory_format=last)


class ComputedMaps:
    """Feature maps (n, C, h, w) that are computed anew whenever some are read."""

    def __init__(self, compute: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> None:
        self.compute, self.rows = compute, rows
        self.shape = (len(rows), *compute(rows[:1]).shape[1:])

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return self.compute(self.rows[positions])


class CachedFeatures(Borrowing):
    """While the first stages do not learn, train on what they give, which is computed once.

    Of each training image there are `views`: the picture itself and augmented ones; of each
    validation image the picture itself. They are kept in the cache beside the pixels, so that
    another run of the same backbone on the same images starts with them. Where `maps` is off, only
    epochs of the head alone do so. What is learned depends on the options alone: where the cache
    has no room for feature maps, the same maps are computed in every epoch.
    """

    order = -19  # after ProgressiveUnfreezing has frozen what does not learn

    def __init__(
        self,
        recipe: Recipe,
        views: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        maps: bool = True,
    ) -> None:
        self.recipe, self.seed, self.dtype, self.maps = recipe, seed, dtype, maps
        self.views = 1 if recipe == Recipe() else views
        self.images, self.stages = None, 0

    def before_epoch(self) -> None:
        """Put the loaders of features in, or the loaders of images back."""
        stages = frozen_stages(self.model.backbone)
        if stages == self.stages:
            return
        self.clean_up()
        self.stages = stages
        if stages and self.replaces_images(stages):
            loaders = self.feature_loaders(stages)
            self.images = self.dls
            self.learn.dls = loaders
            if stages < len(self.model.backbone.stages):
                size = self.images.pixels.shape[1]
                resume = partial(resume_maps, self.model.backbone, stages=stages, size=size)
                self.model.backbone.resume = resume

    def clean_up(self) -> None:
        """Put the loaders of images back, however the fit ended."""
        if self.images is not None:
            self.model.backbone.resume = None
            self.learn.dls, self.images = self.images, None
        self.stages = 0

    def replaces_images(self, stages: int) -> bool:
        """Return whether this phase learns from what the frozen stages give of each view.

        The head alone always does. With more of the backbone one view would mean no augmentation,
        and as many views as epochs would save nothing: then it learns from images.
        """
        backbone = self.model.backbone
        if stages == len(backbone.stages):
            return True
        augmented = self.views > 1 or self.recipe == Recipe()
        worth_it = self.maps and augmented and self.epochs > self.views
        return worth_it and can_be_cut(backbone, stages, self.dls.pixels.shape[1])

    @property
    def epochs(self) -> int:
        """The epochs of this phase, or of the whole fit if it has no phases."""
        unfreezing = getattr(self.learn, "progressive_unfreezing", None)
        return self.n_epoch if unfreezing is None else unfreezing.phase.epochs

    def feature_loaders(self, stages: int) -> DataLoaders:
        """Return loaders of features over the rows of the Learner's training and validation."""
        dls, whole = self.dls, stages == len(self.model.backbone.stages)
        train = dls.rows[dls.rows["split"] == "train"]
        valid = dls.rows[dls.rows["split"] == "valid"]
        of = partial(self.features, stages=None if whole else stages)
        views = [of(train["row"].to_numpy(), view) for view in range(self.views)]
        if any(isinstance(view, ComputedMaps) for view in views):
            logger.info("feature maps are computed in every epoch: no cache, or no room in it")
        draw = dls.train.sampler or (lambda rng: shuffled(range(len(train)), rng))
        encoded, size = dls.encoder.transform, BATCH if whole else dls.train.bs
        loaders = (
            FeatureLoader(views, encoded(train), output_codes(dls), dls.device, draw, size),
            FeatureLoader(
                [of(valid["row"].to_numpy())],
                encoded(valid),
                class_codes(dls, "valid"),
                dls.device,
                batch_size=size,
            ),
        )
        return DataLoaders(*loaders, device=dls.device)

    def features(
        self, rows: np.ndarray, view: int = 0, stages: int | None = None
    ) -> np.ndarray | ComputedMaps:
        """Return the features of rows (n,), or the maps of the first stages.

        View 0 is the picture itself.
        """
        about = (AUGMENTATION, astuple(self.recipe), self.seed, view) if view else ()
        change = partial(self.show, view=view)
        source = Features(self.model, self.dls.pixels, self.dtype, stages, change, about)
        if stages is not None:
            maps = ComputedMaps(source.compute, rows)
            if not self.has_room(maps, source.file(rows)):
                return maps
        with counting_bar("features of the frozen stages") as progress:
            return source.kept(rows, progress)

    def has_room(self, maps: ComputedMaps, file: Path | None) -> bool:
        """Return whether the cache has such maps, or half of the disk's free space is enough."""
        if file is None:
            return False
        need = prod(maps.shape) * np.dtype(np.float16).itemsize
        return open_array(file) is not None or need < free_bytes(file) / 2

    def show(self, image: Tensor, rows: np.ndarray, view: int) -> Tensor:
        """Return images (B, 3, H, W) as a view shows them, each row changed in its own way."""
        if not view:
            return image
        return augment(image, self.recipe, [self.generator(view, row) for row in rows])

    def generator(self, view: int, row: int) -> torch.Generator:
        """Return what draws the changes of a row in a view."""
        seed = np.random.SeedSequence([self.seed, view, row]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))


def free_bytes(file: Path) -> int:
    """Return the free space where a file is to be."""
    return shutil.disk_usage(next(each for each in file.parents if each.exists())).free


heads = Registry("head", "--head")
Linear = tuple[np.ndarray, np.ndarray]


@heads.register("linear")
def linear(features: np.ndarray, codes: np.ndarray) -> Linear:
    """A linear layer, trained with the rest of the model by gradient descent."""
    raise AssertionError("a linear head is trained, not solved")


@heads.register("prototype")
def prototype(features: np.ndarray, codes: np.ndarray) -> Linear:
    """Distance to the mean of each class's features (Snell et al. 2017, arXiv:1703.05175).

    The logit of a class is minus the squared distance to its mean (eq. 2), less a term that is
    the same for all classes, which makes it linear (eq. 8). Takes a few images a class.
    """
    centres = np.stack([features[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
    return 2 * centres, -(centres**2).sum(axis=1)


@heads.register("svm")
def svm(features: np.ndarray, codes: np.ndarray) -> Linear:
    """A separating hyperplane for each class against the rest: scikit-learn's LinearSVC.

    Classes weigh the same, whatever their number of images (Cortes and Vapnik 1995,
    doi:10.1007/BF00994018).
    """
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=1e-4, class_weight="balanced", dual="auto", max_iter=10_000, random_state=0)
    model.fit(features, codes)
    if len(model.coef_) == 1:  # two classes share one hyperplane
        return np.concatenate([-model.coef_, model.coef_]), np.array([-1, 1]) * model.intercept_
    return model.coef_, model.intercept_


def solve_head(learn: FusionLearner, run: Run) -> dict[str, Any]:
    """Put the solved head of a run into the model; write weights and history.

    Returns what metrics.json says of the training. The features are standardised, and the scale of
    the logits is the one of least log loss on validation, every class weighing the same.
    """
    announce(learn, run, [], [])
    started = time.perf_counter()
    features = {name: split_features(learn, name) for name in ("train", "valid")}
    (x, codes), (valid, valid_codes) = features["train"], features["valid"]
    centre, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    weight, bias = heads[run.config.head]((x - centre) / spread, codes)
    weight = weight / spread
    bias = bias - weight @ centre
    scale = best_scale(valid @ weight.T + bias, valid_codes)
    set_linear(learn, scale * weight, scale * bias)
    seconds = time.perf_counter() - started
    tensors = learn.model.state_dict()
    header = lineage_header(learn.dls.split, run.config.arch, run.config.weights)
    run.write("weights.safetensors", lambda aside: save_tensors(tensors, aside, header))
    write_history(learn, run, x, codes)
    return {
        "train_seconds": round(seconds, 2),
        "images_per_second": round((len(x) + len(valid)) / seconds, 2),
        "best_epoch": 1,
        "status": "finished",
    }


def split_features(learn: FusionLearner, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what the head sees of one split, float64 (n, W), and its class numbers (n,).

    Of the training rows metadata is withheld once, as a trained head's is in every batch.
    """
    rows = learn.dls.rows[learn.dls.rows["split"] == split]
    learn.model.to(learn.dls.device)
    with counting_bar(f"features of {split}") as progress:
        image = Features(learn.model, learn.dls.pixels).kept(rows["row"].to_numpy(), progress)
    codes, metadata = class_codes(learn.dls, split), learn.dls.encoder.transform(rows)
    if split == "train" and hasattr(learn, "metadata_dropout"):
        metadata = learn.metadata_dropout.withhold_once(metadata, codes)
    fused = fused_features(learn.model, image, metadata)
    return fused.astype(np.float64), codes


def best_scale(logits: np.ndarray, codes: np.ndarray) -> float:
    """Return the factor on logits (n, K) of least log loss, every class weighing the same."""
    share = 1 / np.bincount(codes)[codes]
    each = np.arange(len(codes))

    def loss(log_scale: float) -> float:
        return -float(share @ log_softmax(np.exp(log_scale) * logits, axis=1)[each, codes])

    return float(np.exp(minimize_scalar(loss, bounds=(-15, 10), method="bounded").x))


def set_linear(learn: FusionLearner, weight: np.ndarray, bias: np.ndarray) -> None:
    """Write weights (K, W) and biases (K,) into the last layer of the model."""
    layer = learn.model.head[-1]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))


def write_history(learn: FusionLearner, run: Run, x: np.ndarray, codes: np.ndarray) -> None:
    """Write the one line of history.csv, and log it."""
    layer = learn.model.head[-1].to("cpu")
    with torch.no_grad():
        logits = layer(torch.from_numpy(x).float())
    train_loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(codes)).item()
    learn.model.to(learn.dls.device)
    with learn.no_bar():
        values = [train_loss, *learn.validate()]
    names = history_columns(learn)
    line = [f"{each:.6g}" for each in values]
    header = ",".join(["epoch", "phase", "lr", *names])
    text = f"{header}\n1,{run.config.head},," + ",".join(line) + "\n"
    run.write_text("history.csv", text)
    logger.info("%s: %s", run.config.head, ", ".join(map(" ".join, zip(names, line, strict=True))))
