"""Losses by name: logits (B, K) and class numbers (B,) -> a scalar, computed in float32 or more."""

from collections.abc import Callable
from copy import deepcopy
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lesionfast.errors import LesionfastError
from lesionfast.models.fusion import REGISTRIES
from lesionfast.registry import Builder, Registry, calling_module, own_name
from lesionfast.stats.rules import DecisionRule

losses = REGISTRIES["loss"] = Registry("loss", "--loss")
NEGLIGIBLE = 0.01  # times the class's share: a posterior that no rule decides for


def register_loss(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a loss an option: `loss=name`, `--loss NAME`.

    It is a `torch.nn.Module` class, built without arguments (or with `weight`, the class weights
    (K,), if it takes that), or a function. Called with logits (B, K) and class numbers (B,) it
    returns a scalar, or one number per image if its `reduction` is "none". What it does to the
    probabilities is not undone. A second registration replaces the first. Raises `LesionfastError`
    for a name that can't be typed as an option.

    >>> @lf.register_loss("squared")
    ... def squared(logits, target):
    ...     return (1 - logits.softmax(1).gather(1, target[:, None])).square().mean()
    """
    return losses.register(name, calling_module())


def name_loss(loss: Any) -> str:
    """Return the name of a loss: a text as it is; a module or function is registered by its own.

    If another loss has that name, it gets a number: `F.cross_entropy` is "cross_entropy-2".
    Raises `LesionfastError` for what is no loss.
    """
    if isinstance(loss, str):
        return loss
    if not callable(loss):
        raise LesionfastError(
            f"loss_func is {loss!r}; it takes a name, a torch.nn.Module, or a function of logits "
            "and class numbers."
        )
    return losses.name_passed(loss)


class ClassificationLoss(nn.Module):
    """Base of the losses, with what fastai needs: a reduction, an activation and a decision.

    `weight` (K,) multiplies the loss of each class, and the mean is over the sum of the weights.
    `prior` (K,) are the class shares that the loss sees, `counts` (K,) the training rows of each
    class, `costs` (K, K) the cost of deciding column for row, `tau` the strength of a logit
    adjustment; a loss uses those that it needs. `smooths` is whether it supports label smoothing.
    `undo` and `rule_prior` describe its minimum, so that the model's posteriors and the decision
    rule are right.
    """

    smooths = False
    y_int = True  # so that fastai's MixUp and CutMix mix its losses, not the class numbers
    decide_by = DecisionRule("argmax")  # the decision rule in use

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        prior: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        costs: np.ndarray | None = None,
        tau: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing, self.tau, self.reduction = label_smoothing, tau, "mean"
        self.prior, self.counts, self.costs = prior, counts, costs
        self.prepared = self.prepare()
        offset = None if self.prepared is None else torch.tensor(self.prepared).float()
        self.register_buffer("offset", offset)  # float64 is more than some devices have

    def prepare(self) -> np.ndarray | None:
        """Return what the loss computes once from prior, counts or costs."""
        return None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) for class numbers (B,)."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return self.compute(logits, target)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return PyTorch's cross entropy with this loss's weights, smoothing and reduction."""
        return F.cross_entropy(
            logits,
            target,
            weight=None if self.weight is None else self.weight.to(logits.dtype),
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def reduce(self, values: Tensor, target: Tensor) -> Tensor:
        """Return losses (B,) times the weights of their classes, or their weighted mean."""
        weight = torch.ones_like(values) if self.weight is None else self.weight[target].to(values)
        weighted = weight * values
        return weighted if self.reduction == "none" else weighted.sum() / weight.sum()

    def undo(self) -> dict[str, list[float]]:
        """Return what a `Posterior` has to undo to get posteriors from the minimum of this loss."""
        raise NotImplementedError

    def rule_prior(self, prior: np.ndarray) -> np.ndarray:
        """Return the prior (K,) of those posteriors; `prior` are the shares that the loss sees."""
        return prior

    def for_validation(self) -> "ClassificationLoss":
        """Return the loss that the posteriors minimise: log loss, with the same class weights."""
        return CrossEntropy(self.weight)

    def activation(self, logits: Tensor) -> Tensor:
        """Return probabilities (B, K)."""
        return logits.softmax(dim=-1)

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Return the class numbers (B,) that the decision rule in use decides for."""
        decision = self.decide_by.decide(probabilities.detach().cpu().double().numpy())
        return torch.from_numpy(decision).to(probabilities.device)


@losses.register("cross_entropy")
class CrossEntropy(ClassificationLoss):
    """Cross entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    smooths = True

    def undo(self) -> dict[str, list[float]]:
        """Return the smoothing, if there is any.

        Smoothed labels are weighted by class like the others, so the minimum is proportional to
        weight ((1 - smoothing) posterior + smoothing / outputs), of which 0 for weight 0.
        """
        if not self.label_smoothing:
            return {}
        added_to_logits = 0.0 if self.prepared is None else self.prepared
        counts = np.asarray(self.counts)
        weight = np.ones(len(counts)) if self.weight is None else self.weight.double().cpu().numpy()
        added = np.where(weight > 0, self.label_smoothing / len(counts), 0.0)
        shift = added_to_logits - np.log(np.where(weight > 0, weight, 1.0))
        level = added / (1 - self.label_smoothing + added.sum())
        floor = NEGLIGIBLE * counts / counts.sum()
        return {"shift": shift.tolist(), "level": level.tolist(), "floor": floor.tolist()}


@losses.register("focal")
class Focal(ClassificationLoss):
    """Focal loss, gamma 2, weights after focusing (Lin et al. 2017, arXiv:1708.02002, eq. 5)."""

    gamma = 2.0

    def undo(self) -> dict[str, list[float]]:
        return {"gamma": [self.gamma]}

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=-1).gather(1, target.unsqueeze(1)).squeeze(1)
        return self.reduce(-((1 - log_p.exp()) ** self.gamma) * log_p, target)


@losses.register("asymmetric")
class Asymmetric(ClassificationLoss):
    """Cross entropy plus the expected cost of errors (Galdran et al. 2020, arXiv:2010.00291).

    The extra term is the sum over the classes of probability times --cost of deciding for them.
    The costs are there to shift the probabilities, so this is not undone.
    """

    def prepare(self) -> np.ndarray:
        if self.costs is None or not np.any(self.costs):
            raise LesionfastError("--loss asymmetric needs costs. Type such as --cost mel:nv=4.")
        return np.asarray(self.costs)

    def undo(self) -> dict[str, list[float]]:
        return {}

    def for_validation(self) -> ClassificationLoss:
        return self

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=-1)
        cost = (self.offset.to(log_p)[target] * log_p.exp()).sum(dim=1)
        return self.reduce(cost - log_p.gather(1, target.unsqueeze(1)).squeeze(1), target)


@losses.register("logit_adjusted")
class LogitAdjusted(CrossEntropy):
    """Cross entropy of logits plus tau log prior (Menon et al. 2021, arXiv:2007.07314, eq. 10)."""

    def prepare(self) -> np.ndarray:
        """Return tau log prior (K,); a class without rows, which has no prior, is not adjusted."""
        assert self.prior is not None, "a logit-adjusted loss needs the prior"
        return self.tau * np.log(np.where(self.prior > 0, self.prior, 1.0))

    def rule_prior(self, prior: np.ndarray) -> np.ndarray:
        """Return the shares that the adjustment leaves: for tau 1 the same for each class."""
        left = prior * np.exp(-self.prepared)
        return left / left.sum()

    def for_validation(self) -> ClassificationLoss:
        """Return this loss without smoothing."""
        plain = deepcopy(self)
        plain.label_smoothing = 0.0
        return plain

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().compute(logits + self.offset.to(logits), target)


@losses.register("balanced_softmax")
class BalancedSoftmax(LogitAdjusted):
    """Logit adjustment with tau 1 (Ren et al. 2020, arXiv:2007.10740, eq. 4)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "tau": 1.0})


@losses.register("ldam")
class LDAM(ClassificationLoss):
    """Margins by class size, the largest 0.5 (Cao et al. 2019, arXiv:1906.07413, eq. 12 and 13).

    The margin of a class of n rows is proportional to n ** -1/4, on plain logits. The paper weights
    the classes in the last epochs only: --balance effective --defer-weights 0.8.
    """

    largest = 0.5

    def prepare(self) -> np.ndarray:
        """Return the margins (K,)."""
        assert self.counts is not None, "ldam needs the training rows of each class"
        margins = np.where(self.counts > 0, np.maximum(self.counts, 1) ** -0.25, 0.0)
        return margins * (self.largest / margins.max())

    def undo(self) -> dict[str, list[float]]:
        return {"margins": self.prepared.tolist()}

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        margin = F.one_hot(target, logits.shape[1]) * self.offset.to(logits)
        return super().compute(logits - margin, target)


class UserLoss(ClassificationLoss):
    """A loss that a user registered; see `register_loss`. Nothing of it is undone.

    A class that takes class weights keeps them as `weight`, so that they can be deferred; an
    object has its own.
    """

    def __init__(self, loss: Any, weight: Tensor | None = None, **unused: Any) -> None:
        super().__init__(weight, counts=unused.get("counts"))
        self.loss = build_user_loss(loss, weight)
        self.shares_weight = takes_weight(loss) and hasattr(self.loss, "weight")

    def undo(self) -> dict[str, list[float]]:
        return {}

    def for_validation(self) -> ClassificationLoss:
        return self

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; one that only returns means is called for one image at a time."""
        if self.shares_weight:
            self.loss.weight = self.weight
        if self.reduction == "none" and not hasattr(self.loss, "reduction"):
            pairs = zip(logits.split(1), target.split(1), strict=True)
            return torch.stack([self.loss(*pair) for pair in pairs]).reshape(-1)
        if hasattr(self.loss, "reduction"):
            self.loss.reduction = self.reduction
        value = self.loss(logits, target)
        return value.mean() if value.ndim and self.reduction == "mean" else value


def build_user_loss(loss: Any, weight: Tensor | None) -> Any:
    """Return the module or function that computes a registered loss.

    Raises `LesionfastError` if class weights are asked for and it takes none.
    """
    if takes_weight(loss):
        return loss(weight=weight)
    if weight is None and isinstance(loss, type):
        return loss()
    if weight is None:
        return deepcopy(loss) if isinstance(loss, nn.Module) else loss
    raise LesionfastError(
        f"the loss {own_name(loss)} takes no class weights. Leave "
        "--balance and --class-weight out, or give it a parameter weight."
    )


def takes_weight(loss: Any) -> bool:
    """Return whether a registered loss is a class that is built with class weights."""
    return isinstance(loss, type) and "weight" in signature(loss).parameters
