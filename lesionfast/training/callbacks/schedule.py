"""Phases of a training: which stages learn, for how many epochs, at which learning rates."""

import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import combined_cos
from fastai.learner import Learner
from torch import nn

from lesionfast.errors import LesionfastError
from lesionfast.training.callbacks.inference import Borrowing, resumes

HOWS = "fresh, gradual, two-step, last:N, none"


@dataclass(frozen=True)
class Phase:
    """Epochs first to first + epochs - 1, counted from 0; the last `groups` groups learn."""

    name: str
    first: int
    epochs: int
    groups: int

    @property
    def end(self) -> int:
        """The first epoch after this phase."""
        return self.first + self.epochs


def plan_phases(unfreeze: str, n_groups: int, epochs: int, head_epochs: int = 1) -> list[Phase]:
    """Return the phases of `epochs` epochs over parameter groups counted from the stem.

    fresh: the head, which gives a first answer, then all with a head that starts anew. two-step:
    the head, then all. gradual (Howard and Ruder 2018, arXiv:1801.06146, section 3.3): the head,
    then one stage more an epoch, then, for at least half of the rest, everything. last:N: the
    head, then the head and the last N stages. none: all at once. The head alone learns
    for `head_epochs`, or not at all if no epoch were left.
    """
    head, *stops = group_stops(unfreeze, n_groups)
    lengths = []
    if stops and 0 < head_epochs < epochs:
        lengths = [head_epochs]
    elif not stops:
        stops = [head]
    rest = epochs - sum(lengths)
    single = min(len(stops) - 1, rest // 2)
    groups = [*([head] if lengths else []), *stops[:single], stops[-1]]
    lengths += [1] * single + [rest - single]
    return [
        Phase(phase_name(each, n_groups), sum(lengths[:i]), lengths[i], each)
        for i, each in enumerate(groups)
    ]


def group_stops(unfreeze: str, n_groups: int) -> list[int]:
    """Return how many groups learn in each phase, in order."""
    last = re.fullmatch(r"last:(\d+)", unfreeze)
    if last and 1 <= int(last[1]) < n_groups:
        return [1, 1 + int(last[1])]
    if unfreeze == "gradual":
        return list(range(1, n_groups + 1))
    if unfreeze in ("fresh", "two-step"):
        return [1, n_groups] if n_groups > 1 else [1]
    if unfreeze == "none":
        return [n_groups]
    raise LesionfastError(
        f"--unfreeze is '{unfreeze}', which does not fit a model with {n_groups - 1} stages and a "
        f"head. Type one of: {HOWS}, with N from 1 to {n_groups - 1}."
    )


def phase_name(groups: int, n_groups: int) -> str:
    """Return a phase's name for people."""
    if groups == n_groups:
        return "all"
    stages = groups - 1
    return "head" if not stages else f"head + last {stages} stage{'s' if stages > 1 else ''}"


def discriminative(lr: float, decay: float, n_groups: int) -> list[float]:
    """Return the highest learning rate of each group, stem first: lr for the head, less below."""
    return [lr * decay**depth for depth in reversed(range(n_groups))]


class ProgressiveUnfreezing(Borrowing):
    """Freeze the stages below the first that learns, phase by phase within one fit.

    `how` and `head_epochs` are what `plan_phases` takes. The optimizer's state starts anew with
    each phase, and so does the head after having learned alone where `how` is 'fresh': one that
    has fitted the features of the frozen backbone well keeps the backbone from learning others.
    """

    order = -20  # before anything that looks at what is frozen

    def __init__(self, how: str = "gradual", head_epochs: int = 1) -> None:
        self.how, self.head_epochs, self.phases = how, head_epochs, []
        self.learning: dict[nn.Parameter, bool] = {}  # before the fit

    def before_fit(self) -> None:
        """Plan the phases from the number of epochs and of parameter groups."""
        self.learning = {each: each.requires_grad for each in self.model.parameters()}
        n_groups = len(self.opt.param_lists)
        self.phases = plan_phases(self.how, n_groups, self.n_epoch, self.head_epochs)
        self.first_head = [each.detach().clone() for each in self.head]

    def before_epoch(self) -> None:
        """Freeze as the phase says; forget the optimizer's averages where a phase starts."""
        phase = self.phase
        self.opt.freeze_to(len(self.opt.param_lists) - phase.groups)
        if self.epoch == phase.first:
            self.opt.clear_state()

    def before_train(self) -> None:
        """Give the head its first weights where a phase starts, if it is to be fresh."""
        if self.how == "fresh" and self.epoch == self.phase.first:
            for parameter, first in zip(self.head, self.first_head, strict=True):
                parameter.data.copy_(first)

    def clean_up(self) -> None:
        """Let learn what learned before the fit."""
        for parameter, learned in self.learning.items():
            parameter.requires_grad_(learned)
        self.learning = {}

    @property
    def head(self) -> list[nn.Parameter]:
        """The last parameter group."""
        return list(self.opt.param_lists[-1])

    @property
    def phase(self) -> Phase:
        """The phase of the current epoch."""
        return next(each for each in self.phases if self.epoch < each.end)


class OneCycle(Callback):
    """Learning rate and momentum by the one-cycle policy, once in each phase.

    (Smith 2018, arXiv:1803.09820.) `lr` is a number, a slice or one number a group; None takes
    the Learner's. `head_lr` is that of the head while it learns alone. Without
    `ProgressiveUnfreezing` the whole fit is one phase.
    """

    order, run_valid = 60, False

    def __init__(
        self,
        lr: float | slice | list[float] | None = None,
        pct_start: float = 0.25,
        div: float = 25.0,
        div_final: float = 1e4,
        moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
        head_lr: float | None = None,
    ) -> None:
        self.lr_max, self.pct_start, self.div, self.div_final = lr, pct_start, div, div_final
        self.moms, self.head_lr = moms, head_lr

    def before_fit(self) -> None:
        """Build the curves."""
        self.opt.set_hyper("lr", self.learn.lr if self.lr_max is None else self.lr_max)
        self.lrs = lr = np.array([each["lr"] for each in self.opt.hypers])
        self.curves = {
            "lr": combined_cos(self.pct_start, lr / self.div, lr, lr / self.div_final),
            "mom": combined_cos(self.pct_start, *self.moms),
        }

    def before_batch(self) -> None:
        """Set what the curves say for this step of the phase."""
        done = share_of_phase(self.learn)
        self.opt.set_hyper("lr", self.curves["lr"](done) * (self.highest / self.lrs[-1]))
        self.opt.set_hyper("mom", self.curves["mom"](done))

    @property
    def highest(self) -> float:
        """The highest rate of the current phase, that of the head."""
        unfreezing = getattr(self.learn, "progressive_unfreezing", None)
        alone = unfreezing is not None and unfreezing.phase.groups == 1 < len(self.lrs)
        return self.head_lr if alone and self.head_lr else float(self.lrs[-1])


def share_of_phase(learn: Learner) -> float:
    """Return how much of its phase a training has behind it, or of the fit if it has no phases."""
    unfreezing = getattr(learn, "progressive_unfreezing", None)
    first, epochs = 0, learn.n_epoch
    if unfreezing is not None:
        first, epochs = unfreezing.phase.first, unfreezing.phase.epochs
    return (learn.epoch - first + learn.iter / learn.n_iter) / epochs


class FrozenEval(Callback):
    """Keep every module without a trainable parameter in eval mode while the rest trains.

    So the batch norm of a frozen stage neither uses nor updates batch statistics, and its
    dropout is off.
    """

    order = -9  # just after fastai set the whole model to training mode

    def before_train(self) -> None:
        """Set frozen modules to eval mode."""
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(each.requires_grad for each in parameters):
                module.eval()


class ProgressiveResizing(Callback):
    """Train on smaller pictures first, that grow to their full size over a share of each phase.

    (Karras et al. 2018, arXiv:1710.10196, of generators.) Sides grow by 32 pixels at a time;
    features, feature maps and validation pictures stay as they are.
    """

    order, run_valid = 53, False

    def __init__(self, start_size: int, share: float = 0.6) -> None:
        self.start_size, self.share = start_size, share

    def before_batch(self) -> None:
        """Make the pictures of a training batch smaller."""
        image, *rest = self.xb
        if image.ndim != 4 or resumes(self.model):
            return
        side = self.side(image.shape[-1], share_of_phase(self.learn))
        if side < image.shape[-1]:
            smaller = F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
            self.learn.xb = (smaller.contiguous(memory_format=torch.channels_last), *rest)

    def side(self, full: int, done: float) -> int:
        """Return the side in pixels after a share of the phase."""
        if done >= self.share:
            return full
        grown = 32 * round((full - self.start_size) * done / self.share / 32)
        return min(full, self.start_size + grown)


class SeedEpochs(Callback):
    """Make each epoch's order, augmentation and dropout depend on the seed and its number only.

    So the same seed repeats a training, and a resumed one goes on as if it had not stopped.
    """

    order = -18  # after CachedFeatures has put its loaders in

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_epoch(self) -> None:
        """Reseed the training loader and torch's generator, which dropout draws from."""
        seed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        if hasattr(self.dls.train, "reseed"):
            self.dls.train.reseed(int(seed))
