"""The commands: parse, one library call, print. Heavy imports wait inside the commands."""

import json as json_module
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lesionfast.config import DataConfig, SplitConfig, TrainConfig
from lesionfast.console import counting_bar, log_to_console
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.options import options_of
from lesionfast.runs import Run, list_runs, newest_run

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Classify dermoscopic images of skin lesions, fast and honestly. Not a medical device.",
)
data_app = typer.Typer(no_args_is_help=True, help="Check a dataset, or split it.")
app.add_typer(data_app, name="data")

OF_CLASSIFIERS = (  # what pretrain has no option for
    *("fusion", "pool", "dropout", "lr_decay", "unfreeze", "balance"),
    *("loss", "label_smoothing", "rule", "monitor"),
)
Root = Annotated[str, typer.Option("--out", help="Folder of the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


@app.command()
@options_of(TrainConfig)
def train(
    given: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="Repeat what a config.json says.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this interrupted run.")] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Train a classifier and print the path of its run.

    Without --data, the built-in synthetic sample is used.

    Example: lesionfast train --data HAM10000 --arch densenet121
    """
    if resume is not None and (given or config):
        raise LesionfastError(
            f"--resume goes on as {resume} began, but other options were given too: "
            f"{', '.join(given) or 'config'}. Type only --resume, or leave it out."
        )
    from lesionfast.data.dataset import load_dataset

    if resume is not None:
        earlier = Run.open(resume)
        from lesionfast.training import experiment

        run = experiment.resume(earlier)
    else:
        settings = configured(given, config)
        df = load_dataset(settings)
        from lesionfast.training import experiment

        run = experiment.train(df, settings, out)
    print_run(run, json)


def configured(given: dict[str, Any], file: Path | None) -> TrainConfig:
    """Return the configuration of a file, or the default one, with what was typed on top."""
    if file is None:
        return TrainConfig(**given)
    if not file.is_file():
        raise LesionfastError(f"there is no file {file}. Type --config RUN/config.json.")
    return replace(TrainConfig.from_json(file.read_text(encoding="utf-8")), **given)


def print_run(run: Run, as_json: bool) -> None:
    """Print the metrics of a run to stderr and its path, or JSON, to stdout."""
    from lesionfast.evaluation.tables import metrics_table, print_table

    for split in ("valid", "test"):
        if split in run.metrics:
            print_table(metrics_table(run, split), stderr=True)
    if run.metrics["status"] == "interrupted":
        print(f"interrupted; go on with: lesionfast train --resume {run.path}", file=sys.stderr)
    print(json_module.dumps({"run": str(run.path), **run.metrics}) if as_json else run.path)


@app.command()
def interpret(
    run: Annotated[Path | None, typer.Argument(help="A run; default: the newest.")] = None,
    split: Annotated[str, typer.Option(help="Which predictions: valid or test.")] = "test",
    rule: Annotated[
        str | None, typer.Option(help="argmax or balanced; default: the one that decides.")
    ] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Show what a run confuses, melanoma first, and draw it to the run's figures/.

    Example: lesionfast interpret runs/20260102-030405-densenet121
    """
    from lesionfast.evaluation.interpretation import Interpretation

    found = Run.open(run) if run else newest_run(out)
    interpretation = Interpretation.of(found, split=split, rule=rule)
    from lesionfast.evaluation.figures import draw_figures

    figures = draw_figures(interpretation)
    if json:
        print(json_module.dumps(interpretation.to_dict() | {"figures": list(map(str, figures))}))
        return
    from lesionfast.evaluation.tables import interpretation_tables, print_table

    for table in interpretation_tables(interpretation):
        print_table(table)
    print("\n".join(map(str, figures)))


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
    from lesionfast.data.dataset import load_dataset

    settings = configured(given, config)
    df = load_dataset(settings)
    from lesionfast.training import pretraining

    print(pretraining.pretrain(df, settings, out))


@app.command("lr-find")
@options_of(TrainConfig)
def lr_find(
    given: dict[str, Any],
    figure: Annotated[Path, typer.Option(help="Where the curve is drawn.")] = Path("lr_find.png"),
) -> None:
    """Print the learning rate that fastai's LR finder suggests, and draw its curve.

    Example: lesionfast lr-find --data HAM10000 --arch densenet121
    """
    from lesionfast.data.dataset import load_dataset

    settings = TrainConfig(**given)
    df = load_dataset(settings)
    from lesionfast.training.experiment import prepare_learner, unfreezing
    from lesionfast.training.lr_finder import draw_lr_curve, find_lr

    learn = prepare_learner(df, settings)
    lr = find_lr(learn, freeze=unfreezing(learn, settings) != "none")
    print(draw_lr_curve(learn, lr, figure), file=sys.stderr)
    print(f"{lr:.2g}")


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="archs, augmentations, balances, fusions or losses.")],
    containing: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
) -> None:
    """List the names that an option takes.

    Example: lesionfast list archs densenet
    """
    described = name_lists(what)
    rows = {name: text for name, text in described.items() if containing in name}
    if not rows:
        near = did_you_mean(containing, described)
        raise LesionfastError(
            f"none of the {len(described)} {what} has '{containing}' in its name.{near} "
            f"Type fewer letters."
        )
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows.items()))


def name_lists(what: str) -> dict[str, str]:
    """Return name -> description of one kind of thing."""
    kinds = ("archs", "augmentations", "balances", "fusions", "losses")
    if what not in kinds:
        raise LesionfastError(
            f"there is no list '{what}'.{did_you_mean(what, kinds)} "
            f"Type one of: {', '.join(kinds)}."
        )
    if what == "archs":
        from lesionfast.models.backbones import list_archs

        return list_archs()
    if what == "augmentations":
        from lesionfast.data.augment import augmentations as registry
    elif what == "balances":
        from lesionfast.training.balancing import balances as registry
    elif what == "fusions":
        from lesionfast.models.fusion import fusions as registry
    else:
        from lesionfast.training.losses import losses as registry
    return registry.describe()


@app.command()
def runs(out: Root = "runs", json: Json = False) -> None:
    """List the runs and their metrics, oldest first.

    Example: lesionfast runs --json
    """
    found = list_runs(out)
    if not found:
        raise LesionfastError(f"there is no run in {out}. Make one: lesionfast train")
    if json:
        rows = [{"run": str(r.path), **(r.metrics if r.finished else {})} for r in found]
        print(json_module.dumps(rows))
        return
    from lesionfast.evaluation.tables import print_table, runs_table

    print_table(runs_table(found))


@data_app.command()
@options_of(DataConfig, "data")
def check(
    given: dict[str, Any],
    data: Annotated[str | None, typer.Argument(help="Folder as downloaded.")] = None,
    json: Json = False,
) -> None:
    """Report everything wrong with a dataset; the exit code is 2 if something must be mended.

    Example: lesionfast data check HAM10000
    """
    from lesionfast.data.audit import audit
    from lesionfast.evaluation.tables import audit_table, print_table

    with counting_bar("comparing images") as progress:
        report = audit(DataConfig(data=data, **given), progress)
    if json:
        print(report.to_json())
    else:
        for table in audit_table(report):
            print_table(table)
    raise typer.Exit(0 if report.ok else 2)


@data_app.command()
@options_of(SplitConfig, "data")
def split(
    given: dict[str, Any],
    data: Annotated[str | None, typer.Argument(help="Folder as downloaded.")] = None,
    out: Annotated[Path, typer.Option("--out", help="CSV file to write.")] = Path("split.csv"),
) -> None:
    """Write the split of a dataset as a CSV file and print its path.

    Example: lesionfast data split HAM10000 --out split.csv --seed 1
    """
    from lesionfast.data.dataset import load_dataset
    from lesionfast.data.splits import write_split

    df = load_dataset(SplitConfig(data=data, **given))
    digest = write_split(df, out)
    print(df.groupby(["target", "split"]).size().unstack(fill_value=0), file=sys.stderr)
    print(f"sha256 {digest}", file=sys.stderr)
    print(out)


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 the user can fix it, 1 a bug."""
    log_to_console()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    try:
        app()
    except LesionfastError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
