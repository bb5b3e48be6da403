"""Class balancing by name: which rows an epoch draws, and how much each class weighs."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from lesionfast.registry import Registry

balances = Registry("class balancing", "--balance")


@dataclass(frozen=True)
class Balance:
    """What balancing does to a training.

    `weights` (K,) are class weights of the loss with mean 1 over the rows, `sampler` draws the
    positions of an epoch, and `prior` (K,) are the class shares that the loss sees in the end.
    """

    prior: np.ndarray
    weights: np.ndarray | None = None
    sampler: Callable[[Random], list[int]] | None = None


@balances.register("none")
def none(codes: np.ndarray, n_classes: int) -> Balance:
    """Every training row once an epoch, all classes with the same weight."""
    return Balance(shares(np.bincount(codes, minlength=n_classes)))


@balances.register("weights")
def weights(codes: np.ndarray, n_classes: int) -> Balance:
    """Every row once; the loss of a class weighs by one over its frequency."""
    counts = np.bincount(codes, minlength=n_classes)
    present = counts > 0
    inverse = np.where(present, len(codes) / np.maximum(counts, 1) / present.sum(), 0.0)
    return Balance(shares(present), weights=inverse)


@balances.register("sampler")
def sampler(codes: np.ndarray, n_classes: int) -> Balance:
    """As many rows an epoch as there are, drawn with replacement, every class as often."""
    members = [np.flatnonzero(codes == code) for code in range(n_classes)]
    members = [each.tolist() for each in members if len(each)]

    def draw(rng: Random) -> list[int]:
        return [rng.choice(members[i % len(members)]) for i in shuffled(range(len(codes)), rng)]

    return Balance(shares(np.bincount(codes, minlength=n_classes) > 0), sampler=draw)


@balances.register("downsample")
def downsample(codes: np.ndarray, n_classes: int) -> Balance:
    """The largest class cut to the size of the second, other rows of it each epoch."""
    counts = np.bincount(codes, minlength=n_classes)
    limit = int(np.sort(counts)[-2]) if n_classes > 1 else int(counts[0])
    largest = int(counts.argmax())
    others = np.flatnonzero(codes != largest).tolist()
    members = np.flatnonzero(codes == largest).tolist()

    def draw(rng: Random) -> list[int]:
        return shuffled(others + rng.sample(members, limit), rng)

    return Balance(shares(np.minimum(counts, limit)), sampler=draw)


def shares(counts: np.ndarray) -> np.ndarray:
    """Return counts (K,) as float64 shares that sum to 1."""
    return counts / counts.sum()


def shuffled(items: range | list[int], rng: Random) -> list[int]:
    """Return the items in random order."""
    return rng.sample(items, len(items))
