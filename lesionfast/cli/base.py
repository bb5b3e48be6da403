"""What all commands share: the apps, and the options that many take."""

import inspect
import json as json_module
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lesionfast.config import Columns, DataConfig, SplitConfig, TrainConfig
from lesionfast.runs import Run, own_version

if TYPE_CHECKING:
    from lesionfast.evaluation.comparison import Comparison

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Classify dermoscopic images of skin lesions, fast and honestly. Not a medical device.",
)


def print_version(wanted: bool) -> None:
    """Print the version of this package and end, if that is wanted."""
    if wanted:
        print(own_version())
        raise typer.Exit


@app.callback()
def of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take what is no command's own."""


data_app = typer.Typer(no_args_is_help=True, help="Check a dataset, or split it.")
app.add_typer(data_app, name="data")

Root = Annotated[str, typer.Option("--out", help="Folder of the runs.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]

PANELS = {Columns: "Columns", DataConfig: "Data", SplitConfig: "Split", TrainConfig: "Training"}


def options_of(config_class: type, *left_out: str) -> Callable[[Callable], Callable]:
    """Give a command one option a field of `config_class`.

    The command receives those that the user typed as a dict in its first parameter, `given`.
    """
    names = [each.name for each in fields(config_class) if each.name not in left_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapper(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command({k: v for k, v in given.items() if v is not None}, **values)

        _, *own = inspect.signature(command).parameters.values()
        options = [option_of(f, config_class) for f in fields(config_class) if f.name in names]
        parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in [*own, *options]]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate


def option_of(each: Field, config_class: type) -> inspect.Parameter:
    """Return one field as a Typer option; None stands for "not typed"."""
    owner = next(c for c in PANELS if each.name in c.__annotations__)
    flag = "--" + each.name.replace("_", "-")
    flags = f"{flag}/--no-{flag[2:]}" if each.type is bool else flag
    kind = str if each.type == float | str else each.type
    choices = each.metadata["choices"]
    silent_choices = [name for name in choices if name not in each.metadata["help"]]
    listed = f" One of: {', '.join(choices)}." if silent_choices else ""
    silent = each.default is None or isinstance(each.default, bool)
    default = "" if silent else f" (default: {each.default})"
    option = typer.Option(
        flags, help=each.metadata["help"] + listed + default, rich_help_panel=PANELS[owner]
    )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def print_run(run: Run, as_json: bool) -> None:
    """Print the metrics of a run to stderr and its path, or JSON, to stdout."""
    from lesionfast.console import print_table
    from lesionfast.report.metrics import metrics_table

    for split in ("valid", "test"):
        if split in run.metrics:
            print_table(metrics_table(run, split), stderr=True)
    if run.metrics["status"] == "interrupted":
        print(f"interrupted; go on with: lesionfast train --resume {run.path}", file=sys.stderr)
    print(json_module.dumps({"run": str(run.path), **run.metrics}) if as_json else run.path)


def print_comparison(
    comparison: "Comparison", folder: Path, as_json: bool = False, files: Iterable[Path] = ()
) -> None:
    """Draw a comparison to a folder; print it as a table or JSON, and the files, to stdout."""
    from lesionfast.console import print_table
    from lesionfast.report.comparison import comparison_table, draw_comparison

    figures = draw_comparison(comparison, folder)
    if as_json:
        print(json_module.dumps(comparison.to_dict() | {"figures": list(map(str, figures))}))
        return
    narrow = sys.stdout.isatty() and get_terminal_size().columns < 110
    print_table(comparison_table(comparison, narrow), whole=True)
    print("\n".join(map(str, [*files, *figures])))
