"""What all commands share: the apps, and the options that many take."""

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Classify dermoscopic images of skin lesions, fast and honestly. Not a medical device.",
)


data_app = typer.Typer(no_args_is_help=True, help="Check a dataset, or split it.")
app.add_typer(data_app, name="data")


Root = Annotated[str, typer.Option("--out", help="Folder of the runs.")]


Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
