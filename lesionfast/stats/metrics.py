"""Metrics: pure NumPy functions of truth and probabilities. Free of torch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.stats.bootstrap import Found
from lesionfast.stats.rules import RULES, DecisionRule, as_probabilities

ALL = "all"  # what a metric of no single class is about
MACRO = {
    "balanced_accuracy": "sensitivity",
    "macro_specificity": "specificity",
    "macro_precision": "precision",
    "macro_f1": "f1",
}
METRIC_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "macro_f1": "macro F1",
    "macro_average_precision": "macro average precision",
    "macro_precision": "macro precision",
    "macro_specificity": "macro specificity",
    "kappa": "Cohen's kappa",
    "log_loss": "log loss, nats",
    "brier": "Brier score",
    "ece": "ECE, 15 bins",
    "adaptive_ece": "ECE, 15 bins of equal numbers",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "average precision",
    "mel_sensitivity": "melanoma sensitivity",
    "train_loss": "training loss",
    "valid_loss": "validation loss",
}


def summarize(
    truth: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    prior: ArrayLike,
    rule: DecisionRule | None = None,
) -> dict[str, Any]:
    """Return every metric of the probabilities (n, k) of n images, as JSON-safe values.

    `truth` (n,) holds class numbers, `classes` their k names, `prior` (k,) the class shares
    that the rule 'balanced' divides by. The keys: n, counts, macro_auc, log_loss (nats),
    average_precision, auc, and under rules, by their names, the metrics of the decisions by each of
    `RULES` and by `rule`, the one in use. Where a metric is undefined it is None: sensitivity of a
    class that no image has, precision of a class that is never decided for, AUC and average
    precision of a class that no image or every image has.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, probabilities = check_predictions(truth, probabilities, classes)
    auc = one_vs_rest(truth, probabilities, roc_auc_score)
    precision = one_vs_rest(truth, probabilities, average_precision_score)
    rules = [DecisionRule(base, prior) for base in RULES]
    summary = {
        "n": len(truth),
        "counts": dict(zip(classes, np.bincount(truth, minlength=len(classes)), strict=True)),
        "macro_auc": mean_defined(auc),
        "log_loss": losses(truth, probabilities).mean(),
        "average_precision": dict(zip(classes, precision, strict=True)),
        "auc": dict(zip(classes, auc, strict=True)),
        "rules": {
            one.name: decision_metrics(truth, one.decide(probabilities), classes)
            for one in filter(None, [*rules, rule])
        },
    }
    return json_safe(summary)


def decision_metrics(
    truth: ArrayLike, decision: ArrayLike, classes: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of decisions (n,): over all classes and for each class.

    'mel_sensitivity' is among them if there is a class of melanoma. NaN where undefined.
    """
    counts = confusion_counts(truth, decision, len(classes))
    found = {key: value for key, (value,) in count_metrics(counts[None], classes).items()}
    metrics = {name: found[name, ALL] for name in ("balanced_accuracy", "macro_f1")}
    for metric in ("sensitivity", "precision", "specificity"):
        metrics[metric] = {name: found[metric, name] for name in classes}
    metrics["accuracy"] = float(found["accuracy", ALL])
    if melanoma := Classes.of(classes).melanoma:
        metrics["mel_sensitivity"] = metrics["sensitivity"][melanoma]
    return metrics


def count_metrics(counts: np.ndarray, classes: Sequence[str]) -> Found:
    """Return the metrics of confusion counts (b, k, k), truth by decision."""
    found: Found = {}
    total = counts.sum(axis=(1, 2))
    hits = counts.diagonal(axis1=1, axis2=2)
    actual, decided = counts.sum(axis=2), counts.sum(axis=1)
    for number, name in enumerate(classes):
        hit, missed = hits[:, number], (actual - hits)[:, number]
        false = (decided - hits)[:, number]
        found |= binary_metrics(hit, missed, false, total - hit - missed - false, name)
    for metric, name in MACRO.items():
        found[metric, ALL] = mean_over_classes(found, name, classes)
    right = ratio(hits.sum(axis=1), total)
    chance = ratio((actual * decided).sum(axis=1), total**2)
    found["kappa", ALL] = ratio(right - chance, 1 - chance)
    found["accuracy", ALL] = right
    return found


def mean_over_classes(found: Found, metric: str, classes: Sequence[str]) -> np.ndarray:
    """Return the mean (b,) of a metric over the classes where it is defined."""
    return mean_defined(np.stack([found[metric, name] for name in classes], axis=-1))


def binary_metrics(
    hit: np.ndarray, missed: np.ndarray, false: np.ndarray, right: np.ndarray, name: str
) -> Found:
    """Return sensitivity, specificity, precision and F1 of four counts (b,)."""
    return {
        ("sensitivity", name): ratio(hit, hit + missed),
        ("specificity", name): ratio(right, right + false),
        ("precision", name): ratio(hit, hit + false),
        ("f1", name): ratio(2 * hit, 2 * hit + missed + false),
    }


def confusion_counts(truth: ArrayLike, decision: ArrayLike, n_classes: int) -> np.ndarray:
    """Return how many images of each class (rows) were decided each class (columns), (k, k)."""
    truth, decision = as_codes(truth, n_classes), as_codes(decision, n_classes)
    if truth.shape != decision.shape:
        raise LesionfastError(
            f"truth and decisions differ in length: {len(truth)} and {len(decision)}. "
            "Pass one decision per image."
        )
    pairs = np.bincount(truth * n_classes + decision, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes)


def balanced_accuracy(truth: ArrayLike, decision: ArrayLike, n_classes: int) -> float:
    """Return the mean sensitivity of the classes that `truth` (n,) holds, the ISIC metric."""
    counts = confusion_counts(truth, decision, n_classes)
    return float(mean_defined(ratio(counts.diagonal(), counts.sum(axis=1))))


def weighted_recall(
    truth: np.ndarray, decision: np.ndarray, n_classes: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of weights (b, n) of the rows that gives the recall of each class, (b, k).

    Its `mean_defined` is the balanced accuracy under those weights.
    """
    onehot = np.eye(n_classes)[truth]
    right = onehot * (truth == decision)[:, None]
    return lambda weights: ratio(weights @ right, weights @ onehot)


def sensitivity(truth: ArrayLike, decision: ArrayLike, class_index: int) -> float:
    """Return the share of the images of one class that were decided so; NaN if it has none."""
    found = np.asarray(decision)[np.asarray(truth) == class_index] == class_index
    return float(ratio(found.sum(), len(found)))


def macro_auc(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean one-vs-rest ROC AUC of the classes that some images have and others not.

    `truth` (n,), `probabilities` (n, k). NaN if there is no such class.
    """
    from sklearn.metrics import roc_auc_score

    probabilities = as_probabilities(probabilities)
    truth, _ = check_predictions(truth, probabilities, range(probabilities.shape[1]))
    return float(mean_defined(one_vs_rest(truth, probabilities, roc_auc_score)))


def one_vs_rest(
    truth: np.ndarray, probabilities: np.ndarray, score: Callable[..., float]
) -> np.ndarray:
    """Return `score(is the class, its probability)` of each class (k,); NaN where undefined."""
    values = np.full(probabilities.shape[1], np.nan)
    for index in range(len(values)):
        positive = truth == index
        if positive.any() and not positive.all():
            values[index] = score(positive, probabilities[:, index])
    return values


def losses(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return -log of the probability of the truth (n,) in nats, at most 36 (float64 epsilon)."""
    of_truth = probabilities[np.arange(len(truth)), truth]
    return -np.log(np.clip(of_truth, np.finfo(np.float64).eps, 1))


def ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """Return part / whole in float64, NaN where `whole` is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def mean_defined(values: ArrayLike) -> np.ndarray:
    """Return the mean over the last axis of the values that are not NaN; NaN if there are none."""
    values = np.asarray(values)
    return ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))[()]


def proper_scores(truth: np.ndarray, probabilities: np.ndarray) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) that gives log loss (nats) and Brier score (0 to 2)."""
    onehot = np.eye(probabilities.shape[1])[truth]
    errors = np.stack([losses(truth, probabilities), ((probabilities - onehot) ** 2).sum(1)], 1)

    def find(weights: np.ndarray) -> Found:
        log_loss, brier = (weights @ errors / weights.sum(axis=1, keepdims=True)).T
        return {("log_loss", ALL): log_loss, ("brier", ALL): brier}

    return find


def json_safe(value: Any) -> Any:
    """Return nested dicts and lists with plain Python numbers, and None for every NaN."""
    if isinstance(value, dict):
        return {str(key): json_safe(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_safe(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def as_codes(values: ArrayLike, n_classes: int) -> np.ndarray:
    """Return class numbers (n,) as int64; raises `LesionfastError` if they are none."""
    values = np.asarray(values)
    whole = values.ndim == 1 and (values.dtype.kind in "iu" or values.size == 0)
    if not whole or (values.size and not 0 <= values.min() <= values.max() < n_classes):
        found = f"{values.min()} to {values.max()}" if whole else f"{values.dtype} {values.shape}"
        raise LesionfastError(
            f"class numbers are whole, from 0 to {n_classes - 1}, one per image; found {found}. "
            "Pass each image's position in the list of classes."
        )
    return values.astype(np.int64)


def check_predictions(
    truth: ArrayLike, probabilities: ArrayLike, classes: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return class numbers (n,) and probabilities (n, k), checked; raises `LesionfastError`."""
    probabilities, truth = as_probabilities(probabilities), as_codes(truth, len(classes))
    check_shapes(truth, probabilities, classes)
    return truth, probabilities


def check_shapes(truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[Any]) -> None:
    """Raise `LesionfastError` unless truth (n,), probabilities (n, k) and k classes fit."""
    if probabilities.shape != (len(truth), len(classes)):
        raise LesionfastError(
            f"probabilities of {len(truth)} images and {len(classes)} classes must be as many rows "
            f"and columns; found {probabilities.shape[0]} by {probabilities.shape[1]}. "
            "Pass one row per image, one column per class."
        )


def metric_name(metric: str, of: str = ALL, classes: Classes | None = None) -> str:
    """Return "balanced accuracy", or "melanoma AUC" for the AUC of one class."""
    name = METRIC_NAMES.get(metric, metric.replace("_", " "))
    melanoma = classes is not None and of == classes.melanoma
    return name if of == ALL else f"{'melanoma' if melanoma else of} {name}"
