"""Calibration: how far probabilities are from what happens, and linear maps that mend them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.stats.bootstrap import (
    RESAMPLES,
    Found,
    centred_interval,
    interval,
    resampled,
    share_interval,
    strata,
)
from lesionfast.stats.metrics import (
    ALL,
    check_predictions,
    losses,
    proper_scores,
    ratio,
)
from lesionfast.stats.rules import as_probabilities

METHODS = ("none", "temperature", "vector", "dirichlet")  # the fewest parameters first
TINY = 1e-12  # a probability of 0 has no logarithm
LARGEST = 1e9  # of its weights and biases
COLDEST = 1e-3  # the least factor of the log-probabilities: a temperature of 1,000


@dataclass(frozen=True)
class Calibrator:
    """A map of probabilities: softmax(weight @ log(p) + bias).

    `parameters` are JSON-safe: none, {"temperature"}, or {"weight", "bias"}, of which `weight` is
    a number a class for 'vector' and a matrix for 'dirichlet'. `regularisation` is what the fit
    was penalised with; `scores` the cross-validated validation log loss (nats) of each method.
    """

    method: str
    parameters: dict[str, Any]
    classes: tuple[str, ...]
    regularisation: float = 0.0
    scores: dict[str, float] | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        k = len(self.classes)
        try:
            weight, bias = self.matrix()
        except ValueError:  # rows of different lengths
            weight = bias = np.empty(0)
        if weight.shape != (k, k) or bias.shape != (k,):
            raise LesionfastError(
                f"the calibration '{self.method}' of {k} classes has weights of the shape "
                f"{weight.shape} and a bias of {bias.shape}. Fit it again, or copy it again."
            )
        if not max(np.abs(weight).max(initial=0), np.abs(bias).max(initial=0)) < LARGEST:
            raise LesionfastError(
                f"the calibration '{self.method}' has numbers of {LARGEST:g} and more, or NaN. Fit "
                "it again, or copy it again."
            )

    def apply(self, probabilities: Any) -> np.ndarray:
        """Return calibrated probabilities (n, k) of probabilities (n, k)."""
        probabilities = as_probabilities(probabilities)
        if probabilities.shape[1] != len(self.classes):
            raise LesionfastError(
                f"this calibration is of {len(self.classes)} classes; found probabilities of "
                f"{probabilities.shape[1]}. Pass those of: {', '.join(self.classes)}."
            )
        if self.method == "none":
            return probabilities
        from scipy.special import softmax

        weight, bias = self.matrix()
        return softmax(clipped_log(probabilities) @ weight.T + bias, axis=1)

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (k, k) and bias (k,)."""
        k = len(self.classes)
        if self.method in ("none", "temperature"):
            return np.eye(k) / self.parameters.get("temperature", 1.0), np.zeros(k)
        weight = np.asarray(self.parameters["weight"], np.float64)
        weight = np.diag(weight) if self.method == "vector" else weight
        return weight, np.asarray(self.parameters["bias"], np.float64)


def check_method(method: str, more: tuple[str, ...] = ()) -> None:
    """Raise `LesionfastError` for a method that there is none of."""
    known = (*METHODS, *more)
    if method not in known:
        raise LesionfastError(
            f"there is no calibration '{method}'.{did_you_mean(method, known)} "
            f"Choose one of: {', '.join(known)}."
        )


def clipped_log(probabilities: np.ndarray) -> np.ndarray:
    """Return logarithms, of 1e-12 where a probability is less."""
    return np.log(np.maximum(probabilities, TINY))


def fit_scaling(
    truth: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[str, ...],
    method: str,
    regularisation: float = 0.0,
) -> Calibrator:
    """Return the map of least penalised log loss, by L-BFGS with the analytic gradient.

    'temperature' and 'vector' are of Guo et al. 2017 (arXiv:1706.04599, section 4.2), here on
    log-probabilities; 'dirichlet' is the full matrix of Kull et al. 2019 (arXiv:1910.12656), with
    `regularisation` times its ODIR penalty: the mean square off the diagonal plus that of the
    bias. For 'vector' it is the mean square of the weights' distance from 1 plus that of the bias.
    All three are convex.
    """
    check_method(method)
    if method == "none":
        return Calibrator("none", {}, tuple(classes))
    from scipy.optimize import minimize

    k, logs = len(classes), clipped_log(probabilities)
    objective = build_objective(truth, logs, method, regularisation)
    start = {"temperature": np.ones(1), "vector": np.r_[np.ones(k), np.zeros(k)]}
    start["dirichlet"] = np.r_[np.eye(k).ravel(), np.zeros(k)]
    bounds = [(COLDEST, None)] if method == "temperature" else None
    options = {"maxiter": 1000, "maxfun": 5000}
    done = minimize(
        objective, start[method], jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return Calibrator(
        method, name_parameters(method, done.x, k), tuple(classes), float(regularisation)
    )


def name_parameters(method: str, theta: np.ndarray, k: int) -> dict[str, Any]:
    """Return the fitted numbers as a calibrator's `parameters`."""
    if method == "temperature":
        return {"temperature": float(1 / theta[0])}
    weight, bias = theta[:-k], theta[-k:]
    weight = weight.reshape(k, k) if method == "dirichlet" else weight
    return {"weight": weight.tolist(), "bias": bias.tolist()}


def build_objective(
    truth: np.ndarray, logs: np.ndarray, method: str, regularisation: float
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return a function of the parameters that gives the penalised log loss and its gradient."""
    n, k = logs.shape
    onehot = np.eye(k)[truth]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = unpack(method, theta, k)
        scores = log_softmax(logs @ weight.T + bias)
        slope = (np.exp(scores) - onehot) / n
        loss = -(scores * onehot).sum() / n
        penalty, by_weight, by_bias = measure_penalty(method, weight, bias)
        gradient = pack(
            method,
            slope.T @ logs + regularisation * by_weight,
            slope.sum(axis=0) + regularisation * by_bias,
        )
        return loss + regularisation * penalty, gradient

    return objective


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of each row (n, k), all of them finite.

    SciPy's own takes longer than all else in a step, for it finds out what kind of array it got.
    """
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def unpack(method: str, theta: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (k, k) and bias (k,) of the numbers that a method fits."""
    if method == "temperature":
        return theta[0] * np.eye(k), np.zeros(k)
    weight = np.diag(theta[:k]) if method == "vector" else theta[:-k].reshape(k, k)
    return weight, theta[-k:]


def pack(method: str, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return a gradient by weight (k, k) and bias (k,) as one by the numbers that are fitted."""
    if method == "temperature":
        return np.array([np.trace(weight)])
    return np.concatenate([weight.diagonal() if method == "vector" else weight.ravel(), bias])


def measure_penalty(
    method: str, weight: np.ndarray, bias: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the penalty and its gradients by weight (k, k) and bias (k,)."""
    k = len(bias)
    if method == "temperature":
        return 0.0, np.zeros((k, k)), np.zeros(k)
    far = weight - np.eye(k) if method == "vector" else weight * (1 - np.eye(k))
    many = k if method == "vector" else max(k * (k - 1), 1)
    penalty = (far**2).sum() / many + (bias**2).sum() / k
    return penalty, 2 * far / many, 2 * bias / k


FOLDS = 5
PENALTIES = {
    "none": (0.0,),
    "temperature": (0.0,),
    "vector": (0.0, 1e-3, 1e-2, 1e-1, 1.0),
    "dirichlet": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
}


def fit_calibrator(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    method: str = "auto",
    seed: int = 0,
) -> Calibrator:
    """Return a calibrator fitted on these images, which must be those of validation.

    `truth` (n,) are class numbers, `probabilities` (n, k), `lesions` (n,) name the lesion of each
    image. Regularisation, and with 'auto' the method, are those of least log loss over 5 folds
    that no lesion is in two of, so that more parameters do not win by fitting; of equals the one
    with fewer parameters. Raises `LesionfastError` for an unknown method and a single lesion.
    """
    import joblib

    check_method(method, ("auto",))
    truth, probabilities = check_predictions(truth, probabilities, classes)
    folds = assign_folds(truth, lesions, seed)
    wanted = choose_methods(probabilities) if method == "auto" else (method,)
    images = Folded(truth, probabilities, folds, joblib.hash((truth, probabilities, folds)))
    found = {
        (name, penalty): held_out_loss(images, name, penalty)
        for name in wanted
        for penalty in PENALTIES[name]
    }
    name, penalty = min(found, key=found.get)
    scores = {
        each: min(loss for (other, _), loss in found.items() if other == each) for each in wanted
    }
    best = fit_scaling(truth, probabilities, tuple(classes), name, penalty)
    return replace(best, scores=scores)


def choose_methods(probabilities: np.ndarray) -> tuple[str, ...]:
    """Return the methods to try on probabilities (n, k).

    Dirichlet calibration is none of them if it has more parameters, k (k + 1), than there are
    images: it would only fit them, and for hundreds of classes take hours.
    """
    n, k = probabilities.shape
    return tuple(each for each in METHODS if each != "dirichlet" or k * (k + 1) <= n)


def assign_folds(truth: np.ndarray, lesions: ArrayLike, seed: int) -> np.ndarray:
    """Return the fold of each image (n,): the lesions of each class dealt out in random order.

    Unlike scikit-learn's StratifiedGroupKFold it takes a class of fewer lesions than folds.
    """
    codes = np.unique(np.asarray(lesions), return_inverse=True)[1]
    many = codes.max() + 1
    if many < 2:
        raise LesionfastError(
            "a calibration is chosen by leaving lesions out; found 1 lesion in validation. "
            "Train with a larger --val share."
        )
    rng, fold = np.random.default_rng(seed), np.zeros(many, np.int64)
    dealt = np.concatenate([rng.permutation(members) for members in strata(truth, codes)])
    fold[dealt] = np.arange(many) % min(FOLDS, many)
    return fold[codes]


@dataclass(frozen=True)
class Folded:
    """Class numbers (n,), probabilities (n, k) and folds (n,) of images, compared by their hash.

    It is also one of how they lie in memory, by which sums may round.
    """

    truth: np.ndarray = field(compare=False)
    probabilities: np.ndarray = field(compare=False)
    folds: np.ndarray = field(compare=False)
    digest: str


@lru_cache(maxsize=64)  # the calibration that is kept, and the table of all methods, try the same
def held_out_loss(images: Folded, method: str, penalty: float) -> float:
    """Return the mean log loss (nats) of images whose fold the method was not fitted on."""
    truth, probabilities = images.truth, images.probabilities
    classes = tuple(map(str, range(probabilities.shape[1])))  # their names play no part
    total = 0.0
    for fold in np.unique(images.folds):
        out = images.folds == fold
        fitted = fit_scaling(truth[~out], probabilities[~out], classes, method, penalty)
        total += losses(truth[out], fitted.apply(probabilities[out])).sum()
    return float(total / len(truth))


def apply_held_out(
    calibrator: Calibrator,
    truth: np.ndarray,
    probabilities: np.ndarray,
    lesions: ArrayLike,
    seed: int = 0,
) -> np.ndarray:
    """Return the images that a calibrator was fitted on, (n, k), each calibrated without itself.

    The map of the same method and regularisation is fitted on the other folds of lesions. What is
    fitted on these probabilities next is so not fitted on images that the calibration has seen.
    """
    if calibrator.method == "none":
        return probabilities
    folds, found = assign_folds(truth, lesions, seed), np.empty(probabilities.shape)
    for fold in np.unique(folds):
        out = folds == fold
        how = calibrator.classes, calibrator.method, calibrator.regularisation
        found[out] = fit_scaling(truth[~out], probabilities[~out], *how).apply(probabilities[out])
    return found


BINS = 15
NOISE = " noise"


def bin_edges(scores: np.ndarray, bins: int = BINS, adaptive: bool = False) -> np.ndarray:
    """Return the edges of bins of equal width, or `adaptive`, of as many scores each.

    Equal scores fall into one bin, so there may be fewer adaptive bins than asked for.
    """
    if not adaptive:
        return np.linspace(0, 1, bins + 1)
    return np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)))


def assign_bins(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin (low, high] of each score (n,), the first with its lower edge."""
    return np.searchsorted(edges[1:-1], scores, side="left")


def reliability_bins(
    scores: np.ndarray,
    happened: np.ndarray,
    truth: np.ndarray,
    lesions: ArrayLike,
    *,
    bins: int = BINS,
    adaptive: bool = False,
) -> pd.DataFrame:
    """Return one row a bin that is not empty: from, to, images, score, value, low, high.

    `scores` (n,) are probabilities of what `happened` (n,) or did not; `score` is their mean and
    `value` the share that happened, with its interval. `truth` (n,) are classes, the strata.
    """
    edges = bin_edges(scores, bins, adaptive)
    number, happened = assign_bins(scores, edges), np.asarray(happened, np.float64)
    member = np.eye(max(len(edges) - 1, 1))[number]

    def find(weights: np.ndarray) -> Found:
        shares = ratio(weights @ (member * happened[:, None]), weights @ member)
        return dict(enumerate(shares.T))

    values, drawn = resampled(find, truth, lesions)
    rows = []
    for each in np.unique(number):
        inside = number == each
        n = len(np.unique(np.asarray(lesions)[inside]))
        ends = share_interval(values[each], drawn[each], n)
        edge = edges[each], edges[min(each + 1, len(edges) - 1)]
        rows.append((*edge, int(inside.sum()), scores[inside].mean(), values[each], *ends))
    columns = ["from", "to", "images", "score", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def weighted_gap(
    scores: np.ndarray,
    happened: np.ndarray,
    adaptive: bool = False,
    noise: bool = False,
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of weights (b, n) that gives the expected calibration error (b,).

    That is the mean distance of score and frequency over bins (Guo et al. 2017, arXiv:1706.04599,
    eq. 3). Adaptive bins are those of all rows, for every set of weights. With `noise` the gap of
    each bin is taken off: what is left is what chance alone makes of probabilities that are right.
    """
    edges = bin_edges(scores, adaptive=adaptive)
    member = np.eye(max(len(edges) - 1, 1))[assign_bins(scores, edges)]
    excess = member * (scores - happened)[:, None]
    if noise:
        excess = excess - member * np.nan_to_num(ratio(excess.sum(axis=0), member.sum(axis=0)))
    return lambda weights: ratio(np.abs(weights @ excess).sum(axis=1), weights.sum(axis=1))


def weighted_calibration(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) that gives each calibration measure by name and class.

    'ece' and 'adaptive_ece' are about the most probable class. 'class_ece' takes the probability
    of each class against the rest, and over 'all' is their mean (Kull et al. 2019,
    arXiv:1910.12656, section 2). A name with ' noise' is what chance alone makes of it.
    """
    right = (probabilities.argmax(axis=1) == truth).astype(np.float64)
    onehot, top = np.eye(len(classes))[truth], probabilities.max(axis=1)
    about = {("ece", ALL): (top, right), ("adaptive_ece", ALL): (top, right, True)}
    for number, name in enumerate(classes):
        about["class_ece", name] = (probabilities[:, number], onehot[:, number])
    gaps = {key: weighted_gap(*each) for key, each in about.items()}
    gaps |= {
        (key[0] + NOISE, key[1]): weighted_gap(*each, noise=True) for key, each in about.items()
    }
    scores = proper_scores(truth, probabilities)

    def find(weights: np.ndarray) -> Found:
        found = {key: gap(weights) for key, gap in gaps.items()}
        for metric in ("class_ece", "class_ece" + NOISE):
            found[metric, ALL] = np.mean([found[metric, name] for name in classes], axis=0)
        return found | scores(weights)

    return find


def calibration_table(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every calibration measure with its 95 % interval: metric, of, value, low, high.

    `truth` (n,) are class numbers, `probabilities` (n, k). Log loss in nats; Brier is the sum over
    classes, from 0 to 2. Calibration errors are 0 at best, and of a finite sample never quite:
    their intervals are those of `calibration_interval`.
    """
    truth, probabilities = check_predictions(truth, probabilities, classes)
    find = weighted_calibration(truth, probabilities, classes)
    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = [
        (*key, value, *calibration_interval(key, value, drawn))
        for key, value in values.items()
        if not key[0].endswith(NOISE)
    ]
    return pd.DataFrame(rows, columns=["metric", "of", "value", "low", "high"])


def calibration_interval(key: tuple[str, str], value: float, drawn: Found) -> tuple[float, float]:
    """Return the interval of a measure: centred for a calibration error, else percentiles.

    A calibration error that chance alone could make (97.5 % of it) may be 0, so that its lower
    end is 0, where a reflected interval holds too seldom.
    """
    metric, of = key
    if not metric.endswith("ece"):
        return interval(drawn[key])
    low, high = centred_interval(value, drawn[key])
    return (0.0 if value <= np.quantile(drawn[metric + NOISE, of], 0.975) else low), high
