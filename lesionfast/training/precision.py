"""The callbacks that make a Learner compute in a precision."""

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

from lesionfast.models.precision import precision
from lesionfast.training.callbacks import Autocast


def precision_callbacks(wanted: str, device: torch.device) -> list[Callback]:
    """Return the callbacks that make a Learner compute in a precision."""
    chosen = precision(wanted, device)
    if chosen == "float16":
        return [MixedPrecision()]
    return [Autocast(device)] if chosen == "bfloat16" else []
