"""What goes to stderr while a command works: log lines and progress bars. Free of torch."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def log_to_console() -> None:
    """Send the library's log to stderr: everything on a terminal, else only what was repaired."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("lesionfast")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def progress_bar() -> "Progress":
    """Return a rich progress bar on stderr that vanishes when done; off without a terminal.

    In a notebook it needs ipywidgets, without which rich prints a warning at every step.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not (find_spec("ipywidgets") if console.is_jupyter else console.is_terminal),
    )


@contextmanager
def counting_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (done, in all) that moves a bar."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
