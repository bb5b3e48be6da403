"""The command line: `lesionfast`, and what becomes of an error."""

import sys
import warnings
from importlib import import_module

import typer

from lesionfast.commands.base import app
from lesionfast.console import log_to_console
from lesionfast.errors import LesionfastError

for room in ("training", "reading", "many", "serving", "names", "data"):  # in the order of --help
    import_module(f"lesionfast.commands.{room}")


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
