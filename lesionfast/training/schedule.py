"""Phases of a training: which stages learn, for how many epochs, at which learning rates."""

import re
from dataclasses import dataclass

from lesionfast.errors import LesionfastError

HOWS = "fresh, gradual, two-step, last:N, none"


@dataclass(frozen=True)
class Phase:
    """Epochs first to first + epochs - 1, counted from 0; the last `groups` groups learn."""

    name: str
    first: int
    epochs: int
    groups: int

    @property
    def end(self) -> int:
        """The first epoch after this phase."""
        return self.first + self.epochs


def plan_phases(unfreeze: str, n_groups: int, epochs: int, head_epochs: int = 1) -> list[Phase]:
    """Return the phases of `epochs` epochs over parameter groups counted from the stem.

    fresh: the head, which gives a first answer, then all with a head that starts anew. two-step:
    the head, then all. gradual (Howard and Ruder 2018, arXiv:1801.06146, section 3.3): the head,
    then one stage more an epoch, then, for at least half of the rest, everything. last:N: the
    head, then the head and the last N stages. none: all at once. The head alone learns
    for `head_epochs`, or not at all if no epoch were left.
    """
    head, *stops = group_stops(unfreeze, n_groups)
    lengths = []
    if stops and 0 < head_epochs < epochs:
        lengths = [head_epochs]
    elif not stops:
        stops = [head]
    rest = epochs - sum(lengths)
    single = min(len(stops) - 1, rest // 2)
    groups = [*([head] if lengths else []), *stops[:single], stops[-1]]
    lengths += [1] * single + [rest - single]
    return [
        Phase(phase_name(each, n_groups), sum(lengths[:i]), lengths[i], each)
        for i, each in enumerate(groups)
    ]


def group_stops(unfreeze: str, n_groups: int) -> list[int]:
    """Return how many groups learn in each phase, in order."""
    last = re.fullmatch(r"last:(\d+)", unfreeze)
    if last and 1 <= int(last[1]) < n_groups:
        return [1, 1 + int(last[1])]
    if unfreeze == "gradual":
        return list(range(1, n_groups + 1))
    if unfreeze in ("fresh", "two-step"):
        return [1, n_groups] if n_groups > 1 else [1]
    if unfreeze == "none":
        return [n_groups]
    raise LesionfastError(
        f"--unfreeze is '{unfreeze}', which does not fit a model with {n_groups - 1} stages and a "
        f"head. Type one of: {HOWS}, with N from 1 to {n_groups - 1}."
    )


def phase_name(groups: int, n_groups: int) -> str:
    """Return a phase's name for people."""
    if groups == n_groups:
        return "all"
    stages = groups - 1
    return "head" if not stages else f"head + last {stages} stage{'s' if stages > 1 else ''}"


def discriminative(lr: float, decay: float, n_groups: int) -> list[float]:
    """Return the highest learning rate of each group, stem first: lr for the head, less below."""
    return [lr * decay**depth for depth in reversed(range(n_groups))]
