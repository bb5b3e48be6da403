"""What referring the least certain images to a dermatologist does, on test."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.bootstrap import RESAMPLES, interval, share_interval
from lesionfast.evaluation.fitted import lesions_of
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.metrics import ratio
from lesionfast.evaluation.resampling import Found, resampled
from lesionfast.evaluation.selective import Referral, confidence_in, risks_of

NAMES = {"error": "accuracy", "balanced_error": "balanced_accuracy", "mel_missed": "sensitivity"}


def referral_table(
    truth: np.ndarray,
    decision: np.ndarray,
    referred: np.ndarray,
    lesions: ArrayLike,
    classes: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return metric, of, among, value, low, high: the share referred, and what is left.

    `truth` and `decision` (n,) are class numbers, `referred` (n,) bool. Accuracy, balanced accuracy
    and melanoma sensitivity are among 'all' and among the 'kept'; 'referred' among the 'missed'
    is the share of the melanomas decided otherwise that a dermatologist sees. Without melanoma
    what is about it is left out. NaN where undefined.
    """
    melanoma = Classes.of(classes).melanoma
    over = sides_of(truth, decision, referred, classes)
    risks = risks_of(truth, decision, classes)

    def find(weights: np.ndarray) -> Found:
        found = {
            ("referred", of, among): ratio(weights @ (side * referred), weights @ side)
            for (metric, of, among), side in over.items()
            if metric == "referred"
        }
        for among, mask in (("all", np.ones(len(truth))), ("kept", ~referred)):
            for risk, value in risks(weights * mask).items():
                of = melanoma if risk == "mel_missed" else "all"
                found[NAMES[risk], of, among] = 1 - value
        return found

    values, drawn = resampled(find, truth, lesions, resamples=resamples, seed=seed)
    rows = []
    for key, value in values.items():
        lesions_of_it = len(
            np.unique(np.asarray(lesions)[over.get(key, over["referred", "all", "all"])])
        )
        plain = key[0] != "balanced_accuracy"
        ends = share_interval(value, drawn[key], lesions_of_it) if plain else interval(drawn[key])
        rows.append((*key, lesions_of_it, value, *ends))
    columns = ["metric", "of", "among", "lesions", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def sides_of(
    truth: np.ndarray, decision: np.ndarray, referred: np.ndarray, classes: Sequence[str]
) -> dict[tuple[str, str, str], np.ndarray]:
    """Return the images (n,) bool that each share is taken over."""
    everything = np.ones(len(truth), bool)
    over = {("referred", "all", "all"): everything}
    over |= {
        ("accuracy", "all", "kept"): ~referred,
        ("balanced_accuracy", "all", "kept"): ~referred,
    }
    if melanoma := Classes.of(classes).melanoma:
        mel = truth == list(classes).index(melanoma)
        over["referred", melanoma, "all"] = over["sensitivity", melanoma, "all"] = mel
        over["referred", melanoma, "missed"] = mel & (decision != truth)
        over["sensitivity", melanoma, "kept"] = mel & ~referred
    return over


def referral_on(
    test: Interpretation, referral: Referral, *, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Return `referral_table` of a run's predictions.

    Raises `LesionfastError` if they are decided by another rule than the threshold is of.
    """
    if test.rule != referral.rule:
        raise LesionfastError(
            f"the referral is of the rule '{referral.rule}'; found decisions by '{test.rule}'. "
            f"Make one of it: write_referral(run, rule='{test.rule}')"
        )
    referred = referral.referred(confidence_in(test))
    return referral_table(
        test.truth,
        test.decision,
        referred,
        lesions_of(test),
        test.classes,
        resamples=resamples,
        seed=seed,
    )
