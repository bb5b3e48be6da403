"""Epochs in which the first stages, or all of the backbone, do not learn: run those stages once.

An epoch of the head alone reads pooled features; one that trains the last stages reads the feature
maps below them.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil, prod
from pathlib import Path
from random import Random

import numpy as np
import torch
from fastai.data.core import DataLoaders
from torch import Tensor

from lesionfast.cache import fits, open_array
from lesionfast.console import counting_bar
from lesionfast.data.augment import VERSION as AUGMENTATION
from lesionfast.data.augment import Recipe, Share, augment
from lesionfast.data.loaders import Sampler
from lesionfast.files import free_bytes
from lesionfast.models.features import Features, can_be_cut, frozen_stages, resume_maps
from lesionfast.training.balancing import class_codes, output_codes, shuffled
from lesionfast.training.callbacks.inference import Borrowing
from lesionfast.training.callbacks.schedule import current_phase, mix_seeds

logger = logging.getLogger("lesionfast")

BATCH = 256  # rows per step of the head alone: it is small


class CachedFeatures(Borrowing):
    """While the first stages do not learn, train on their features or maps, computed once.

    Each training image has `views`: the picture itself and augmented ones; a validation image only
    itself. Their features are kept in the cache beside the pixels, so another run of the same
    backbone on the same images starts with them. Without `maps`, only epochs of the head alone use
    features. The result does not depend on the disk: where the cache has no room for feature maps,
    the same maps are computed in every epoch.
    """

    order = -19  # after ProgressiveUnfreezing has frozen what does not learn

    def __init__(
        self, recipe: Recipe, views: int, seed: int, precision: str = "float32", maps: bool = True
    ) -> None:
        self.recipe, self.seed, self.precision, self.maps = recipe, seed, precision, maps
        self.views = 1 if recipe == Recipe() else views
        self.images, self.stages = None, 0

    def before_epoch(self) -> None:
        """Put the loaders of features in, or the loaders of images back."""
        backbone = self.model.backbone
        stages = frozen_stages(backbone)
        if stages == self.stages:
            return
        self.clean_up()
        self.stages = stages
        if stages and self.replaces_images(stages):
            loaders = self.feature_loaders(stages)
            self.images, self.learn.dls = self.dls, loaders
            if stages < len(backbone.stages):
                size = self.images.pixels.shape[1]
                backbone.resume = partial(resume_maps, backbone, stages=stages, size=size)

    def clean_up(self) -> None:
        if self.images is not None:
            self.model.backbone.resume = None
            self.learn.dls, self.images = self.images, None
        self.stages = 0

    def replaces_images(self, stages: int) -> bool:
        """Return whether this phase learns from features or maps of the frozen stages.

        The head alone always does. With more of the backbone one view would mean no augmentation,
        and as many views as epochs would save nothing: then it learns from images.
        """
        backbone = self.model.backbone
        if stages == len(backbone.stages):
            return True
        augmented = self.views > 1 or self.recipe == Recipe()
        saves_time = current_phase(self.learn).epochs > self.views
        worth_it = self.maps and augmented and saves_time
        return worth_it and can_be_cut(backbone, stages, self.dls.pixels.shape[1])

    def feature_loaders(self, stages: int) -> DataLoaders:
        """Return loaders of features over the training and validation rows of the Learner."""
        dls, whole = self.dls, stages == len(self.model.backbone.stages)
        train, valid = (dls.rows[dls.rows["split"] == name] for name in ("train", "valid"))
        features = partial(self.features, stages=None if whole else stages)
        views = [features(train["row"].to_numpy(), view) for view in range(self.views)]
        if any(isinstance(view, ComputedMaps) for view in views):
            logger.info("feature maps are computed in every epoch: no cache, or no room in it")
        sampler = dls.train.sampler or (lambda rng: shuffled(range(len(train)), rng))
        encoded, size = dls.encoder.transform, BATCH if whole else dls.train.bs
        own, codes = [features(valid["row"].to_numpy())], class_codes(dls, "valid")
        return DataLoaders(
            FeatureLoader(views, encoded(train), output_codes(dls), dls.device, sampler, size),
            FeatureLoader(own, encoded(valid), codes, dls.device, batch_size=size),
            device=dls.device,
        )

    def features(
        self, rows: np.ndarray, view: int = 0, stages: int | None = None
    ) -> "np.ndarray | ComputedMaps":
        """Return the pooled features of rows (n,), or the maps of the first stages.

        View 0 is the picture itself.
        """
        about = (AUGMENTATION, self.recipe.key, self.seed, view) if view else ()
        change = partial(self.augment, view=view) if view else None
        source = Features(self.model, self.dls.pixels, self.precision, stages, change, about)
        if stages is not None:
            maps = ComputedMaps(source.compute, rows)
            if not has_room(maps, source.file(rows)):
                return maps
        with counting_bar("features of the frozen stages") as progress:
            return source.kept(rows, progress)

    def augment(self, image: Tensor, rows: np.ndarray, view: int) -> Tensor:
        """Return images (B, 3, H, W) as a view shows them; the changes of a row are its own."""
        seeds = [mix_seeds(self.seed, view, row) for row in rows]
        return augment(image, self.recipe, [torch.Generator().manual_seed(seed) for seed in seeds])


class ComputedMaps:
    """Feature maps (n, C, h, w) that are computed each time they are read."""

    def __init__(self, compute: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> None:
        self.compute, self.rows = compute, rows
        self.shape = (len(rows), *compute(rows[:1]).shape[1:])

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return self.compute(self.rows[positions])


def has_room(maps: ComputedMaps, file: Path | None) -> bool:
    """Return whether the cache has such maps, or has room for them in half of the free space."""
    if file is None:
        return False
    need = prod(maps.shape) * np.dtype(np.float16).itemsize
    return open_array(file) is not None or (need < free_bytes(file) / 2 and fits(need))


class FeatureLoader:
    """Batches of features (B, F) or maps (B, C, h, w), metadata (B, width), class numbers (B,).

    `features` has one array of all rows per view, or what computes it; an epoch draws one view
    per row. Rows are drawn by `sampler(rng)`, or come in order without one.
    """

    def __init__(
        self,
        features: list[np.ndarray | ComputedMaps],
        metadata: np.ndarray,
        targets: np.ndarray,
        device: torch.device,
        sampler: Sampler | None = None,
        batch_size: int = BATCH,
    ) -> None:
        self.features, self.device, self.sampler = features, device, sampler
        self.metadata, self.targets = torch.tensor(metadata), torch.tensor(targets)
        self.n = len(targets) if sampler is None else len(sampler(Random(0)))
        self.batch_size, self.share = batch_size, Share()
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Make the order and views of the next epoch those that belong to `seed`."""
        self.rng = Random(seed)

    def take(self, share: Share) -> None:
        """Read what one of several processes has to read."""
        self.share = share

    def __len__(self) -> int:
        return ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        positions = list(range(self.n)) if self.sampler is None else self.sampler(self.rng)
        views = np.array(self.rng.choices(range(len(self.features)), k=self.n))
        own = self.share.of_epoch(self.n)
        for start in range(own.start, own.stop, self.batch_size):
            batch = slice(start, min(start + self.batch_size, own.stop))
            own_rows = self.share.of_batch(batch.stop - batch.start)
            rows = np.array(positions[batch])[own_rows]
            features = self.pick(views[batch][own_rows], rows)
            batch = (features, self.metadata[rows], self.targets[rows])
            yield tuple(tensor.to(self.device) for tensor in batch)

    def pick(self, views: np.ndarray, rows: np.ndarray) -> Tensor:
        """Return the features (B, ...) of rows (B,) in the views (B,), as float32."""
        features = np.empty((len(rows), *self.features[0].shape[1:]), np.float32)
        for view in np.unique(views):
            features[views == view] = self.features[view][rows[views == view]]
        tensor = torch.from_numpy(features)
        last = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        return tensor.contiguous(memory_format=last)
