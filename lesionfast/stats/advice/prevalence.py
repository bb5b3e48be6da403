"""Prevalence: probabilities for another clinic's class shares, and what a flag is worth there."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import find_class, move_prior, quote, read_pairs
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.stats.bootstrap import Found, interval, resampled, wilson
from lesionfast.stats.metrics import ratio
from lesionfast.stats.rules import as_prior, as_probabilities

logger = logging.getLogger("lesionfast")

ESTIMATE = "estimate"  # what a person types for an estimate from the pictures
EXAMPLE = "mel=0.02"
ROUNDING = 1e-3  # what typed shares of all classes may differ from 1 by
STEPS, CLOSE = 10_000, 1e-7  # of the estimate
FEWEST = 100  # pictures to estimate from without a warning
PREVALENCES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def read_prior(text: str, classes: Sequence[str], before: ArrayLike) -> np.ndarray:
    """Return the class shares (k,) of a text such as "mel=0.02,nv=0.9".

    What is left is divided among the classes that are not named, as their shares `before` (k,)
    are. Raises `LesionfastError` for an unknown class, and unless the shares are a whole.
    """
    pairs = read_pairs("--prior", text, EXAMPLE)
    given = {find_class("--prior", name, list(classes)): value for (name,), value in pairs.items()}
    total, prior = sum(given.values()), as_prior(before, len(classes)).copy()
    others = [number for number in range(len(prior)) if number not in given]
    rest = prior[others].sum() if others else 0.0
    whole = abs(total - 1) <= ROUNDING if not rest else 0 < total < 1
    if not given or not whole:
        wanted = "below 1, as some classes are not named" if rest else "1 for all classes"
        raise LesionfastError(
            f"--prior {text}: the shares have the sum {total:g}; it must be {wanted}. Type the "
            f"share of each class among the pictures, such as --prior {EXAMPLE},nv=0.9"
        )
    for number, value in given.items():
        prior[number] = value
    if rest:
        prior[others] *= (1 - total) / rest
    return prior / prior.sum()


def write_prior(prior: ArrayLike, classes: Sequence[str]) -> str:
    """Return class shares as a person types them: "mel=0.02,nv=0.98"."""
    pairs = zip(classes, np.asarray(prior).tolist(), strict=True)
    return ",".join(f"{quote(name)}={share:.3g}" for name, share in pairs if share > 0)


def estimate_prior(probabilities: ArrayLike, before: ArrayLike) -> np.ndarray:
    """Return the class shares (k,) among unlabelled pictures, by expectation-maximisation.

    `probabilities` (n, k) are calibrated for the shares `before` (k,). The estimate is the most
    likely one if pictures of a class look alike everywhere (Saerens et al. 2002,
    doi:10.1162/089976602753284446, eq. 2.9); of few pictures it is rough, which is warned of.
    """
    probabilities = as_probabilities(probabilities)
    before = as_prior(before, probabilities.shape[1])
    if len(probabilities) < FEWEST:
        logger.warning(
            "The prior is estimated from %s, fewer than %d: it may be far off.",
            *(pluralize(len(probabilities), "picture"), FEWEST),
        )
    shares = before / before.sum()
    for _ in range(STEPS):
        found = move_prior(probabilities, before, shares).mean(axis=0)
        if np.abs(found - shares).max() < CLOSE:
            return found / found.sum()
        shares = found
    return shares / shares.sum()


def predictive_values(
    positive: np.ndarray,
    flagged: np.ndarray,
    truth: np.ndarray,
    lesions: ArrayLike,
    prevalences: Sequence[float] = PREVALENCES,
) -> pd.DataFrame:
    """Return what a flag is worth where more or fewer lesions are positive: a row a prevalence.

    `positive` and `flagged` (n,) are bool, `truth` (n,) class numbers, the strata of the bootstrap.
    Columns: prevalence, ppv and npv, each with _low and _high. They follow from sensitivity and
    specificity by Bayes' theorem, so lesions of either kind must look as they do here.
    """
    positive, flagged = np.asarray(positive, bool), np.asarray(flagged, bool)
    shares = np.asarray(prevalences, np.float64)

    def find(weights: np.ndarray) -> Found:
        hits = ratio(weights @ (positive & flagged), weights @ positive)
        alarms = ratio(weights @ (~positive & flagged), weights @ ~positive)
        return {
            (name, number): values
            for number, share in enumerate(shares)
            for name, values in by_bayes(share, hits, alarms).items()
        }

    values, drawn = resampled(find, truth, lesions)
    (fewest, most), (least, worst) = (
        wilson(float(flagged[group].mean()), len(np.unique(np.asarray(lesions)[group])))
        for group in (positive, ~positive)
    )
    rows = []
    for number, share in enumerate(shares):
        row = {"prevalence": share}
        sides = [by_bayes(share, *each) for each in ((fewest, worst), (most, least))]
        for name in ("ppv", "npv"):
            value, ends = values[name, number], interval(drawn[name, number])
            if ends[0] == ends[1]:  # no resample differs
                ends = sorted((*(float(side[name]) for side in sides), value))[::2]
            row |= {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}
        rows.append(row)
    return pd.DataFrame(rows)


def by_bayes(share: float, hits: ArrayLike, alarms: ArrayLike) -> dict[str, np.ndarray]:
    """Return the positive and negative predictive values of a flag where `share` are positive.

    `hits` are the shares of the positive that are flagged, `alarms` those of the others.
    """
    hits, alarms = np.asarray(hits, np.float64), np.asarray(alarms, np.float64)
    right = (1 - share) * (1 - alarms)
    return {
        "ppv": ratio(share * hits, share * hits + (1 - share) * alarms),
        "npv": ratio(right, right + share * (1 - hits)),
    }
