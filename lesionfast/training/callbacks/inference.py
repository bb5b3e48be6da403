"""fastai callbacks that change how batches are computed, and give back what they change."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock

import torch
from fastai.callback.core import Callback
from torch import nn

from lesionfast.data.augment import Recipe, augment
from lesionfast.data.sources import find_glibc, return_memory
from lesionfast.models.inference import for_inference
from lesionfast.models.precision import autocast

PARTS = ("step", "backward", "batch", "train", "validate", "epoch", "fit")  # inner ones first


class Borrowing(Callback):
    """Base of callbacks that change what others see, for as long as a `part` of the loop runs.

    `clean_up` gives back what was changed; it may be called at any time, and twice. Any Learner
    calls it when the part ends or is cancelled, or one around it; a `LesionLearner` also after an
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


class InContext(Borrowing):
    """Base of callbacks that run their part of the loop inside a context manager."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def enter(self, context: AbstractContextManager) -> None:
        self.stack.enter_context(context)

    def clean_up(self) -> None:
        self.stack.close()


class AugmentValid(Callback):
    """Augment the validation images of a fit, with the same random changes in every epoch."""

    order = 51

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed

    def before_validate(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def before_batch(self) -> None:
        if not self.training:
            image, *rest = self.xb
            image = augment(image, self.recipe, self.generator)
            self.learn.xb = (image.contiguous(memory_format=torch.channels_last), *rest)


class PlainTensors(Callback):
    """Give the model plain tensors: fastai's subclasses cost a Python call per operation."""

    order = 50

    def before_batch(self) -> None:
        self.learn.xb = tuple(x.as_subclass(torch.Tensor) for x in self.xb)
        self.learn.yb = tuple(y.as_subclass(torch.Tensor) for y in self.yb)


class ChannelsLastWeights(Callback):
    """Keep convolution weights channels-last in memory, as the batches are."""

    order = -15

    def before_fit(self) -> None:
        self.model.to(memory_format=torch.channels_last)

    def before_validate(self) -> None:
        """Convert it for predictions without a fit."""
        self.before_fit()


class Autocast(InContext):
    """Run the forward pass in bfloat16 where that is safe; loss and metrics stay float32."""

    order, part = 55, "batch"

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def before_batch(self) -> None:
        self.enter(autocast("bfloat16", self.device))

    def after_pred(self) -> None:
        self.clean_up()
        self.learn.pred = self.pred.float()


class InferenceMode(InContext):
    """Validate and predict in PyTorch's inference mode."""

    part = "validate"

    def before_validate(self) -> None:
        self.enter(torch.inference_mode())


class FastInference(Borrowing):
    """Validate and predict with a copy that computes less, in the precision of autocast."""

    order = 54  # after the last change of the pictures, before autocast
    run_train, part = False, "validate"

    def __init__(self, precision: str = "float32") -> None:
        self.precision, self.whole = precision, None

    def before_batch(self) -> None:
        """Put the copy in the model's place for the images of this validation."""
        hooked = any(m._forward_hooks for m in self.model.modules())  # they ask for this model
        if self.whole is None and self.xb[0].ndim == 4 and not (hooked or resumes(self.model)):
            fast = for_inference(self.model, *self.xb, precision=self.precision)
            self.whole, self.learn.model = self.model, fast

    def clean_up(self) -> None:
        if self.whole is not None:
            self.learn.model, self.whole = self.whole, None


def resumes(model: nn.Module) -> bool:
    """Return whether a model takes feature maps in the place of images."""
    return getattr(getattr(model, "backbone", None), "resume", None) is not None


class KeepFreedMemory(InContext):
    """Keep the memory that a batch frees for the next one, on a CPU."""

    order = -30

    def before_fit(self) -> None:
        self.enter(freed_memory_kept(self.dls.device))


TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt(3)
GLIBC_DEFAULTS = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}


class Keepers:
    """How many parts of the process keep freed memory."""

    count, lock = 0, Lock()


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[bool]:
    """Let a process that trains on a CPU keep the memory that it frees; yield whether it does.

    glibc returns large blocks, such as those of feature maps, to the system at once, and gets them
    back page by page: up to a fifth of a training step. Afterwards glibc's defaults hold again, and
    free memory is returned. Does nothing on other devices and without glibc.
    """
    libc = find_glibc()
    if device.type != "cpu" or libc is None:
        yield False
        return
    with Keepers.lock:
        Keepers.count += 1
        kept = bool(libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, -1))
    try:
        yield kept
    finally:
        with Keepers.lock:
            Keepers.count -= 1
            if not Keepers.count:
                for parameter, value in GLIBC_DEFAULTS.items():
                    libc.mallopt(parameter, value)
                return_memory()
