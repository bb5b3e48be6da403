"""The exponential moving average (EMA) of the weights, which is what is validated and kept."""

from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lesionfast.training.callbacks.checkpoint import Resumable
from lesionfast.training.callbacks.schedule import current_phase


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
