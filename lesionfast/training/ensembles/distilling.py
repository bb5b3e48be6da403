"""Distilling: one student learns the out-of-fold probabilities of a run of folds, and its price."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import move_prior, probability_columns
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.models.lineage import teacher_lineage
from lesionfast.run import Run
from lesionfast.training.balancing import find_targets
from lesionfast.training.ensembles.towers import split_towers
from lesionfast.training.learner import LesionLearner

logger = logging.getLogger("lesionfast")

SOFT = 0.7  # of the targets: what the teacher says; the rest is the label
PLAIN: dict[str, Any] = {  # of the options that say what is minimised: the targets say it
    **{"loss": "cross_entropy", "balance": "none", "mix": "none", "subclass": None, "cost": None},
    **{"class_weight": None, "label_smoothing": 0.0, "hardest": 1.0, "defer_weights": 0.0},
    **{name: getattr(TrainConfig, name) for name in ("beta", "tau", "mix_alpha")},
}


def student_config(config: TrainConfig, teacher: Run) -> TrainConfig:
    """Return the options of the student of a run of folds, which is trained on the first of them.

    Of two towers it is the first. All options of the loss and of balancing are plain, for the
    targets are the teacher's.
    """
    first, *_ = split_towers(config)
    single = {"all": False, "distill": False, "fold": 0}
    return replace(first, **PLAIN, **single, teacher=str(teacher.path))


def check_teaching(config: TrainConfig) -> None:
    """Raise `LesionfastError` for options that do not go with a teacher or a student."""
    first, *_ = split_towers(config)
    if config.distill and first.head != "linear":
        raise LesionfastError(
            f"--distill trains its student by gradient descent, and --head {first.head} is solved. "
            "Leave one of them out."
        )
    if config.teacher and config.all:
        raise LesionfastError(
            f"--all would teach each fold by --teacher {config.teacher}, whose models have seen "
            "the fold's validation images, so nothing would be out of fold. Type --fold 0 in place "
            "of --all, or leave --teacher out."
        )
    other = [name for name, value in PLAIN.items() if getattr(config, name) != value]
    if config.teacher and other:
        flags = ", ".join("--" + name.replace("_", "-") for name in other)
        raise LesionfastError(
            f"{flags} {'have' if len(other) > 1 else 'has'} no effect with --teacher. Leave "
            f"{flags} out, or leave --teacher out."
        )


class Distil(Callback):
    """Learn soft targets: a mean of what a teacher says and of the label (Hinton et al. 2015).

    (arXiv:1503.02531, section 2, at temperature 1: the teacher's probabilities are out of fold, so
    they are not as sure as those of training images.) `soft` (n, K) has a row for each training
    image. A target of the loaders is that row times K, plus the class.
    """

    order, run_valid = 49, False  # before callbacks that need the class

    def __init__(self, soft: np.ndarray) -> None:
        self.soft = torch.tensor(soft, dtype=torch.float32)

    def before_batch(self) -> None:
        """Put the classes in the place of the targets, and keep what the teacher says."""
        target = self.yb[0].as_subclass(Tensor)
        k = self.soft.shape[1]
        self.soft = self.soft.to(target.device)
        self.said = self.soft[target // k]
        self.learn.yb = (target % k, *self.yb[1:])

    def after_loss(self) -> None:
        """Replace the loss by the cross entropy of the soft targets."""
        labels = one_hot(self.yb[0].as_subclass(Tensor), self.said.shape[1])
        targets = SOFT * self.said + (1 - SOFT) * labels
        logits = self.pred.as_subclass(Tensor).float()
        loss = -(targets * log_softmax(logits, dim=1)).sum(dim=1).mean()
        self.learn.loss_grad, self.learn.loss = loss, loss.detach().clone()


def teach(learn: LesionLearner, teacher: Run) -> None:
    """Let a Learner learn what a run of folds says of its training images, beside their labels.

    Raises `LesionfastError` for a run of other classes, without out-of-fold predictions of all
    training images, or that was trained on images that are now tested.
    """
    rows = learn.dls.rows
    train = rows[rows["split"] == "train"]
    check_tested(teacher, rows)
    soft = read_soft(teacher, train, list(learn.dls.vocab))
    soft = move_prior(soft, teacher.model["prior"], learn.prior)
    codes = train["target"].map(list(learn.dls.vocab).index).to_numpy(np.int64)
    k = soft.shape[1]
    find_targets(learn.dls)[train["row"].to_numpy()] = np.arange(len(train)) * k + codes
    learn.add_cb(Distil(soft))
    logger.info(
        "targets: %.0f%% what %s predicts out of fold, %.0f%% the label. The models that predict "
        "it have seen the validation images of this run, which are therefore a little too easy",
        *(100 * SOFT, teacher.path, 100 * (1 - SOFT)),
    )


def read_soft(teacher: Run, train: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Return the out-of-fold probabilities (n, K) of training images."""
    if list(teacher.classes) != classes:
        raise LesionfastError(
            f"the teacher {teacher.path} has the classes {', '.join(teacher.classes)}, and this "
            f"training {', '.join(classes)}. Name a teacher of the same data."
        )
    table = teacher.predictions_of("valid").set_index("image_id")[probability_columns(classes)]
    missing = ~train["image_id"].isin(table.index)
    if missing.any():
        raise LesionfastError(
            f"the teacher {teacher.path} has no out-of-fold prediction of "
            f"{pluralize(int(missing.sum()), 'training image')}, such as "
            f"{train.loc[missing, 'image_id'].iloc[0]}. Name the run of: lesionfast train --folds "
            "5 --all"
        )
    return table.loc[train["image_id"]].to_numpy(np.float64)


def check_tested(teacher: Run, rows: pd.DataFrame) -> None:
    """Raise `LesionfastError` if a teacher learned from images, or lesions, that are tested.

    So it does if the weights that the teacher started from did.
    """
    split, lineage = teacher.split, teacher_lineage(str(teacher.path))
    known = split[split["split"] != "test"]
    tested = rows[rows["split"] == "test"]
    seen = tested["image_id"].isin(known["image_id"]) | tested["group"].isin(known["group"])
    if lineage is not None:
        seen |= lineage.contains(tested, "train")
    if seen.any():
        raise LesionfastError(
            f"the teacher {teacher.path} was trained on {pluralize(int(seen.sum()), 'image')} of "
            "the test part (or others of their lesions): metrics would be too optimistic. Use the "
            "split of one of its folds."
        )
