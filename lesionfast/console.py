"""What goes to stderr while a command works: log lines and progress bars. Free of torch."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress
    from rich.table import Table

logger = logging.getLogger("lesionfast")


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


MOST_ROWS = 10  # of a list that is shown in part


def print_table(table: "Table", stderr: bool = False, whole: bool = False) -> None:
    """Print a table and a blank line; a pipe gets no colours and no lost columns.

    With `whole` no cell is wrapped in a pipe, however long the lines become.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        unlimited = console.options.update(width=1000)
        needed = Measurement.get(console, unlimited, table)
        console.width = max(console.width, needed.maximum if whole else needed.minimum, 80)
    console.print(table, "")


def new_table(title: str, caption: str = "") -> "Table":
    """Return an empty table in the one style that all have."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title,
        caption=caption or None,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )


def add_columns(table: "Table", first: str, *others: str) -> None:
    """Add one column for text, on the left, and others for numbers, on the right."""
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")


def with_interval(
    row: "Mapping[str, Any] | pd.Series", name: str, form: str = ".3f", between: str = "\n"
) -> str:
    """Return a value and, on a second line unless told, its interval; '-' if it is undefined."""
    prefix = "" if name == "value" else f"{name}_"
    value, low, high = row.get(name), row.get(f"{prefix}low"), row.get(f"{prefix}high")
    if value is None or value != value:
        return "-"
    return f"{value:{form}}{between}[{low:{form}}, {high:{form}}]"


def decimal(value: float | None) -> str:
    """Return a number with three decimals, '-' if it is undefined."""
    return "-" if value is None or value != value else f"{value:.3f}"


def plain(value: Any) -> str:
    """Return a value as people write it: whole numbers without decimals, '-' if missing."""
    if value is None or value != value:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def count(value: Any) -> str:
    """Return a number of parameters as "3.4 M" or "110 k", '-' if it is not known."""
    import pandas as pd

    if pd.isna(value):
        return "-"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def duration(seconds: float | None) -> str:
    """Return seconds as "45 s", "12 min" or "3.5 h", '-' if they are not known."""
    if seconds is None or seconds != seconds:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
