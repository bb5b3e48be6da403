"""fastai callbacks that change how batches are computed, and give back what they change."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from fastai.callback.core import Callback
from torch import nn

from lesionfast.data.augment import Recipe, augment, turn
from lesionfast.models.inference import for_inference
from lesionfast.models.precision import autocast, freed_memory_kept

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
