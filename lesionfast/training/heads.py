"""Last layers by name: trained by gradient descent, or solved at once on frozen features."""

import logging
import time
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from lesionfast.console import counting_bar
from lesionfast.models.features import Features, fused_features
from lesionfast.models.lineage import lineage_header
from lesionfast.registry import Registry
from lesionfast.run import Run
from lesionfast.training.balancing import class_codes
from lesionfast.training.callbacks.tracking import (
    history_columns,
    history_header,
    history_line,
    save_tensors,
)
from lesionfast.training.learner import LesionLearner

logger = logging.getLogger("lesionfast")

heads = Registry("head", "--head")
Linear = tuple[np.ndarray, np.ndarray]  # weights (K, W) and biases (K,)


@heads.register("linear")
def linear(features: np.ndarray, codes: np.ndarray) -> Linear:
    """A linear layer trained with the rest of the model by gradient descent."""
    raise AssertionError("a linear head is trained, not solved")


@heads.register("prototype")
def prototype(features: np.ndarray, codes: np.ndarray) -> Linear:
    """Distance to the mean features of each class (Snell et al. 2017, arXiv:1703.05175).

    The logit of a class is minus the squared distance to its mean (eq. 2), less a term that is
    the same for all classes, which makes it linear (eq. 8). A few images per class are enough.
    """
    centres = np.stack([features[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
    return 2 * centres, -(centres**2).sum(axis=1)


@heads.register("svm")
def svm(features: np.ndarray, codes: np.ndarray) -> Linear:
    """A hyperplane that separates each class from the rest: scikit-learn's LinearSVC.

    Classes have equal weight, whatever their number of images (Cortes and Vapnik 1995,
    doi:10.1007/BF00994018).
    """
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=1e-4, class_weight="balanced", dual="auto", max_iter=10_000, random_state=0)
    model.fit(features, codes)
    if len(model.coef_) == 1:  # two classes share one hyperplane
        return np.concatenate([-model.coef_, model.coef_]), np.array([-1, 1]) * model.intercept_
    return model.coef_, model.intercept_


def solve_head(learn: LesionLearner, run: Run) -> dict[str, Any]:
    """Solve the head of a run and put it into the model; write weights and history.

    Returns the entries of metrics.json about the training. The features are standardised, and the
    scale of the logits is the one of least log loss on validation, with equal class weights.
    """
    started = time.perf_counter()
    (x, codes), (valid, valid_codes) = (head_inputs(learn, name) for name in ("train", "valid"))
    centre, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    weight, bias = heads[run.config.head]((x - centre) / spread, codes)
    weight = weight / spread
    bias = bias - weight @ centre
    scale = best_scale(valid @ weight.T + bias, valid_codes)
    layer = learn.model.head[-1]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(scale * weight))
        layer.bias.copy_(torch.from_numpy(scale * bias))
    seconds = time.perf_counter() - started
    header = lineage_header(learn.dls.split, run.config.arch, run.config.weights)
    tensors = learn.model.state_dict()
    run.write("weights.safetensors", lambda aside: save_tensors(tensors, aside, header))
    write_history(learn, run, x, codes)
    return {
        "train_seconds": round(seconds, 2),
        "images_per_second": round((len(x) + len(valid)) / seconds, 2),
        "best_epoch": 1,
        "status": "finished",
    }


def head_inputs(learn: LesionLearner, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of the head for one split, float64 (n, W), and its class numbers (n,).

    Of the training rows metadata is withheld once, as a trained head's is in every batch.
    """
    rows = learn.dls.rows[learn.dls.rows["split"] == split]
    learn.model.to(learn.dls.device)
    with counting_bar(f"features of {split}") as progress:
        image = Features(learn.model, learn.dls.pixels).kept(rows["row"].to_numpy(), progress)
    codes, metadata = class_codes(learn.dls, split), learn.dls.encoder.transform(rows)
    if split == "train" and hasattr(learn, "metadata_dropout"):
        metadata = learn.metadata_dropout.withhold_once(metadata, codes)
    return fused_features(learn.model, image, metadata).astype(np.float64), codes


def best_scale(logits: np.ndarray, codes: np.ndarray) -> float:
    """Return the factor on logits (n, K) of least log loss, with equal class weights."""
    share = 1 / np.bincount(codes)[codes]
    rows = np.arange(len(codes))

    def loss(log_scale: float) -> float:
        return -float(share @ log_softmax(np.exp(log_scale) * logits, axis=1)[rows, codes])

    return float(np.exp(minimize_scalar(loss, bounds=(-15, 10), method="bounded").x))


def write_history(learn: LesionLearner, run: Run, x: np.ndarray, codes: np.ndarray) -> None:
    """Write history.csv, which has one line, and log it."""
    layer = learn.model.head[-1].to("cpu")
    with torch.no_grad():
        logits = layer(torch.from_numpy(x).float())
    train_loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(codes)).item()
    learn.model.to(learn.dls.device)
    with learn.no_bar():
        values = [train_loss, *learn.validate()]
    line = history_line(1, run.config.head, None, values)
    run.write_text("history.csv", f"{history_header(learn)}\n{line}\n")
    named = zip(history_columns(learn), values, strict=True)
    logger.info(
        "%s: %s", run.config.head, ", ".join(f"{name} {value:.6g}" for name, value in named)
    )
