"""The calibration of a run: chosen and fitted on validation, reported on test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.bootstrap import RESAMPLES, interval, strata
from lesionfast.evaluation.fitted import (
    images_in,
    lesions_of,
    read_fitted,
    require_other,
    require_validation,
    write_fitted,
)
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.measures import ALL, metrics_of
from lesionfast.evaluation.metrics import as_codes, as_probabilities, check_shapes, decide, losses
from lesionfast.evaluation.reliability import NOISE, calibration_interval, calibration_of
from lesionfast.evaluation.resampling import Found, resampled
from lesionfast.evaluation.scaling import METHODS, Calibrator, check_method, fit_scaling
from lesionfast.runs import Run

FOLDS = 5
PENALTIES = {
    "none": (0.0,),
    "temperature": (0.0,),
    "vector": (0.0, 1e-3, 1e-2, 1e-1, 1.0),
    "dirichlet": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
}
FILE = "calibration.json"


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
    check_method(method, ("auto",))
    probabilities, truth = as_probabilities(probabilities), as_codes(truth, len(classes))
    check_shapes(truth, probabilities, classes)
    folds = folds_of(truth, lesions, seed)
    wanted = methods_for(probabilities) if method == "auto" else (method,)
    images = Folded(truth, probabilities, folds)
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


def methods_for(probabilities: np.ndarray) -> tuple[str, ...]:
    """Return the methods to try on probabilities (n, k).

    Dirichlet calibration is none of them if it has more parameters, k (k + 1), than there are
    images: it would only fit them, and for hundreds of classes take hours.
    """
    n, k = probabilities.shape
    return tuple(each for each in METHODS if each != "dirichlet" or k * (k + 1) <= n)


def folds_of(truth: np.ndarray, lesions: ArrayLike, seed: int, folds: int = FOLDS) -> np.ndarray:
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
    fold[dealt] = np.arange(many) % min(folds, many)
    return fold[codes]


@dataclass(frozen=True, eq=False)
class Folded:
    """Class numbers (n,), probabilities (n, k) and folds (n,) of images, compared by content."""

    truth: np.ndarray
    probabilities: np.ndarray
    folds: np.ndarray

    @cached_property
    def digest(self) -> bytes:
        """A hash of all numbers, and of how they lie in memory, by which sums may round."""
        found = sha256()
        for array in (self.truth, self.probabilities, self.folds):
            found.update(f"{array.dtype} {array.shape} {array.strides} ".encode())
            found.update(array.tobytes())
        return found.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folded) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


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


def calibrator_of(valid: Interpretation, method: str = "auto", seed: int = 0) -> Calibrator:
    """Return the calibrator of a run's validation; raises `LesionfastError` for another split."""
    require_validation(valid, "calibration")
    lesions = lesions_of(valid)
    return fit_calibrator(valid.truth, valid.probabilities, lesions, valid.classes, method, seed)


def write_calibration(run: Run, method: str = "auto", seed: int = 0) -> Path:
    """Fit a calibrator on the run's validation and write it to calibration.json."""
    return keep_calibration(run, calibrator_of(Interpretation.of(run, "valid"), method, seed))


def keep_calibration(run: Run, fitted: Calibrator) -> Path:
    """Write a calibrator that was fitted on the run's validation to calibration.json."""
    return write_fitted(run, FILE, fitted.to_dict() | images_in(run))


def read_calibration(run: Run) -> Calibrator:
    """Return the calibrator of a run; raises `LesionfastError` if it has none that fits."""
    found = read_fitted(run, FILE, "write_calibration(run)")
    told = {key: found[key] for key in ("method", "parameters", "classes")}
    more = {"regularisation": found.get("regularisation", 0.0), "scores": found.get("scores")}
    return Calibrator.from_dict(told | more)


REPORTED = (
    ("log_loss", ALL),
    ("ece", ALL),
    ("adaptive_ece", ALL),
    ("brier", ALL),
    ("macro_auc", ALL),
    ("balanced_accuracy", ALL),
)


def before_and_after(
    valid: Interpretation,
    test: Interpretation,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what each method, fitted on validation, does to the metrics of test.

    Columns method, chosen (by validation), metric, of, value, low, high, and the paired difference
    from 'none': difference, difference_low, difference_high. The rule of `test` decides before and
    after; 'balanced' divides calibrated probabilities by the class shares of validation, which
    they have learned, and not by the prior of a loss that was weighted by class. Without a class
    of melanoma its sensitivity is left out.
    """
    require_validation(valid, "calibration")
    require_other(test)
    methods = methods_for(valid.probabilities)
    fitted = {name: calibrator_of(valid, name, seed) for name in methods}
    scores = {name: each.scores[name] for name, each in fitted.items()}
    chosen = min(scores, key=scores.get)
    rows, first = [], None
    for name, calibrator in fitted.items():
        prior = test.run.model["prior"] if name == "none" else shares_of(valid)
        found = reported(test, calibrator, prior, resamples, seed)
        first = first or found
        rows += [(name, name == chosen, *row) for row in compared(found, first)]
    ends = ["value", "low", "high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=["method", "chosen", "metric", "of", *ends])


def shares_of(valid: Interpretation) -> np.ndarray:
    """Return the share of each class among the images (k,)."""
    return np.bincount(valid.truth, minlength=len(valid.classes)) / len(valid.truth)


def reported(
    test: Interpretation,
    calibrator: Calibrator,
    prior: ArrayLike,
    resamples: int,
    seed: int,
) -> tuple[dict, Found]:
    """Return the metrics of calibrated probabilities, and of each resample."""
    after = calibrator.apply(test.probabilities)
    decision = decide(after, test.rule, prior)
    measured = metrics_of(test.truth, after, decision, test.classes)
    calibrated = calibration_of(test.truth, after, test.classes)
    melanoma = test.classes.melanoma
    wanted = [*REPORTED, *([("sensitivity", melanoma)] if melanoma else [])]
    wanted += [(key[0] + NOISE, key[1]) for key in wanted if key[0].endswith("ece")]

    def find(weights: np.ndarray) -> Found:
        found = measured(weights) | calibrated(weights)
        return {key: found[key] for key in wanted}

    return resampled(find, test.truth, lesions_of(test), resamples=resamples, seed=seed)


def compared(found: tuple[dict, Found], first: tuple[dict, Found]) -> list[tuple]:
    """Return metric, of, value and interval, difference from the first and its interval."""
    rows = []
    for key, value in found[0].items():
        if key[0].endswith(NOISE):
            continue
        ends = calibration_interval(key, value, found[1])
        difference = value - first[0][key]
        low, high = interval(found[1][key] - first[1][key])
        if key[0].endswith("ece"):  # reflected, as the interval of each
            low, high = 2 * difference - high, 2 * difference - low
        rows.append((*key, value, *ends, difference, low, high))
    return rows
