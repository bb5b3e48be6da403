"""A run of folds: one model for each fold, their mean, and what out-of-fold predictions decide."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.console import part_of_work
from lesionfast.data.split import choose_fold, deal_folds, format_folds, read_folds
from lesionfast.diagnoses import move_prior, probability_columns
from lesionfast.errors import LesionfastError, TrainingInterrupted
from lesionfast.evaluation.distilled import NAME as STUDENT
from lesionfast.evaluation.distilled import compare_student, describe_student
from lesionfast.evaluation.interpretation import OUT_OF_FOLD
from lesionfast.files import sha256
from lesionfast.run import Run
from lesionfast.training.ensembles.combining import (
    choose_rows,
    collect_votes,
    describe,
    describe_pool,
    list_splits,
    move_votes,
    pool_votes,
    write_results,
)
from lesionfast.training.ensembles.distilling import student_config
from lesionfast.training.ensembles.inner import (
    Composite,
    Part,
    Trainer,
    changed_data,
    complete,
    is_whole,
    train_parts,
)
from lesionfast.training.record import hash_teacher

logger = logging.getLogger("lesionfast")

NAME = "fold-{}"


def check_folds(config: TrainConfig) -> None:
    """Raise `LesionfastError` for options that do not go with a run of folds."""
    if config.fold:
        raise LesionfastError(
            f"--fold {config.fold} trains one fold, and --all all of them. Leave one of them out."
        )


def list_parts(df: pd.DataFrame, numbers: pd.Series, config: TrainConfig) -> list[Part]:
    """Return the runs of a run of folds; `numbers` (n,) is the fold of each row of the table."""
    one, n = replace(config, all=False, distill=False), config.folds
    return [
        Part(
            NAME.format(fold),
            f"fold {fold + 1} of {n}",
            choose_fold(df, numbers, fold, one),
            replace(one, fold=fold),
        )
        for fold in range(n or 0)
    ]


def prepare_folds(df: pd.DataFrame, config: TrainConfig) -> tuple[str, list[Part]]:
    """Return the split.csv of a run of folds, and the runs in it.

    Raises `LesionfastError` for impossible folds.
    """
    check_folds(config)
    df = df.reset_index(drop=True)
    numbers = deal_folds(df, config)
    return format_folds(df, numbers), list_parts(df, numbers, config)


def continue_folds(run: Run, df: pd.DataFrame, config: TrainConfig) -> list[Part]:
    """Return the runs of a run of folds that has begun.

    Raises `LesionfastError` if the data is not that of its beginning.
    """
    file = run.file("split.csv")
    numbers = read_folds(file, df)
    if format_folds(df, numbers).encode() != file.read_bytes():
        raise changed_data(run)
    return list_parts(df, numbers, config)


def finish_folds(run: Run, parts: Sequence[Part], trainer: Trainer) -> None:
    """Train the folds that are missing, and write the predictions and metrics of the run.

    Validation is out of fold: the images of a fold are predicted by the model that did not train on
    them. Test images are predicted by the mean of the models. Whatever is fitted on validation
    is therefore fitted on single models, as in cross-conformal prediction (Vovk 2015,
    doi:10.1007/s10472-013-9368-4; Barber et al. 2021, doi:10.1214/20-AOS1965), and applied to their
    mean, which is mostly better and less sure of itself: calibrated probabilities are rather too
    cautious, and prediction sets too large, without an exact guarantee. What a fold chooses on its
    validation, such as the epoch of --monitor or the blend of two towers, is chosen on its own
    out-of-fold images.
    """
    members, status = train_parts(run, parts, trainer)
    prior = np.mean([member.model["prior"] for member in members], axis=0)
    equal = np.full(len(members), 1 / len(members))
    chosen = {"arch": run.config.arch, "of": "folds", "out_of_fold": True}
    model = describe(members, prior, equal, **chosen)
    model |= {"rule": run.config.rule}
    logger.info("%s", describe_pool(model, [member.path.name for member in members]))
    logger.info("%s", OUT_OF_FOLD.format(n=len(members)))
    write_results(run, members, model, pool_folds, sha256(run.path / "split.csv"), status)
    if run.config.distill and status == "finished":
        train_student(Run(run.path), parts[0].df, trainer)


def train_student(run: Run, df: pd.DataFrame, trainer: Trainer) -> None:
    """Train the student of a run of folds in it, and write into metrics.json what it loses.

    `df` is the table of the first fold, whose validation is the student's.
    """
    part = Part(STUDENT, STUDENT, df, student_config(run.config, run))
    forget_student(run)
    try:
        with part_of_work(part.title):
            logger.info("student: %s", run.path / part.name)
            student = complete(run, part, trainer)
    except TrainingInterrupted:
        run.write_json("metrics.json", run.metrics | {"status": "interrupted"})
        return
    told = {"run": part.name, "against": compare_student(run, student)}
    run.write_json(
        "metrics.json", run.metrics | {"status": student.metrics["status"], STUDENT: told}
    )
    logger.info("%s", describe_student(run, told))


def forget_student(run: Run) -> None:
    """Remove the student of a run that predicts otherwise by now; its targets were others.

    So is an unfinished one of a run that has moved since, for a student names its teacher.
    """
    student = Run(run.path / STUDENT)
    if not student.holds("config.json"):
        return
    told = student.environment if student.holds("environment.json") else {}
    of_others = told.get("teacher_sha256") not in (None, hash_teacher(run.path))
    elsewhere = Path(student.config.teacher or "").resolve() != run.path.resolve()
    if of_others or (elsewhere and not is_whole(student)):
        logger.info("%s learned from other predictions, so it is trained again", student.path)
        shutil.rmtree(student.path)


def pool_folds(
    members: Sequence[Run], model: dict[str, Any], file: str = "predictions.csv"
) -> pd.DataFrame:
    """Return the out-of-fold predictions as validation, and the mean of the models as test."""
    columns, prior, tables = probability_columns(model["classes"]), model["prior"], []
    for member in members:
        rows = choose_rows(member, "valid", file)
        moved = move_prior(rows[columns].to_numpy(), member.model["prior"], prior)
        tables.append(rows.assign(**dict(zip(columns, moved.T, strict=True))))
    if "test" in list_splits(members):
        votes = move_votes(collect_votes(members, "test", file), members, np.asarray(prior))
        tables.append(pool_votes(votes, model))
    return pd.concat(tables, ignore_index=True)


FOLDS = Composite(
    prepare_folds,
    continue_folds,
    finish_folds,
    lambda config: f"{config.arch}-{config.folds}-folds",
)
