"""From probabilities to what is said of an image: decision, flags, set, referral. No torch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lesionfast.evaluation.metrics import decide
from lesionfast.evaluation.operating import OperatingPoint, positive_and_score
from lesionfast.evaluation.selective import confidence_of
from lesionfast.serving.bundle import Bundle


def assess(bundle: Bundle, probabilities: np.ndarray, features: np.ndarray) -> pd.DataFrame:
    """Return one row an image, from probabilities (n, k) and image features (n, F).

    Columns: decision and rule; p_<class>, the model's probabilities, which the rule, the flags,
    the sets and the referral are of; and as far as the model has them calibrated_<class>, a flag
    an operating point (`flag_name`), prediction_set (a tuple of class names, most probable
    first), refer, outlier_score and outlier.
    """
    classes, rule = bundle.classes, bundle.model["rule"]
    decision = decide(probabilities, rule, bundle.model["prior"])
    told = {"decision": np.asarray(classes, object)[decision], "rule": rule}
    told |= named("p", classes, probabilities)
    if bundle.calibrator:
        told |= named("calibrated", classes, bundle.calibrator.apply(probabilities))
    for point in bundle.points:
        _, score = positive_and_score(point.of, decision, probabilities, classes)
        told[flag_name(point)] = score >= point.threshold
    if bundle.conformal:
        told["prediction_set"] = set_names(
            bundle.conformal.sets(probabilities), probabilities, classes
        )
    if bundle.referral:
        confidence = confidence_of(probabilities, rule, bundle.model["prior"])
        told["refer"] = bundle.referral.referred(confidence)
    if bundle.outliers:
        scores = bundle.outliers.score(features)
        told |= {"outlier_score": scores, "outlier": scores > bundle.outliers.threshold}
    return pd.DataFrame(told, index=range(len(probabilities)))


def columns_of(bundle: Bundle) -> list[str]:
    """Return the columns of `assess`."""
    k = len(bundle.classes)
    width = 0 if bundle.outliers is None else bundle.outliers.width
    return list(assess(bundle, np.full((1, k), 1 / k), np.ones((1, width))))


def named(prefix: str, classes: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of an array (n, k)."""
    return {f"{prefix}_{name}": values[:, i] for i, name in enumerate(classes)}


def flag_name(point: OperatingPoint) -> str:
    """Return the column of an operating point, such as "mel_at_specificity_90"."""
    return f"{point.of}_at_{point.goal}_{point.level * 100:.0f}"


def set_names(
    sets: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return the classes of each set, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [
        tuple(classes[i] for i in row if chosen[i]) for row, chosen in zip(order, sets, strict=True)
    ]
