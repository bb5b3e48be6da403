"""Last layers by name: trained by gradient descent, or solved at once on frozen features."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from lesionfast.config import SplitConfig
from lesionfast.console import counting_bar
from lesionfast.models.features import Features, fused_features
from lesionfast.models.lineage import lineage_header
from lesionfast.registry import Registry
from lesionfast.run import Run
from lesionfast.training.balancing import class_codes
from lesionfast.training.callbacks.cached_features import FeatureLoader
from lesionfast.training.callbacks.tracking import (
    history_columns,
    history_header,
    history_line,
    save_tensors,
)
from lesionfast.training.learner import LesionLearner

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

logger = logging.getLogger("lesionfast")

heads = Registry("head", "--head")
SOLVED = {  # the options of a head that is solved; all others are of gradient descent
    *(field.name for field in fields(SplitConfig)),
    *("arch", "all", "weights", "size", "resize", "fusion", "pool", "head", "rule", "tta"),
    *("melanoma_sensitivity", "distill"),
    *(
        "metadata_dropout",
        "melanoma",
        "malignant",
        "device",
        "precision",
        "compile",
        "workers",
        "log",
    ),
}
Linear = tuple[np.ndarray, np.ndarray]  # weights (K, W) and biases (K,)
STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(-10, 5))  # of logistic regression
MOST_STEPS = 1000  # of the last fit of a logistic regression
FOLDS = 3  # of the training lesions, to choose one of them
TINY = 1e-12  # of a probability whose logarithm is taken
LOGITS = ("logistic",)  # heads whose outputs are log-probabilities already


@heads.register("linear")
def linear(features: np.ndarray, codes: np.ndarray, groups: np.ndarray | None = None) -> Linear:
    """A linear layer trained with the rest of the model by gradient descent."""
    raise AssertionError("a linear head is trained, not solved")


@heads.register("prototype")
def prototype(features: np.ndarray, codes: np.ndarray, groups: np.ndarray | None = None) -> Linear:
    """Distance to the mean features of each class (Snell et al. 2017, arXiv:1703.05175).

    The logit of a class is minus the squared distance to its mean (eq. 2), less a term that is
    the same for all classes, which makes it linear (eq. 8). A few images per class are enough.
    """
    centres = np.stack([features[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
    return 2 * centres, -(centres**2).sum(axis=1)


@heads.register("svm")
def svm(features: np.ndarray, codes: np.ndarray, groups: np.ndarray | None = None) -> Linear:
    """A hyperplane that separates each class from the rest: scikit-learn's LinearSVC.

    Classes have equal weight, whatever their number of images (Cortes and Vapnik 1995,
    doi:10.1007/BF00994018).
    """
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=1e-4, class_weight="balanced", dual="auto", max_iter=10_000, random_state=0)
    model.fit(features, codes)
    return one_row_a_class(model.coef_, model.intercept_)


def one_row_a_class(coefficients: np.ndarray, intercepts: np.ndarray, factor: float = 1) -> Linear:
    """Return weights (K, W) and biases (K,); of two classes scikit-learn has one row for both."""
    if len(coefficients) > 1:
        return coefficients, intercepts
    both = factor * np.array([-1, 1])
    return both[:, None] * coefficients, both * intercepts


@heads.register("logistic")
def logistic(features: np.ndarray, codes: np.ndarray, groups: np.ndarray | None = None) -> Linear:
    """Multinomial logistic regression; the L2 penalty is chosen on folds of training lesions.

    The probabilities keep the class shares of the training images, by which the rule 'balanced'
    divides (logit adjustment, Menon et al. 2021, arXiv:2007.07314). That ranks melanomas better
    than class weights do, which let a few images of rare classes decide.

    `features` (n, W) are standardised, `codes` (n,) are class numbers, `groups` (n,) the lesions,
    by default each image is one. Returns weights (K, W) and biases (K,), of two classes as well. A
    solution that is still moving after `MOST_STEPS` is taken, and a warning says so. Raises
    `ValueError` for fewer than two classes, and for features that are not finite.
    """
    features = features.astype(np.float32)
    groups = np.arange(len(codes)) if groups is None else groups
    # the steps are short: threads that wait for each other cost more
    with threadpool_limits(1), unfinished_allowed():
        strength = choose_strength(features, codes, groups)
        model = new_regression().set_params(C=strength, max_iter=MOST_STEPS, tol=1e-4)
        model.fit(features, codes)
    if model.n_iter_.max() >= MOST_STEPS:
        logger.warning(
            "the logistic regression was still moving after %d steps, and is taken as it is",
            MOST_STEPS,
        )
    return one_row_a_class(model.coef_, model.intercept_, 0.5)


@contextmanager
def unfinished_allowed() -> Iterator[None]:
    """Keep scikit-learn's own warnings of fits that ran out of steps off the terminal."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def new_regression() -> "LogisticRegression":
    """Return a logistic regression whose next fit starts from the coefficients of the last."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(warm_start=True, max_iter=300, tol=1e-3)


def choose_strength(features: np.ndarray, codes: np.ndarray, groups: np.ndarray) -> float:
    """Return the C of least log loss on held-out folds of the groups; the least if it can't tell.

    C grows, each fit starts from the one before, and the search ends when two values in a row are
    worse. A class with one group is never held out and learned at the same time.
    """
    folds, losses = grouped_folds(codes, groups), []
    if not folds:
        logger.warning(
            "too few training lesions to choose the L2 penalty of the head logistic: it is the "
            "largest, C %.0e",
            STRENGTHS[0],
        )
        return STRENGTHS[0]
    models = [new_regression() for _ in folds]
    for strength in STRENGTHS:
        parts = [
            held_out_losses(model.set_params(C=strength), features, codes, fold)
            for model, fold in zip(models, folds, strict=True)
        ]
        losses.append(float(np.concatenate(parts).mean()))
        if len(losses) > 2 and all(before < after for before, after in pairwise(losses[-3:])):
            break
    best = int(np.argmin(losses))
    logger.info(
        "logistic regression: C %.2g has the least log loss, %.3f, on held-out training lesions",
        *(STRENGTHS[best], losses[best]),
    )
    return STRENGTHS[best]


def grouped_folds(codes: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows to learn from and to hold out of each fold, no group in both."""
    from sklearn.model_selection import StratifiedGroupKFold

    n = min(FOLDS, len(np.unique(groups)))
    if n < 2:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer images than folds
        split = StratifiedGroupKFold(n, shuffle=True, random_state=0).split(codes, codes, groups)
        return [fold for fold in split if len(np.unique(codes[fold[0]])) > 1]


def held_out_losses(
    model: "LogisticRegression",
    features: np.ndarray,
    codes: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Fit on the first rows of a fold; return the log losses of the others in learned classes."""
    learned, held_out = fold
    model.fit(features[learned], codes[learned])
    held_out = held_out[np.isin(codes[held_out], model.classes_)]
    columns = np.searchsorted(model.classes_, codes[held_out])
    probabilities = model.predict_proba(features[held_out])[np.arange(len(held_out)), columns]
    return -np.log(np.maximum(probabilities, TINY))


@dataclass(frozen=True, eq=False)
class HeadInputs:
    """What a head sees of one split: image features (n, F), metadata (n, M), class numbers (n,)."""

    image: np.ndarray
    metadata: np.ndarray
    codes: np.ndarray

    def fused(self, learn: LesionLearner) -> np.ndarray:
        """Return the inputs of the last layer, float64 (n, W)."""
        return fused_features(learn.model, self.image, self.metadata).astype(np.float64)


def solve_head(learn: LesionLearner, run: Run) -> dict[str, Any]:
    """Solve the head of a run and put it into the model; write weights and history.

    Returns the entries of metrics.json about the training. The features are standardised. Where
    the head gives no log-probabilities, the scale of the logits is the one of least log loss on
    validation, with equal class weights.
    """
    started = time.perf_counter()
    train, valid = (head_inputs(learn, name) for name in ("train", "valid"))
    x = train.fused(learn)
    centre, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    standard = (x - centre) / spread
    weight, bias = heads[run.config.head](standard, train.codes, train_groups(learn))
    weight = weight / spread
    bias = bias - weight @ centre
    logits = run.config.head in LOGITS
    scale = 1.0 if logits else best_scale(valid.fused(learn) @ weight.T + bias, valid.codes)
    layer = learn.model.head[-1]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(scale * weight))
        layer.bias.copy_(torch.from_numpy(scale * bias))
    seconds = time.perf_counter() - started
    options = run.config
    header = lineage_header(learn.dls.split, options.arch, options.weights, options.teacher)
    tensors = learn.model.state_dict()
    run.write("weights.safetensors", lambda aside: save_tensors(tensors, aside, header))
    write_history(learn, run, x, train.codes, valid)
    return {
        "train_seconds": round(seconds, 2),
        "images_per_second": round((len(x) + len(valid.codes)) / seconds, 2),
        "best_epoch": 1,
        "status": "finished",
    }


def head_inputs(learn: LesionLearner, split: str) -> HeadInputs:
    """Return the inputs of the head for one split.

    Of the training rows metadata is withheld once, as a trained head's is in every batch.
    """
    rows = learn.dls.rows[learn.dls.rows["split"] == split]
    learn.model.to(learn.dls.device)
    with counting_bar(f"features of {split}") as progress:
        source = Features(learn.model, learn.dls.pixels, learn.config.precision)
        image = source.kept(rows["row"].to_numpy(), progress)
    codes, metadata = class_codes(learn.dls, split), learn.dls.encoder.transform(rows)
    if split == "train" and hasattr(learn, "metadata_dropout"):
        metadata = learn.metadata_dropout.withhold_once(metadata, codes)
    return HeadInputs(image, metadata, codes)


def train_groups(learn: LesionLearner) -> np.ndarray:
    """Return the lesion or patient (n,) of each training row."""
    rows = learn.dls.rows[learn.dls.rows["split"] == "train"]
    return rows["group" if "group" in rows else "image_id"].to_numpy(str)


def best_scale(logits: np.ndarray, codes: np.ndarray) -> float:
    """Return the factor on logits (n, K) of least log loss, with equal class weights."""
    share = 1 / np.bincount(codes)[codes]
    rows = np.arange(len(codes))

    def loss(log_scale: float) -> float:
        return -float(share @ log_softmax(np.exp(log_scale) * logits, axis=1)[rows, codes])

    return float(np.exp(minimize_scalar(loss, bounds=(-15, 10), method="bounded").x))


def write_history(
    learn: LesionLearner, run: Run, x: np.ndarray, codes: np.ndarray, valid: HeadInputs
) -> None:
    """Write history.csv, which has one line, and log it; no image is run once more for it."""
    layer = learn.model.head[-1].to("cpu")
    with torch.no_grad():
        logits = layer(torch.from_numpy(x).float())
    train_loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(codes)).item()
    learn.model.to(learn.dls.device)
    loader = FeatureLoader([valid.image], valid.metadata, valid.codes, learn.dls.device)
    with learn.no_bar():
        values = [train_loss, *learn.validate(dl=loader)]
    line = history_line(1, run.config.head, None, values)
    run.write_text("history.csv", f"{history_header(learn)}\n{line}\n")
    named = zip(history_columns(learn), values, strict=True)
    logger.info(
        "%s: %s", run.config.head, ", ".join(f"{name} {value:.6g}" for name, value in named)
    )
