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
from math import ceil
from random import Random

import numpy as np
import torch
from fastai.data.core import DataLoaders
from torch import Tensor

from lesionfast.console import counting_bar
from lesionfast.data.augment import Recipe, augment
from lesionfast.data.images import cache_folder
from lesionfast.data.loaders import Sampler
from lesionfast.models.features import image_features, kept_features
from lesionfast.models.prefix import can_be_cut, frozen_stages, rest_of
from lesionfast.training.balancing import shuffled
from lesionfast.training.callbacks import Borrowing
from lesionfast.training.subclasses import output_codes, split_codes

logger = logging.getLogger("lesionfast")
BATCH = 256  # rows a step of the head alone: it is small
MEASURED = 64  # images that tell what the frozen stages cost


class FeatureLoader:
    """Batches of features (B, F) or maps (B, C, h, w), metadata (B, width), class numbers (B,).

    `features` has one array of all rows for each view; an epoch draws one view a row. Rows are
    drawn by `sampler(rng)`, or come in order without one.
    """

    def __init__(
        self,
        features: list[np.ndarray],
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


class CachedFeatures(Borrowing):
    """While the first stages do not learn, train on what they give, which is computed once.

    Of each training image there are `views`: the picture itself and augmented ones; of each
    validation image the picture itself. They are kept in the cache beside the pixels, so that
    another run of the same backbone on the same images starts with them. While nothing of the
    backbone learns it is always done, else where it is cheaper, by the costs measured here.
    """

    order = -19  # after ProgressiveUnfreezing has frozen what does not learn

    def __init__(
        self, recipe: Recipe, views: int, seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.recipe, self.seed, self.dtype = recipe, seed, dtype
        self.views = 1 if recipe == Recipe() else views
        self.images, self.stages = None, 0

    def before_epoch(self) -> None:
        """Put the loaders of features in, or the loaders of images back."""
        stages = frozen_stages(self.model.backbone)
        if stages == self.stages:
            return
        self.clean_up()
        self.stages = stages
        if stages and self.pays(stages):
            loaders = self.feature_loaders(stages)
            self.images = self.dls
            self.learn.dls = loaders
            if stages < len(self.model.backbone.stages):
                size = self.images.pixels.shape[1]
                resume = partial(rest_of, self.model.backbone, stages=stages, size=size)
                self.model.backbone.resume = resume

    def clean_up(self) -> None:
        """Put the loaders of images back, however the fit ended."""
        if self.images is not None:
            self.model.backbone.resume = None
            self.learn.dls, self.images = self.images, None
        self.stages = 0

    def pays(self, stages: int) -> bool:
        """Return whether to run the first stages once, and not in every epoch of this phase."""
        backbone, size = self.model.backbone, self.dls.pixels.shape[1]
        if stages == len(backbone.stages):
            return True
        if self.epochs <= self.views or not can_be_cut(backbone, stages, size):
            return False
        running, reading, megabytes = self.costs(stages)
        n = (self.views * len(self.dls.train_ds) + len(self.dls.valid_ds)) / MEASURED
        room = shutil.disk_usage(cache_folder().parent).free / 2**21  # half of it
        once = self.views * (running + reading) + self.epochs * reading
        cached = once < self.epochs * running and n * megabytes < room
        what = "run once a view and kept" if cached else "run in every epoch, which is cheaper"
        logger.info("frozen stages: %s (%.0f MB)", what, n * megabytes)
        return cached

    @property
    def epochs(self) -> int:
        """The epochs of this phase, or of the whole fit if it has no phases."""
        unfreezing = getattr(self.learn, "progressive_unfreezing", None)
        return self.n_epoch if unfreezing is None else unfreezing.phase.epochs

    def costs(self, stages: int) -> tuple[float, float, float]:
        """Return the seconds of running and of reading one batch of maps, and its megabytes."""
        rows = self.dls.rows["row"].to_numpy()[:MEASURED]

        def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
            started = time.perf_counter()
            found = function()
            return time.perf_counter() - started, found

        run = partial(
            image_features, self.model, self.dls.pixels, rows, dtype=self.dtype, stages=stages
        )
        run()  # the first is slower
        running, maps = timed(run)
        reading, _ = timed(lambda: maps[np.arange(len(maps))].astype(np.float32))
        return running, reading, maps.nbytes / 2**20

    def feature_loaders(self, stages: int) -> DataLoaders:
        """Return loaders of features over the rows of the Learner's training and validation."""
        dls, whole = self.dls, stages == len(self.model.backbone.stages)
        train = dls.rows[dls.rows["split"] == "train"]
        valid = dls.rows[dls.rows["split"] == "valid"]
        of = partial(self.features, stages=None if whole else stages)
        views = [of(train["row"].to_numpy(), view) for view in range(self.views)]
        draw = dls.train.sampler or (lambda rng: shuffled(range(len(train)), rng))
        encoded, size = dls.encoder.transform, BATCH if whole else dls.train.bs
        loaders = (
            FeatureLoader(views, encoded(train), output_codes(dls), dls.device, draw, size),
            FeatureLoader(
                [of(valid["row"].to_numpy())],
                encoded(valid),
                split_codes(dls, "valid"),
                dls.device,
                batch_size=size,
            ),
        )
        return DataLoaders(*loaders, device=dls.device)

    def features(self, rows: np.ndarray, view: int = 0, stages: int | None = None) -> np.ndarray:
        """Return the features of rows (n,), or the maps of the first stages.

        View 0 is the picture itself.
        """
        generator = torch.Generator().manual_seed(self.view_seed(view))
        about = (astuple(self.recipe), self.view_seed(view)) if view else ()

        def change(image: Tensor) -> Tensor:
            return augment(image, self.recipe, generator) if view else image

        with counting_bar("features of the frozen stages") as progress:
            return kept_features(
                self.model,
                self.dls.pixels,
                rows,
                progress,
                change=change,
                dtype=self.dtype,
                stages=stages,
                about=about,
            )

    def view_seed(self, view: int) -> int:
        """Return the seed of a view's changes."""
        return int(np.random.SeedSequence([self.seed, view]).generate_state(1)[0])
