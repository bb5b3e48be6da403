"""fastai callbacks that change how much a row counts: hard ones alone, class weights late."""

from fastai.callback.core import Callback
from torch import nn

from lesionfast.training.callbacks import Borrowing


class HardNegatives(Callback):
    """Learn from the hardest share of each batch, by its losses now.

    (Online hard example mining, Shrivastava et al. 2016, arXiv:1604.03540.) Works on any Learner
    whose loss has a `reduction`.
    """

    order, run_valid = 10, False

    def __init__(self, share: float) -> None:
        assert 0 < share <= 1, share
        self.share = share

    def after_loss(self) -> None:
        """Put the mean of the highest losses in the place of the mean of all."""
        loss, self.loss_func.reduction = self.loss_func.reduction, "none"
        try:
            each = self.loss_func(self.pred, *self.yb)
        finally:
            self.loss_func.reduction = loss
        kept = each.flatten().topk(max(1, round(self.share * each.numel()))).values.mean()
        self.learn.loss_grad, self.learn.loss = kept, kept.detach().clone()


class DeferredWeights(Borrowing):
    """Switch the class weights of losses on after a share of the epochs.

    (Deferred re-weighting, Cao et al. 2019, arXiv:1906.07413, algorithm 1.)
    """

    order = -10

    def __init__(self, share: float, *losses: nn.Module) -> None:
        self.share, self.weights = share, [(loss, loss.weight) for loss in losses]

    def before_epoch(self) -> None:
        """Give the losses their weights, or take them off."""
        late = self.epoch >= self.share * self.n_epoch
        for loss, weight in self.weights:
            loss.weight = weight if late else None

    def clean_up(self) -> None:
        """Give the losses their weights, however the fit ended."""
        for loss, weight in self.weights:
            loss.weight = weight
