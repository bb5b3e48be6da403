"""Mixing two pictures of a batch, by name; the metadata are mixed with the same share."""

import math
from dataclasses import replace

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import Tensor, nn

from lesionfast.data.encoder import MetadataEncoder
from lesionfast.registry import Registry
from lesionfast.training.callbacks.inference import Borrowing
from lesionfast.training.losses import ClassificationLoss

mixes = Registry("mixing", "--mix")


class Mix(Callback):
    """Mix each row of a training batch with another, and the loss of both targets alike.

    Works on any Learner of one or more inputs, the image first. The share of the row itself is
    drawn once a batch from Beta(alpha, alpha), and depends on seed, epoch and step only. As the
    share goes to 1 the label does too, so nothing has to be undone in predictions of whole
    pictures.
    """

    order, run_valid = 52, False

    def __init__(self, alpha: float, seed: int = 0) -> None:
        self.alpha, self.seed = alpha, seed

    def before_epoch(self) -> None:
        """Start the draws that belong to this epoch."""
        self.rng = np.random.default_rng([self.seed, self.epoch])

    def before_batch(self) -> None:
        """Mix the inputs."""
        self.share = float(self.rng.beta(self.alpha, self.alpha))
        self.others = self.rng.permutation(len(self.xb[0])).tolist()
        image, *rest = self.xb
        image = self.mix_images(image, image[self.others])
        rest = [self.share * each + (1 - self.share) * each[self.others] for each in rest]
        self.learn.xb = (image, *rest)

    def after_loss(self) -> None:
        """Add up the losses of both targets, weighted by their shares."""
        other = self.loss_func(self.pred, *(each[self.others] for each in self.yb))
        loss = self.share * self.loss_grad + (1 - self.share) * other
        self.learn.loss_grad, self.learn.loss = loss, loss.detach().clone()

    def mix_images(self, image: Tensor, other: Tensor) -> Tensor:
        """Return images (B, 3, H, W) mixed with others; may set `share` to what came out."""
        raise NotImplementedError


@mixes.register("none")
def none(alpha: float, seed: int) -> None:
    """No mixing."""


@mixes.register("mixup")
class MixUp(Mix):
    """A weighted mean of both pictures (Zhang et al. 2018, arXiv:1710.09412)."""

    def mix_images(self, image: Tensor, other: Tensor) -> Tensor:
        """Return the weighted mean."""
        return self.share * image + (1 - self.share) * other


@mixes.register("cutmix")
class CutMix(Mix):
    """A rectangle of the other picture, large as its share (Yun et al. 2019, arXiv:1905.04899)."""

    def mix_images(self, image: Tensor, other: Tensor) -> Tensor:
        """Return the pictures with the rectangle; the share becomes that of the area left."""
        height, width = image.shape[2:]
        side = math.sqrt(1 - self.share)
        middle = self.rng.random(2)
        top, bottom = span(middle[0], side, height)
        left, right = span(middle[1], side, width)
        mixed = image.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        self.share = 1 - (bottom - top) * (right - left) / (height * width)
        return mixed


def span(middle: float, side: float, length: int) -> tuple[int, int]:
    """Return the pixels from and to of a side around a middle, both shares of `length`."""
    return (
        max(0, round((middle - side / 2) * length)),
        min(length, round((middle + side / 2) * length)),
    )


class TrainThenValidate(Borrowing):
    """Train with a loss over the model's outputs, validate with one over the posteriors.

    Each epoch the model undoes what the loss does by then, and `learn.balance` has the prior of
    its posteriors: the first of `priors` while the loss has no class weights, else the second.
    """

    order = -15

    def __init__(
        self,
        loss: ClassificationLoss,
        valid_loss: ClassificationLoss,
        priors: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self.loss, self.valid_loss, self.priors = loss, valid_loss, priors

    def before_train(self) -> None:
        """Take the loss over the outputs; the posteriors will be those of its minimum."""
        self.learn.loss_func = self.loss.to(self.dls.device)
        self.describe()

    def before_validate(self) -> None:
        """Take the loss over the posteriors."""
        self.learn.loss_func = self.valid_loss.to(self.dls.device)

    def clean_up(self) -> None:
        """Leave the Learner with the loss over the posteriors, however the fit ended."""
        self.learn.loss_func = self.valid_loss

    def describe(self) -> None:
        """Say what the model's probabilities are, as the loss is now."""
        self.model.posterior.set_undo(self.loss.undo(len(self.model.parents)))
        self.model.posterior.to(self.dls.device)
        prior = self.priors[self.loss.weight is not None]
        self.learn.balance = replace(self.learn.balance, prior=prior)


class HardNegatives(Callback):
    """Learn from the hardest share of each batch, by its losses now.

    (Online hard example mining, Shrivastava et al. 2016, arXiv:1604.03540.) Works on any Learner
    whose loss has a `reduction`.
    """

    order, run_valid = 10, False

    def __init__(self, share: float) -> None:
        assert 0 < share <= 1, share
        self.share = share

    def after_loss(self) -> None:
        """Put the mean of the highest losses in the place of the mean of all."""
        loss, self.loss_func.reduction = self.loss_func.reduction, "none"
        try:
            each = self.loss_func(self.pred, *self.yb)
        finally:
            self.loss_func.reduction = loss
        kept = each.flatten().topk(max(1, round(self.share * each.numel()))).values.mean()
        self.learn.loss_grad, self.learn.loss = kept, kept.detach().clone()


class DeferredWeights(Borrowing):
    """Switch the class weights of losses on after a share of the epochs.

    (Deferred re-weighting, Cao et al. 2019, arXiv:1906.07413, algorithm 1.)
    """

    order = -10

    def __init__(self, share: float, *losses: nn.Module) -> None:
        self.share, self.weights = share, [(loss, loss.weight) for loss in losses]

    def before_epoch(self) -> None:
        """Give the losses their weights, or take them off."""
        self.switch(self.epoch)

    def switch(self, epoch: int) -> None:
        """Give the losses the weights that they have in an epoch of this fit."""
        late = epoch >= self.share * self.n_epoch
        for loss, weight in self.weights:
            loss.weight = weight.to(self.dls.device) if late else None

    def clean_up(self) -> None:
        """Give the losses their weights, however the fit ended."""
        for loss, weight in self.weights:
            loss.weight = weight


MOST = 0.9  # of the rows that lack nothing: some stay whole, however the columns are missing


class Withholding:
    """Makes the metadata of training rows unknown at random, so often that every class is alike.

    From a share of the rows all columns are withheld, and from another one column, each as often.
    Where a class lacks columns more often than another does, the others have as much more withheld:
    else the model would learn from what is missing which class it is, as it can in HAM10000, where
    45 of 57 images without age are nevi. Rows that lack something stay as they are.

    `metadata` (n, width) are the encoded training rows, `codes` (n,) their classes; `parents` (s,)
    has the class of each output that is taught.
    """

    def __init__(
        self,
        encoder: MetadataEncoder,
        metadata: np.ndarray,
        codes: np.ndarray,
        parents: list[int],
        share: float,
    ) -> None:
        missing = metadata[:, encoder.indicators] > 0
        patterns, chances = withheld_patterns(missing, codes, max(parents) + 1, share)
        nothing = np.zeros((1, missing.shape[1]), bool)
        widths = np.diff(encoder.indicators, prepend=-1)
        self.patterns = torch.from_numpy(np.vstack([patterns, nothing]).repeat(widths, axis=1))
        self.limits = torch.from_numpy(chances[parents].cumsum(axis=1)).float()
        self.indicators = torch.from_numpy(encoder.indicators)
        self.unknown = torch.from_numpy(encoder.unknown)

    @classmethod
    def of(cls, dls: DataLoaders, parents: list[int], share: float) -> "Withholding":
        """Return that of the training rows in `dls` (from `build_dls`)."""
        rows = dls.rows[dls.rows["split"] == "train"]
        codes = rows["target"].map(list(dls.vocab).index).to_numpy(np.int64)
        return cls(dls.encoder, dls.encoder.transform(rows), codes, parents, share)

    def to(self, device: torch.device) -> "Withholding":
        """Move it to a device and return it."""
        for name in ("patterns", "limits", "indicators", "unknown"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(self, metadata: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return metadata (B, width) of rows with the outputs (B,) as targets, some withheld."""
        draw = torch.rand(len(metadata), 1, generator=generator).to(metadata.device)
        pattern = self.patterns[(draw >= self.limits[targets]).sum(dim=1)]
        whole = (metadata[:, self.indicators] == 0).all(dim=1, keepdim=True)
        return torch.where(pattern & whole, self.unknown, metadata)


def withheld_patterns(
    missing: np.ndarray, codes: np.ndarray, n_classes: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return patterns of columns, bool (p, columns), and each class's chance of them, (k, p).

    `missing` (n, columns) says what the rows lack, `codes` (n,) are their classes. The chance is
    that of a row that lacks nothing. Afterwards each pattern is as frequent in every class: as in
    the class that has it most often, and more by `share`.
    """
    n_columns = missing.shape[1]
    alone = np.eye(n_columns, dtype=bool) if n_columns > 1 else np.zeros((0, 1), bool)
    added = np.vstack([np.ones((1, n_columns), bool), alone])
    patterns, index = np.unique(np.vstack([missing, added]), axis=0, return_inverse=True)
    index, lacking = index.reshape(-1), patterns.any(axis=1)
    more = np.zeros(len(patterns))
    more[index[len(missing)]], more[index[len(missing) + 1 :]] = share, share / n_columns
    counts = np.zeros((n_classes, len(patterns)))
    np.add.at(counts, (codes, index[: len(missing)]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wanted = (shares.max(axis=0) + more - shares)[:, lacking]
    whole = np.maximum(shares[:, ~lacking].sum(axis=1, keepdims=True), 1e-9)
    chances = wanted / whole
    return patterns[lacking], chances * np.minimum(1, MOST / chances.sum(axis=1, keepdims=True))


class WithholdMetadata(Callback):
    """Withhold metadata in each training batch, of images or of features, never in validation.

    What is withheld depends on the seed, the epoch and the batch only.
    """

    order, run_valid = 51, False  # before two rows are mixed

    def __init__(self, withholding: Withholding, seed: int) -> None:
        self.withholding, self.seed = withholding, seed

    def before_fit(self) -> None:
        """Move the chances to where the batches are."""
        self.withholding.to(self.dls.device)

    def before_epoch(self) -> None:
        """Start the draws that belong to this epoch."""
        seed = np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(1)[0]
        self.generator = torch.Generator().manual_seed(int(seed))

    def before_batch(self) -> None:
        """Withhold the metadata of some rows."""
        image, metadata = self.xb
        self.learn.xb = (image, self.withholding(metadata, self.yb[0], self.generator))

    def withheld_once(self, metadata: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return encoded training rows (n, width) of classes (n,) with some of it withheld."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.from_numpy(metadata), torch.from_numpy(codes)
        return self.withholding.to(torch.device("cpu"))(*rows, generator).numpy()
