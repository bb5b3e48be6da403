"""Opinion pools: the probabilities of several models as one, and the weights that fit best."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from lesionfast.diagnoses import SMALLEST, same_prior

logger = logging.getLogger("lesionfast")

MEANS = ("arithmetic", "geometric")


def average(probabilities: np.ndarray, weights: ArrayLike, mean: str) -> np.ndarray:
    """Return the weighted mean (n, k) of the members' probabilities (members, n, k).

    'arithmetic' is the mean itself, 'geometric' that of the logarithms, scaled to a sum of 1.
    (Genest and Zidek 1986, Combining probability distributions, doi:10.1214/ss/1177013825:
    linear and logarithmic opinion pools.)
    """
    weights = np.asarray(weights, np.float64)
    if mean == "arithmetic":
        return np.tensordot(weights, probabilities, axes=1)
    logs = np.tensordot(weights, np.log(np.maximum(probabilities, SMALLEST)), axes=1)
    return softmax(logs, axis=1)


def common_prior(priors: Sequence[ArrayLike]) -> tuple[np.ndarray, bool]:
    """Return the prior (k,) of a pool, and whether all share it; else it is uniform."""
    first = np.asarray(priors[0], np.float64)
    if all(same_prior(first, prior) for prior in priors):
        return first, True
    return np.full(len(first), 1 / len(first)), False


def best_weights(
    probabilities: np.ndarray, truth: np.ndarray, prior: np.ndarray, mean: str
) -> np.ndarray:
    """Return the weights (members,) of least log loss, none below 0 and with sum 1.

    Each class counts as `prior` (k,) says, whatever its share of the images, so that the loss
    fits probabilities that were moved to another prior. The problem is convex for both means.
    The last weights of a search that ends early count if they are no worse than equal ones, which
    are returned otherwise, with a warning.
    """
    from scipy.optimize import minimize

    share = np.bincount(truth, minlength=len(prior)) / len(truth)
    importance = (prior / np.maximum(share, SMALLEST))[truth]
    n = len(probabilities)
    equal = np.full(n, 1 / n)
    loss = log_loss(probabilities, truth, importance / importance.sum(), mean)
    found = minimize(
        loss,
        equal,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 500},
    )
    weights = np.where(found.x < 1e-6, 0.0, found.x)
    weights = weights / weights.sum()
    if found.success or loss(weights)[0] <= loss(equal)[0]:
        return weights
    logger.warning(
        "the weights of least log loss could not be fitted (%s), so all models count the same",
        found.message,
    )
    return equal


def log_loss(
    probabilities: np.ndarray, truth: np.ndarray, importance: np.ndarray, mean: str
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return the function weights -> (log loss in nats, its gradient (members,))."""
    rows = np.arange(len(truth))
    logs = np.log(np.maximum(probabilities, SMALLEST))
    of_truth = probabilities[:, rows, truth]

    def arithmetic(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ of_truth, SMALLEST)
        return -importance @ np.log(mixed), -of_truth @ (importance / mixed)

    def geometric(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = average(probabilities, weights, "geometric")
        expected = np.einsum("nk,mnk->mn", mixed, logs)
        loss = -importance @ np.log(np.maximum(mixed[rows, truth], SMALLEST))
        return loss, (expected - logs[:, rows, truth]) @ importance

    return arithmetic if mean == "arithmetic" else geometric
