"""What keeps a model from fitting chance: pairs are mixed, metadata withheld, weights averaged."""

import math

import numpy as np
import torch
from fastai.callback.core import Callback
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lesionfast.data.encoder import MetadataEncoder
from lesionfast.registry import Registry
from lesionfast.training.callbacks.schedule import current_phase, mix_seeds
from lesionfast.training.callbacks.tracking import Resumable

mixes = Registry("mixing", "--mix")
MOST = 0.9  # of the complete rows: some keep all metadata, however often columns are missing


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


class MetadataDropout(Callback):
    """Withhold metadata at random in training, so that every class lacks it equally often.

    A share of the rows loses all columns, and the same share one column, each equally often. Where
    one class lacks columns more often than another, more is withheld from the other: otherwise the
    model could learn the class from what is missing, as in HAM10000, where 45 of 57 images without
    age are nevi. Incomplete rows and validation stay as they are. What is withheld depends only on
    the seed, the epoch and the batch.

    `metadata` (n, width) are the encoded training rows, `codes` (n,) their classes; `parents` (s,)
    has the class of each output that is a target.
    """

    order, run_valid = 51, False  # before two rows are mixed

    def __init__(
        self,
        encoder: MetadataEncoder,
        metadata: np.ndarray,
        codes: np.ndarray,
        parents: list[int],
        share: float,
        seed: int = 0,
    ) -> None:
        missing = metadata[:, encoder.indicators] > 0
        patterns, chances = withheld_patterns(missing, codes, max(parents) + 1, share)
        nothing = np.zeros((1, missing.shape[1]), bool)
        widths = np.diff(encoder.indicators, prepend=-1)
        self.patterns = torch.from_numpy(np.vstack([patterns, nothing]).repeat(widths, axis=1))
        self.limits = torch.from_numpy(chances[parents].cumsum(axis=1)).float()
        self.indicators = torch.from_numpy(encoder.indicators)
        self.missing = torch.from_numpy(encoder.unknown)
        self.seed = seed

    def before_fit(self) -> None:
        self.move_to(self.dls.device)

    def before_epoch(self) -> None:
        self.generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch, 1))

    def before_batch(self) -> None:
        image, metadata = self.xb
        self.learn.xb = (image, self.withhold(metadata, self.yb[0], self.generator))

    def withhold(self, metadata: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return metadata (B, width) of rows with the outputs (B,) as targets, some withheld."""
        draw = torch.rand(len(metadata), 1, generator=generator).to(metadata.device)
        pattern = self.patterns[(draw >= self.limits[targets]).sum(dim=1)]
        complete = (metadata[:, self.indicators] == 0).all(dim=1, keepdim=True)
        return torch.where(pattern & complete, self.missing, metadata)

    def withhold_once(self, metadata: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return encoded training rows (n, width) of classes (n,), some withheld."""
        self.move_to(torch.device("cpu"))
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.from_numpy(metadata), torch.from_numpy(codes)
        return self.withhold(*rows, generator).numpy()

    def move_to(self, device: torch.device) -> None:
        for name in ("patterns", "limits", "indicators", "missing"):
            setattr(self, name, getattr(self, name).to(device))


def withheld_patterns(
    missing: np.ndarray, codes: np.ndarray, n_classes: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return patterns of columns, bool (p, columns), and each class's chance of them, (k, p).

    `missing` (n, columns) says what the rows lack, `codes` (n,) are their classes. The chance is
    that of a complete row. Afterwards each pattern is as frequent in every class: as in the class
    that has it most often, and more by `share`.
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
    complete = np.maximum(shares[:, ~lacking].sum(axis=1, keepdims=True), 1e-9)
    chances = wanted / complete
    return patterns[lacking], chances * np.minimum(1, MOST / chances.sum(axis=1, keepdims=True))


class EMA(Resumable):
    """Train the weights, but validate and keep their exponential moving average.

    The statistics of batch norm are averaged too. The average restarts with each phase, and its
    decay rises with the steps n of the phase as 1 - n^(-2/3), up to `decay`: timm's ModelEmaV3.
    (Polyak and Juditsky 1992, doi:10.1137/0330046, of plain averages.) After the fit the model is
    the average.
    """

    order = -16  # after ProgressiveUnfreezing and Checkpoint's restoring, before a step
    name, resumed = "weight_average", ("steps",)  # in checkpoints

    def __init__(self, decay: float) -> None:
        self.decay, self.steps, self.own = decay, 0, None

    def before_fit(self) -> None:
        self.own = None  # of an earlier fit
        model = self.model.to(self.dls.device)  # fastai moves it only after this event
        self.average = ModelEmaV3(model, decay=self.decay, use_warmup=True)

    def before_epoch(self) -> None:
        """Go on with the trained weights."""
        if self.own is not None:
            self.model.load_state_dict(self.own)
            self.own = None

    def before_train(self) -> None:
        """Start a new average where a phase starts."""
        if self.epoch == current_phase(self.learn).first:
            self.average.set(self.model)
            self.steps = 0
        self.mean, self.trained = (  # kept, for a state_dict is slow to ask for
            [v for v in module.state_dict().values() if v.is_floating_point()]
            for module in (self.average.module, self.model)
        )

    def after_batch(self) -> None:
        """Add the weights after a training step to the average."""
        if self.training:
            self.steps += 1
            update = get_ema_multi_avg_fn(self.average.get_decay(self.steps))
            update(self.mean, self.trained, None)

    def before_validate(self) -> None:
        """Put the average into the model, and the trained weights aside."""
        self.own = {name: value.clone() for name, value in self.model.state_dict().items()}
        for own, mean in zip(self.trained, self.mean, strict=True):
            own.copy_(mean)

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained weights; the average is in the model."""
        return self.own

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.own = tensors
        self.average.set(self.model)
