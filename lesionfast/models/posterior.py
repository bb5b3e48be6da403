"""What a loss did to the probabilities that minimise it, undone: outputs -> class posteriors.

A model that minimises cross entropy estimates the chance of each class. Most other losses have
another minimum. Each has its way back here, so that whatever follows (decision rule, confidence,
thresholds, calibration, ONNX, ensembles) needs no more than the prior of the posterior.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Undo = Mapping[str, Sequence[float]]  # by the names that the `Posterior` has
TINY = 1e-30


class Posterior(nn.Module):
    """From outputs (B, S) to logits (B, K) whose softmax is the posterior of the classes.

    `parents` (S,) is the class of each output: the probabilities of a class's outputs are added
    up. `undo` names what the loss did to the outputs, as `ClassificationLoss.undo` and model.json
    have it: 'shift', 'level' and 'floor' (S,) of label smoothing, 'gamma' (1,) of the focal loss,
    'margins' (S,) of LDAM.
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
        """Return the logits of the posteriors (B, K); they are the outputs if nothing is undone."""
        return self.merge(self.of_outputs(outputs) if self.undo else outputs)

    def of_outputs(self, outputs: Tensor) -> Tensor:
        """Return the logits (B, S) of the posterior of each output."""
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        if "gamma" in self.undo:
            return unfocused(outputs, self.gamma.to(outputs))
        if "margins" in self.undo:
            return without_margins(outputs, self.margins.to(outputs))
        given = (each.to(outputs) for each in (self.shift, self.level, self.floor))
        return unsmoothed(outputs, *given)

    def merge(self, logits: Tensor) -> Tensor:
        """Return the logits of the classes (B, K) from those of all outputs (B, S)."""
        n_classes = max(self.parents) + 1
        if n_classes == len(self.parents):
            return logits
        members = [[i for i, p in enumerate(self.parents) if p == k] for k in range(n_classes)]
        return torch.stack([logits[:, each].logsumexp(dim=1) for each in members], dim=1)


def unsmoothed(outputs: Tensor, shift: Tensor, level: Tensor, floor: Tensor) -> Tensor:
    """Return outputs (B, S) without label smoothing.

    `shift` (S,) makes the softmax of the outputs the smoothed posterior, and `level` (S,) is what
    smoothing adds to each: (1 - sum of levels) posterior + level. What smoothing leaves of a
    posterior below `floor` (S,) is noise, of which the inverse would make negative ones: it is as
    far below the floor as its smoothed one is, so that the order is kept.
    """
    smoothed = (outputs + shift).softmax(dim=1)
    free = 1 - level.sum()
    exact = (smoothed - level) / free
    small = floor * smoothed / (level + floor * free).clamp_min(TINY)
    return torch.where(exact > floor, exact, small).clamp_min(TINY).log() - shift


def unfocused(outputs: Tensor, gamma: Tensor) -> Tensor:
    """Return outputs (B, S) as if the loss had been cross entropy and not focal.

    Of the minimum q the posterior is q / phi(q), normalised, where phi(q) = (1 - q)^gamma -
    gamma (1 - q)^(gamma - 1) q log q (Charoenphakdee et al. 2021, arXiv:2011.09172, theorem 11).
    """
    log_q = outputs.log_softmax(dim=1)
    q = log_q.exp()
    others = (1 - q).clamp_min(1e-6)
    return log_q - (gamma - 1) * others.log() - (others - gamma * q * log_q).log()


def without_margins(outputs: Tensor, margins: Tensor) -> Tensor:
    """Return outputs (B, S) as if each class's margin (S,) had not been taken off its logit.

    Where the gradient of the loss is 0, the posterior is the stationary distribution of the
    matrix whose row y is the softmax with the margin of y. With q, the softmax without margins, it
    is q (1 - q (1 - exp(-margin))), normalised.
    """
    log_q = outputs.log_softmax(dim=1)
    return log_q + (log_q.exp() * torch.expm1(-margins)).log1p()
