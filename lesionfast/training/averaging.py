"""A moving average of the weights, which predicts better than the last ones of a short training."""

from typing import Any

from fastai.callback.core import Callback
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(Callback):
    """Validate and keep an exponential moving average of the weights while others are trained.

    Batch norm's statistics are averaged too. The average starts anew with each phase, and its
    decay rises with the steps n of the phase as 1 - n^(-2/3), up to `decay`: timm's ModelEmaV3.
    (Polyak and Juditsky 1992, doi:10.1137/0330046, of plain averages.) After the fit the model is
    the average.
    """

    order = -16  # after ProgressiveUnfreezing and Checkpoint's restoring, before a step

    def __init__(self, decay: float) -> None:
        self.decay, self.steps, self.own = decay, 0, None

    def before_fit(self) -> None:
        """Make room for the average; what an earlier fit put aside is forgotten."""
        self.own = None
        model = self.model.to(self.dls.device)  # where fastai moves it only after this event
        self.average = ModelEmaV3(model, decay=self.decay, use_warmup=True)

    def before_epoch(self) -> None:
        """Go on with the trained weights."""
        if self.own is not None:
            self.model.load_state_dict(self.own)
            self.own = None

    def before_train(self) -> None:
        """Start a new average where a phase starts."""
        unfreezing = getattr(self.learn, "progressive_unfreezing", None)
        first = 0 if unfreezing is None else unfreezing.phase.first
        if self.epoch == first:
            self.average.set(self.model)
            self.steps = 0
        both = self.average.module.state_dict(), self.model.state_dict()  # slow to ask for
        self.mean, self.trained = [
            [v for v in each.values() if v.is_floating_point()] for each in both
        ]

    def after_batch(self) -> None:
        """Take the weights after a training step into the average."""
        if self.training:
            self.steps += 1
            update = get_ema_multi_avg_fn(self.average.get_decay(self.steps))
            update(self.mean, self.trained, None)

    def before_validate(self) -> None:
        """Put the average into the model, the trained weights aside."""
        self.own = {name: each.clone() for name, each in self.model.state_dict().items()}
        for own, mean in zip(self.trained, self.mean, strict=True):
            own.copy_(mean)

    def state(self) -> dict[str, Any]:
        """Return what a resumed training must know."""
        return {"steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.steps = state["steps"]

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained weights; the average is in the model."""
        return self.own

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` returned, and the average from the model."""
        self.own = tensors
        self.average.set(self.model)
