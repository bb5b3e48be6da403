"""Epochs that train the head alone, on features that the frozen backbone computes once."""

import logging
from collections.abc import Iterator
from dataclasses import astuple
from math import ceil
from random import Random

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import Tensor

from lesionfast.console import counting_bar
from lesionfast.data.augment import Recipe, augment
from lesionfast.data.loaders import Sampler
from lesionfast.models.features import kept_features
from lesionfast.training.balancing import shuffled
from lesionfast.training.subclasses import output_codes, split_codes

logger = logging.getLogger("lesionfast")
BATCH = 256  # rows a step: the head is small


class FeatureLoader:
    """Batches of features (B, F), metadata (B, width) and class numbers (B,).

    `features` float32 (views, n, F) has each row once or more; an epoch draws one view a row.
    Rows are drawn by `sampler(rng)`, or come in order without one.
    """

    def __init__(
        self,
        features: list[np.ndarray],
        metadata: np.ndarray,
        targets: np.ndarray,
        device: torch.device,
        sampler: Sampler | None = None,
    ) -> None:
        self.features, self.device, self.sampler = features, device, sampler
        self.metadata, self.targets = torch.tensor(metadata), torch.tensor(targets)
        self.n = len(targets) if sampler is None else len(sampler(Random(0)))
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Make the next epoch's order and views those that belong to `seed`."""
        self.rng = Random(seed)

    def __len__(self) -> int:
        return ceil(self.n / BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        positions = list(range(self.n)) if self.sampler is None else self.sampler(self.rng)
        views = self.rng.choices(range(len(self.features)), k=self.n)
        for start in range(0, self.n, BATCH):
            rows = np.array(positions[start : start + BATCH])
            features = self.pick(np.array(views[start : start + BATCH]), rows)
            batch = (features, self.metadata[rows], self.targets[rows])
            yield tuple(each.to(self.device) for each in batch)

    def pick(self, views: np.ndarray, rows: np.ndarray) -> Tensor:
        """Return the features (B, F) of rows (B,), of each the view (B,)."""
        found = np.empty((len(rows), self.features[0].shape[1]), np.float32)
        for view in np.unique(views):
            found[views == view] = self.features[view][rows[views == view]]
        return torch.from_numpy(found)


class CachedFeatures(Callback):
    """While nothing of the backbone learns, train on its features, which are computed once.

    Of each training image there are `views`: the picture itself and augmented ones; of each
    validation image the picture itself. The features are kept in the cache beside the pixels, so
    that another run of the same backbone on the same images starts with them.
    """

    order = -19  # after ProgressiveUnfreezing has frozen what does not learn

    def __init__(
        self, recipe: Recipe, views: int, seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.recipe, self.seed, self.dtype = recipe, seed, dtype
        self.views, self.images = 1 if recipe == Recipe() else views, None

    def before_epoch(self) -> None:
        """Put the loaders of features in, or the loaders of images back."""
        alone = not any(each.requires_grad for each in self.model.backbone.parameters())
        if alone and self.images is None:
            self.learner, self.images = (
                self.learn,
                self.dls,
            )  # fastai forgets `learn` after an error
            self.learn.dls = self.feature_loaders()
        elif not alone:
            self.clean_up()

    def after_fit(self) -> None:
        """Put the loaders of images back."""
        self.clean_up()

    def clean_up(self) -> None:
        """Put the loaders of images back, however the fit ended."""
        if self.images is not None:
            self.learner.dls, self.images = self.images, None

    def feature_loaders(self) -> DataLoaders:
        """Return loaders of features over the rows of the Learner's training and validation."""
        dls = self.dls
        train = dls.rows[dls.rows["split"] == "train"]
        valid = dls.rows[dls.rows["split"] == "valid"]
        views = [self.features(train["row"].to_numpy(), view) for view in range(self.views)]
        draw = dls.train.sampler or (lambda rng: shuffled(range(len(train)), rng))
        of = dls.encoder.transform
        return DataLoaders(
            FeatureLoader(views, of(train), output_codes(dls), dls.device, draw),
            FeatureLoader(
                [self.features(valid["row"].to_numpy())],
                of(valid),
                split_codes(dls, "valid"),
                dls.device,
            ),
            device=dls.device,
        )

    def features(self, rows: np.ndarray, view: int = 0) -> np.ndarray:
        """Return the features float32 (n, F) of rows (n,); view 0 is the picture itself."""
        generator = torch.Generator().manual_seed(self.view_seed(view))
        about = (astuple(self.recipe), self.view_seed(view)) if view else ()

        def change(image: Tensor) -> Tensor:
            return augment(image, self.recipe, generator) if view else image

        with counting_bar("features of the frozen backbone") as progress:
            return kept_features(
                self.model, self.dls.pixels, rows, progress, change, self.dtype, about
            )

    def view_seed(self, view: int) -> int:
        """Return the seed of a view's changes."""
        return int(np.random.SeedSequence([self.seed, view]).generate_state(1)[0])
