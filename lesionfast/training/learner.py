"""DataLoaders + model -> an ordinary fastai Learner. The one file that imports fastai's patches."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import AccumMetric
from fastai.optimizer import OptimWrapper
from fastcore.basics import noop
from matplotlib.figure import Figure

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import Classes, read_subclasses
from lesionfast.files import temporary_folder, write_atomically
from lesionfast.models.fusion import build_model, stage_groups
from lesionfast.models.precision import choose_precision
from lesionfast.stats.metrics import decide, decision_metrics, macro_auc
from lesionfast.training.balancing import (
    assign_subclasses,
    class_codes,
    find_parents,
    output_codes,
)
from lesionfast.training.callbacks.inference import (
    Autocast,
    Borrowing,
    ChannelsLast,
    FastInference,
    InferenceMode,
    KeepFreedMemory,
    PlainTensors,
)
from lesionfast.training.callbacks.regularization import MetadataDropout
from lesionfast.training.callbacks.schedule import FrozenEval, SeedEpochs
from lesionfast.training.objective import build_objective

logger = logging.getLogger("lesionfast")

ADAMW = partial(OptimWrapper, opt=torch.optim.AdamW, fused=True)


class FusionLearner(Learner):
    """A fastai Learner that can resume a fit, and is whole again after one that failed."""

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
        """Pickle the Learner without its data, as fastai does; keep the data, also on an error."""
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
    unknown names and weights that cannot be had.
    """
    config = config or TrainConfig()
    classes = Classes.chosen(list(dls.vocab), config.melanoma, config.malignant)
    parents = find_parents(read_subclasses(config.subclass, classes), classes)
    torch.manual_seed(config.seed)  # the head's first weights
    model = build_model(config, dls.encoder.width, len(classes), parents)
    if len(parents) > len(classes):
        assign_subclasses(dls, model, config.seed)
    objective = build_objective(config, class_codes(dls), output_codes(dls), classes, parents)
    model.posterior.set_undo(objective.loss.undo())
    model.to(dls.device)
    dls.train.set_sampler(objective.sampler)
    cbs = [*learner_callbacks(dls.device, config), *objective.callbacks]
    if config.metadata_dropout and config.metadata_columns and config.fusion != "none":
        encoded = dls.encoder.transform(dls.rows[dls.rows["split"] == "train"])
        given = (encoded, class_codes(dls), parents, config.metadata_dropout, config.seed)
        cbs.append(MetadataDropout(dls.encoder, *given))
    learn = FusionLearner(
        dls,
        model,
        loss_func=objective.valid_loss,
        opt_func=ADAMW,
        lr=config.lr if isinstance(config.lr, float) else 1e-3,
        splitter=stage_groups,
        cbs=cbs,
        metrics=validation_metrics(classes, lambda: learn.prior, config.rule),
        wd=config.weight_decay,
        wd_bn_bias=True,
        train_bn=False,
    )
    learn.objective, learn.prior, learn.classes = objective, objective.prior, classes
    return learn


def learner_callbacks(device: torch.device, config: TrainConfig) -> list[Callback]:
    """Return the callbacks that every fit of a fusion learner runs with."""
    cbs = [
        *(KeepFreedMemory(), FrozenEval(), PlainTensors(), ChannelsLast(), InferenceMode()),
        SeedEpochs(config.seed),
    ]
    if not config.compile:
        cbs.append(FastInference(config.precision))
    return [*cbs, *precision_callbacks(config.precision, device)]


def precision_callbacks(wanted: str, device: torch.device) -> list[Callback]:
    """Return the callbacks that make a Learner compute in a precision."""
    chosen = choose_precision(wanted, device)
    if chosen == "float16":
        return [HalfPrecision()]
    return [Autocast(device)] if chosen == "bfloat16" else []


class HalfPrecision(MixedPrecision, Borrowing):
    """fastai's mixed precision in float16, whose autocast ends however a batch ends."""

    part, inside = "batch", False

    def before_batch(self) -> None:
        super().before_batch()
        self.inside = True

    def after_loss(self) -> None:
        """Switch autocast off for the backward pass."""
        self.clean_up()

    def clean_up(self) -> None:
        if self.inside:
            self.inside = False
            super().after_loss()


def validation_metrics(
    classes: Classes, prior: Callable[[], np.ndarray], rule: str
) -> list[AccumMetric]:
    """Return the metrics of the history, over all validation rows, by the decision rule in use.

    `prior` returns that of the probabilities, which may change between epochs.
    """

    def of_decisions(name: str, p: np.ndarray, truth: np.ndarray) -> float:
        return float(decision_metrics(truth, decide(p, rule, prior()), classes)[name])

    columns: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "balanced_accuracy": partial(of_decisions, "balanced_accuracy"),
        "macro_auc": lambda p, truth: macro_auc(truth, p),
    }
    if classes.melanoma:
        columns["mel_sensitivity"] = partial(of_decisions, "mel_sensitivity")
    columns["accuracy"] = partial(of_decisions, "accuracy")
    as_arrays = {"activation": "softmax", "dim_argmax": -1, "to_np": True, "flatten": False}
    return [AccumMetric(metric, name=name, **as_arrays) for name, metric in columns.items()]


def history_names(classes: Classes) -> tuple[str, ...]:
    """Return the columns of the history that --monitor takes."""
    metrics = validation_metrics(classes, lambda: np.ones(len(classes)), "argmax")
    return ("train_loss", "valid_loss", *(metric.name for metric in metrics))


def find_lr(learn: FusionLearner, freeze: bool) -> float:
    """Return fastai's "valley" suggestion, for the head alone if the rest will be frozen.

    Afterwards the weights, and what learns, are as before, also after an error; fastai's own files
    go to a temporary folder.
    """
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    learns = {p: p.requires_grad for p in learn.model.parameters()}
    path = learn.path
    try:
        if freeze:
            learn.freeze()
        with temporary_folder() as folder, learn.no_bar():
            learn.path = folder
            lr = float(learn.lr_find(show_plot=False).valley)
    finally:
        learn.path = path
        learn.model.load_state_dict(before)
        for parameter, learned in learns.items():
            parameter.requires_grad_(learned)
    logger.info("suggested learning rate: %.2g", lr)
    return lr


def draw_lr_curve(learn: FusionLearner, lr: float, path: Path) -> Path:
    """Draw what the LR finder has just tried, with its suggestion, as PNG; return the path."""
    axis = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    axis.plot(learn.recorder.lrs, [float(loss) for loss in learn.recorder.losses], color="black")
    axis.axvline(lr, color="tab:orange", linestyle="--", label=f"suggested: {lr:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
    axis.set_title("Learning-rate finder")
    axis.legend()
    return write_atomically(path, lambda aside: figure.savefig(aside, dpi=120))
