"""Commands that train: train, pretrain, lr-find, bench, ensemble, ablate, study, search."""

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lesionfast.cli.base import (
    TRAIN,
    Json,
    Root,
    app,
    argument,
    config_options,
    open_run,
    open_runs,
    option,
    print_comparison,
    print_json,
    print_run,
)
from lesionfast.config import WHERE, TrainConfig, flag_name
from lesionfast.console import LATER_PROCESS, echo, print_table
from lesionfast.errors import LesionfastError
from lesionfast.files import damage_explained, load_json, write_sheet
from lesionfast.manifest import Manifest
from lesionfast.run import CONFIGS, Run

if TYPE_CHECKING:
    from lesionfast.training.search.trials import Search
    from lesionfast.training.search.winner import Price
    from lesionfast.training.study import Outcome

NOT_IN_PRETRAIN = (  # what an autoencoder has no use for
    *("fusion", "pool", "head", "dropout", "metadata_dropout", "head_epochs", "head_lr", "views"),
    *("start_size", "budget", "lr_decay", "ema", "unfreeze", "melanoma", "malignant", "subclass"),
    *("all", "balance", "beta", "class_weight", "defer_weights", "hardest", "loss", "cost", "tau"),
    *("label_smoothing", "augment_valid", "mix", "mix_alpha", "rule", "tta", "monitor", "compile"),
    *("melanoma_sensitivity", "distill", "teacher", "log", "corrections"),
)


Config = option(Path | None, "Take the options of this config.json or pretrain.json.")
Resume = option(Path | None, "Continue this interrupted run, or repair a damaged one.")
Name = option(str | None, "Name of the run (default: time and architecture).")
Gpus = option(int | None, "Train with this many GPUs of this machine together.")
Seeds = option(int, "Number of runs, with one seed each, on the same split.")


@app.command(rich_help_panel=TRAIN)
@config_options(TrainConfig)
def train(
    given: dict[str, Any],
    config: Config = None,
    resume: Resume = None,
    out: Root = "runs",
    name: Name = None,
    seeds: Seeds = 1,
    gpus: Gpus = None,
    json: Json = False,
) -> None:
    """Train a classifier and print the path of its run.

    Without --data it trains on the built-in synthetic sample. With --folds 5
    --all it trains five models and makes one run of them: what validation
    decides is fitted on out-of-fold predictions of all images that are not test.

    Example: lesionfast train --data HAM10000 --arch densenet121
    """
    if gpus is not None and launch_processes(gpus, given.get("device", "auto")):
        return
    if resume is not None:
        typed = [*given, *(["config"] if config else []), *(["name"] if name else [])]
        runs = [go_on(resume, given, typed + (["seeds"] if seeds != 1 else []))]
    else:
        from lesionfast.data.split import load_dataset

        settings = read_settings(given, config)
        from lesionfast.training import experiment

        experiment.check_before_reading(settings, name, seeds)
        df = load_dataset(settings)
        runs = experiment.train_seeds(df, settings, out, name, seeds)
    if LATER_PROCESS:
        return
    for run in runs:
        print_run(run, json)
    if len(runs) > 1:
        print_spread(runs)


def go_on(path: Path, given: dict[str, Any], typed: list[str]) -> Run:
    """Continue a run; raise `LesionfastError` if more was `typed` than where its data is."""
    if others := [flag_name(field) for field in typed if field not in WHERE]:
        raise LesionfastError(
            f"--resume continues {path} with the options of that run, but {', '.join(others)} was "
            "given too. Type only --resume (and --data, if the data has moved)."
        )
    earlier = Run.open(path)
    from lesionfast.training import experiment

    return experiment.resume(earlier, **given)


def launch_processes(n: int, device: str) -> bool:
    """Run this command in n processes, one for each GPU, and exit as they do; False in one of them.

    With the device cpu they are n processes of the CPU. Raises `LesionfastError` without n GPUs.
    """
    if "WORLD_SIZE" in os.environ:
        return False
    import torch

    there = n if device == "cpu" else torch.cuda.device_count()
    if n > there == 0:
        raise LesionfastError(
            f"--gpus is {n}, and PyTorch finds no GPU here. Leave --gpus out, or type --device cpu "
            "with it for processes of the CPU."
        )
    if not 1 <= n <= there:
        raise LesionfastError(
            f"--gpus is {n}, and PyTorch finds {there} GPUs here. Type a number from 1 to that, or "
            "leave --gpus out."
        )
    if n == 1:
        return False
    from lesionfast.training.processes import launch

    sys.exit(launch(sys.argv[1:], n))


def print_spread(runs: list[Run]) -> None:
    """Print the mean and the standard deviation of runs that differ in seed alone to stderr."""
    from lesionfast.evaluation.comparison import Comparison, seeds_table

    split = "test" if "test" in runs[0].metrics else "valid"
    print_table(seeds_table(Comparison.from_runs(runs, split)), stderr=True)


def read_settings(given: dict[str, Any], file: Path | None) -> TrainConfig:
    """Return the configuration of a file, or the default one, with what was typed on top."""
    if file is None:
        return TrainConfig(**given)
    if not file.is_file():
        raise LesionfastError(f"there is no file {file}. Type --config RUN/config.json.")
    if any(name in given for name in WHERE):  # one way to name the data replaces the other
        given = dict.fromkeys(WHERE) | given
    advice = "Copy the run again; to change options in a file, copy it out of the run first."
    if file.name in CONFIGS:
        Manifest(file.parent).require(file.name, advice)
    with damage_explained(file, advice):
        values = load_json(file)
    of_run = (file.parent / "split.csv").is_file()
    return replace(TrainConfig.from_json(values, of_run=of_run), **given)


@app.command(rich_help_panel=TRAIN)
@config_options(TrainConfig, *NOT_IN_PRETRAIN)
def pretrain(given: dict[str, Any], config: Config = None, out: Root = "runs") -> None:
    """Pretrain a backbone as an autoencoder, without labels, and print its path.

    Then start a classifier from it with: lesionfast train --weights PATH

    Example: lesionfast pretrain --data HAM10000 --arch vanilla_cnn
    """
    from lesionfast.data.split import load_dataset

    settings = read_settings(given, config)
    df = load_dataset(settings)
    from lesionfast.training import pretrain

    echo(pretrain.pretrain(df, settings, out))


Figure = option(Path, "PNG file for the curve.")


@app.command("lr-find", rich_help_panel=TRAIN)
@config_options(TrainConfig, "all", "distill", "log")
def lr_find(given: dict[str, Any], figure: Figure = Path("lr_find.png")) -> None:
    """Print the learning rate that fastai's LR finder suggests, and draw its curve.

    Example: lesionfast lr-find --data HAM10000 --arch densenet121
    """
    from lesionfast.data.split import configure, load_dataset

    settings = TrainConfig(**given)
    from lesionfast.training.experiment import check_before_reading, prepare_learner

    check_before_reading(settings)
    df = load_dataset(settings)
    settings = configure(df, settings)
    from lesionfast.training.fitting import plan_training
    from lesionfast.training.learner import draw_lr_curve, find_lr

    learn = prepare_learner(df, settings)
    lr = find_lr(learn, freeze=plan_training(learn.model, settings).starts_frozen)
    echo(draw_lr_curve(learn, lr, figure), stderr=True)
    echo(f"{lr:.2g}")


@app.command(rich_help_panel=TRAIN)
@config_options(TrainConfig, "all", "distill", "log")
def bench(given: dict[str, Any], json: Json = False) -> None:
    """Measure the speed of each part of training, compared with the bare model.

    Example: lesionfast bench --data HAM10000 --arch densenet121
    """
    from lesionfast.data.split import configure, load_dataset

    settings = TrainConfig(**given)
    from lesionfast.training.experiment import check_before_reading

    check_before_reading(settings)
    df = load_dataset(settings)
    settings = configure(df, settings)
    from lesionfast.training.speed import bench

    measured = bench.bench(settings, df)
    if json:
        print_json(measured)
    else:
        print_table(bench.bench_table(measured))


Members = argument(list[Path], "Runs trained on the same split.")
Mean = option(str, "Mean to take: arithmetic or geometric.")
FitWeights = option(bool, "Fit the weights: least log loss on validation.", "--fit-weights")
Specialists = option(
    str | None, "Add to one RUN a new run per class named here, with 3 times the class weight."
)


@app.command(rich_help_panel=TRAIN)
@app.command("committee", hidden=True)  # its earlier name
def ensemble(
    runs: Members,
    mean: Mean = "arithmetic",
    fit_weights: FitWeights = False,
    specialists: Specialists = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Ensemble runs by averaging their probabilities, and print the path of the new run.

    If the members have different priors, each member's probabilities are first
    divided by its own prior.

    Example: lesionfast ensemble runs/20260102-030405-densenet121 --specialists mel,bcc,akiec
    """
    from lesionfast.training.ensembles.combining import combine

    members = open_runs(runs, out)
    if specialists is not None:
        from lesionfast.training.ensembles.specialists import add_specialists

        members = add_specialists(members, specialists, out)
    print_run(combine(members, out, mean=mean, fit_weights=fit_weights), json)


FusedRun = argument(Path | None, "A run with image and metadata (default: the newest).")
Ablations = option(Path | None, "Folder of the new runs (default: ablation in the run).")


@app.command(rich_help_panel=TRAIN)
def ablate(
    run: FusedRun = None, to: Ablations = None, out: Root = "runs", json: Json = False
) -> None:
    """Measure what age and sex add to a run.

    The run is trained again on images alone and on metadata alone, with the same
    split and seed, and predicts with all metadata missing. Repeat the command
    after an interruption.

    Example: lesionfast ablate runs/20260102-030405-densenet121
    """
    from lesionfast.evaluation.interpretation import records
    from lesionfast.reporting.subgroups import contribution_table
    from lesionfast.training import study

    contribution = study.ablate(open_run(run, out), to)
    if json:
        print_json({"table": records(contribution.table), "words": contribution.words()})
        return
    print_table(contribution_table(contribution.table, contribution.run.classes))
    echo("\n".join(contribution.words()))


StudyFile = argument(Path | None, "TOML file with one table 'run' per configuration.")
Author = option(bool, "Train the systems of the original study.", "--author")
FromScratch = option(
    bool, "With --author: start all from random weights, at 64 pixels.", "--from-scratch"
)
DryRun = option(bool, "Print the plan only.", "--dry-run")
StudyFolder = option(Path | None, "Folder of the runs (default: runs/NAME).", "--out")


@app.command(rich_help_panel=TRAIN)
@config_options(TrainConfig)
def study(
    given: dict[str, Any],
    file: StudyFile = None,
    author: Author = False,
    from_scratch: FromScratch = False,
    dry_run: DryRun = False,
    out: StudyFolder = None,
) -> None:
    """Train all configurations of a file on one split, and compare them.

    Repeat the command after an interruption: finished runs are kept. Options
    override the table 'defaults' of the file.

    Example: lesionfast study --author --data HAM10000 --dry-run
    """
    from lesionfast.training import study

    if (file is None) != author or (from_scratch and not author):
        raise LesionfastError(
            "type one of: lesionfast study FILE.toml, lesionfast study --author, "
            "lesionfast study --author --from-scratch"
        )
    systems = study.AUTHOR_FROM_SCRATCH if from_scratch else study.AUTHOR
    settings = study.read_study(file or systems, given)
    folder = out or Path("runs") / settings.name
    if dry_run:
        from lesionfast.reporting.comparison import plan_table

        print_table(plan_table(study.plan_study(settings, folder)))
    else:
        print_outcome(study.run_study(settings, folder), folder)


def print_outcome(outcome: "Outcome", folder: Path) -> None:
    """Print the comparison of a study's runs; raise `LesionfastError` if some failed."""
    from lesionfast.evaluation.comparison import Comparison

    if outcome.runs:
        split = "test" if "test" in outcome.runs[0].metrics else "valid"
        print_comparison(Comparison.from_runs(outcome.runs, split), folder / "comparison")
    if outcome.failures:
        reasons = "; ".join(f"'{name}': {why}" for name, why in outcome.failures.items())
        raise LesionfastError(f"{len(outcome.failures)} runs failed. {reasons}")


Space = option(Path | None, "TOML file of the options and values to try.")
Trials = option(int | None, "Trials of all workers together (default: 20, without --budget).")
Workers = option(int, "Processes that try at the same time on this machine.")
Storage = option(
    str | None,
    "Database of the trials, such as postgresql://user@host/name (default: a file).",
    "--storage",
    envvar="LESIONFAST_STORAGE",
)
Heads = option(bool, "Try last layers alone, on a frozen backbone: seconds each.", "--heads")
By = option(str, "Metric on validation that decides: macro_auc, balanced_accuracy or log_loss.")
Random = option(bool, "Draw all values at random.", "--random")
Prune = option(str, "Stop hopeless trials early: asha, hyperband or none.")
Time = option(
    str | None, "Time for the trials, such as 2h; the best is trained after it.", "--budget"
)
Join = option(Path | None, "Work on the search in this folder with its own options.")
SearchFolder = option(Path, "Folder of the search.", "--out")
OneSearch = argument(Path, "Folder of a search.")
search_app = typer.Typer(invoke_without_command=True)
app.add_typer(search_app, name="search", rich_help_panel=TRAIN)


@search_app.callback()
@config_options(TrainConfig, "budget", "workers")
def search(
    given: dict[str, Any],
    context: typer.Context,
    space: Space = None,
    trials: Trials = None,
    workers: Workers = 1,
    heads: Heads = False,
    by: By = "macro_auc",
    random: Random = False,
    prune: Prune = "asha",
    budget: Time = None,
    storage: Storage = None,
    join: Join = None,
    out: SearchFolder = Path("runs/search"),
    json: Json = False,
) -> None:
    """Search for better options, and train the best ones again.

    Type the same command again to go on, or on other machines to share the
    work. Options that are typed are not searched. See: lesionfast search show

    Example: lesionfast search --data HAM10000 --trials 50 --workers 2
    """
    if context.invoked_subcommand:
        return
    from lesionfast.training.search import space as spaces
    from lesionfast.training.search import workers as engine

    if join is not None:
        idle = {**given, **({"space": space} if space else {}), **({"heads": 1} if heads else {})}
        join_search(join, [*idle, *(["workers"] if workers != 1 else [])], trials, budget, storage)
        return
    engine.import_optuna()
    sampler = "random" if random else "tpe"
    settings = spaces.read_settings(space, given, heads=heads, by=by, sampler=sampler, pruner=prune)
    engine.check_numbers(trials, workers, budget)
    begun = engine.Search.begin(out, settings, storage)
    found = engine.run_search(begun, trials, workers, budget)
    print_search(found.search, found.price, json, found.run)
    if not json:
        print_run(found.run, False)


def join_search(
    folder: Path, idle: list[str], trials: int | None, budget: str | None, storage: str | None
) -> None:
    """Work on a search that is there; raise `LesionfastError` for options that would be `idle`."""
    from lesionfast.training.search import workers

    if idle:
        raise LesionfastError(
            f"--join works on {folder} with the options of that search, but "
            f"{', '.join(map(flag_name, idle))} was given too. Leave it out."
        )
    workers.join(folder, trials, budget, storage)
    echo(folder)


@search_app.command("show")
def show_search(
    folder: OneSearch = Path("runs/search"), storage: Storage = None, json: Json = False
) -> None:
    """Show the best trials of a search, and which options matter; draw its figures.

    Example: lesionfast search show runs/search
    """
    from lesionfast.training.search.trials import Search
    from lesionfast.training.search.winner import price_choice

    search = Search(folder, storage)
    print_search(search, price_choice(search), json)


def print_search(search: "Search", price: "Price", as_json: bool, best: Run | None = None) -> None:
    """Print the best trials to stderr, write table, figures and page, and print their paths."""
    from lesionfast.reporting import search as chapter
    from lesionfast.training.search.trials import trial_table

    by, trials = search.settings.by, trial_table(search)
    tables = [chapter.trials_table(trials, by, search.settings.more_is_better)]
    shares = chapter.find_importance(search.study)
    if shares:
        tables.append(chapter.importance_table(shares))
    figures = chapter.draw_search(search.study, search.path / "figures", by, shares)
    page = chapter.write_search(search.path / "report.html", tables, [price.words()], figures)
    csv = search.path / "trials.csv"
    write_sheet(csv, trials)
    if as_json:
        rows = trials.astype(object).where(trials.notna(), None).to_dict("records")
        run = {"run": str(best.path), **best.metrics} if best else {}
        about = {"search": str(search.path), "price": asdict(price), "trials": rows}
        print_json(about | ({"best": run} if run else {}))
        return
    for table in tables:
        print_table(table, stderr=True)
    echo(price.words(), stderr=True)
    echo(csv, page, *figures, sep="\n")
