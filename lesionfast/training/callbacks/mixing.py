"""Mixing pairs of pictures in a batch, by name, together with their metadata and losses."""

import math

import numpy as np
from fastai.callback.core import Callback
from torch import Tensor

from lesionfast.registry import Registry

mixes = Registry("mixing", "--mix")


class Mix(Callback):
    """Mix each row of a training batch with another: inputs and losses, with the same share.

    Works on any Learner of one or more inputs, the image first. The share of the row itself is
    drawn once per batch from Beta(alpha, alpha), and depends on seed, epoch and step only. As the
    share goes to 1 the label does too, so predictions of whole pictures need no correction.
    """

    order, run_valid = 52, False

    def __init__(self, alpha: float, seed: int = 0) -> None:
        self.alpha, self.seed = alpha, seed

    def before_epoch(self) -> None:
        self.rng = np.random.default_rng([self.seed, self.epoch])

    def before_batch(self) -> None:
        self.share = float(self.rng.beta(self.alpha, self.alpha))
        self.others = self.rng.permutation(len(self.xb[0])).tolist()
        image, *rest = self.xb
        image = self.mix_images(image, image[self.others])
        rest = [self.share * x + (1 - self.share) * x[self.others] for x in rest]
        self.learn.xb = (image, *rest)

    def after_loss(self) -> None:
        other = self.loss_func(self.pred, *(y[self.others] for y in self.yb))
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
    """The weighted mean of two pictures (Zhang et al. 2018, arXiv:1710.09412)."""

    def mix_images(self, image: Tensor, other: Tensor) -> Tensor:
        return self.share * image + (1 - self.share) * other


@mixes.register("cutmix")
class CutMix(Mix):
    """A rectangle of another picture in its place (Yun et al. 2019, arXiv:1905.04899)."""

    def mix_images(self, image: Tensor, other: Tensor) -> Tensor:
        """Return the pictures with the rectangle; the share becomes that of the area left."""
        height, width = image.shape[2:]
        side = math.sqrt(1 - self.share)
        middle = self.rng.random(2)
        top, bottom = pixel_span(middle[0], side, height)
        left, right = pixel_span(middle[1], side, width)
        mixed = image.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        self.share = 1 - (bottom - top) * (right - left) / (height * width)
        return mixed


def pixel_span(middle: float, side: float, length: int) -> tuple[int, int]:
    """Return where a side around a middle, both shares of `length`, starts and stops in pixels."""
    start, stop = (round((middle + half) * length) for half in (-side / 2, side / 2))
    return max(0, start), min(length, stop)
