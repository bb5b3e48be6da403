"""From a model's outputs to class posteriors: what the loss did to the probabilities is undone.

A model that minimises cross entropy estimates the probability of each class. Most other losses have
another minimum. Each has its inverse here, so that everything that follows (decision rule,
confidence, thresholds, calibration, ONNX, ensembles) needs only the prior of the posterior.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Undo = Mapping[str, Sequence[float]]  # by the names of the `Posterior`'s buffers
TINY = 1e-30


class Posterior(nn.Module):
    """From outputs (B, S) to logits (B, K) whose softmax is the posterior of the classes.

    `parents` (S,) is the class of each output: the probabilities of a class's outputs are added
    up. `undo` names what the loss did to the outputs, as in `ClassificationLoss.undo` and
    model.json: 'shift', 'level' and 'floor' (S,) of label smoothing, 'gamma' (1,) of the focal
    loss, 'margins' (S,) of LDAM.
    """

    def __init__(self, parents: Sequence[int], undo: Undo | None = None) -> None:
        super().__init__()
        self.parents = list(parents)
        self.set_undo(undo or {})

    def set_undo(self, undo: Undo) -> None:
        """Undo something else from now on."""
        self.undo = {name: list(values) for name, values in undo.items()}
        for name, values in self.undo.items():
            self.register_buffer(name, torch.tensor(values).float(), persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the logits of the posteriors (B, K), without `undo` those of the outputs."""
        return self.merge(self.invert(outputs) if self.undo else outputs)

    def invert(self, outputs: Tensor) -> Tensor:
        """Return the logits (B, S) of the posterior of each output."""
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        if "gamma" in self.undo:
            return invert_focal(outputs, self.gamma.to(outputs))
        if "margins" in self.undo:
            return invert_margins(outputs, self.margins.to(outputs))
        buffers = (self.shift, self.level, self.floor)
        return invert_smoothing(outputs, *(buffer.to(outputs) for buffer in buffers))

    def merge(self, logits: Tensor) -> Tensor:
        """Return the logits of the classes (B, K) from those of all outputs (B, S)."""
        n_classes = max(self.parents) + 1
        if n_classes == len(self.parents):
            return logits
        members = [[i for i, p in enumerate(self.parents) if p == k] for k in range(n_classes)]
        return torch.stack([logits[:, columns].logsumexp(dim=1) for columns in members], dim=1)


def invert_smoothing(outputs: Tensor, shift: Tensor, level: Tensor, floor: Tensor) -> Tensor:
    """Return outputs (B, S) without label smoothing.

    `shift` (S,) makes the softmax of the outputs the smoothed posterior, and `level` (S,) is what
    smoothing adds to each: (1 - sum of levels) posterior + level. Below `floor` (S,) a posterior is
    lost in noise, and the exact inverse may be negative: there it is as far below the floor as the
    smoothed one is, which keeps the order.
    """
    smoothed = (outputs + shift).softmax(dim=1)
    free = 1 - level.sum()
    exact = (smoothed - level) / free
    small = floor * smoothed / (level + floor * free).clamp_min(TINY)
    return torch.where(exact > floor, exact, small).clamp_min(TINY).log() - shift


def invert_focal(outputs: Tensor, gamma: Tensor) -> Tensor:
    """Return outputs (B, S) as if the loss had been cross entropy instead of focal.

    Of the minimum q the posterior is q / phi(q), normalised, where phi(q) = (1 - q)^gamma -
    gamma (1 - q)^(gamma - 1) q log q (Charoenphakdee et al. 2021, arXiv:2011.09172, theorem 11).
    """
    log_q = outputs.log_softmax(dim=1)
    q = log_q.exp()
    others = (1 - q).clamp_min(1e-6)
    return log_q - (gamma - 1) * others.log() - (others - gamma * q * log_q).log()


def invert_margins(outputs: Tensor, margins: Tensor) -> Tensor:
    """Return outputs (B, S) as if each class's margin (S,) had not been taken off its logit.

    Where the gradient of the loss is 0, the posterior is the stationary distribution of the
    matrix whose row y is the softmax with the margin of y. With q, the softmax without margins, it
    is q (1 - q (1 - exp(-margin))), normalised.
    """
    log_q = outputs.log_softmax(dim=1)
    return log_q + (log_q.exp() * torch.expm1(-margins)).log1p()
