"""What a training minimises, and what has to be undone in its probabilities afterwards.

A training minimises the mean of a loss over the rows that an epoch draws, weighted by class. Three
things move the probabilities at its minimum away from the class frequencies of the data:

- the loss itself (label smoothing, focusing, margins): the model undoes it, see `loss.undo`;
- the class shares that the loss sees (sampling, class weights, logit adjustment): they are `prior`,
  by which the decision rule 'balanced' divides;
- options that are there to shift decisions, or whose effect is lost: see `shifting_options`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
import torch
from fastai.callback.core import Callback

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import Classes, read_class_weights, read_costs, read_subclasses
from lesionfast.errors import LesionfastError
from lesionfast.training.balancing import Balance, balances, shares
from lesionfast.training.callbacks.inference import Borrowing
from lesionfast.training.callbacks.regularization import mixes
from lesionfast.training.losses import ClassificationLoss, UserLoss, losses

UNWEIGHTED = ("linear", "logistic")  # heads that see the classes by their shares; others alike


@dataclass(frozen=True)
class Objective:
    """What a training minimises.

    `loss` is over the model's outputs, `valid_loss` over the classes. `prior` (K,) are the class
    shares that the decision rule divides by. `sampler` draws the rows of an epoch, `counts` and
    `drawn` (K,) are the training rows of each class, and those of an epoch.
    """

    loss: ClassificationLoss
    valid_loss: ClassificationLoss
    prior: np.ndarray
    callbacks: list[Callback]
    sampler: Callable[[Random], list[int]] | None
    counts: np.ndarray
    drawn: np.ndarray


def build_objective(
    config: TrainConfig,
    codes: np.ndarray,
    outputs: np.ndarray,
    classes: list[str],
    parents: Sequence[int],
) -> Objective:
    """Return the objective of training rows with these class numbers and target outputs (n,).

    `parents` (S,) is the class of each output. Raises `LesionfastError` for options that cannot go
    together, and unknown classes.
    """
    check_objective(config, classes)
    beta = [config.beta] if config.balance == "effective" else []
    balance = balances[config.balance](codes, len(classes), *beta)
    loss = build_loss(config, balance, outputs, classes, parents)
    over_classes = build_loss(config, balance, codes, classes, range(len(classes)))
    valid_loss = over_classes.for_validation()
    counts = drawn = np.bincount(codes, minlength=len(classes))
    if balance.sampler is not None:
        drawn = np.bincount(codes[balance.sampler(Random(0))], minlength=len(classes))
    unweighted = rule_prior(config, over_classes, shares(drawn))
    prior = rule_prior(config, over_classes, balance.prior)
    callbacks = build_callbacks(config, loss, valid_loss, (unweighted, prior))
    if isinstance(loss, UserLoss):
        check_loss(loss, config.loss, len(parents))
    return Objective(loss, valid_loss, prior, callbacks, balance.sampler, counts, drawn)


def check_objective(config: TrainConfig, classes: list[str]) -> None:
    """Raise `LesionfastError` for unknown names, and label smoothing of a loss without it."""
    losses[config.loss], balances[config.balance], mixes[config.mix]
    read_class_weights(config.class_weight, classes)
    read_subclasses(config.subclass, classes)
    read_costs(default_cost(config, classes), classes)
    if config.label_smoothing and not getattr(losses[config.loss], "smooths", False):
        able = ", ".join(name for name in losses if getattr(losses[name], "smooths", False))
        raise LesionfastError(
            f"--label-smoothing is not defined for --loss {config.loss}. Leave it out, or type "
            f"--loss with one of: {able}."
        )


def build_loss(
    config: TrainConfig,
    balance: Balance,
    targets: np.ndarray,
    classes: list[str],
    parents: Sequence[int],
) -> ClassificationLoss:
    """Return the loss over the model's outputs; `parents` (S,) is the class of each.

    Each output has the weight and the prior of its class: adjusted by its own share, a class of
    three outputs would come out three times too probable. --class-weight multiplies the weights,
    but not the prior: dividing by it would undo them.
    """
    parents = np.array(parents)
    emphasis = read_class_weights(config.class_weight, classes)
    weights = emphasis if balance.weights is None else balance.weights * emphasis
    plain = balance.weights is None and config.class_weight is None
    costs = read_costs(default_cost(config, classes), classes)
    build = losses[config.loss]
    if not (isinstance(build, type) and issubclass(build, ClassificationLoss)):
        build = partial(UserLoss, build)
    return build(
        None if plain else torch.tensor(weights[parents]).float(),
        label_smoothing=config.label_smoothing,
        prior=balance.prior[parents],
        counts=np.bincount(targets, minlength=len(parents)),
        costs=costs[np.ix_(parents, parents)],
        tau=config.tau,
    )


def check_loss(loss: ClassificationLoss, name: str, n: int) -> None:
    """Raise `LesionfastError` unless a user's loss of n outputs is a number with a gradient."""
    logits = torch.zeros(2, n, requires_grad=True)
    try:
        loss(logits, torch.tensor([0, n - 1])).backward()
    except Exception as error:  # it is code of the user
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise LesionfastError(
            f"the loss '{name}' can't be learned from: {reason}. Of logits (B, {n}) and class "
            "numbers (B,) it has to return one number with a gradient."
        ) from error


def default_cost(config: TrainConfig, classes: list[str]) -> str | None:
    """Return --cost; the asymmetric loss defaults to that of melanomas taken for nevi."""
    costliest = Classes.chosen(classes, config.melanoma, config.malignant).costliest
    if config.loss == "asymmetric" and costliest:
        return config.cost or f"{':'.join(costliest)}=4"
    return config.cost


def rule_prior(config: TrainConfig, loss: ClassificationLoss, prior: np.ndarray) -> np.ndarray:
    """Return the prior (K,) of the posteriors, given the class shares (K,) that the loss sees."""
    if config.head not in UNWEIGHTED:
        return shares(prior > 0)
    return loss.rule_prior(prior)


def shifting_options(config: TrainConfig) -> list[str]:
    """Return the options, as typed, whose effect on the probabilities is not undone.

    --class-weight and --cost are there to shift the decision. With --hardest the minimum has the
    same probability for all that are probable enough, so no posterior can be recovered from it.
    Mixing is not among them: a picture that is hardly mixed keeps its own label.
    """
    typed = {
        "--loss": config.loss in losses.modules and config.loss,
        "--class-weight": config.class_weight,
        "--cost": config.loss == "asymmetric" and (config.cost or "by default"),
        "--hardest": config.hardest < 1 and f"{config.hardest:g}",
    }
    return [f"{name} {value}" for name, value in typed.items() if value]


def build_callbacks(
    config: TrainConfig,
    loss: ClassificationLoss,
    valid_loss: ClassificationLoss,
    priors: tuple[np.ndarray, np.ndarray],
) -> list[Callback]:
    """Return the callbacks that shape what is minimised; raises `LesionfastError`."""
    if config.defer_weights and loss.weight is None:
        raise LesionfastError(
            "--defer-weights needs class weights to defer. Add --balance weights, effective or "
            "author, or --class-weight, or leave it out."
        )
    if config.defer_weights and isinstance(loss, UserLoss) and not loss.shares_weight:
        raise LesionfastError(
            f"--defer-weights can't change the class weights of the loss {config.loss}. Keep them "
            "as self.weight in it, or leave --defer-weights out."
        )
    callbacks = [ApplyObjective(loss, valid_loss, priors, config.defer_weights)]
    if config.hardest < 1:
        callbacks.append(OHEM(config.hardest))
    if mix := mixes[config.mix](config.mix_alpha, config.seed):
        callbacks.append(mix)
    return callbacks


class ApplyObjective(Borrowing):
    """Train with a loss over the model's outputs, validate with one over the posteriors.

    For the share `defer` of the epochs they have no class weights (deferred re-weighting, Cao et
    al. 2019, arXiv:1906.07413, algorithm 1). In each epoch the model undoes what the loss does by
    then, and `learn.prior` is that of its posteriors: the first of `priors` without class weights,
    the second with them.
    """

    order = -15

    def __init__(
        self,
        loss: ClassificationLoss,
        valid_loss: ClassificationLoss,
        priors: tuple[np.ndarray, np.ndarray],
        defer: float = 0.0,
    ) -> None:
        self.loss, self.valid_loss, self.priors, self.defer = loss, valid_loss, priors, defer
        self.weights = loss.weight, valid_loss.weight

    def before_train(self) -> None:
        self.set_epoch(self.epoch)  # not before_epoch, which fastai calls for predictions as well
        self.learn.loss_func = self.loss

    def set_epoch(self, epoch: int) -> None:
        """Set class weights, what the model undoes and the prior, as they are in an epoch."""
        weights = self.weights if epoch >= self.defer * self.n_epoch else (None, None)
        for loss, weight in zip((self.loss, self.valid_loss), weights, strict=True):
            loss.weight = weight
            loss.to(self.dls.device)
        self.model.posterior.set_undo(self.loss.undo())
        self.model.posterior.to(self.dls.device)
        self.learn.prior = self.priors[self.loss.weight is not None]

    def before_validate(self) -> None:
        self.learn.loss_func = self.valid_loss.to(self.dls.device)

    def clean_up(self) -> None:
        self.loss.weight, self.valid_loss.weight = self.weights
        self.learn.loss_func = self.valid_loss


class OHEM(Callback):
    """Learn from the hardest share of each batch only: online hard example mining.

    (Shrivastava et al. 2016, arXiv:1604.03540.) Works on any Learner whose loss has a `reduction`.
    """

    order, run_valid = 10, False

    def __init__(self, share: float) -> None:
        assert 0 < share <= 1, share
        self.share = share

    def after_loss(self) -> None:
        """Replace the mean of all losses by that of the highest."""
        reduction, self.loss_func.reduction = self.loss_func.reduction, "none"
        try:
            values = self.loss_func(self.pred, *self.yb).flatten()
        finally:
            self.loss_func.reduction = reduction
        kept = values.topk(max(1, round(self.share * values.numel()))).values.mean()
        self.learn.loss_grad, self.learn.loss = kept, kept.detach().clone()
