"""What a command shows: log lines and progress bars on stderr, and tables. Free of torch."""

import html
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group
    from rich.progress import Progress

logger = logging.getLogger("lesionfast")

# What a terminal or a page obeys instead of showing it: controls but tab and new line, marks that
# turn the order of letters round, letters without width or ink, and halves of a letter.
UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
NOT_UTF8 = range(0xDC80, 0xDD00)  # how Python keeps a byte of a file name that is not UTF-8

# Of the processes that a launcher has started together, the first speaks.
LATER_PROCESS = int(os.environ.get("WORLD_SIZE") or 1) > 1 and os.environ.get("RANK", "0") != "0"
SHOWN: set[str] = set()  # lines of the log that are on the console


def printable(text: object) -> str:
    """Return a text in which what can't be seen is spelled out: an escape is "\\x1b".

    Names in a dataset or a model come from strangers, and a terminal does what escapes say.
    """
    return UNSEEN.sub(lambda found: spell_out(ord(found[0])), str(text))


def spell_out(code: int) -> str:
    """Return a character by its number as Python writes it in a string: \\x1b, \\u202e."""
    return ascii(chr(code - 0xDC00 if code in NOT_UTF8 else code))[1:-1]


def echo(*values: object, sep: str = " ", stderr: bool = False, flush: bool = False) -> None:
    """Print values to stdout or stderr; a person is shown what can't be seen.

    In a pipe, stdout has them as they are, because programs read paths there.
    """
    file, text = sys.stderr if stderr else sys.stdout, sep.join(map(str, values))
    print(printable(text) if stderr or file.isatty() else text, file=file, flush=flush)


class PrintableLines(logging.Formatter):
    """Formats a line of the log as its message, in which nothing is unseen."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def show_log() -> None:
    """Send the library's log to stderr, as a notebook shows it, unless logging is set up.

    From now on each line is shown once more.
    """
    SHOWN.clear()
    if not logger.hasHandlers():
        log_to_console(logging.INFO)


def log_to_console(level: int | None = None) -> None:
    """Send the library's log to stderr, each line once: all of it on a terminal, else warnings."""

    def is_new(record: logging.LogRecord) -> bool:
        seen = record.getMessage() in SHOWN
        SHOWN.add(record.getMessage())
        return not seen

    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level or (logging.INFO if sys.stderr.isatty() else logging.WARNING))
    if LATER_PROCESS:
        handler.setLevel(logging.CRITICAL)
    handler.setFormatter(PrintableLines("%(message)s"))
    handler.addFilter(is_new)
    logging.lastResort.setFormatter(PrintableLines())  # for what a library tells without a handler
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


PARTS: list[str] = []  # of the work that is done now, such as "fold 2 of 5"


@contextmanager
def part_of_work(title: str) -> Iterator[None]:
    """Name a part of the work, such as "fold 2 of 5": its progress bars begin with that."""
    PARTS.append(title)
    try:
        yield
    finally:
        PARTS.pop()


def progress_bar() -> "Progress":
    """Return a rich progress bar on stderr that vanishes when done; off without a terminal.

    In a notebook it needs ipywidgets, without which rich prints a warning at every step.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    parts = printable("".join(f"{part}, " for part in PARTS)).replace("{", "{{").replace("}", "}}")
    return progress.Progress(
        progress.TextColumn(parts + "{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        disable=LATER_PROCESS
        or not (find_spec("ipywidgets") if console.is_jupyter else console.is_terminal),
    )


@contextmanager
def counting_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (done, in all) that moves a bar."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


MOST_ROWS = 10  # of a list that is shown in part


@dataclass(frozen=True)
class Cell:
    """A value in a table: its text, the number it is sorted by, the ends of its 95 % interval."""

    text: str
    number: float | None = None  # None: it is text
    low: float | None = None
    high: float | None = None
    form: str = ".3f"
    style: str = ""  # on a terminal: bold, dim, a colour

    @property
    def interval(self) -> str:
        """The interval as "[0.850, 0.940]", '' without one."""
        return "" if self.low is None else f"[{self.low:{self.form}}, {self.high:{self.form}}]"

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".rstrip()


MISSING = Cell("-")


def cell(value: Any, form: str = ".3f") -> Cell:
    """Return a value as a cell: '-' if it is missing, thousands with commas, floats as `form`."""
    if isinstance(value, Cell):
        return value
    if hasattr(value, "item"):  # a number of NumPy
        value = value.item()
    if is_missing(value):
        return MISSING
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}", float(value))
    if isinstance(value, float):
        return Cell(f"{value:{form}}", value)
    return Cell(str(value))


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN, or pandas' NA or NaT, without importing pandas."""
    if type(value).__module__.startswith("pandas."):
        import pandas as pd

        return bool(pd.isna(value))
    return value is None or (isinstance(value, float) and value != value)


def estimate(row: "Mapping | pd.Series", name: str = "value", form: str = ".3f") -> Cell:
    """Return the value of a column with the interval that is in its `_low` and `_high`."""
    ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    value, low, high = cell(row.get(name), form), *(cell(row.get(end)).number for end in ends)
    return value if low is None else Cell(value.text, value.number, low, high, form)


def percent(share: float) -> Cell:
    """Return a share in whole per cent."""
    return cell(share, ".0%")


def count(value: Any) -> Cell:
    """Return a number of parameters as "3.4 M" or "110 k"."""
    number = cell(value).number
    if number is None:
        return MISSING
    return Cell(f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k", number)


def duration(value: float | None) -> Cell:
    """Return seconds as "45 s", "12 min" or "3.5 h"."""
    seconds = cell(value).number
    if seconds is None:
        return MISSING
    if seconds < 90:
        return Cell(f"{seconds:.0f} s", seconds)
    text = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return Cell(text, seconds)


@dataclass
class Table:
    """A table for the terminal, HTML and Markdown; an empty row is a line between parts."""

    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""

    @classmethod
    def from_frame(
        cls, df: "pd.DataFrame", title: str, names: dict[str, str] | None = None, note: str = ""
    ) -> "Table":
        """Return a table of a DataFrame, in which x, x_low and x_high become one column.

        So do value, low and high. `names` are the columns to show and their headings, in that
        order; default: all of them, under their own names.
        """
        ends = {f"{name}_{end}" for name in df for end in ("low", "high")}
        ends |= {"low", "high"} if "value" in df else set()
        names = names or {name: str(name).replace("_", " ") for name in df if name not in ends}
        table = cls(title, list(names.values()), note=note)
        for row in df.to_dict("records"):
            table.add(*(estimate(row, name) for name in names))
        return table

    def add(self, *values: Any, style: str = "") -> None:
        """Append a row of cells or plain values, all in one style."""
        cells = [cell(value) for value in values]
        self.rows.append([replace(each, style=style or each.style) for each in cells])

    def add_line(self) -> None:
        """Append a line between two parts."""
        self.rows.append([])

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, or nothing but missing ones."""
        columns = [[row[i] for row in self.rows if i < len(row)] for i in range(len(self.columns))]
        return [
            any(each.number is not None for each in column)
            or all(each.text == MISSING.text for each in column)
            for column in columns
        ]

    def to_rich(self, narrow: bool = False) -> "Group":
        """Return title, table and note for the terminal; `narrow`: intervals on two lines."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for name, numeric in zip(self.columns, self.numeric, strict=True):
            heading = printable(fill(name, 12, break_long_words=False) if numeric else name)
            table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
        gap = ",\n" if narrow else ", "
        for row in self.rows:
            texts = [f"{each.text}\n{each.interval.replace(', ', gap)}".rstrip() for each in row]
            texts = map(printable, texts)
            if row:
                table.add_row(*(Text(t, each.style) for t, each in zip(texts, row, strict=True)))
            else:
                table.add_section()
        note = [Text(printable(self.note), "dim")] if self.note else []
        return Group(Text(printable(self.title), "bold"), table, *note)

    def to_markdown(self) -> str:
        """Return it as Markdown, intervals beside their values."""
        rows = [
            [f"{escape_markdown(c.text)} {c.interval}".rstrip() for c in row] for row in self.rows
        ]
        head = [*map(escape_markdown, self.columns)]
        lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows] if row]
        return "\n".join([f"{escape_markdown(self.title)}:\n", *lines, ""])

    def to_html(self) -> str:
        """Return it as an HTML table with its title, numbers to the right."""
        sides = ["right" if numeric else "left" for numeric in self.numeric]

        def row(tag: str, texts: Iterable[str]) -> str:
            cells = zip(texts, sides, strict=False)
            return "".join(
                f'<{tag} style="text-align: {side}">{escape_html(text)}</{tag}>'
                for text, side in cells
            )

        body = [row("td", map(str, cells)) for cells in self.rows if cells]
        note = f"<p>{escape_html(self.note)}</p>" if self.note else ""
        lines = "".join(f"<tr>{line}</tr>" for line in [row("th", self.columns), *body])
        caption = f'<caption style="text-align: left">{escape_html(self.title)}</caption>'
        return f"<table>{caption}{lines}</table>{note}".replace("\n", "<br>")


def escape_html(text: str) -> str:
    """Return text as HTML that shows it letter by letter."""
    return html.escape(printable(text))


def escape_markdown(text: str) -> str:
    """Return text as Markdown that shows it letter by letter, on one line: no HTML, no marks."""
    line = printable(" ".join(text.split()))
    return re.sub(r"([\\`*\[\]|$~]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(line, quote=False))


def print_table(table: Table, stderr: bool = False) -> None:
    """Print a table and a blank line; in a pipe no cell is wrapped and none has a colour."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    shown = table.to_rich()
    fix_widths(shown.renderables[1])
    wide = console.options.update(width=1000)
    needed = Measurement.get(console, wide, shown.renderables[1]).maximum
    if not console.is_terminal:
        console.width = max(console.width, needed, 80)
    console.print(table.to_rich(narrow=True) if needed > console.width else shown, "")


def fix_widths(table: Any) -> None:
    """Make each column of a rich table as wide as its text, which rich would find out twice."""
    from rich.cells import cell_len

    for column in table.columns:
        texts = map(str, [column.header, *column.cells])
        column.width = max(cell_len(line) for text in texts for line in text.splitlines() or [""])
