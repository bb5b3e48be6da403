"""Ensembles: runs whose probabilities are averaged, as a run of its own. Torch-free."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import softmax

from lesionfast.config import TrainConfig, check_choice
from lesionfast.diagnoses import (
    join_names,
    probability_columns,
    read_weights,
    split_names,
    write_weights,
)
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.comparison import align_images, check_split
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_text
from lesionfast.run import Run, describe_software
from lesionfast.stats.metrics import as_prior, ratio, summarize

logger = logging.getLogger("lesionfast")

ARCH = "ensemble"
MEANS = ("arithmetic", "geometric")
SMALLEST = np.finfo(np.float64).eps  # the smallest probability whose logarithm is taken
TIMES = 3.0  # how much heavier a specialist's class is than in the base


@dataclass(frozen=True, eq=False)
class Votes:
    """The members' predictions of one split, in the order of the image ids.

    `probabilities` is (members, n, k), `truth` (n,) holds class numbers, `rows` has one row per
    image: the first member's predictions.
    """

    probabilities: np.ndarray
    truth: np.ndarray
    rows: pd.DataFrame


def combine(
    members: Sequence[Run],
    root: str | Path = "runs",
    *,
    mean: str = "arithmetic",
    fit_weights: bool = False,
) -> Run:
    """Average the members' probabilities and return the ensemble, a new run under `root`.

    If the priors of members differ, each one's probabilities are divided by its prior first, and
    the ensemble's prior is uniform. The weights are equal, or with `fit_weights` those of least
    log loss on the validation images. Raises `LesionfastError` for fewer than two members, and
    for members of different splits, images or classes.
    """
    check_choice("mean", mean, MEANS)
    if len(members) < 2:
        raise LesionfastError(
            f"an ensemble needs two members or more; found {len(members)}. "
            "Type lesionfast ensemble RUN RUN, or one RUN with --specialists mel,bcc."
        )
    check_split(members)
    splits = [name for name in ("valid", "test") if name in set(members[0].predictions["split"])]
    votes = {split: collect_votes(members, split) for split in splits}
    prior, shared = common_prior(members)
    if not shared:
        votes = {split: divide_by_prior(vote, members) for split, vote in votes.items()}
    weights = np.full(len(members), 1 / len(members))
    if fit_weights:
        valid = votes["valid"]
        weights = best_weights(valid.probabilities, valid.truth, prior, mean)
    counts = [run.model.get("parameters") for run in members]  # None in old runs
    model = {
        **describe(members, prior, shared),
        "weights": weights.tolist(),
        "weights_from": "validation" if fit_weights else "equal",
        "mean": mean,
        "footing": "as predicted" if shared else "divided by each member's prior",
        "parameters": None if None in counts else sum(counts),
    }
    run = Run.create(root, shared_config(members, model["rule"]))
    write(run, members, model, votes)
    return run


def collect_votes(members: Sequence[Run], split: str) -> Votes:
    """Return the members' predictions; raises `LesionfastError` if their images differ."""
    read = [Interpretation.from_run(run, split) for run in members]
    orders = align_images(read)
    probabilities = [one.probabilities[order] for one, order in zip(read, orders, strict=True)]
    rows = members[0].predictions_of(split).iloc[orders[0]].reset_index(drop=True)
    return Votes(np.stack(probabilities), read[0].truth[orders[0]], rows)


def common_prior(members: Sequence[Run]) -> tuple[np.ndarray, bool]:
    """Return the prior of the ensemble (k,), and whether all members share it."""
    k = len(members[0].classes)
    priors = np.stack([as_prior(run.model["prior"], k) for run in members])
    if np.allclose(priors, priors[0], rtol=0, atol=1e-6):
        return priors[0], True
    logger.info(
        "the members were trained with different class shares, so each one's probabilities are "
        "divided by its own prior before the mean; the ensemble's prior is uniform"
    )
    return np.full(k, 1 / k), False


def divide_by_prior(votes: Votes, members: Sequence[Run]) -> Votes:
    """Return the votes with each member's probabilities divided by its prior, summing to 1."""
    priors = np.array([run.model["prior"] for run in members], np.float64)[:, None, :]
    odds = np.nan_to_num(
        ratio(votes.probabilities, np.broadcast_to(priors, votes.probabilities.shape))
    )
    return replace(votes, probabilities=odds / odds.sum(axis=2, keepdims=True))


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


def best_weights(
    probabilities: np.ndarray, truth: np.ndarray, prior: np.ndarray, mean: str
) -> np.ndarray:
    """Return the weights (members,) of least log loss, none below 0 and with sum 1.

    Each class counts as `prior` (k,) says, whatever its share of the images, so that the loss
    fits probabilities that were divided by other priors. The problem is convex for both means.
    Raises `LesionfastError` if no minimum is found.
    """
    from scipy.optimize import minimize

    share = np.bincount(truth, minlength=len(prior)) / len(truth)
    importance = (prior / np.maximum(share, SMALLEST))[truth]
    n = len(probabilities)
    found = minimize(
        log_loss(probabilities, truth, importance / importance.sum(), mean),
        np.full(n, 1 / n),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 500},
    )
    if not found.success:
        raise LesionfastError(
            f"the weights could not be fitted ({found.message}). Leave out --fit-weights."
        )
    weights = np.where(found.x < 1e-6, 0.0, found.x)
    return weights / weights.sum()


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


def describe(members: Sequence[Run], prior: np.ndarray, shared: bool) -> dict[str, Any]:
    """Return what model.json of an ensemble has in common with that of a run."""
    rules, fusions = ({run.model.get(name) for run in members} for name in ("rule", "fusion"))
    classes = members[0].classes
    return {
        "schema": 1,
        "arch": ARCH,
        "fusion": fusions.pop() if len(fusions) == 1 else "mixed",
        "classes": list(classes),
        "melanoma": classes.melanoma,
        "malignant": classes.malignant,
        "prior": prior.tolist(),
        "rule": rules.pop() if len(rules) == 1 and shared else "balanced",
    }


def shared_config(members: Sequence[Run], rule: str) -> TrainConfig:
    """Return the options that all members share, and defaults for the others."""
    first, *others = (asdict(run.config) for run in members)
    shared = {k: v for k, v in first.items() if all(other[k] == v for other in others)}
    return TrainConfig(**shared | {"arch": ARCH, "rule": rule})


def write(run: Run, members: Sequence[Run], model: dict[str, Any], votes: dict[str, Votes]) -> None:
    """Write the files of an ensemble; metrics.json comes last."""
    here = run.path.resolve()
    paths = [Path(os.path.relpath(m.path.resolve(), here)).as_posix() for m in members]
    run.write_json("model.json", model | {"members": paths})
    packages = ("lesionfast", "numpy", "pandas", "scipy")
    run.write_json("environment.json", describe_software(*packages))
    lines = [
        f"ensemble of {len(members)}: {model['mean']} mean of the probabilities, "
        f"{model['footing']}; weights: {model['weights_from']}"
    ]
    lines += [
        f"{w:.3f}  {member.path}" for w, member in zip(model["weights"], members, strict=True)
    ]
    logger.info("%s", "\n".join(lines))
    write_text(run.path / "log.txt", "\n".join(lines) + "\n")
    run.write("split.csv", partial(shutil.copyfile, members[0].file("split.csv")))
    columns, tables = probability_columns(model["classes"]), []
    metrics = {
        "split_sha256": members[0].metrics["split_sha256"],
        "train_seconds": round(sum(member.metrics["train_seconds"] for member in members), 2),
        "status": "finished",
    }
    for split, vote in votes.items():
        mean = average(vote.probabilities, model["weights"], model["mean"])
        tables.append(vote.rows.assign(**dict(zip(columns, mean.T, strict=True))))
        metrics[split] = summarize(vote.truth, mean, members[0].classes, model["prior"])
    table = pd.concat(tables, ignore_index=True)
    run.write("predictions.csv", partial(table.to_csv, index=False))
    run.write_json("metrics.json", metrics)


def add_specialists(base: Sequence[Run], classes: str, root: str | Path = "runs") -> list[Run]:
    """Train one run for each named class, weighted three times; return the base and them.

    `classes` are names with commas between, `base` holds a single run, whose split, seed and
    configuration they keep. Raises `LesionfastError` for several runs, a base that has not ended
    or is an ensemble, a class that it does not have, and a training that is interrupted.
    """
    if len(base) != 1:
        raise LesionfastError(
            f"--specialists takes one RUN, the base; found {len(base)}. Type one, or leave "
            "--specialists out to combine them."
        )
    names = check_classes(base[0], classes)
    return [base[0], *(train_specialist(base[0], name, root) for name in names)]


def check_classes(base: Run, classes: str) -> list[str]:
    """Return the named classes; raises `LesionfastError` for one that the base does not have."""
    if "members" in base.model or not base.finished:
        why = "is an ensemble" if "members" in base.model else "is not finished"
        raise LesionfastError(f"{base.path} {why}. Name a trained run as the base of specialists.")
    names = list(dict.fromkeys(split_names(classes)))
    for name in names or [""]:
        if name not in base.classes:
            raise LesionfastError(
                f"--specialists names '{name}', which is not a class of {base.path}."
                f"{did_you_mean(name, base.classes)} Type some of: {join_names(base.classes, ',')}."
            )
    return names


def train_specialist(base: Run, name: str, root: str | Path) -> Run:
    """Train and return the specialist of one class, on the base's own split."""
    from lesionfast.data.split import load_dataset
    from lesionfast.training.experiment import train

    weights = read_weights(base.config.class_weight)
    weights[name] = weights.get(name, 1.0) * TIMES
    split = str(base.path / "split.csv")
    config = replace(base.config, split=split, class_weight=write_weights(weights))
    run = train(load_dataset(config, split=base.file("split.csv")), config, root)
    if run.metrics["status"] == "interrupted":
        raise LesionfastError(
            f"the training of the specialist for {name} was interrupted. Continue with: lesionfast "
            f"train --resume {run.path}; then combine the runs: lesionfast ensemble {base.path} "
            f"{run.path}"
        )
    return run
