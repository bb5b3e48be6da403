"""Class balancing by name: which rows an epoch draws, and how much each class weighs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    return Balance(shares(counts > 0), weights=inverse_frequency(counts))


@balances.register("effective")
def effective(codes: np.ndarray, n_classes: int, beta: float = 0.999) -> Balance:
    """Every row once; weights by effective number, beta 0.999 (Cui et al. 2019, arXiv:1901.05555).

    A class of n rows weighs (1 - beta) / (1 - beta^n), eq. 4, scaled to mean 1 over the rows. For
    beta 1 it is the limit 1 / n, which is the balance 'weights'.
    """
    counts = np.bincount(codes, minlength=n_classes)
    n = np.maximum(counts, 1)
    with np.errstate(divide="ignore"):  # log 0 of beta 0
        effective_number = n if beta == 1 else -np.expm1(n * np.log(beta)) / (1 - beta)
    raw = np.where(counts > 0, 1 / effective_number, 0.0)
    scaled = raw * counts.sum() / (raw * counts).sum()
    return Balance(shares(scaled * counts), weights=scaled)


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
    return resampled(codes, np.minimum(counts, limit))


@balances.register("upsample")
def upsample(codes: np.ndarray, n_classes: int) -> Balance:
    """Every class repeated up to the size of the largest."""
    counts = np.bincount(codes, minlength=n_classes)
    return resampled(codes, np.where(counts > 0, counts.max(), 0))


@balances.register("author")
def author(codes: np.ndarray, n_classes: int) -> Balance:
    """The original study: nevi cut to the second class, others up to doubled, then class weights.

    The largest class is downsampled to the size of the second, the others are repeated to at most
    twice their rows and no more than that, and the loss weighs by one over what results.
    """
    counts = np.bincount(codes, minlength=n_classes)
    limit = int(np.sort(counts)[-2]) if n_classes > 1 else int(counts[0])
    wanted = np.minimum(np.where(counts == counts.max(), limit, 2 * counts), limit)
    return replace(
        resampled(codes, wanted), weights=inverse_frequency(wanted), prior=shares(wanted > 0)
    )


def resampled(codes: np.ndarray, wanted: np.ndarray) -> Balance:
    """Return the balance that draws `wanted` (K,) rows of each class an epoch, other ones each.

    A class is drawn whole as often as it fits, and by chance for the rest.
    """
    members = [np.flatnonzero(codes == code).tolist() for code in range(len(wanted))]

    def draw(rng: Random) -> list[int]:
        rows: list[int] = []
        for each, count in zip(members, wanted.tolist(), strict=True):
            whole, rest = divmod(count, max(len(each), 1))
            rows += each * whole + rng.sample(each, rest)
        return shuffled(rows, rng)

    return Balance(shares(wanted), sampler=draw)


def inverse_frequency(counts: np.ndarray) -> np.ndarray:
    """Return class weights (K,), one over the counts with mean 1 over the rows; 0 without rows."""
    present = counts > 0
    return np.where(present, counts.sum() / np.maximum(counts, 1) / present.sum(), 0.0)


def shares(counts: np.ndarray) -> np.ndarray:
    """Return counts (K,) as float64 shares that sum to 1."""
    return counts / counts.sum()


def shuffled(items: range | list[int], rng: Random) -> list[int]:
    """Return the items in random order."""
    return rng.sample(items, len(items))
