"""DataLoaders + model -> an ordinary fastai Learner. The one file that imports fastai's patches."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import AccumMetric
from fastai.optimizer import OptimWrapper
from fastcore.basics import listify, noop
from fastcore.xtras import ContextManagers
from matplotlib.figure import Figure
from torch import nn

from lesionfast.config import IN_MEMORY, SplitConfig, TrainConfig, read_options
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.loaders import (
    LesionDataLoaders,
    TensorMetadata,
    as_row,
    check_not_normalized,
)
from lesionfast.diagnoses import Classes, read_subclasses
from lesionfast.errors import LesionfastError
from lesionfast.files import temporary_folder, write_atomically
from lesionfast.models.archs import name_backbone
from lesionfast.models.fusion import FusionModel, build_model, load_model, name_fusion, stage_groups
from lesionfast.models.lineage import check_weights
from lesionfast.models.precision import choose_precision
from lesionfast.run import Run
from lesionfast.stats.metrics import decision_metrics, macro_auc
from lesionfast.stats.rules import DecisionRule
from lesionfast.training.balancing import (
    assign_subclasses,
    class_codes,
    find_parents,
    output_codes,
)
from lesionfast.training.callbacks.inference import (
    Autocast,
    Borrowing,
    ChannelsLastWeights,
    FastInference,
    InferenceMode,
    KeepFreedMemory,
    PlainTensors,
)
from lesionfast.training.callbacks.regularization import MetadataDropout
from lesionfast.training.callbacks.schedule import FrozenEval, SeedEpochs, current_phase
from lesionfast.training.callbacks.tracking import BY_RULE, history_line
from lesionfast.training.losses import name_loss
from lesionfast.training.objective import Objective, build_objective
from lesionfast.training.record import write_run

logger = logging.getLogger("lesionfast")

ADAMW = partial(OptimWrapper, opt=torch.optim.AdamW, fused=True)
OF_THE_LOADERS = {  # options that the DataLoaders have used
    *(setting.name for setting in fields(SplitConfig)),
    *("size", "resize", "batch_size", "augment", "workers", "device"),
} - {"seed"}
OF_THE_MODEL = ("arch", "fusion", "pool", "head", "dropout", "subclass", "rule")
OF_THE_MODEL += ("melanoma_sensitivity",)
OF_TRAIN = (  # options that a Learner has no use for
    *("epochs", "head_epochs", "head_lr", "views", "start_size", "budget", "lr_decay", "ema"),
    *("unfreeze", "augment_valid", "monitor", "patience", "compile", "head"),
    *("all", "distill", "teacher"),
)


class ResumableLearner(Learner):
    """A fastai Learner that can resume a fit, and is whole again after one that failed."""

    first_epoch = 0

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Pickle the Learner without its data, as fastai does; keep the data, also on an error."""
        dls, opt = self.dls, self.opt
        try:
            super().export(*args, **kwargs)
        finally:
            self.dls, self.opt = dls, self.opt or opt

    def _with_events(
        self, f: Callable[[], Any], event_type: str, ex: type, final: Callable[[], Any] = noop
    ) -> None:
        """Run a part of the loop; after an error the callbacks give back what they have changed."""
        try:
            super()._with_events(f, event_type, ex, final)
        except BaseException:
            self.give_back(event_type)
            raise

    def give_back(self, part: str) -> None:
        """Let the callbacks give back what they have changed for a part of the loop."""
        for cb in self.cbs:
            if isinstance(cb, Borrowing):
                cb.end(part)

    def validation_context(self, cbs: Any = None, inner: bool = False) -> "WholeContexts":
        """Return fastai's context of a validation, which an error on entering leaves as well."""
        contexts = super().validation_context(cbs, inner).default
        return WholeContexts(contexts, lambda: self.give_back("fit"))

    def _do_fit(self) -> None:
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self.run_epoch()

    def run_epoch(self) -> None:
        """Run one epoch with its events."""
        self._with_events(self._do_epoch, "epoch", CancelEpochException)


class WholeContexts(ContextManagers):
    """Several contexts of which all that were entered are left if another can't be entered.

    fastai's own would keep the lock of the Learner, so that the next prediction waits for ever.
    """

    def __init__(self, contexts: Any, give_back: Callable[[], None]) -> None:
        super().__init__(contexts)
        self.give_back = give_back

    def __enter__(self) -> None:
        try:
            super().__enter__()
        except BaseException:
            self.give_back()
            self.stack.close()
            raise


class LesionLearner(ResumableLearner):
    """A fastai Learner of an image and its metadata: `lesion_learner` makes it.

    `config` has its options, `classes` names its classes, `objective` is what it minimises.
    """

    def __init__(
        self,
        dls: DataLoaders,
        model: FusionModel,
        *,
        config: TrainConfig,
        classes: Classes,
        objective: Objective,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        self.config, self.classes, self.objective = config, classes, objective
        self.history_lines: list[str] = []  # of history.csv, of all fits so far
        self.seconds_trained = 0.0
        if metrics is None:
            metrics = validation_metrics(classes, lambda: self.decision_rule, config.rule)
        lr = config.lr if isinstance(config.lr, float) else 1e-3
        fixed = {"wd": config.weight_decay, "wd_bn_bias": True, "train_bn": False, "lr": lr}
        loss = objective.valid_loss
        super().__init__(dls, model, loss_func=loss, metrics=metrics, **fixed, **kwargs)
        self.prior = objective.prior

    @property
    def x(self) -> torch.Tensor:
        """The images of the batch, whose device and shape fastai's MixUp and CutMix ask for."""
        return self.xb[0]

    @property
    def decision_rule(self) -> DecisionRule:
        """How the Learner decides; the weight on melanoma is that of the run it made or came from.

        Training on takes the weight away: it was fitted for other weights of the model.
        """
        return self.objective.valid_loss.decide_by

    @decision_rule.setter
    def decision_rule(self, rule: DecisionRule) -> None:
        self.objective.valid_loss.decide_by = rule

    @property
    def prior(self) -> np.ndarray:
        """The class shares (K,) that the decision rule 'balanced' divides by."""
        return np.array(self.decision_rule.prior)

    @prior.setter
    def prior(self, prior: np.ndarray) -> None:
        named = self.classes.melanoma in self.classes
        melanoma = self.classes.index(self.classes.melanoma) if named else None
        self.decision_rule = DecisionRule(self.config.rule, prior, melanoma)

    def predict(
        self, item: Any, rm_type_tfms: Any = None, with_input: bool = False, **metadata: Any
    ) -> tuple:
        """Return (class name, class number, probabilities (K,)) of one image, as fastai does.

        `item` is a path, a PIL image, uint8 (H, W, 3), or a row of a table; `metadata` is what is
        known of the person, such as `age=55, sex="female"`. The class is that of the decision rule
        in use. Raises `LesionfastError` for an image that can't be read, and for metadata that the
        model does not take.
        """
        with self.no_bar():
            if not isinstance(self.dls, LesionDataLoaders):
                return super().predict(item, rm_type_tfms, with_input)
            self.dls.encoder.check(metadata)
            row = as_row(item) | metadata
            *inputs, _, number, p = super().predict(row, rm_type_tfms, with_input)
        return (*inputs, self.dls.vocab[int(number)], number, p)

    def to_run(self, path: str | Path) -> Run:
        """Return a new run at `path` of this Learner as it is now; see `Run.from_learner`."""
        return write_run(self, path, self.history_lines, self.seconds_trained)

    def _split(self, b: Any) -> None:
        super()._split(b)
        image, *vector = self.xb
        self.xb = (image, *map(TensorMetadata, vector))

    def run_epoch(self) -> None:
        """Run one epoch with its events; note its line of the history and its seconds."""
        begun, recorder = perf_counter(), getattr(self, "recorder", None)
        steps = 0 if recorder is None else len(recorder.lrs)
        super().run_epoch()
        if not hasattr(self, "lr_finder"):
            self.seconds_trained += perf_counter() - begun
        if recorder is not None and recorder.values and not hasattr(self, "lr_finder"):
            lr = max(recorder.lrs[steps:], default=None)
            name, number = current_phase(self).name, len(self.history_lines) + 1
            self.history_lines.append(history_line(number, name, lr, recorder.values[-1]))


def lesion_learner(
    dls: DataLoaders,
    arch: str | nn.Module | Callable[[], nn.Module] | Run | None = None,
    *,
    config: TrainConfig | None = None,
    fusion: str | Callable | None = None,
    loss_func: str | Callable | None = None,
    metrics: Any = None,
    cbs: Any = None,
    opt_func: Callable = ADAMW,
    splitter: Callable = stage_groups,
    lr: float | None = None,
    path: str | Path | None = None,
    model_dir: str | Path = "models",
    **options: Any,
) -> LesionLearner:
    """Return a fastai Learner for images with metadata, as `vision_learner` for images.

    `dls` are `LesionDataLoaders`, or any DataLoaders of (image float32 (B, 3, H, W) in 0..1, vector
    float32 (B, width)) -> class, or of images alone. `arch` is a name, a module, or a function that
    returns one: images (B, 3, H, W) to a map (B, C, h, w) or features (B, C); or a `Run`, whose
    weights the Learner has, over `LesionDataLoaders.from_run(run)`. `fusion` is a name or class,
    `loss_func` a name, or any module or function of logits (B, K) and class numbers (B,). `options`
    are those of `lesionfast train`, such as `balance="weights"`; all else is as in fastai. The
    parameter groups are the stages of the backbone and the head. `seed` (42 by default) decides the
    first weights, the order of the images and the augmentation, whatever fastai's `set_seed` says.
    Raises `LesionfastError` for unknown names and weights that can't be had.

    >>> learn = lf.lesion_learner(dls, "test_resnet", weights="none", fusion="film")
    >>> learn.fit_one_cycle(1, 1e-3)  # doctest: +SKIP
    """
    run = arch if isinstance(arch, Run) else None
    options |= name_choices(None if run else arch, fusion, loss_func, lr)
    config, width = configure_learner(dls, config, options)
    if run is not None:
        config = take_model(config, run, options)
    dls = dls.copy() if isinstance(dls, LesionDataLoaders) else dls
    classes = Classes.chosen(read_vocab(dls), config.melanoma, config.malignant)
    model, objective = build_parts(dls, config, classes, width, run and run.model)
    callbacks = [*learner_callbacks(dls.device, config), *objective.callbacks]
    callbacks += [*withhold_metadata(dls, config, model.parents), *listify(cbs)]
    about = {"config": config, "classes": classes, "objective": objective}
    how = {"opt_func": opt_func, "splitter": splitter, "path": path, "model_dir": model_dir}
    learn = LesionLearner(dls, model, metrics=metrics, cbs=callbacks, **about, **how)
    return learn if run is None else load_run(learn, run)


def take_model(config: TrainConfig, run: Run, options: dict[str, Any]) -> TrainConfig:
    """Return the options of a Learner that has the model of a run.

    Raises `LesionfastError` for options of the model, which the run has decided.
    """
    if decided := [name for name in options if name in OF_THE_MODEL]:
        raise LesionfastError(
            f"the model is that of {run.path}, so {', '.join(decided)} can't be chosen. Leave it "
            "out, or pass the name of an architecture in place of the run."
        )
    model = {name: getattr(run.config, name) for name in OF_THE_MODEL}
    model |= {"pool": run.pool, "melanoma_sensitivity": run.melanoma_sensitivity}
    return replace(config, weights="none", **model)


def load_run(learn: LesionLearner, run: Run) -> LesionLearner:
    """Return a Learner with the weights of a run, ready to predict or to train on.

    Raises `LesionfastError` unless its DataLoaders have the run's metadata encoder and classes, and
    if its validation or test images were among those that the run was trained on.
    """
    dls = learn.dls
    if not isinstance(dls, LesionDataLoaders) or (
        (dls.encoder.learned, list(dls.vocab))
        != (MetadataEncoder.from_run(run).learned, list(run.classes))
    ):
        raise LesionfastError(
            f"the DataLoaders have other classes or another encoding of metadata than {run.path}. "
            "Make them with LesionDataLoaders.from_run(run), or from_run(run, df) for another "
            "table."
        )
    check_weights(dls.split, str(run.path), run.config.arch)
    learn.config = replace(learn.config, weights=str(run.path))
    learn.model = load_model(run).to(learn.dls.device)
    learn.decision_rule = run.decision_rule
    return learn


def name_choices(arch: Any, fusion: Any, loss_func: Any, lr: Any) -> dict[str, Any]:
    """Return the options of these parameters of `lesion_learner`, without those that are None."""
    choices = {
        "arch": arch if arch is None else name_backbone(arch),
        "fusion": fusion if fusion is None else name_fusion(fusion),
        "loss": loss_func if loss_func is None else name_loss(loss_func),
        "lr": lr,
    }
    return {name: value for name, value in choices.items() if value is not None}


def build_parts(
    dls: DataLoaders,
    config: TrainConfig,
    classes: Classes,
    width: int,
    saved: dict[str, Any] | None = None,
) -> tuple[FusionModel, Objective]:
    """Return the model, on the device of the DataLoaders, and what a fit of it minimises.

    `width` is how many numbers of metadata a row has, `saved` the model.json of a run.
    """
    parents = find_parents(read_subclasses(config.subclass, classes), classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the head's first weights
        model = build_model(config, width, len(classes), parents, saved=saved)
    if len(parents) > len(classes):
        assign_subclasses(dls, model, config.seed)
    objective = build_objective(config, class_codes(dls), output_codes(dls), classes, parents)
    model.posterior.set_undo(objective.loss.undo())
    if isinstance(dls, LesionDataLoaders):
        dls.train.set_sampler(objective.sampler)
    return model.to(dls.device), objective


def configure_learner(
    dls: DataLoaders, config: TrainConfig | None, options: dict[str, Any]
) -> tuple[TrainConfig, int]:
    """Return the options of a Learner, and how many numbers of metadata a row has.

    The options are those of its DataLoaders, and `options` on top. Raises `LesionfastError` for
    those without an effect, and those that come too late, as the DataLoaders have used them.
    """
    options = read_options(TrainConfig, options)
    if idle := [name for name in options if name in OF_TRAIN]:
        raise LesionfastError(
            f"{', '.join(idle)} would have no effect: fit, fit_one_cycle and callbacks decide that "
            "for a Learner. Leave it out, or use lesionfast.train."
        )
    if not isinstance(dls, LesionDataLoaders):
        image, vector = check_batch(dls)
        plain = {"size": image.shape[-1], "metadata_dropout": 0.0, "data": IN_MEMORY}
        plain |= {"batch_size": len(image), "fusion": "concat" if vector.shape[1] else "none"}
        return replace(config or TrainConfig(**plain), **options), vector.shape[1]
    base = config or dls.config
    late = [name for name in options if name in OF_THE_LOADERS]
    for name in late:
        if options[name] != getattr(base, name):
            raise LesionfastError(
                f"the DataLoaders have {name}={getattr(base, name)!r}, so {name}="
                f"{options[name]!r} comes too late. Type it there: LesionDataLoaders.from_df(df, "
                f"{name}={options[name]!r})."
            )
    return replace(base, **options), dls.encoder.width


def check_batch(dls: DataLoaders) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and vectors of a training batch; raises `LesionfastError` for others."""
    *inputs, _ = dls.one_batch()
    if [x.ndim for x in inputs] not in ([4], [4, 2]):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise LesionfastError(
            f"the inputs of a batch are {shapes or 'none'}; they have to be images (B, 3, H, W) "
            "and vectors (B, width). Make the DataLoaders with n_inp=2, or with LesionDataLoaders."
        )
    check_not_normalized(dls.train.after_batch.fs)
    image, *vector = inputs
    return image, vector[0] if vector else image.new_zeros(len(image), 0)


def read_vocab(dls: DataLoaders) -> list[str]:
    """Return the class names; raises `LesionfastError` if the targets are not classes."""
    vocab = getattr(dls, "vocab", None)
    if vocab is None:
        raise LesionfastError(
            "the DataLoaders have no vocab, so their targets are not classes. Use a CategoryBlock."
        )
    return [str(name) for name in vocab]


def withhold_metadata(
    dls: DataLoaders, config: TrainConfig, parents: list[int]
) -> list[MetadataDropout]:
    """Return the callback that withholds metadata of training rows, if options ask for it."""
    wanted = config.metadata_dropout and config.metadata_columns and config.fusion != "none"
    if not wanted or not isinstance(dls, LesionDataLoaders):
        return []
    encoded = dls.encoder.transform(dls.rows[dls.rows["split"] == "train"])
    given = (encoded, class_codes(dls), parents, config.metadata_dropout, config.seed)
    return [MetadataDropout(dls.encoder, *given)]


def learner_callbacks(device: torch.device, config: TrainConfig) -> list[Callback]:
    """Return the callbacks that every fit of a fusion learner runs with."""
    cbs = [
        *(KeepFreedMemory(), FrozenEval(), PlainTensors(), ChannelsLastWeights(), InferenceMode()),
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
    classes: Classes, rule: Callable[[], DecisionRule], base: str
) -> list[AccumMetric]:
    """Return the metrics of the history, over all validation rows, by the decision rule in use.

    `rule` returns that of the probabilities, which may change between epochs, and `base` is what
    it builds on. What another rule than argmax decides is named so.
    """

    def of_decisions(name: str, p: np.ndarray, truth: np.ndarray) -> float:
        return float(decision_metrics(truth, rule().decide(p), classes)[name])

    columns: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "balanced_accuracy": partial(of_decisions, "balanced_accuracy"),
        "macro_auc": lambda p, truth: macro_auc(truth, p),
    }
    if classes.melanoma:
        columns["mel_sensitivity"] = partial(of_decisions, "mel_sensitivity")
    columns["accuracy"] = partial(of_decisions, "accuracy")
    as_arrays = {"activation": "softmax", "dim_argmax": -1, "to_np": True, "flatten": False}
    by = "" if base == "argmax" else f"{BY_RULE} {base})"
    return [
        AccumMetric(metric, name=name if name == "macro_auc" else name + by, **as_arrays)
        for name, metric in columns.items()
    ]


def history_names(classes: Classes) -> tuple[str, ...]:
    """Return the columns of the history that --monitor takes."""
    metrics = validation_metrics(classes, lambda: DecisionRule("argmax"), "argmax")
    return ("train_loss", "valid_loss", *(metric.name for metric in metrics))


def find_lr(learn: LesionLearner, freeze: bool) -> float:
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


def draw_lr_curve(learn: LesionLearner, lr: float, path: Path) -> Path:
    """Draw what the LR finder has just tried, with its suggestion, as PNG; return the path."""
    axis = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    axis.plot(learn.recorder.lrs, [float(loss) for loss in learn.recorder.losses], color="black")
    axis.axvline(lr, color="tab:orange", linestyle="--", label=f"suggested: {lr:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
    axis.set_title("Learning-rate finder")
    axis.legend()
    return write_atomically(path, lambda aside: figure.savefig(aside, dpi=120))
