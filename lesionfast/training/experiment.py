"""An experiment: check its options, train, go on with an interrupted run, and predict again."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.callback.core import Callback
from fastcore.basics import noop
from torch import nn

from lesionfast.config import WHERE, TrainConfig, check_choice, flag_name
from lesionfast.console import counting_bar, show_log
from lesionfast.data.augment import augmentations, name_augmentation
from lesionfast.data.corrections.applying import correct_late
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.loaders import LesionDataLoaders, pick_device
from lesionfast.data.metadata import settle_inputs
from lesionfast.data.split import configure, format_split, load_dataset, settle_fusion
from lesionfast.diagnoses import Classes, join_names, read_weights
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.evaluation.melanoma import describe_rule
from lesionfast.files import LOCKED, disk_errors, only_process
from lesionfast.models.archs import archs, find_arch, name_backbone
from lesionfast.models.fusion import (
    REGISTRIES,
    check_metadata,
    check_registered,
    fusions,
    name_fusion,
)
from lesionfast.models.lineage import check_weights
from lesionfast.models.precision import choose_precision
from lesionfast.run import LEARNED, OF_THE_WEIGHTS, WEIGHTS, Run, check_name
from lesionfast.training.balancing import balances
from lesionfast.training.callbacks.progress import logging_to
from lesionfast.training.callbacks.regularization import mixes
from lesionfast.training.ensembles.distilling import check_teaching, teach
from lesionfast.training.ensembles.folds import FOLDS
from lesionfast.training.ensembles.inner import (
    Composite,
    Part,
    Trainer,
    check_given,
    forget_results,
    is_whole,
)
from lesionfast.training.ensembles.towers import TOWERS, has_towers, split_towers
from lesionfast.training.fitting import best_epoch, fit, plan_training
from lesionfast.training.heads import SOLVED, heads, solve_head
from lesionfast.training.learner import LesionLearner, history_names, lesion_learner
from lesionfast.training.losses import losses, name_loss
from lesionfast.training.objective import check_objective
from lesionfast.training.processes import (
    as_first,
    join_processes,
    only_first_changes,
    only_first_writes,
    process,
)
from lesionfast.training.record import (
    CHECKPOINT,
    announce,
    describe_environment,
    describe_model,
    evaluate,
    keep_corrections,
    write_preparation,
)
from lesionfast.training.trackers.base import name_trackers
from lesionfast.training.trackers.recording import check_trackers, recording

logger = logging.getLogger("lesionfast")

GOES_WITH: dict[str, tuple[str, Callable[[TrainConfig], object]]] = {
    # an option -> what it needs to have an effect, in words, and whether that is so
    "all": ("--folds", lambda c: c.folds is not None),
    "augment_valid": ("--augment other than none", lambda c: c.augment != "none"),
    "beta": ("--balance effective", lambda c: c.balance == "effective"),
    "distill": ("--all", lambda c: c.all),
    "cost": ("--loss asymmetric", lambda c: c.loss == "asymmetric"),
    "epochs": ("an --unfreeze other than head", lambda c: c.unfreeze != "head"),
    "head_lr": ("an --lr other than auto", lambda c: c.lr != "auto"),
    "metadata_dropout": (
        "--metadata, and a --fusion other than none",
        lambda c: (c.fusion != "none" and c.metadata_columns) or not c.metadata_dropout,
    ),
    "mix_alpha": ("--mix mixup or cutmix", lambda c: c.mix != "none"),
    "patience": ("--monitor", lambda c: c.monitor is not None or not c.patience),
    "tau": ("--loss logit_adjusted", lambda c: c.loss == "logit_adjusted"),
    "views": ("--augment other than none", lambda c: c.augment != "none"),
}
MOST_SMOOTHING = 0.9
LARGER = "Type a larger --val,"


def check_options(config: TrainConfig) -> None:
    """Raise `LesionfastError` for an option that has no effect, or conflicts with another."""
    heads[config.head]
    plain = TrainConfig()
    names = (field.name for field in fields(TrainConfig))
    typed = [name for name in names if getattr(config, name) != getattr(plain, name)]
    idle = ", ".join(flag_name(name) for name in typed if name not in SOLVED)
    if config.head != "linear" and idle:
        raise LesionfastError(
            f"--head {config.head} is solved on frozen features, so {idle} would have no effect. "
            f"Leave {idle} out, or type --head linear."
        )
    for name, (needed, holds) in GOES_WITH.items():
        if name in typed and not holds(config):
            flag = flag_name(name)
            raise LesionfastError(f"{flag} needs {needed}. Type both, or leave {flag} out.")
    check_conflicts(config)


def check_before_reading(config: TrainConfig, name: str | None = None, seeds: int = 1) -> None:
    """Raise `LesionfastError` for options that are wrong whatever the data is.

    So they are told before a large dataset is read; `prepare_learner` checks all of them.
    """
    for one in split_towers(config):
        check_options(one)
        find_arch(one.arch)
    fusions[config.fusion], augmentations[config.augment]
    losses[config.loss], balances[config.balance], mixes[config.mix]
    read_weights(config.class_weight)
    check_trackers(config.log)
    if name:
        check_name(name)
    check_count(seeds)
    choose_precision(config.precision, pick_device(config.device))


def check_count(seeds: int) -> None:
    """Raise `LesionfastError` unless there is a run or more."""
    if not isinstance(seeds, int) or seeds < 1:
        raise LesionfastError(f"--seeds is {seeds!r}; type a whole number from 1, such as 3.")


def check_conflicts(config: TrainConfig) -> None:
    """Raise `LesionfastError` for options that conflict."""
    if config.start_size and not config.budget and config.start_size >= config.size:
        raise LesionfastError(
            f"--start-size is {config.start_size}, from which images can't grow to --size "
            f"{config.size}. Type a --start-size below {config.size}, or leave it out."
        )
    if config.unfreeze == "head" and not config.head_epochs:
        raise LesionfastError(
            "--unfreeze head trains for --head-epochs alone, which is 0. Type --head-epochs 12."
        )
    if config.hardest < 1 and config.mix != "none":
        raise LesionfastError(
            "--hardest and --mix can't be combined: mixing changes the losses. Leave one out."
        )
    if config.label_smoothing > MOST_SMOOTHING:
        raise LesionfastError(
            f"--label-smoothing {config.label_smoothing:g} leaves too little of the labels to undo "
            f"it in predictions. Type at most {MOST_SMOOTHING}, such as --label-smoothing 0.1."
        )
    if config.defer_weights and config.monitor == "valid_loss":
        raise LesionfastError(
            "--monitor valid_loss can't compare epochs with and without class weights, as "
            "--defer-weights gives. Type --monitor balanced_accuracy."
        )


def train(
    df: pd.DataFrame,
    config: TrainConfig | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    *,
    seeds: int = 1,
    **options: Any,
) -> Run | list[Run]:
    """Train on a table from `load_data` and return the run, a new directory under `out`.

    `options` are those of `lesionfast train`, by keyword: `arch="densenet121"`, `epochs=10`;
    `arch`, `fusion`, `loss`, `augment` and `log` may be classes or functions as well. They come on
    top of `config`, or of the options that the table was loaded with. `name` is that of the
    directory, by default time and architecture. With `seeds` there are as many runs on one split,
    from `seed` on; then the list of them is returned. Raises `LesionfastError` for whatever the
    user can fix, and `TrainingInterrupted` if it is stopped before its first epoch ended.

    With `folds=5, all=True` there is one model a fold, each a run inside the run. Its validation
    predictions are out of fold, those of test images the mean of the models; see `finish_folds`.

    >>> lf.train(df, arch="test_resnet", weights="none", size=32, epochs=1, tta=1).finished
    True
    """
    show_log()
    named = {
        "arch": name_backbone,
        "augment": name_augmentation,
        "fusion": name_fusion,
        "log": name_trackers,
        "loss": name_loss,
    }
    options = {key: named.get(key, noop)(value) for key, value in options.items()}
    config = configure(df, config, **options)
    df = correct_late(df, config)
    runs = train_seeds(df, config, out, name, seeds)
    return runs if seeds > 1 else runs[0]


def train_seeds(
    df: pd.DataFrame, config: TrainConfig, root: str | Path, name: str | None, seeds: int
) -> list[Run]:
    """Return the runs of several seeds on one split; an interruption ends the series.

    In each of several processes that train together these are the runs of the first.
    """
    join_processes(config.device)
    check_together(config)
    with only_first_writes(root) as folder:
        runs = train_series(df, config, folder, name, seeds)
        paths = as_first([run.path.absolute() for run in runs])
        return [Run(path) for path in paths] if process.rank else runs


def check_together(config: TrainConfig) -> None:
    """Raise `LesionfastError` for an option that several processes can't share."""
    if process.size > 1 and config.budget:
        raise LesionfastError(
            f"--budget plans by the speed of one process, and there are {process.size}. Leave it "
            "out, and choose --epochs, --size and --arch."
        )
    augments = config.augment_valid is not None
    for name, typed in (("hardest", config.hardest < 1), ("augment_valid", augments)):
        if process.size > 1 and typed:
            raise LesionfastError(
                f"{flag_name(name)} would depend on the number of processes, which is "
                f"{process.size}. Leave it out, or start one process."
            )


def train_series(
    df: pd.DataFrame, config: TrainConfig, root: str | Path, name: str | None, seeds: int
) -> list[Run]:
    """Return the runs of several seeds, as this process writes them."""
    check_count(seeds)
    if seeds == 1:
        return [train_once(df, config, root, name)]
    check_seeds(config, root, name, seeds)
    split_seed = config.seed if config.split_seed is None else config.split_seed
    runs: list[Run] = []
    for seed in range(config.seed, config.seed + seeds):
        one = replace(config, seed=seed, split_seed=split_seed)
        runs.append(train_once(df, one, root, name and name_with_seed(name, seed)))
        if runs[-1].metrics["status"] != "finished":
            break
    return runs


def name_with_seed(name: str, seed: int) -> str:
    """Return the name of one run of several seeds."""
    return f"{name}-seed{seed}"


def check_seeds(config: TrainConfig, root: str | Path, name: str | None, seeds: int) -> None:
    """Raise `LesionfastError` unless each seed has first weights and a directory of its own.

    Pretrained weights are the same for all seeds.
    """
    first, *_ = split_towers(config)  # a frozen tower has pretrained weights
    library, arch = find_arch(first.arch)
    net = archs[arch] if library == "lesionfast" else None
    random = first.weights in ("auto", "none") and not getattr(net, "pretrained", False)
    if isinstance(net, nn.Module) and random:
        raise LesionfastError(
            f"all {seeds} seeds would start from the same weights: the backbone '{arch}' is a "
            "module that was built before. Pass its class or a function that builds it, or leave "
            "--seeds out."
        )
    numbers = range(config.seed, config.seed + seeds) if name else ()
    names = [name_with_seed(name, number) for number in numbers]
    if taken := [one for one in names if os.path.lexists(Path(root) / one)]:
        raise LesionfastError(
            f"{root} already has {', '.join(taken)}. Type another --name, or another first --seed."
        )


def train_once(
    df: pd.DataFrame,
    config: TrainConfig,
    root: str | Path,
    name: str | None,
    *,
    inside: bool = False,
    cbs: Sequence[Callback] = (),
) -> Run:
    """Train with one seed and return the run; `inside` another, whose whole table was checked.

    `cbs` are callbacks of the Learner; a run that is made of several has none.
    """
    config = settle_fusion(settle_inputs(df, config))
    check_teaching(config)
    for one in split_towers(config):
        check_options(one)
    if name:
        check_name(name)
    if not inside:
        check_trackers(config.log)
        check_melanomas(df, config)
    if kind := find_composite(config):
        return train_composite(kind, df, config, root, name)
    if config.budget:
        from lesionfast.training.speed.budget import fit_to_budget

        config = fit_to_budget(config, df)
    learn = prepare_learner(df, config, checked=True)
    learn.add_cbs(cbs)
    return train_prepared(learn, config, root, name)


train_inside = partial(train_once, inside=True)


def train_prepared(
    learn: LesionLearner, config: TrainConfig, root: str | Path, name: str | None
) -> Run:
    """Make a new run, train the Learner, and return the run."""
    run = Run.create(root, config, name)
    with only_trainer(run), logging_to(run.path / "log.txt"):
        write_preparation(learn, run)
        with recording(run, learn):
            finish(learn, run)
    return run


def find_composite(config: TrainConfig) -> Composite | None:
    """Return the kind of run that options ask for, if it is made of several runs."""
    return FOLDS if config.all else TOWERS if has_towers(config) else None


def train_composite(
    kind: Composite, df: pd.DataFrame, config: TrainConfig, root: str | Path, name: str | None
) -> Run:
    """Train several models, in runs inside a new run, and return that.

    See `finish_folds` and `finish_towers`.
    """
    split, parts = kind.prepare(df, config)
    if config.budget:
        from lesionfast.training.speed.budget import share_budget

        config, parts = share_budget(config, parts)
    about = try_parts(kind, parts, config)
    run = Run.create(root, config, name, kind.name(config))
    with only_trainer(run), logging_to(run.path / "log.txt"):
        run.write_json("environment.json", about)
        keep_corrections(run, df)
        run.write_text("split.csv", split)
        with recording(run):
            kind.finish(run, parts, Trainer(train_inside, resume_here, {}))
    return run


def try_parts(kind: Composite, parts: Sequence[Part], config: TrainConfig) -> dict[str, Any]:
    """Prepare the first part, or each, so that what is wrong is said now; return the environment.

    Raises `LesionfastError` as `prepare_learner` does.
    """
    about: dict[str, Any] = {}
    for part in parts if kind.every_part else parts[:1]:
        if inner := find_composite(part.config):
            _, inside = inner.prepare(part.df, part.config)
            about = try_parts(inner, inside, config)
        else:
            learn = prepare_learner(part.df, part.config, checked=True)
            about = describe_environment(learn, config)
    return about


def resume_composite(kind: Composite, run: Run, **moved: str) -> Run:
    """Train the runs in a run that are missing, unfinished or damaged; return the run."""
    if is_whole(run):
        raise already_finished(run)
    if not run.holds("split.csv"):
        raise never_began(run)
    with only_trainer(run):
        run = Run(run.path)
        if is_whole(run):  # again, as another process may have ended it
            raise already_finished(run)
        check_given(run)
        config = replace(run.config, **(dict.fromkeys(WHERE) | moved if moved else {}))
        df = load_dataset(config, split=run.file("split.csv"))
        parts = kind.go_on(run, df, config)
        run = forget_results(run)  # only now: what is wrong was said before
        with logging_to(run.path / "log.txt"), recording(run, goes_on=True):
            kind.finish(run, parts, Trainer(train_inside, resume_here, moved))
    return run


def resume(run: Run, **moved: str) -> Run:
    """Finish an interrupted or damaged run: train after its last epoch, or only predict again.

    `moved` are the options that name the data (data, csv, images), if it has moved. Raises
    `LesionfastError` if the run is finished and whole, or its data is missing or has changed.
    """
    join_processes(run.config.device)
    check_together(run.config)
    with only_first_changes(run) as own:
        resumed = resume_here(own, **moved)
        path = as_first(resumed.path.absolute())
        return Run(path) if process.rank else resumed


def resume_here(run: Run, **moved: str) -> Run:
    """Finish a run as this process writes it."""
    if kind := find_composite(run.config):
        return resume_composite(kind, run, **moved)
    check_resumable(run)
    check_registered(run.model, {name: getattr(run.config, name) for name in REGISTRIES})
    with only_trainer(run):
        run = Run(run.path)
        check_resumable(run)  # again, as another process may have ended it
        moved = dict.fromkeys(WHERE) | moved if moved else {}
        config = replace(run.config, **moved, pool=run.pool)
        df = load_dataset(config, split=run.file("split.csv"))
        training = read_training(run)
        if training:
            learn = lesion_learner(LesionDataLoaders.from_run(run, df, config), run)
        else:
            learn = prepare_learner(df, config, checked=True)
        check_same_data(learn, run)
        if training is None:
            forget_weights(run)
        run = Run(run.path)
        trained = training is not None or (run.path / CHECKPOINT).is_file()
        with logging_to(run.path / "log.txt"), recording(run, learn, goes_on=trained):
            finish(learn, run, training, resume=True)
    return run


def finish(
    learn: LesionLearner, run: Run, training: dict[str, Any] | None = None, resume: bool = False
) -> None:
    """Train, or solve a head that is solved, unless there is a `training`; then predict.

    model.json is written again if it has changed: the kept epoch may be one before the class
    weights came on, or an earlier version may have begun the run.
    """
    if training is None:
        announce(learn, run)
        training = (
            fit(learn, run, resume) if run.config.head == "linear" else solve_head(learn, run)
        )
        asked = {k: v for k, v in run.model.items() if k == "melanoma_sensitivity"}
        if (about := describe_model(learn, run.config) | asked) != run.model:
            run.write_json("model.json", about)
            run.model = about
    evaluate(learn, run, training)


def predict_again(run: Run, df: pd.DataFrame, config: TrainConfig, root: Path, name: str) -> Run:
    """Return a new run, without weights, of what a run's weights predict for other rows or views.

    `df` has the rows, `config` the options of the prediction, such as --tta. It decides as the run
    does, with its weight on melanoma or without.
    """
    learn = lesion_learner(LesionDataLoaders.from_run(run, df, config), run)
    made = Run.create(root, config, name)
    write_preparation(learn, made)
    asked = run.melanoma_sensitivity if "melanoma_weight" in run.model else 0.0
    made.model = made.model | describe_rule(run.decision_rule, asked)
    made.write_json("model.json", made.model)
    finish(learn, made, {"train_seconds": 0.0, "status": "finished"})
    return made


def prepare_learner(
    df: pd.DataFrame, config: TrainConfig, *, checked: bool = False
) -> LesionLearner:
    """Return the Learner of an experiment; wrong options are reported before images are decoded.

    `checked` says that `check_melanomas` has seen the table, or the one that it is a part of.
    """
    find_arch(config.arch)
    check_options(config)
    fusions[config.fusion], augmentations[config.augment]
    check_metadata(config.fusion, len(config.metadata_columns))
    check_weights(df, config.weights, config.arch)
    classes = sorted(df["target"].unique())
    check_objective(config, classes)
    if not checked:
        check_melanomas(df, config)
    if config.monitor is not None:
        named = Classes.chosen(classes, config.melanoma, config.malignant)
        check_choice("monitor", config.monitor, history_names(named))
    choose_precision(config.precision, pick_device(config.device))
    with counting_bar("decoding images") as progress:
        dls = LesionDataLoaders.from_df(df, config, progress=progress)
    learn = lesion_learner(dls, config=config)
    if config.compile:
        learn.model.compile()
    plan_training(learn.model, config)
    if config.teacher:
        teach(learn, Run.open(config.teacher))
    return learn


def check_melanomas(df: pd.DataFrame, config: TrainConfig) -> None:
    """Raise `LesionfastError` if no melanoma is there to fit --melanoma-sensitivity on.

    In a run of folds all images that are not test are predicted out of fold.
    """
    classes = Classes.chosen(sorted(df["target"].unique()), config.melanoma, config.malignant)
    asked = f"--melanoma-sensitivity {config.melanoma_sensitivity:g}"
    if config.melanoma_sensitivity and classes.melanoma is None:
        raise LesionfastError(
            f"{asked} needs a class of melanoma; the classes are {join_names(classes)}. Name it "
            "with --melanoma, or leave the option out."
        )
    melanomas = df.loc[df["target"] == classes.melanoma, "split"]
    fitted_on = melanomas != "test" if config.all else melanomas == "valid"
    if config.melanoma_sensitivity and not fitted_on.any():
        other = "Type" if config.all else "Type another --fold," if config.folds else LARGER
        raise LesionfastError(
            f"{asked} is fitted on validation, which has none of the {len(melanomas)} "
            f"images of '{classes.melanoma}'. {other} another --seed, or leave the option out."
        )


def check_resumable(run: Run) -> None:
    """Raise `LesionfastError` if a run is finished and whole, or stopped before it had begun."""
    damaged = damaged_results(run)
    if run.finished and not damaged and run.metrics["status"] == "finished":
        raise already_finished(run)
    if not run.holds("model.json"):
        raise never_began(run)
    if members := run.model.get("members"):
        paths = (Path(os.path.normpath(run.path / member)) for member in members)
        raise LesionfastError(
            f"{run.path} is an ensemble, so it has no training to resume. "
            f"Make it again: lesionfast ensemble {shell_quote(*paths)}"
        )


def already_finished(run: Run) -> LesionfastError:
    """Return the error for a run that is finished and whole."""
    return LesionfastError(
        f"{run.path} is finished: nothing is left to do. "
        f"Look at it with: lesionfast interpret {shell_quote(run.path)}"
    )


def never_began(run: Run) -> LesionfastError:
    """Return the error for a run that holds too little to be resumed."""
    return LesionfastError(
        f"{run.path} stopped before its training began, so it can't be resumed. "
        f"Start it again: lesionfast train --config {shell_quote(run.path / 'config.json')}"
    )


def damaged_results(run: Run) -> list[str]:
    """Return the names of the damaged files that training and prediction write."""
    return [name for name in run.damaged() if name in LEARNED]


def read_training(run: Run) -> dict[str, Any] | None:
    """Return what metrics.json records of a finished training; None if there is more to train.

    Without metrics.json the weights are final if they are whole and no checkpoint is left; how
    long their training took is lost.
    """
    damaged = damaged_results(run)
    if any(name in damaged or not run.manifest.lists(name) for name in WEIGHTS):
        return None
    if run.finished and "metrics.json" not in damaged:
        kept = {k: v for k, v in run.metrics.items() if k not in ("split_sha256", "valid", "test")}
        return kept if kept["status"] == "finished" else None
    if (run.path / CHECKPOINT).is_file():
        return None
    logger.warning(
        "%s is lost, and with it the training time: train_seconds will be 0",
        run.path / "metrics.json",
    )
    epoch = best_epoch(run.history, run.config.monitor)
    return {"train_seconds": 0.0, "best_epoch": epoch, "status": "finished"}


def forget_weights(run: Run) -> None:
    """Remove damaged files, and all that depends on weights which are about to change.

    Without its weights a run begins again.
    """
    if damaged := damaged_results(run):
        names = ", ".join(damaged)
        logger.warning("damaged, so trained or computed again: %s of %s", names, run.path)
    if "weights.safetensors" in damaged:
        (run.path / CHECKPOINT).unlink(missing_ok=True)
    run.remove(*OF_THE_WEIGHTS, *damaged)
    run.manifest.release(*WEIGHTS)  # each epoch writes them


def check_same_data(learn: LesionLearner, run: Run) -> None:
    """Raise `LesionfastError` unless the data is that of the beginning of the run."""
    rows = learn.dls.rows
    encoder = MetadataEncoder(run.config.metadata_columns).fit(rows[rows["split"] == "train"])
    for name, text in (
        ("split.csv", format_split(learn.dls.split)),
        ("encoder.json", encoder.to_json()),
    ):
        if run.file(name).read_bytes() != text.encode():
            raise LesionfastError(
                f"the data has changed since {run.path} began: it no longer gives its {name}. "
                f"Restore the old data, or start again: lesionfast train --config "
                f"{shell_quote(run.path / 'config.json')}"
            )


@contextmanager
def only_trainer(run: Run) -> Iterator[None]:
    """Hold a run, so that no second process trains it at the same time.

    The error of a full disk says how to go on with the training.
    """
    busy = f"another process is training {run.path}. Wait for it, or stop it first."
    again = f"lesionfast train --resume {shell_quote(run.path)}"
    go_on = f"Free some space, then continue with: {again}"
    with only_process(run.path / f"{LOCKED}training", busy), disk_errors(run.path, advice=go_on):
        yield
