"""The command line: `lesionfast`, and how its errors end."""

import gc
import os
import sys
import time
import warnings
from io import TextIOWrapper
from traceback import format_exception
from typing import Any

import typer

from lesionfast.cli.base import app
from lesionfast.console import LATER_PROCESS, log_to_console, printable
from lesionfast.errors import LesionfastError
from lesionfast.files import REASONS, error_number

# isort: off
from lesionfast.cli import training, reading, labelling, runs, serving, data, cache  # noqa: F401 (order of --help)
# isort: on

format_warning = warnings.formatwarning
PATIENCE = 10  # seconds for a launcher to notice that the first process has ended


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 the user can fix it, 1 a bug."""
    log_to_console()
    gc.set_threshold(50_000, 20, 20)  # importing leaves no garbage; 0.85 of the time
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as the system has it
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.formatwarning = lambda *about, **more: printable(format_warning(*about, **more))
    try:
        run_and_flush()
    except LesionfastError as error:
        exit_with(str(error))
    except OSError as error:  # of the disk or of rights, where no command has handled it
        if error_number(error) not in REASONS:
            raise
        name = f"{error.filename} can't be opened" if error.filename else "can't write the output"
        exit_with(
            f"{name}: {REASONS[error_number(error)]}. Free some space, or name another place."
        )
    except Exception:
        sys.excepthook = show_bug
        raise


def show_bug(*error: Any) -> None:
    """Print a traceback, in whose message a name may have letters that a terminal obeys."""
    sys.stderr.write(printable("".join(format_exception(*error))))


def run_and_flush() -> None:
    """Run the command; an output that stdout can't take is an error here, not when Python ends."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is None:  # stdout, perhaps: drop what it still holds
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
            sys.exit(1)
        raise


def exit_with(message: str) -> None:
    """Print an error that the user can fix, and exit with code 2.

    Of several processes with the same error the first ends at once, and its launcher the others.
    """
    if LATER_PROCESS:
        time.sleep(PATIENCE)
    typer.secho(f"error: {printable(message)}", fg="red", err=True)
    sys.exit(2)
