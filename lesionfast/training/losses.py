"""Losses by name: logits (B, K) and class numbers (B,) -> a scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lesionfast.registry import Registry

losses = Registry("loss", "--loss")


class ClassificationLoss(nn.Module):
    """What fastai asks of a loss: a reduction that can be set, an activation and a decision.

    `weight` (K,) multiplies the loss of each class; the mean is over the sum of the weights.
    """

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing, self.reduction = label_smoothing, "mean"

    def activation(self, logits: Tensor) -> Tensor:
        """Return probabilities (B, K)."""
        return logits.softmax(dim=-1)

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Return the most probable class numbers (B,)."""
        return probabilities.argmax(dim=-1)


@losses.register("cross_entropy")
class CrossEntropy(ClassificationLoss):
    """Cross entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) for class numbers (B,)."""
        return F.cross_entropy(
            logits.float(),
            target,
            weight=self.weight,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


@losses.register("focal")
class Focal(ClassificationLoss):
    """Focal loss, gamma 2, weights after focusing (Lin et al. 2017, arXiv:1708.02002, eq. 5)."""

    gamma = 2.0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) for class numbers (B,); takes no label smoothing."""
        log_p = F.log_softmax(logits.float(), dim=-1)
        log_p = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
        weight = torch.ones_like(log_p) if self.weight is None else self.weight[target]
        each = -weight * (1 - log_p.exp()) ** self.gamma * log_p
        return each if self.reduction == "none" else each.sum() / weight.sum()
