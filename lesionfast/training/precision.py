"""The callbacks that make a Learner compute in a precision."""

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

from lesionfast.models.precision import precision
from lesionfast.training.callbacks import Autocast, Borrowing


class HalfPrecision(MixedPrecision, Borrowing):
    """fastai's mixed precision in float16, whose autocast ends however a batch ends."""

    part, inside = "batch", False

    def before_batch(self) -> None:
        """Switch autocast on."""
        super().before_batch()
        self.inside = True

    def after_loss(self) -> None:
        """Switch it off for the backward pass."""
        self.clean_up()

    def clean_up(self) -> None:
        """Switch it off, however the batch ended."""
        if self.inside:
            self.inside = False
            super().after_loss()


def precision_callbacks(wanted: str, device: torch.device) -> list[Callback]:
    """Return the callbacks that make a Learner compute in a precision."""
    chosen = precision(wanted, device)
    if chosen == "float16":
        return [HalfPrecision()]
    return [Autocast(device)] if chosen == "bfloat16" else []
