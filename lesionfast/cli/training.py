"""Commands that train: train, pretrain, lr-find, bench."""

import json as json_module
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lesionfast.cli.base import Json, Root, app, options_of, print_run
from lesionfast.config import WHERE, TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.files import damage_explained
from lesionfast.manifest import Manifest
from lesionfast.runs import CONFIGS, Run

OF_CLASSIFIERS = (  # what pretrain has no option for
    *(
        "fusion",
        "pool",
        "head",
        "dropout",
        "metadata_dropout",
        "lr_decay",
        "unfreeze",
        "subclass",
        "balance",
        "beta",
    ),
    *("class_weight", "defer_weights", "hardest", "loss", "cost", "tau", "label_smoothing"),
    *("augment_valid", "mix", "mix_alpha", "rule", "monitor", "melanoma", "malignant"),
    *("head_epochs", "views", "start_size", "budget", "tta", "compile"),
)


@app.command()
@options_of(TrainConfig)
def train(
    given: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="Repeat what a config.json says.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this interrupted run.")] = None,
    out: Root = "runs",
    name: Annotated[
        str | None, typer.Option(help="Name of the run; default: time and architecture.")
    ] = None,
    json: Json = False,
) -> None:
    """Train a classifier and print the path of its run.

    Without --data, the built-in synthetic sample is used.

    Example: lesionfast train --data HAM10000 --arch densenet121
    """
    others = [each for each in given if each not in WHERE]
    others += [flag for flag, typed in (("config", config), ("name", name)) if typed]
    if resume is not None and others:
        raise LesionfastError(
            f"--resume goes on as {resume} began, but other options were given too: "
            f"{', '.join(others)}. Type only --resume (and where the data is now, if it has moved)."
        )
    from lesionfast.data.split import load_dataset

    if resume is not None:
        earlier = Run.open(resume)
        from lesionfast.training import experiment

        run = experiment.resume(earlier, **given)
    else:
        settings = configured(given, config)
        df = load_dataset(settings)
        from lesionfast.training import experiment

        run = experiment.train(df, settings, out, name)
    print_run(run, json)


def configured(given: dict[str, Any], file: Path | None) -> TrainConfig:
    """Return the configuration of a file, or the default one, with what was typed on top."""
    if file is None:
        return TrainConfig(**given)
    if not file.is_file():
        raise LesionfastError(f"there is no file {file}. Type --config RUN/config.json.")
    if any(name in given for name in WHERE):  # one way to name the data replaces the other
        given = dict.fromkeys(WHERE) | given
    of_run = (file.parent / "split.csv").is_file()
    advice = "Copy the run again; to change options in a file, copy it out of the run first."
    if file.name in CONFIGS:
        Manifest(file.parent).require(file.name, advice)
    with damage_explained(file, advice):
        text = file.read_text(encoding="utf-8")
    earlier = TrainConfig.from_json(text, of_run=of_run)
    return replace(earlier, **given)


@app.command()
@options_of(TrainConfig, *OF_CLASSIFIERS)
def pretrain(
    given: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="Repeat what a pretrain.json says.")] = None,
    out: Root = "runs",
) -> None:
    """Learn an autoencoder from the training images, without labels, and print its path.

    A classifier starts from its encoder with: lesionfast train --weights PATH

    Example: lesionfast pretrain --data HAM10000 --arch vanilla_cnn
    """
    from lesionfast.data.split import load_dataset

    settings = configured(given, config)
    df = load_dataset(settings)
    from lesionfast.training import pretrain

    print(pretrain.pretrain(df, settings, out))


@app.command("lr-find")
@options_of(TrainConfig)
def lr_find(
    given: dict[str, Any],
    figure: Annotated[Path, typer.Option(help="Where the curve is drawn.")] = Path("lr_find.png"),
) -> None:
    """Print the learning rate that fastai's LR finder suggests, and draw its curve.

    Example: lesionfast lr-find --data HAM10000 --arch densenet121
    """
    from lesionfast.data.split import load_dataset

    settings = TrainConfig(**given)
    df = load_dataset(settings)
    from lesionfast.training.experiment import prepare_learner
    from lesionfast.training.fitting import starts_frozen
    from lesionfast.training.learner import draw_lr_curve, find_lr

    learn = prepare_learner(df, settings)
    lr = find_lr(learn, freeze=starts_frozen(learn, settings))
    print(draw_lr_curve(learn, lr, figure), file=sys.stderr)
    print(f"{lr:.2g}")


@app.command()
@options_of(TrainConfig)
def bench(given: dict[str, Any], json: Json = False) -> None:
    """Measure each part of a training on this machine, beside the bare model.

    Example: lesionfast bench --data HAM10000 --arch densenet121
    """
    from lesionfast.console import print_table
    from lesionfast.data.split import load_dataset
    from lesionfast.training.speed.bench import bench_table

    settings = TrainConfig(**given)
    df = load_dataset(settings)
    from lesionfast.training.speed.bench import bench as measure

    found = measure(settings, df)
    if json:
        print(json_module.dumps(found))
    else:
        print_table(bench_table(found))
