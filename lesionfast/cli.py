"""The commands: parse, one library call, print. Heavy imports wait inside the commands."""

import json as json_module
import sys
import warnings
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lesionfast.config import WHERE, DataConfig, SplitConfig, TrainConfig
from lesionfast.console import counting_bar, log_to_console
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.options import options_of
from lesionfast.runs import Run, list_runs, newest_run

if TYPE_CHECKING:
    from lesionfast.evaluation.comparison import Comparison
    from lesionfast.training.study import Outcome

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Classify dermoscopic images of skin lesions, fast and honestly. Not a medical device.",
)
data_app = typer.Typer(no_args_is_help=True, help="Check a dataset, or split it.")
app.add_typer(data_app, name="data")

OF_CLASSIFIERS = (  # what pretrain has no option for
    *("fusion", "pool", "head", "dropout", "lr_decay", "unfreeze", "subclass", "balance", "beta"),
    *("class_weight", "defer_weights", "hardest", "loss", "cost", "tau", "label_smoothing"),
    *("augment_valid", "mix", "mix_alpha", "rule", "monitor"),
    *("head_epochs", "views", "start_size", "budget", "tta", "compile"),
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
    from lesionfast.data.dataset import load_dataset

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
    return replace(TrainConfig.from_json(file.read_text(encoding="utf-8")), **given)


def print_run(run: Run, as_json: bool) -> None:
    """Print the metrics of a run to stderr and its path, or JSON, to stdout."""
    from lesionfast.evaluation.run_tables import metrics_table
    from lesionfast.evaluation.tables import print_table

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
    nearest: Annotated[
        str | None,
        typer.Option(help="Instead: the training lesions most like this image id or file."),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="How many of them.")] = 5,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Show what a run confuses, melanoma first; write its figures/ and its report.html.

    Example: lesionfast interpret runs/20260102-030405-densenet121 --nearest ISIC_0024306
    """
    found = Run.open(run) if run else newest_run(out)
    if nearest is not None:
        print_nearest(found, nearest, k, json)
        return
    from lesionfast.evaluation.findings import Findings
    from lesionfast.evaluation.report import write_report

    findings = Findings.of(found, split=split, rule=rule)
    page = write_report(findings)
    figures = [str(file) for file in findings.files.values()]
    if json:
        print(json_module.dumps(findings.to_dict() | {"figures": figures, "report": str(page)}))
        return
    from lesionfast.evaluation.run_tables import interpretation_tables
    from lesionfast.evaluation.tables import print_table

    for table in interpretation_tables(findings):
        print_table(table)
    print("\n".join([*figures, str(page)]))


def print_nearest(run: Run, image: str, k: int, as_json: bool) -> None:
    """Print the training lesions most similar to an image, and the path of their picture."""
    from lesionfast.evaluation.explain import draw_nearest, nearest_lesions
    from lesionfast.evaluation.interpretation import records
    from lesionfast.evaluation.run_tables import nearest_table
    from lesionfast.evaluation.tables import print_table

    table = nearest_lesions(run, image, k)
    figure = draw_nearest(run, table)
    if as_json:
        print(json_module.dumps({"nearest": records(table), "figure": str(figure)}))
        return
    print_table(nearest_table(table))
    print(figure)


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="A run (default: the newest), or several.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which predictions: valid or test.")] = "test",
    to: Annotated[
        Path | None, typer.Option(help="HTML file; default: report.html in the run.")
    ] = None,
    out: Root = "runs",
) -> None:
    """Write all that is known of a run as one HTML file, or of several beside each other.

    Example: lesionfast report runs/20260102-030405-densenet121
    """
    from lesionfast.evaluation.findings import Findings
    from lesionfast.evaluation.report import write_comparison, write_report

    found = [Run.open(run) for run in runs] if runs else [newest_run(out)]
    if len(found) == 1:
        print(write_report(Findings.of(found[0], split), to))
    else:
        print(write_comparison(found, to or Path(out) / "comparison" / "report.html", split))


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
    from lesionfast.training.experiment import prepare_learner
    from lesionfast.training.fitting import starts_frozen
    from lesionfast.training.lr_finder import draw_lr_curve, find_lr

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
    from lesionfast.data.dataset import load_dataset
    from lesionfast.evaluation.bench_tables import bench_table
    from lesionfast.evaluation.tables import print_table

    settings = TrainConfig(**given)
    df = load_dataset(settings)
    from lesionfast.training.bench import bench as measure

    found = measure(settings, df)
    if json:
        print(json_module.dumps(found))
    else:
        print_table(bench_table(found))


@app.command("list")
def list_names(
    what: Annotated[
        str, typer.Argument(help="archs, augmentations, balances, fusions, heads, losses or mixes.")
    ],
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


LISTS = {  # what `list` takes -> the module and the name of its registry
    "archs": ("models.backbones", ""),
    "augmentations": ("data.augment", "augmentations"),
    "balances": ("training.balancing", "balances"),
    "fusions": ("models.fusion", "fusions"),
    "heads": ("training.heads", "heads"),
    "losses": ("training.losses", "losses"),
    "mixes": ("training.mixing", "mixes"),
}


def name_lists(what: str) -> dict[str, str]:
    """Return name -> description of one kind of thing."""
    if what not in LISTS:
        raise LesionfastError(
            f"there is no list '{what}'.{did_you_mean(what, LISTS)} "
            f"Type one of: {', '.join(LISTS)}."
        )
    room, name = LISTS[what]
    module = import_module(f"lesionfast.{room}")
    return getattr(module, name).describe() if name else module.list_archs()


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
    from lesionfast.evaluation.run_tables import runs_table
    from lesionfast.evaluation.tables import print_table

    print_table(runs_table(found))


@app.command()
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs; default: all with the split of the newest."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which predictions: valid or test.")] = "test",
    csv: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Compare runs on one split, with intervals, and draw them to the comparison/ of --out.

    Example: lesionfast compare --csv comparison.csv
    """
    from lesionfast.evaluation.comparison import Comparison, comparable_runs

    chosen = [Run.open(run) for run in runs] if runs else comparable_runs(out)
    comparison = Comparison.of(chosen, split)
    files = [comparison.write_csv(csv)] if csv else []
    print_comparison(comparison, Path(out) / "comparison", json, files)


def print_comparison(
    comparison: "Comparison", folder: Path, as_json: bool = False, files: Iterable[Path] = ()
) -> None:
    """Draw a comparison to a folder; print it as a table or JSON, and the files, to stdout."""
    from lesionfast.evaluation.comparison_figures import draw_comparison
    from lesionfast.evaluation.comparison_tables import comparison_table
    from lesionfast.evaluation.tables import print_table

    figures = draw_comparison(comparison, folder)
    if as_json:
        print(json_module.dumps(comparison.to_dict() | {"figures": list(map(str, figures))}))
        return
    narrow = sys.stdout.isatty() and get_terminal_size().columns < 110
    print_table(comparison_table(comparison, narrow), whole=True)
    print("\n".join(map(str, [*files, *figures])))


@app.command()
def committee(
    runs: Annotated[list[Path], typer.Argument(help="Runs over one split.")],
    mean: Annotated[str, typer.Option(help="arithmetic or geometric.")] = "arithmetic",
    fit_weights: Annotated[
        bool, typer.Option("--fit-weights", help="Weights of least log loss on validation.")
    ] = False,
    specialists: Annotated[
        str | None,
        typer.Option(help="Train one more member for each of these classes, from one RUN."),
    ] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Let runs decide together, by the mean of their probabilities; print the path of their run.

    Members that saw different class shares have their probabilities divided by them first.

    Example: lesionfast committee runs/20260102-030405-densenet121 --specialists mel,bcc,akiec
    """
    from lesionfast.evaluation.committee import combine

    members = [Run.open(run) for run in runs]
    if specialists is not None:
        from lesionfast.training.specialists import add_specialists

        members = add_specialists(members, specialists, out)
    print_run(combine(members, out, mean=mean, fit_weights=fit_weights), json)


@app.command()
@options_of(TrainConfig)
def study(
    given: dict[str, Any],
    file: Annotated[
        Path | None, typer.Argument(help="TOML file with a table 'run' for each configuration.")
    ] = None,
    author: Annotated[
        bool, typer.Option("--author", help="The original author's systems.")
    ] = False,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="With --author: his all from random weights, at 64 pixels."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; default: runs/NAME.")
    ] = None,
) -> None:
    """Train the configurations of a file over one split, and compare them.

    Type it again after an interruption: what is done stays. Options override the file's
    table 'defaults'.

    Example: lesionfast study --author --data HAM10000 --dry-run
    """
    from lesionfast.evaluation.comparison_tables import plan_table
    from lesionfast.evaluation.tables import print_table
    from lesionfast.training.study import (
        AUTHOR,
        AUTHOR_FROM_SCRATCH,
        plan_study,
        read_study,
        run_study,
    )

    if (file is None) != author or (from_scratch and not author):
        raise LesionfastError(
            "type one of: lesionfast study FILE.toml, lesionfast study --author, "
            "lesionfast study --author --from-scratch"
        )
    settings = read_study(file or (AUTHOR_FROM_SCRATCH if from_scratch else AUTHOR), given)
    folder = out or Path("runs") / settings.name
    if dry_run:
        print_table(plan_table(plan_study(settings, folder)))
        return
    outcome = run_study(settings, folder)
    print_outcome(outcome, folder)


def print_outcome(outcome: "Outcome", folder: Path) -> None:
    """Print the comparison of a study's runs; raise `LesionfastError` if some failed."""
    from lesionfast.evaluation.comparison import Comparison

    if outcome.runs:
        split = "test" if "test" in outcome.runs[0].metrics else "valid"
        print_comparison(Comparison.of(outcome.runs, split), folder / "comparison")
    if outcome.failures:
        told = "; ".join(f"'{name}': {why}" for name, why in outcome.failures.items())
        raise LesionfastError(f"{len(outcome.failures)} runs failed. {told}")


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
    from lesionfast.evaluation.audit_tables import audit_table
    from lesionfast.evaluation.tables import print_table

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
