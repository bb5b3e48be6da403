"""Mixing two pictures of a batch, by name; the metadata are mixed with the same share."""

import math

import numpy as np
from fastai.callback.core import Callback
from torch import Tensor

from lesionfast.registry import Registry

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
