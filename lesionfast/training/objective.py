"""What a training minimises: class balance, loss, and the callbacks that shape both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import Classes, read_class_weights, read_costs, read_subclasses
from lesionfast.errors import LesionfastError
from lesionfast.training.balancing import Balance, balances, output_codes, shares, split_codes
from lesionfast.training.callbacks.batches import (
    DeferredWeights,
    HardNegatives,
    TrainThenValidate,
    mixes,
)
from lesionfast.training.losses import ClassificationLoss, losses


@dataclass(frozen=True)
class Objective:
    """The losses of training, over the model's outputs, and of validation, over the classes.

    `balance` has the prior of the posteriors, the class shares that the decision rule divides by,
    and `counts` and `drawn` (K,) are the training rows of each class, and those of an epoch.
    """

    balance: Balance
    loss: ClassificationLoss
    valid_loss: ClassificationLoss
    callbacks: list[Callback]
    counts: np.ndarray
    drawn: np.ndarray


def build_objective(dls: DataLoaders, config: TrainConfig, parents: list[int]) -> Objective:
    """Return the objective over the training rows of `dls`; `parents` (S,) as of `FusionModel`.

    Raises `LesionfastError` for options that do not go together, and unknown classes.
    """
    codes, classes = split_codes(dls), list(dls.vocab)
    check_objective(config, classes)
    outputs = output_codes(dls) if len(parents) > len(classes) else codes
    return objective_of(config, codes, outputs, classes, parents)


def objective_of(
    config: TrainConfig,
    codes: np.ndarray,
    outputs: np.ndarray,
    classes: list[str],
    parents: Sequence[int],
) -> Objective:
    """Return the objective of training rows with these class and output numbers (n,)."""
    balance = build_balance(config, codes, len(classes))
    of_classes = build_loss(config, balance, codes, classes)
    loss = of_classes
    if len(parents) > len(classes):
        of_outputs = over_outputs(balance, np.array(parents))
        loss = build_loss(config, of_outputs, outputs, classes, np.array(parents))
    counts = np.bincount(codes, minlength=len(classes))
    drawn = drawn_rows(balance, codes, counts)
    valid_loss = of_classes.of_posteriors()
    prior = rule_prior(config, of_classes, balance.prior)
    unweighted = rule_prior(config, of_classes, shares(drawn))
    return Objective(
        replace(balance, prior=prior),
        loss,
        valid_loss,
        build_callbacks(config, loss, valid_loss, (unweighted, prior)),
        counts,
        drawn,
    )


def build_callbacks(
    config: TrainConfig,
    loss: ClassificationLoss,
    valid_loss: ClassificationLoss,
    priors: tuple[np.ndarray, np.ndarray],
) -> list[Callback]:
    """Return the callbacks that shape what is minimised; raises `LesionfastError`."""
    callbacks: list[Callback] = [TrainThenValidate(loss, valid_loss, priors)]
    if config.defer_weights:
        if loss.weight is None:
            raise LesionfastError(
                "--defer-weights has no class weights to defer. Type --balance weights, effective "
                "or author with it, or leave it out."
            )
        callbacks.append(DeferredWeights(config.defer_weights, loss, valid_loss))
    if config.hardest < 1:
        callbacks.append(HardNegatives(config.hardest))
    if mix := mixes[config.mix](config.mix_alpha, config.seed):
        callbacks.append(mix)
    return callbacks


def shifting_options(config: TrainConfig) -> list[str]:
    """Return the options, as typed, whose effect on the probabilities is not undone.

    --class-weight and --cost are there to shift the decision. With --hardest the minimum has the
    same probability for all that are probable enough, so no posterior can be told from it. Mixing
    is not among them: a picture that is hardly mixed keeps its own label.
    """
    typed = {
        "--class-weight": config.class_weight,
        "--cost": config.loss == "asymmetric" and (config.cost or "by default"),
        "--hardest": config.hardest < 1 and f"{config.hardest:g}",
    }
    return [f"{name} {value}" for name, value in typed.items() if value]


def check_objective(config: TrainConfig, classes: list[str]) -> None:
    """Raise `LesionfastError` for unknown names, and a loss without the smoothing asked for."""
    losses[config.loss], balances[config.balance], mixes[config.mix]
    read_class_weights(config.class_weight, classes)
    read_subclasses(config.subclass, classes)
    read_costs(default_cost(config, classes), classes)
    if config.label_smoothing and not losses[config.loss].smooths:
        able = ", ".join(name for name in losses if losses[name].smooths)
        raise LesionfastError(
            f"--label-smoothing is not defined for --loss {config.loss}. Leave it out, or type "
            f"--loss with one of: {able}."
        )


def build_balance(config: TrainConfig, codes: np.ndarray, n_classes: int) -> Balance:
    """Return the balance that the configuration names."""
    if config.balance == "effective":
        return balances["effective"](codes, n_classes, config.beta)
    return balances[config.balance](codes, n_classes)


def build_loss(
    config: TrainConfig,
    balance: Balance,
    codes: np.ndarray,
    classes: list[str],
    parents: np.ndarray | None = None,
) -> ClassificationLoss:
    """Return the loss over the classes or, with `parents` (S,), over the model's outputs.

    --class-weight multiplies the weights, but not the prior: dividing by it would undo them.
    """
    parents = np.arange(len(classes)) if parents is None else parents
    emphasis = read_class_weights(config.class_weight, classes)[parents]
    weights = emphasis if balance.weights is None else balance.weights * emphasis
    plain = balance.weights is None and config.class_weight is None
    costs = read_costs(default_cost(config, classes), classes)
    return losses[config.loss](
        None if plain else torch.tensor(weights).float(),
        label_smoothing=config.label_smoothing,
        prior=balance.prior,
        counts=np.bincount(codes, minlength=len(parents)),
        costs=costs[np.ix_(parents, parents)],
        tau=config.tau,
    )


def default_cost(config: TrainConfig, classes: list[str]) -> str | None:
    """Return --cost, for the asymmetric loss by default that of melanomas taken for nevi."""
    costliest = Classes.chosen(classes, config.melanoma, config.malignant).costliest
    if config.loss == "asymmetric" and costliest:
        return config.cost or f"{':'.join(costliest)}=4"
    return config.cost


def over_outputs(balance: Balance, parents: np.ndarray) -> Balance:
    """Return a balance of the classes as one of the model's outputs: each has that of its class.

    The prior too: an output that were adjusted by its own share would have that taken off, and the
    probability of a class of three outputs would be three times too large.
    """
    weights = None if balance.weights is None else balance.weights[parents]
    return replace(balance, prior=balance.prior[parents], weights=weights)


def rule_prior(config: TrainConfig, loss: ClassificationLoss, prior: np.ndarray) -> np.ndarray:
    """Return the prior (K,) of the posteriors, by which the rule 'balanced' has to divide.

    `prior` (K,) are the class shares that the loss sees.
    """
    if config.head != "linear":  # solved with every class weighing the same
        return shares(prior > 0)
    return loss.rule_prior(prior)


def drawn_rows(balance: Balance, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return how many rows of each class an epoch draws (K,)."""
    if balance.sampler is None:
        return counts
    drawn = Counter(codes[balance.sampler(Random(0))].tolist())
    return np.array([drawn[code] for code in range(len(counts))])
