"""Options that do something only beside another: typed without it they are refused, not ignored."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.config import WHERE, SplitConfig, TrainConfig, check_choice
from lesionfast.console import counting_bar
from lesionfast.data.augment import augmentations
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.loaders import build_dls, pick_device
from lesionfast.data.split import format_split, load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.files import LOCKED, disk_errors, only_process
from lesionfast.models.archs import find_arch
from lesionfast.models.fusion import check_metadata, fusions, load_model
from lesionfast.models.lineage import check_weights
from lesionfast.models.precision import choose_precision
from lesionfast.runs import LEARNED, OF_THE_WEIGHTS, Run, check_name
from lesionfast.training.callbacks.progress import logging_to
from lesionfast.training.description import describe_environment, describe_model
from lesionfast.training.fitting import evaluate, fit, phases_of
from lesionfast.training.heads import heads, solve_head
from lesionfast.training.learner import FusionLearner, fusion_learner, history_names
from lesionfast.training.objective import check_objective

logger = logging.getLogger("lesionfast")


@dataclass(frozen=True)
class GoesWith:
    """What else must be typed, in words, for an option to do something, and whether it is."""

    other: str
    holds: Callable[[TrainConfig], object]


GOES_WITH = {
    "augment_valid": GoesWith("--augment other than none", lambda c: c.augment != "none"),
    "beta": GoesWith("--balance effective", lambda c: c.balance == "effective"),
    "cost": GoesWith("--loss asymmetric", lambda c: c.loss == "asymmetric"),
    "head_lr": GoesWith("an --lr other than auto", lambda c: c.lr != "auto"),
    "metadata_dropout": GoesWith(
        "--metadata, and a --fusion other than none",
        lambda c: (c.fusion != "none" and c.metadata_columns) or not c.metadata_dropout,
    ),
    "mix_alpha": GoesWith("--mix mixup or cutmix", lambda c: c.mix != "none"),
    "patience": GoesWith("--monitor", lambda c: c.monitor is not None or not c.patience),
    "tau": GoesWith("--loss logit_adjusted", lambda c: c.loss == "logit_adjusted"),
    "views": GoesWith("--augment other than none", lambda c: c.augment != "none"),
}
MOST_SMOOTHING = 0.9
SOLVED = {  # what a head that is solved looks at; anything else is of gradient descent
    *(each.name for each in fields(SplitConfig)),
    *("arch", "weights", "size", "resize", "fusion", "pool", "head", "rule", "tta"),
    *("metadata_dropout", "melanoma", "malignant", "device", "precision", "compile", "workers"),
}


def check_options(config: TrainConfig) -> None:
    """Raise `LesionfastError` for an option that would do nothing, or can't go with another."""
    heads[config.head]
    if config.head != "linear":
        check_solved(config)
    for name, rule in GOES_WITH.items():
        if name in typed_options(config) and not rule.holds(config):
            raise LesionfastError(
                f"{flag(name)} goes with {rule.other}. Type both, or leave {flag(name)} out."
            )
    check_together(config)


def check_solved(config: TrainConfig) -> None:
    """Raise `LesionfastError` for options that a solved head can't heed."""
    idle = [flag(name) for name in typed_options(config) if name not in SOLVED]
    if idle:
        raise LesionfastError(
            f"--head {config.head} is solved on frozen features, where {', '.join(idle)} can do "
            f"nothing. Leave {', '.join(idle)} out, or type --head linear."
        )


def check_together(config: TrainConfig) -> None:
    """Raise `LesionfastError` for options that can't be had together."""
    if config.hardest < 1 and config.mix != "none":
        raise LesionfastError(
            "--hardest and --mix do not go together: a mixed row is as hard as two. Leave one out."
        )
    if config.label_smoothing > MOST_SMOOTHING:
        raise LesionfastError(
            f"--label-smoothing {config.label_smoothing:g} leaves too little of the labels to undo "
            f"it in predictions. Type at most {MOST_SMOOTHING}, such as --label-smoothing 0.1."
        )
    if config.defer_weights and config.monitor == "valid_loss":
        raise LesionfastError(
            "--monitor valid_loss can't compare epochs with and without class weights, which "
            "--defer-weights asks for. Type --monitor balanced_accuracy."
        )


def typed_options(config: TrainConfig) -> list[str]:
    """Return the names of the options whose value is not the default."""
    plain = TrainConfig()
    names = (each.name for each in fields(TrainConfig))
    return [name for name in names if getattr(config, name) != getattr(plain, name)]


def flag(name: str) -> str:
    """Return a field as it is typed."""
    return "--" + name.replace("_", "-")


def train(
    df: pd.DataFrame,
    config: TrainConfig | None = None,
    root: str | Path = "runs",
    name: str | None = None,
) -> Run:
    """Train on a split table and return the run, a new directory under `root`.

    `df` comes from `load_dataset(config)`, or from `read_metadata` and `assign_split`; `name` is
    that of the directory, by default time and architecture. Raises `LesionfastError` for whatever
    the user can fix, and `TrainingInterrupted` when it is stopped before its first epoch ended.
    """
    config = config or TrainConfig()
    check_options(config)
    if name:
        check_name(name)
    if config.budget:
        from lesionfast.training.speed.budget import fit_to_budget

        config = fit_to_budget(config, df)
    check_start_size(config)
    learn = prepare_learner(df, config)
    run = Run.create(root, config, name)
    with only_trainer(run), logging_to(run.path / "log.txt"):
        write_preparation(learn, run)
        evaluate(learn, run, learn_weights(learn, run))
    return run


def resume(run: Run, **moved: str) -> Run:
    """Go on with an interrupted run after its last finished epoch, and end it.

    `moved` are the options that name the data (data, csv, images), where it lies elsewhere now.
    Raises `LesionfastError` if the run has ended already, or its data is gone or has changed.
    """
    check_resumable(run)
    with only_trainer(run):
        run = Run(run.path)
        check_resumable(run)  # again, as another process may have ended it
        elsewhere = dict.fromkeys(WHERE) | moved if moved else {}
        config = replace(run.config, **elsewhere)
        df = load_dataset(config, split=run.file("split.csv"))
        learn = prepare_learner(df, config)
        check_same_data(learn, run)
        forget_damage(run)
        run.remove(*OF_THE_WEIGHTS)
        run.manifest.release("history.csv", "weights.safetensors")  # each epoch writes them
        run = Run(run.path)
        with logging_to(run.path / "log.txt"):
            evaluate(learn, run, learn_weights(learn, run, resume=True))
    return run


def predict_again(run: Run, df: pd.DataFrame, config: TrainConfig, root: Path, name: str) -> Run:
    """Return a new run, without weights, of what a run's weights predict of other rows or views.

    `df` has the rows, `config` the options of the prediction, such as --tta.
    """
    learn = trained_learner(run, df, config)
    made = Run.create(root, config, name)
    write_preparation(learn, made)
    evaluate(learn, made, {"train_seconds": 0.0, "status": "finished"})
    return made


def trained_learner(
    run: Run, df: pd.DataFrame | None = None, config: TrainConfig | None = None
) -> FusionLearner:
    """Return an ordinary fastai Learner over a run's data, with its weights and its encoder.

    `df` and `config` are others than the run's. Raises `LesionfastError` if the data is gone.
    """
    encoder = MetadataEncoder.from_run(run)
    plain = replace(config or run.config, weights="none")
    if df is None:
        df = load_dataset(plain, split=run.file("split.csv"))
    learn = fusion_learner(build_dls(df, plain, encoder=encoder), plain)
    learn.model = load_model(run).to(learn.dls.device)
    learn.prior = np.array(run.model["prior"])
    return learn


def check_start_size(config: TrainConfig) -> None:
    """Raise `LesionfastError` for a --start-size from which pictures can't grow to --size."""
    if config.start_size and config.start_size >= config.size:
        raise LesionfastError(
            f"--start-size is {config.start_size}, from which pictures can't grow to --size "
            f"{config.size}. Type a --start-size below {config.size}, or leave it out."
        )


def check_resumable(run: Run) -> None:
    """Raise `LesionfastError` if a run has ended and is whole, or stopped before it had begun."""
    broken = [name for name in run.damaged() if name in LEARNED]
    if run.finished and not broken and run.metrics["status"] == "finished":
        raise LesionfastError(
            f"{run.path} has ended: nothing is left to do. "
            f"Look at it with: lesionfast interpret {run.path}"
        )
    if not run.holds("model.json"):
        raise LesionfastError(
            f"{run.path} stopped before its training began, so there is nothing to go on with. "
            f"Start it again: lesionfast train --config {run.path / 'config.json'}"
        )


def forget_damage(run: Run) -> None:
    """Remove what was learned and is damaged; without its weights a run begins anew."""
    broken = [name for name in run.damaged() if name in LEARNED]
    if broken:
        logger.warning(
            "damaged, so trained or computed again: %s of %s", ", ".join(broken), run.path
        )
    if "weights.safetensors" in broken:
        (run.path / "checkpoints" / "last.safetensors").unlink(missing_ok=True)
    run.remove(*broken)


def check_same_data(learn: FusionLearner, run: Run) -> None:
    """Raise `LesionfastError` unless the data is what the run began with."""
    begun = {
        "split.csv": format_split(learn.dls.split),
        "encoder.json": learn.dls.encoder.to_json(),
    }
    for name, text in begun.items():
        if run.file(name).read_text(encoding="utf-8") != text:
            raise LesionfastError(
                f"the data has changed since {run.path} began: it no longer gives its {name}. "
                f"Bring the old data back, or start anew: lesionfast train --config "
                f"{run.path / 'config.json'}"
            )


@contextmanager
def only_trainer(run: Run) -> Iterator[None]:
    """Hold a run, so that no second process trains it at the same time.

    A disk that is full says how the training goes on.
    """
    busy = f"another process is training {run.path}. Wait for it, or stop it first."
    go_on = f"Free some space, then go on with: lesionfast train --resume {run.path}"
    with only_process(run.path / f"{LOCKED}training", busy), disk_errors(run.path, advice=go_on):
        yield


def prepare_learner(df: pd.DataFrame, config: TrainConfig) -> FusionLearner:
    """Return the Learner of an experiment; bad names are found before any image is decoded."""
    find_arch(config.arch)
    check_options(config)
    for registry, name in (
        (fusions, config.fusion),
        (augmentations, config.augment),
    ):
        registry[name]
    check_metadata(config.fusion, len(config.metadata_columns))
    check_weights(df, config.weights, config.arch)
    classes = sorted(df["target"].unique())
    check_objective(config, classes)
    if config.monitor is not None:
        check_choice("monitor", config.monitor, history_names(classes))
    choose_precision(config.precision, pick_device(config.device))
    with counting_bar("decoding images") as progress:
        dls = build_dls(df, config, progress)
    learn = fusion_learner(dls, config)
    if config.compile:
        learn.model.compile()
    phases_of(learn, config)
    return learn


def write_preparation(learn: FusionLearner, run: Run) -> None:
    """Write what is known before the first step: split, encoder, environment and model."""
    run.write_text("split.csv", format_split(learn.dls.split))
    run.write_text("encoder.json", learn.dls.encoder.to_json())
    run.write_json("environment.json", describe_environment(learn, run.config))
    run.write_json("model.json", describe_model(learn, run.config))


def learn_weights(learn: FusionLearner, run: Run, resume: bool = False) -> dict[str, Any]:
    """Train, or solve a head that is solved; return what metrics.json says of the training.

    model.json is written anew where what was kept is not what was expected: an epoch before the
    class weights came on, or the rest of a training that an earlier version began.
    """
    summary = fit(learn, run, resume) if run.config.head == "linear" else solve_head(learn, run)
    if (about := describe_model(learn, run.config)) != run.model:
        run.write_json("model.json", about)
        run.model = about
    return summary
