"""The course of a training: its phases, and in each what learns, how fast and at which size."""

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
from lesionfast.training.processes import process

HOWS = "fresh, fresh:N, gradual, two-step, last:N, head, none"


@dataclass(frozen=True)
class Phase:
    """The epochs `first` to `end` - 1, counted from 0, in which the last `groups` groups learn."""

    name: str
    first: int
    epochs: int
    groups: int

    @property
    def end(self) -> int:
        return self.first + self.epochs


def plan_phases(unfreeze: str, n_groups: int, epochs: int, head_epochs: int = 1) -> list[Phase]:
    """Return the phases of `epochs` epochs over parameter groups counted from the stem.

    fresh: the head, then all with a new head. fresh:N: the head, then a new head and the last N
    stages. last:N: the same with the head kept. two-step: the head, then all. gradual (Howard and
    Ruder 2018, arXiv:1801.06146, section 3.3): the head, then one stage more per epoch, then, for
    at least half of the rest, everything. none: all at once. head: the head and nothing else. The
    head alone learns for `head_epochs`, or not at all if that would leave no epoch for the rest.
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
        Phase(phase_name(n, n_groups), sum(lengths[:i]), lengths[i], n)
        for i, n in enumerate(groups)
    ]


def group_stops(unfreeze: str, n_groups: int) -> list[int]:
    """Return how many groups learn in each phase, in order."""
    last = re.fullmatch(r"(last|fresh):(\d+)", unfreeze)
    if last and 1 <= int(last[2]) < n_groups:
        return [1, 1 + int(last[2])]
    if unfreeze == "gradual":
        return list(range(1, n_groups + 1))
    if unfreeze in ("fresh", "two-step"):
        return [1, n_groups] if n_groups > 1 else [1]
    if unfreeze in ("head", "none"):
        return [1 if unfreeze == "head" else n_groups]
    raise LesionfastError(
        f"--unfreeze is '{unfreeze}', which does not fit a model with {n_groups - 1} stages and a "
        f"head. Type one of: {HOWS}, with N from 1 to {n_groups - 1}."
    )


def phase_name(groups: int, n_groups: int) -> str:
    if groups == n_groups:
        return "all"
    return "head" if groups == 1 else f"head + last {groups - 1} stage{'s' if groups > 2 else ''}"


class ProgressiveUnfreezing(Borrowing):
    """Unfreeze the model from the head down, phase by phase within one fit.

    `how` and `head_epochs` are those of `plan_phases`. Each phase starts with an empty optimizer
    state and, if `how` is 'fresh' or 'fresh:N', with the first weights of the head: a head that
    already fits the features of the frozen backbone well keeps the backbone from learning others.
    """

    order = -20  # before anything that looks at what is frozen

    def __init__(self, how: str = "gradual", head_epochs: int = 1) -> None:
        self.how, self.head_epochs, self.phases = how, head_epochs, []
        self.learned: dict[nn.Parameter, bool] = {}  # before the fit

    def before_fit(self) -> None:
        self.learned = {p: p.requires_grad for p in self.model.parameters()}
        n_groups = len(self.opt.param_lists)
        self.phases = plan_phases(self.how, n_groups, self.n_epoch, self.head_epochs)
        self.first_head = [p.detach().clone() for p in self.head]

    def before_epoch(self) -> None:
        self.opt.freeze_to(len(self.opt.param_lists) - self.phase.groups)
        if self.epoch == self.phase.first:
            self.opt.clear_state()

    def before_train(self) -> None:
        """Reset the head where a phase starts, if it is to be fresh."""
        if self.how.startswith("fresh") and self.epoch == self.phase.first:
            for parameter, first in zip(self.head, self.first_head, strict=True):
                parameter.data.copy_(first)

    def clean_up(self) -> None:
        for parameter, learned in self.learned.items():
            parameter.requires_grad_(learned)
        self.learned = {}

    @property
    def head(self) -> list[nn.Parameter]:
        """The last parameter group."""
        return list(self.opt.param_lists[-1])

    @property
    def phase(self) -> Phase:
        """The phase of the current epoch."""
        return next(phase for phase in self.phases if self.epoch < phase.end)


def current_phase(learn: Learner) -> Phase:
    """Return the phase that a fit is in; without `ProgressiveUnfreezing` the fit is one phase."""
    if hasattr(learn, "progressive_unfreezing"):
        return learn.progressive_unfreezing.phase
    return Phase("all", 0, learn.n_epoch, len(learn.opt.param_lists))


def progress_in_phase(learn: Learner) -> float:
    """Return the share of its phase that a training has behind it, from 0 to 1."""
    phase = current_phase(learn)
    return (learn.epoch - phase.first + learn.iter / learn.n_iter) / phase.epochs


def discriminative_lrs(lr: float, decay: float, n_groups: int) -> list[float]:
    """Return the peak learning rate of each group, stem first: lr for the head, less below it."""
    return [lr * decay**depth for depth in reversed(range(n_groups))]


class OneCycle(Callback):
    """Learning rate and momentum by the one-cycle policy, once in each phase.

    (Smith 2018, arXiv:1803.09820.) `lr` is a number, a slice or one number per group; None takes
    the Learner's. `head_lr` is that of the head while it learns alone.
    """

    order, run_valid = 60, False
    pct_start, div, div_final, moms = 0.25, 25.0, 1e4, (0.95, 0.85, 0.95)  # as of fastai

    def __init__(
        self, lr: float | slice | list[float] | None = None, head_lr: float | None = None
    ) -> None:
        self.lr_max, self.head_lr = lr, head_lr

    def before_fit(self) -> None:
        self.opt.set_hyper("lr", self.learn.lr if self.lr_max is None else self.lr_max)
        self.lrs = lr = np.array([hyper["lr"] for hyper in self.opt.hypers])
        self.curves = {
            "lr": combined_cos(self.pct_start, lr / self.div, lr, lr / self.div_final),
            "mom": combined_cos(self.pct_start, *self.moms),
        }

    def before_batch(self) -> None:
        progress = progress_in_phase(self.learn)
        self.opt.set_hyper("lr", self.curves["lr"](progress) * (self.highest / self.lrs[-1]))
        self.opt.set_hyper("mom", self.curves["mom"](progress))

    @property
    def highest(self) -> float:
        """The peak learning rate of the head in the current phase."""
        alone = current_phase(self.learn).groups == 1 < len(self.lrs)
        return self.head_lr if alone and self.head_lr else float(self.lrs[-1])


class FrozenEval(Callback):
    """Keep every module without a trainable parameter in eval mode while the rest trains.

    So the batch norm of a frozen stage neither uses nor updates batch statistics, and its
    dropout is off.
    """

    order = -9  # just after fastai has set the whole model to training mode

    def before_train(self) -> None:
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()


class ProgressiveResizing(Callback):
    """Train on smaller pictures first, which grow to their full size over a share of each phase.

    (Karras et al. 2018, arXiv:1710.10196, for generators.) Sides grow by 32 pixels at a time;
    features, feature maps and validation pictures keep their size.
    """

    order, run_valid = 53, False
    share = 0.6  # of a phase

    def __init__(self, start_size: int) -> None:
        self.start_size = start_size

    def before_batch(self) -> None:
        image, *rest = self.xb
        if image.ndim != 4 or resumes(self.model):
            return
        side = self.side(image.shape[-1], progress_in_phase(self.learn))
        if side < image.shape[-1]:
            smaller = F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
            self.learn.xb = (smaller.contiguous(memory_format=torch.channels_last), *rest)

    def side(self, full: int, progress: float) -> int:
        """Return the side in pixels at a point of the phase, 0 to 1."""
        if progress >= self.share:
            return full
        grown = 32 * round((full - self.start_size) * progress / self.share / 32)
        return min(full, self.start_size + grown)


class SeedEpochs(Callback):
    """Make the order, augmentation and dropout of an epoch depend on the seed and its number only.

    So the same seed repeats a training, and a resumed one goes on as if it had not stopped.
    """

    order = -18  # after CachedFeatures has put its loaders in

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_epoch(self) -> None:
        seed = mix_seeds(self.seed, self.epoch)
        torch.manual_seed(seed + process.rank)  # other dropout in each of several processes
        if hasattr(self.dls.train, "reseed"):
            self.dls.train.reseed(seed)


def mix_seeds(*numbers: int) -> int:
    """Return one seed that depends on all of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
