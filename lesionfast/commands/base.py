"""What all commands share: the apps, and the options that many take."""

from typing import Annotated

import typer

from lesionfast.runs import own_version

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
