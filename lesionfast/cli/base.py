"""What the commands share: the app, options that several take, and how results are printed."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lesionfast.config import (
    Columns,
    DataConfig,
    SplitConfig,
    TrainConfig,
    flag_name,
    read_option,
)
from lesionfast.console import echo, print_table, printable
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.run import Run, installed_version, newest_run

if TYPE_CHECKING:
    from lesionfast.evaluation.comparison import Comparison

TRAIN, READ, USE, DATA = "Train", "Read runs", "Use a model", "Data and names"  # groups in --help
PANELS = {Columns: "Columns", DataConfig: "Data", SplitConfig: "Split", TrainConfig: "Training"}


def option(kind: Any, help: str, *flags: str, envvar: str | None = None) -> Any:
    """Return the type of a parameter that is an option; `flags` replace the one by its name."""
    return Annotated[kind, typer.Option(*flags, help=help, envvar=envvar)]


def argument(kind: Any, help: str) -> Any:
    """Return the type of a parameter that is an argument."""
    return Annotated[kind, typer.Argument(help=help)]


Root = option(str, "Folder of the runs.", "--out")
Json = option(bool, "Print JSON to stdout.", "--json")
OneRun = argument(Path | None, "A run (default: the newest).")
Split = option(str, "Predictions to use: valid or test.")
CsvFile = option(Path | None, "Write the table to this CSV file as well.")
Device = option(str, "Device to compute on: auto, cpu, cuda or mps.")


class Commands(TyperGroup):
    """The commands; in an error about what was typed, letters that can't be seen are spelled out.

    What was typed may be the name of a file that the shell has found for a pattern.
    """

    def invoke(self, ctx: typer.Context) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):  # of what was typed
                error.message = printable(error.message)
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Classify dermoscopic images of skin lesions, fast and honestly. Not a medical device.",
)
runs_app = typer.Typer(invoke_without_command=True, subcommand_metavar="[COMMAND …]")
data_app = typer.Typer(no_args_is_help=True, help="Check, split, convert or download a dataset.")


def print_version(wanted: bool) -> None:
    """Print the version of this package and exit, if `wanted`."""
    if wanted:
        echo(installed_version())
        raise typer.Exit


@app.callback()
def set_global_options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import", help="Import a Python module first that registers backbones, losses, …"
        ),
    ] = None,
) -> None:
    """Global options."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and context.invoked_subcommand != "train":
        raise LesionfastError(
            f"a launcher has started lesionfast {context.invoked_subcommand} several times, but "
            "only lesionfast train shares its work so. Start it once, or unset WORLD_SIZE."
        )
    if modules:
        sys.path.append(os.getcwd())  # last, and only then: a folder is not to be trusted
    for name in modules or []:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0] and error.name != name:
                raise
            raise LesionfastError(
                f"there is no Python module '{name}' here. Type --import MODULE for MODULE.py in "
                "this folder, or for an installed one."
            ) from None


def config_options(config_class: type, *left_out: str) -> Callable[[Callable], Callable]:
    """Give a command one option for each field of `config_class`.

    The command receives those that the user typed as a dict in its first parameter, `given`.
    """
    chosen = [field for field in fields(config_class) if field.name not in left_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapper(**values: Any) -> None:
            given = {field.name: values.pop(field.name) for field in chosen}
            given = {name: value for name, value in given.items() if value not in (None, [])}
            command({name: read_option(value) for name, value in given.items()}, **values)

        _, *own = inspect.signature(command).parameters.values()
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in [*own, *map(make_option, chosen)]]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def make_option(field: Field) -> inspect.Parameter:
    """Return a field as a Typer option; None stands for "not typed"."""
    flag, text = flag_name(field.name), field.metadata["help"]
    flags = f"{flag}/--no-{flag[2:]}" if field.type is bool else flag
    if any(choice not in text for choice in field.metadata["choices"]):
        text += f" One of: {', '.join(field.metadata['choices'])}."
    if field.default is not None and not isinstance(field.default, bool):
        text += f" (default: {field.default})"
    panel = next(PANELS[owner] for owner in PANELS if field.name in owner.__annotations__)
    kind = str if field.type == float | str else field.type
    many = {"metavar": "<str>"} if field.metadata["many"] else {}  # <list[str]> takes room
    kind = list[str] if many else kind
    option = typer.Option(flags, help=text, rich_help_panel=panel, **many)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        field.name, keyword, default=None, annotation=Annotated[kind | None, option]
    )


def open_runs(paths: list[Path] | None, root: str) -> list[Run]:
    """Return the runs that were named, or else the newest one under `root`."""
    return [Run.open(path) for path in paths] if paths else [newest_run(root)]


def open_run(path: Path | None, root: str) -> Run:
    """Return the run that was named, or else the newest one under `root`."""
    return Run.open(path) if path else newest_run(root)


def print_json(value: Any) -> None:
    """Print JSON to stdout, in one line."""
    echo(json.dumps(value))


def print_run(run: Run, as_json: bool) -> None:
    """Print the metrics of a run to stderr and its path, or JSON, to stdout."""
    from lesionfast.evaluation.melanoma import describe_weight, prices_of_weight
    from lesionfast.reporting.metrics import metrics_table, price_table

    for split in ("valid", "test"):
        if split in run.metrics:
            print_table(metrics_table(run, split), stderr=True)
    if prices := prices_of_weight(run):
        print_table(price_table(run, prices), stderr=True)
    elif words := describe_weight(run):
        echo(words, stderr=True)
    print_corrections(run)
    from lesionfast.evaluation.distilled import NAME, describe_student

    if student := run.metrics.get(NAME):
        echo(describe_student(run, student), stderr=True)
    if run.metrics["status"] == "interrupted":
        line = f"lesionfast train --resume {shell_quote(run.path)}"
        echo(f"interrupted; continue with: {line}", stderr=True)
    if as_json:
        print_json({"run": str(run.path), **run.metrics})
    else:
        echo(run.path)


def print_corrections(run: Run) -> None:
    """Print what corrections change in the metrics of a run to stderr, if it has some."""
    if "corrections" not in run.metrics:
        return
    from lesionfast.evaluation.labelling.corrected import corrections_table, describe_corrections

    echo(describe_corrections(run), stderr=True)
    for split in run.metrics["before_corrections"]:
        print_table(corrections_table(run, split), stderr=True)


def print_comparison(
    comparison: "Comparison", folder: Path, as_json: bool = False, files: Iterable[Path] = ()
) -> None:
    """Draw a comparison to a folder; print it as a table or JSON, and the files, to stdout."""
    from lesionfast.evaluation.comparison import comparison_tables
    from lesionfast.reporting.comparison import draw_comparison

    figures = draw_comparison(comparison, folder)
    if as_json:
        print_json(comparison.to_dict() | {"figures": [str(figure) for figure in figures]})
        return
    for table in comparison_tables(comparison):
        print_table(table)
    echo(*files, *figures, sep="\n")
