"""Runs averaged by their predictions, as a run of its own. Torch-free."""

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

from lesionfast.config import TrainConfig, check_choice
from lesionfast.diagnoses import (
    move_prior,
    probability_columns,
    same_prior,
)
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import align_images, check_split
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labelling.corrected import measure_uncorrected
from lesionfast.evaluation.melanoma import announce_melanomas, settle_rule
from lesionfast.files import sha256_once, write_csv, write_text
from lesionfast.run import (
    CORRECTIONS,
    UNCORRECTED,
    WITHOUT_METADATA,
    Run,
    describe_software,
)
from lesionfast.stats.pooling import MEANS, average, best_weights, common_prior
from lesionfast.stats.rules import as_prior

logger = logging.getLogger("lesionfast")

ARCH = "ensemble"


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
    for split in list_splits(members):
        collect_votes(members, split)  # their images are the same
    k = len(members[0].classes)
    prior, shared = common_prior([as_prior(run.model["prior"], k) for run in members])
    if not shared:
        logger.info(
            "the members were trained with different class shares, so each one's probabilities are "
            "divided by its own prior before the mean; the ensemble's prior is uniform"
        )
    weights = np.full(len(members), 1 / len(members))
    if fit_weights:
        valid = move_votes(collect_votes(members, "valid"), members, prior)
        weights = best_weights(valid.probabilities, valid.truth, prior, mean)
    chosen = {"mean": mean, "weights_from": "validation" if fit_weights else "equal"}
    chosen |= common_sensitivity(members)
    model = describe(members, prior, weights, **chosen)
    run = Run.create(root, shared_config(members, model["rule"]))
    write(run, members, model)
    return run


def common_sensitivity(members: Sequence[Run]) -> dict[str, float]:
    """Return the melanoma sensitivity that all members were asked for, as model.json has it.

    A warning says so if they were asked for different ones; the ensemble then has none.
    """
    asked = sorted({run.melanoma_sensitivity for run in members})
    if len(asked) == 1:
        return {"melanoma_sensitivity": asked[0]} if asked[0] else {}
    logger.warning(
        "The members were asked for different melanoma sensitivities (%s; 0: none), so the "
        "ensemble has no weight on melanoma. For one, type: lesionfast interpret RUN "
        "--melanoma-sensitivity %g",
        *(", ".join(f"{one:g}" for one in asked), asked[-1]),
    )
    return {"melanoma_sensitivity": 0.0}


def collect_votes(members: Sequence[Run], split: str, file: str = "predictions.csv") -> Votes:
    """Return the members' predictions in a file of theirs.

    Raises `LesionfastError` if their images differ.
    """
    tables = [choose_rows(run, split, file) for run in members]
    pairs = zip(members, tables, strict=True)
    read = [Interpretation.from_table(run, table, split) for run, table in pairs]
    orders = align_images(read)
    probabilities = [one.probabilities[order] for one, order in zip(read, orders, strict=True)]
    rows = tables[0].iloc[orders[0]].reset_index(drop=True)
    return Votes(np.stack(probabilities), read[0].truth[orders[0]], rows)


def choose_rows(run: Run, split: str, file: str = "predictions.csv") -> pd.DataFrame:
    """Return a run's predictions of a split in a file: its usual ones if it has no such file."""
    others = {
        WITHOUT_METADATA: lambda: run.predictions_without_metadata,
        UNCORRECTED: lambda: run.predictions_before_corrections,
    }
    table = others[file]() if file in others else None
    if table is None:
        return run.predictions_of(split)
    return table[table["split"] == split].reset_index(drop=True)


def move_votes(votes: Votes, members: Sequence[Run], prior: np.ndarray) -> Votes:
    """Return the votes as they are for another prior (k,) than each member's own."""
    pairs = zip(votes.probabilities, members, strict=True)
    moved = [move_prior(probabilities, run.model["prior"], prior) for probabilities, run in pairs]
    return replace(votes, probabilities=np.stack(moved))


def describe(
    members: Sequence[Run], prior: np.ndarray, weights: np.ndarray, **chosen: Any
) -> dict[str, Any]:
    """Return the model.json of an ensemble; `chosen` are its own values."""
    models = [run.model for run in members]
    rules, fusions, counts = (
        [model.get(name) for model in models] for name in ("rule", "fusion", "parameters")
    )
    classes = members[0].classes
    inputs = [name for model in models for name in model.get("metadata") or []]
    taking = [run.model for run in members if takes_metadata(run)]
    dropped = [model["metadata_dropout"] for model in taking if "metadata_dropout" in model]
    numbers = {name: [m[name] for m in models if name in m] for name in ("size", "tta")}
    shared = all(same_prior(prior, model["prior"]) for model in models)
    return {
        "schema": 1,
        "arch": ARCH,
        "fusion": fusions[0] if len(set(fusions)) == 1 else "mixed",
        "metadata": list(dict.fromkeys(inputs)),
        **({"metadata_dropout": min(dropped)} if dropped else {}),
        **{name: max(found) for name, found in numbers.items() if found},
        "classes": list(classes),
        "melanoma": classes.melanoma,
        "malignant": classes.malignant,
        "prior": prior.tolist(),
        "rule": rules[0] if len(set(rules)) == 1 and shared else "balanced",
        "of": "runs",
        "out_of_fold": all(run.is_out_of_fold for run in members),
        "weights": weights.tolist(),
        "weights_from": "equal",
        "mean": MEANS[0],
        "footing": "as predicted" if shared else "moved from each member's prior",
        "parameters": None if None in counts else sum(counts),
        **chosen,
    }


def shared_config(members: Sequence[Run], rule: str) -> TrainConfig:
    """Return the options that all members share, and defaults for the others."""
    first, *others = (asdict(run.config) for run in members)
    shared = {k: v for k, v in first.items() if all(other[k] == v for other in others)}
    return TrainConfig(**shared | {"arch": ARCH, "rule": rule, "all": False})


def write(run: Run, members: Sequence[Run], model: dict[str, Any]) -> None:
    """Write the files of an ensemble of runs; metrics.json comes last."""
    packages = ("lesionfast", "numpy", "pandas", "scipy")
    run.write_json("environment.json", describe_software(*packages))
    words = describe_pool(model, [str(member.path) for member in members])
    logger.info("%s", words)
    write_text(run.path / "log.txt", words + "\n")
    for name in (CORRECTIONS, "split.csv"):
        if all(member.holds(name) for member in members):
            run.write(name, partial(shutil.copyfile, members[0].file(name)))
    write_results(run, members, model, pool_predictions, members[0].metrics["split_sha256"])


def pool_predictions(
    members: Sequence[Run], model: dict[str, Any], file: str = "predictions.csv"
) -> pd.DataFrame:
    """Return the predictions of an ensemble: those in a file of its members, averaged."""
    tables, prior = [], np.asarray(model["prior"])
    for split in list_splits(members):
        votes = move_votes(collect_votes(members, split, file), members, prior)
        tables.append(pool_votes(votes, model))
    return pd.concat(tables, ignore_index=True)


def list_splits(members: Sequence[Run]) -> list[str]:
    """Return the splits that members predict."""
    return [name for name in ("valid", "test") if name in set(members[0].predictions["split"])]


def describe_pool(model: dict[str, Any], names: Sequence[str]) -> str:
    """Return what an ensemble averages and how, one line a member after the first."""
    lines = [
        f"ensemble of {len(names)}: {model['mean']} mean of the probabilities, "
        f"{model['footing']}; weights: {model['weights_from']}"
    ]
    lines += [f"{w:.3f}  {name}" for w, name in zip(model["weights"], names, strict=True)]
    return "\n".join(lines)


def pool_votes(votes: Votes, model: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of votes with the ensemble's probabilities."""
    mean = average(votes.probabilities, model["weights"], model["mean"])
    return votes.rows.assign(
        **dict(zip(probability_columns(model["classes"]), mean.T, strict=True))
    )


def write_results(
    run: Run,
    members: Sequence[Run],
    model: dict[str, Any],
    pool: Callable[..., pd.DataFrame],
    split_sha256: str,
    status: str = "finished",
) -> None:
    """Write model.json with the members and their weights' SHA-256, predictions and metrics.

    `pool(members, model, file)` returns the predictions from those in a file of the members.
    """
    here = run.path.resolve()
    paths = [Path(os.path.relpath(m.path.resolve(), here)).as_posix() for m in members]
    digests = [sha256_once(member.path / "weights.safetensors") for member in members]
    before = run.model if run.holds("model.json") else {}
    asked = {k: v for k, v in before.items() if k == "melanoma_sensitivity"}
    run.model = model | asked | {"members": paths, "member_weights": digests}
    run.write_json("model.json", run.model)
    predictions = pool(members, run.model, "predictions.csv")
    run.write("predictions.csv", partial(write_csv, predictions))
    fused = [member for member in members if takes_metadata(member)]
    if fused and all(member.holds(WITHOUT_METADATA) for member in fused):
        withheld = pool(members, run.model, WITHOUT_METADATA)
        run.write(WITHOUT_METADATA, partial(write_csv, withheld))
    corrected = all(member.holds(UNCORRECTED) for member in members)
    if corrected:
        whole = pool(members, run.model, UNCORRECTED)
        run.write(UNCORRECTED, partial(write_csv, whole))
    metrics = {
        "split_sha256": split_sha256,
        "train_seconds": round(sum(member.metrics["train_seconds"] for member in members), 2),
        "status": status,
    }
    read = settle_rule(run, predictions)
    metrics |= {name: one.metrics for name, one in read.items()}
    metrics |= pool_corrections(run, members) if corrected else {}
    run.write_json("metrics.json", metrics)
    announce_melanomas(read)


def pool_corrections(run: Run, members: Sequence[Run]) -> dict[str, Any]:
    """Return what metrics.json says of the corrections that all members were trained with."""
    told = [member.metrics.get("corrections", {}) for member in members]
    if len({one.get("sha256") for one in told}) > 1:
        return {}
    moved = max(one.get("moved", 0) for one in told)  # folds leave out images of each other
    return {"corrections": told[0] | {"moved": moved}, **measure_uncorrected(run)}


def takes_metadata(run: Run) -> bool:
    """Return whether a run's model takes metadata."""
    return bool(run.model.get("metadata")) and run.model.get("fusion") != "none"
