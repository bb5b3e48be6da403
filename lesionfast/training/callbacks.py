"""fastai callbacks: each does one thing at one event, and works on any Learner."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import combined_cos
from fastai.learner import Learner
from torch import nn

from lesionfast.data.augment import Recipe, augment, turn
from lesionfast.models.folding import for_inference
from lesionfast.models.precision import autocast
from lesionfast.models.state import freed_memory_kept
from lesionfast.training.schedule import Phase, plan_phases

PARTS = ("step", "backward", "batch", "train", "validate", "epoch", "fit")  # inner ones first


class Borrowing(Callback):
    """Base of callbacks that change what others see, for as long as a `part` of the loop runs.

    `clean_up` gives back what was changed; it may be called at any time, and twice. Any Learner
    calls it when the part ends or is cancelled, or one around it; a `FusionLearner` also after an
    error or Ctrl-C, where fastai calls no event.
    """

    part = "fit"

    def clean_up(self) -> None:
        """Give back what was changed."""
        raise NotImplementedError

    def end(self, part: str) -> None:
        """Clean up if the callback's own part ends with this one."""
        if PARTS.index(part) >= PARTS.index(self.part):
            self.clean_up()

    def __call__(self, event_name: str) -> None:
        """Handle an event of fastai's; the last event of a part ends it."""
        try:
            super().__call__(event_name)
        finally:
            when, part = event_name.split("_", 1)
            if when == "after" and part in PARTS:
                self.end(part)


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


class AugmentValid(Callback):
    """Augment the validation of a fit, by the same random changes every epoch."""

    order = 51

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed

    def before_validate(self) -> None:
        """Start the changes anew."""
        self.generator = torch.Generator().manual_seed(self.seed)

    def before_batch(self) -> None:
        """Change the pictures of a validation batch."""
        if not self.training:
            image, *rest = self.xb
            image = augment(image, self.recipe, self.generator)
            self.learn.xb = (image.contiguous(memory_format=torch.channels_last), *rest)


class Turned(Callback):
    """Show the model each picture turned by one of the eight elements of the dihedral group.

    Elements 0 to 3 are quarter turns, 4 to 7 their mirror images, as of `data.augment.turn`.
    """

    order = 51

    def __init__(self, element: int) -> None:
        self.element = element

    def before_batch(self) -> None:
        """Turn the pictures."""
        image, *rest = self.xb
        self.learn.xb = (turn(image, torch.full((len(image),), self.element)), *rest)


class PredictWithoutMetadata(Callback):
    """Predict each image a second time, from the same features, as if nothing else were known.

    `unknown` (width,) is what the encoder gives then; `found` are the probabilities of the batches.
    """

    order = 56  # of the copy that FastInference put in, in its precision

    def __init__(self, unknown: np.ndarray) -> None:
        self.unknown, self.found = torch.from_numpy(unknown), []

    def before_batch(self) -> None:
        """Put the features in the images' place, and classify them without metadata."""
        image, metadata = self.xb
        features = self.model.features(image)
        unknown = self.unknown.to(metadata.device).expand(len(metadata), -1)
        logits = self.model.classify(features, unknown).float()
        self.found.append(self.loss_func.activation(logits).cpu())
        self.learn.xb = (features, metadata)


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


class PlainTensors(Callback):
    """Give the model plain tensors: fastai's subclasses cost a Python call an operation."""

    order = 50

    def before_batch(self) -> None:
        """Strip the subclasses off inputs and targets."""
        self.learn.xb = tuple(each.as_subclass(torch.Tensor) for each in self.xb)
        self.learn.yb = tuple(each.as_subclass(torch.Tensor) for each in self.yb)


class ChannelsLast(Callback):
    """Keep convolution weights channels-last in memory, as the batches are."""

    order = -15

    def before_fit(self) -> None:
        """Convert the model in place."""
        self.model.to(memory_format=torch.channels_last)

    def before_validate(self) -> None:
        """Convert the model in place, for predictions without a fit."""
        self.before_fit()


class KeepFreedMemory(Borrowing):
    """Keep the memory that a batch frees for the next one, on a CPU."""

    order = -30

    def __init__(self) -> None:
        self.stack = ExitStack()

    def before_fit(self) -> None:
        """Begin to keep it."""
        self.stack.enter_context(freed_memory_kept(self.dls.device))

    def clean_up(self) -> None:
        """Give it back to the system, however the fit ended."""
        self.stack.close()


class Autocast(Borrowing):
    """Run the forward pass in bfloat16 where that is safe; loss and metrics stay float32."""

    order, part = 55, "batch"

    def __init__(self, device: torch.device) -> None:
        self.device, self.stack = device, ExitStack()

    def before_batch(self) -> None:
        """Switch autocast on for the forward pass."""
        self.stack.enter_context(autocast("bfloat16", self.device))

    def after_pred(self) -> None:
        """Switch it off and return to float32."""
        self.clean_up()
        self.learn.pred = self.pred.float()

    def clean_up(self) -> None:
        """Switch it off, however the forward pass ended."""
        self.stack.close()


class InferenceMode(Borrowing):
    """Validate and predict in PyTorch's inference mode."""

    part = "validate"

    def __init__(self) -> None:
        self.stack = ExitStack()

    def before_validate(self) -> None:
        """Switch it on."""
        self.stack.enter_context(torch.inference_mode())

    def clean_up(self) -> None:
        """Switch it off, however the validation ended."""
        self.stack.close()


class FastInference(Borrowing):
    """Validate and predict with a copy that computes less, in the precision of autocast."""

    order = 54  # after the last change of the pictures, before autocast
    run_train, part = False, "validate"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype, self.whole = dtype, None
        self.fast, self.keeps = None, False

    def before_batch(self) -> None:
        """Put the copy in the model's place for the images of this validation."""
        if self.whole is None and self.xb[0].ndim == 4 and not resumes(self.model):
            self.fast = self.fast or for_inference(self.model, *self.xb, dtype=self.dtype)
            self.whole, self.learn.model = self.model, self.fast

    def clean_up(self) -> None:
        """Put the model back, however the validation ended."""
        if self.whole is not None:
            self.learn.model, self.whole = self.whole, None
        self.fast = self.fast if self.keeps else None

    @contextmanager
    def same_weights(self) -> Iterator[None]:
        """Make one copy for all validations inside, which must be of the same weights and size."""
        self.keeps = True
        try:
            yield
        finally:
            self.keeps = False
            self.clean_up()


def resumes(model: nn.Module) -> bool:
    """Return whether a model gets feature maps in the place of images."""
    return getattr(getattr(model, "backbone", None), "resume", None) is not None


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
