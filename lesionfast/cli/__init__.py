"""The command line: `lesionfast`, and what becomes of an error."""

import gc
import os
import sys
import warnings
from io import TextIOWrapper

import typer

from lesionfast.cli.base import app
from lesionfast.console import log_to_console
from lesionfast.errors import LesionfastError
from lesionfast.files import REASONS, error_number

# isort: off
from lesionfast.cli import training, reading, many, serving, names, data  # noqa: F401 (the order of --help)
# isort: on


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 the user can fix it, 1 a bug."""
    log_to_console()
    gc.set_threshold(50_000, 20, 20)  # importing leaves no garbage; 0.85 of the time
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as the system has it
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    try:
        run_and_flush()
    except LesionfastError as error:
        end_with(str(error))
    except OSError as error:
        if error_number(error) not in REASONS:
            raise
        end_with(in_a_line(error))


def run_and_flush() -> None:
    """Run the command; what stdout can't take is an error here, not as Python ends."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is None:  # stdout, perhaps: what it still holds is not tried again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
            sys.exit(1)
        raise


def in_a_line(error: OSError) -> str:
    """Return an error of the disk or of rights that no command has put into words."""
    name = f"{error.filename} can't be opened" if error.filename else "the output can't be written"
    return f"{name}: {REASONS[error_number(error)]}. Free some space, or name another place."


def end_with(message: str) -> None:
    """Print an error that the user can fix, and end with exit code 2."""
    typer.secho(f"error: {message}", fg="red", err=True)
    sys.exit(2)
