"""fastai callbacks that change the loss: hard rows alone, class weights late, another to validate.

They need no device: whatever they keep goes to that of the loaders when it is used.
"""

from dataclasses import replace

import numpy as np
from fastai.callback.core import Callback
from torch import nn

from lesionfast.training.callbacks import Borrowing
from lesionfast.training.losses import ClassificationLoss


class TrainThenValidate(Borrowing):
    """Train with a loss over the model's outputs, validate with one over the posteriors.

    Each epoch the model undoes what the loss does by then, and `learn.balance` has the prior of
    its posteriors: the first of `priors` while the loss has no class weights, else the second.
    """

    order = -15

    def __init__(
        self,
        loss: ClassificationLoss,
        valid_loss: ClassificationLoss,
        priors: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self.loss, self.valid_loss, self.priors = loss, valid_loss, priors

    def before_train(self) -> None:
        """Take the loss over the outputs; the posteriors will be those of its minimum."""
        self.learn.loss_func = self.loss.to(self.dls.device)
        self.describe()

    def before_validate(self) -> None:
        """Take the loss over the posteriors."""
        self.learn.loss_func = self.valid_loss.to(self.dls.device)

    def clean_up(self) -> None:
        """Leave the Learner with the loss over the posteriors, however the fit ended."""
        self.learn.loss_func = self.valid_loss

    def describe(self) -> None:
        """Say what the model's probabilities are, as the loss is now."""
        self.model.posterior.set_undo(self.loss.undo(len(self.model.parents)))
        self.model.posterior.to(self.dls.device)
        prior = self.priors[self.loss.weight is not None]
        self.learn.balance = replace(self.learn.balance, prior=prior)


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
        self.switch(self.epoch)

    def switch(self, epoch: int) -> None:
        """Give the losses the weights that they have in an epoch of this fit."""
        late = epoch >= self.share * self.n_epoch
        for loss, weight in self.weights:
            loss.weight = weight.to(self.dls.device) if late else None

    def clean_up(self) -> None:
        """Give the losses their weights, however the fit ended."""
        for loss, weight in self.weights:
            loss.weight = weight
