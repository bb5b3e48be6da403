"""DataLoaders + model -> an ordinary fastai Learner. The one file that imports fastai's patches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import fastai.callback.schedule  # noqa: F401  gives Learner its fit_one_cycle, fine_tune, lr_find
import numpy as np
import torch
from fastai.callback.core import CancelEpochException
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import AccumMetric
from fastai.optimizer import OptimWrapper
from fastcore.basics import noop

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import Classes
from lesionfast.emphasis import read_subclasses
from lesionfast.evaluation.metrics import balanced_accuracy, decide, macro_auc, sensitivity
from lesionfast.models.fusion import build_model, stage_groups
from lesionfast.models.precision import dtype_of
from lesionfast.training.callbacks import (
    Borrowing,
    ChannelsLast,
    FastInference,
    FrozenEval,
    InferenceMode,
    KeepFreedMemory,
    PlainTensors,
    SeedEpochs,
)
from lesionfast.training.objective import build_objective
from lesionfast.training.precision import precision_callbacks
from lesionfast.training.subclasses import assign_subclasses, parents_of
from lesionfast.training.withholding import Withholding, WithholdMetadata

ADAMW = partial(OptimWrapper, opt=torch.optim.AdamW, fused=True)


class FusionLearner(Learner):
    """A fastai Learner that can go on where a fit stopped, and is whole after one that failed."""

    first_epoch = 0

    def _with_events(
        self, f: Callable[[], Any], event_type: str, ex: type, final: Callable[[], Any] = noop
    ) -> None:
        """Run a part of the loop; after an error the callbacks give back what they have changed."""
        try:
            super()._with_events(f, event_type, ex, final)
        except BaseException:
            for cb in self.cbs:
                if isinstance(cb, Borrowing):
                    cb.end(event_type)
            raise

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Pickle the Learner without its data, as fastai does; keep the data, on an error too."""
        dls, opt = self.dls, self.opt
        try:
            super().export(*args, **kwargs)
        finally:
            self.dls, self.opt = dls, self.opt or opt

    def _do_fit(self) -> None:
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)


def fusion_learner(dls: DataLoaders, config: TrainConfig | None = None) -> FusionLearner:
    """Return a Learner over `dls` (from `build_dls`) for the model that `config` describes.

    Its parameter groups are the backbone's stages and the head, so `freeze`, `fine_tune`,
    `lr_find` and `fit_one_cycle` work as with any fastai Learner. Raises `LesionfastError` for
    names that are not known and weights that can't be had.
    """
    config = config or TrainConfig()
    classes = Classes.chosen(list(dls.vocab), config.melanoma, config.malignant)
    parents = parents_of(read_subclasses(config.subclass, classes), classes)
    torch.manual_seed(config.seed)  # the head's first weights
    model = build_model(config, dls.encoder.width, len(classes), parents)
    if len(parents) > len(classes):
        assign_subclasses(dls, model, config.seed)
    objective = build_objective(dls, config, parents)
    model.posterior.set_undo(objective.loss.undo(len(parents)))
    model.to(dls.device)
    cbs = [*learner_callbacks(dls.device, config), *objective.callbacks]
    if withholds(config):
        withholding = Withholding.of(dls, parents, config.metadata_dropout)
        cbs.append(WithholdMetadata(withholding, config.seed))
    dls.train.set_sampler(objective.balance.sampler)
    learn = FusionLearner(
        dls,
        model,
        loss_func=objective.valid_loss,
        opt_func=ADAMW,
        lr=config.lr if isinstance(config.lr, float) else 1e-3,
        splitter=stage_groups,
        cbs=cbs,
        metrics=validation_metrics(classes, lambda: learn.balance.prior, config.rule),
        wd=config.weight_decay,
        wd_bn_bias=True,
        train_bn=False,
    )
    learn.objective, learn.balance, learn.classes = objective, objective.balance, classes
    return learn


def learner_callbacks(device: torch.device, config: TrainConfig) -> list[Any]:
    """Return the callbacks that every fit of a fusion learner runs with."""
    cbs = [
        *(KeepFreedMemory(), FrozenEval(), PlainTensors(), ChannelsLast(), InferenceMode()),
        SeedEpochs(config.seed),
    ]
    if not config.compile:
        cbs.append(FastInference(dtype_of(config.precision, device)))
    return [*cbs, *precision_callbacks(config.precision, device)]


def withholds(config: TrainConfig) -> bool:
    """Return whether metadata is withheld in training: where there is some, and it is fused."""
    return bool(config.metadata_dropout and config.metadata_columns) and config.fusion != "none"


def validation_metrics(
    classes: list[str], prior: Callable[[], np.ndarray], rule: str
) -> list[AccumMetric]:
    """Return the columns of the history, over all validation rows, under the deciding rule.

    `prior` returns that of the probabilities, which the epochs may change.
    """

    def decided(function: Callable[..., float], *args: Any) -> Callable[..., float]:
        return lambda p, truth: float(function(truth, decide(p, rule, prior()), *args))

    columns = {
        "balanced_accuracy": decided(balanced_accuracy, len(classes)),
        "macro_auc": lambda p, truth: float(macro_auc(truth, p)),
    }
    if melanoma := Classes.of(classes).melanoma:
        columns["mel_sensitivity"] = decided(sensitivity, classes.index(melanoma))
    columns["accuracy"] = decided(lambda truth, decision: (truth == decision).mean())
    return [as_metric(name, function) for name, function in columns.items()]


def history_names(classes: list[str]) -> tuple[str, ...]:
    """Return the columns of the history that can be watched."""
    metrics = validation_metrics(classes, lambda: np.ones(len(classes)), "argmax")
    return ("train_loss", "valid_loss", *(each.name for each in metrics))


def as_metric(name: str, function: Callable[..., float]) -> AccumMetric:
    """Return a fastai metric of (probabilities (n, K), truth (n,)) as NumPy arrays."""
    return AccumMetric(
        function, name=name, activation="softmax", dim_argmax=-1, to_np=True, flatten=False
    )
