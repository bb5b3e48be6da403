"""What decisions are worth: net benefit over thresholds, and the decisions of least cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.emphasis import read_costs
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.bootstrap import RESAMPLES, interval
from lesionfast.evaluation.metrics import as_codes, as_probabilities, decide
from lesionfast.evaluation.operating import positive_and_score
from lesionfast.evaluation.resampling import Found, resampled

if TYPE_CHECKING:
    from lesionfast.evaluation.findings import Findings

THRESHOLDS = np.arange(1, 100) / 100
SAME = 1e-12  # costs that differ by less are rounded differently, not different


def net_benefit(positive: ArrayLike, score: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Return the net benefit (t,), in true positives an image, of flagging score >= threshold.

    A false positive counts as threshold / (1 - threshold) of a true one (Vickers and Elkin 2006,
    doi:10.1177/0272989X06295361). Raises `LesionfastError` for thresholds outside 0 to 1.
    """
    return gains(np.asarray(positive, bool), np.asarray(score), thresholds).mean(axis=0)


def gains(positive: np.ndarray, score: np.ndarray, thresholds: ArrayLike) -> np.ndarray:
    """Return what each image (n,) adds at each threshold (t,), (n, t)."""
    thresholds = np.asarray(thresholds, np.float64)
    if not ((thresholds >= 0) & (thresholds < 1)).all():
        raise LesionfastError(
            f"thresholds of a decision curve are from 0 to below 1; found {thresholds.min():g} to "
            f"{thresholds.max():g}. Pass probabilities."
        )
    worth = np.where(positive[:, None], 1.0, -thresholds / (1 - thresholds))
    return worth * (score[:, None] >= thresholds)


def decision_curve(
    truth: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    classes: Sequence[str],
    of: str,
    *,
    thresholds: ArrayLike = THRESHOLDS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the decision curve of one of `Classes.targets`: one row a threshold.

    `probabilities` (n, k) are to be calibrated: a threshold is a chance.

    Columns: threshold, net_benefit with low and high (bootstrap of lesions within each class),
    all (everyone flagged) and none (nobody, 0), in true positives an image.
    """
    positive, score = positive_and_score(of, truth, probabilities, classes)
    each = gains(positive, score, thresholds)

    def find(weights: np.ndarray) -> Found:
        shares = weights @ each / weights.sum(axis=1, keepdims=True)
        return dict(enumerate(shares.T))

    codes = as_codes(truth, len(classes))
    values, drawn = resampled(find, codes, lesions, resamples=resamples, seed=seed)
    ends = np.array([interval(drawn[number]) for number in values])
    table = {"threshold": np.asarray(thresholds, np.float64), "net_benefit": list(values.values())}
    table |= {"low": ends[:, 0], "high": ends[:, 1]}
    all_flagged = net_benefit(positive, np.ones(len(positive)), thresholds)
    return pd.DataFrame(table | {"all": all_flagged, "none": 0.0})


def read_cost_matrix(text: str | None, classes: list[str]) -> np.ndarray:
    """Return the cost (k, k) of deciding a column where a row is true, from "mel:nv=10".

    Every other error costs 1, a right decision nothing. Raises as `read_costs`.
    """
    said = read_costs(text, classes)
    return np.where(said > 0, said, 1 - np.eye(len(classes)))


def cost_decision(probabilities: ArrayLike, costs: ArrayLike) -> np.ndarray:
    """Return the class of least expected cost, int64 (n,), from probabilities (n, k).

    It is argmin_j sum_i p_i costs[i, j] (Elkan 2001, The Foundations of Cost-Sensitive Learning,
    IJCAI, eq. 1); of several the first. Raises `LesionfastError` for costs that do not fit.
    """
    probabilities = as_probabilities(probabilities)
    risks = probabilities @ as_costs(costs, probabilities.shape[1])
    least = risks.min(axis=1, keepdims=True)
    return (risks <= least + SAME * np.maximum(1, np.abs(least))).argmax(axis=1)


def as_costs(costs: ArrayLike, n_classes: int) -> np.ndarray:
    """Return costs (k, k) as float64; raises `LesionfastError` if they are none."""
    costs = np.asarray(costs, np.float64)
    if costs.shape != (n_classes, n_classes) or not (np.isfinite(costs) & (costs >= 0)).all():
        raise LesionfastError(
            f"costs must be {n_classes} by {n_classes} numbers from 0, truth by decision; found "
            f"shape {costs.shape}. Type such as --cost mel:nv=10."
        )
    return costs


def cost_table(
    truth: ArrayLike,
    decisions: Mapping[str, ArrayLike],
    costs: ArrayLike,
    lesions: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the mean cost an image of each rule's decisions (n,): rule, value, low, high."""
    k = len(np.asarray(costs))
    costs, truth = as_costs(costs, k), as_codes(truth, k)
    paid = {name: costs[truth, as_codes(each, k)] for name, each in decisions.items()}

    def find(weights: np.ndarray) -> Found:
        return {name: weights @ each / weights.sum(axis=1) for name, each in paid.items()}

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = [(name, value, *interval(drawn[name])) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["rule", "value", "low", "high"])


def mean_costs(findings: "Findings") -> pd.DataFrame:
    """Return the mean cost an image of each rule, and of the least expected cost.

    An expected cost is made of chances, so that decision takes the calibrated probabilities.
    Columns: rule, value, low, high.
    """
    read, prior = findings.interpretation, findings.run.model["prior"]
    decisions = {rule: decide(read.probabilities, rule, prior) for rule in ("argmax", "balanced")}
    decisions["least expected cost"] = cost_decision(findings.chances, findings.costs)
    return cost_table(read.truth, decisions, findings.costs, findings.lesions)
