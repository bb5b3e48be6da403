"""Read a table as text, a part at a time, and say what is wrong with it.

Training, prediction and everything else that reads a user's table reads it here; what its values
may be is for `metadata` and `encoder` to say.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from operator import ne
from pathlib import Path

import pandas as pd

from lesionfast.data.formats.excel import EXCEL
from lesionfast.data.formats.records import (
    PARQUET,
    find_declared,
    find_encoding,
    is_text,
    read_records,
)
from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize, shorten

logger = logging.getLogger("lesionfast")

SEPARATORS = {",": ",", ";": ";", "|": "|", "\t": "tab"}  # as in the file -> as typed
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", *EXCEL, *PARQUET)
EMPTY = ("", "nan", "na", "n/a", "null")  # compared in lower case
MOST_COLUMNS = 5_000
MOST_OF_NAME = 80  # letters of a name or a value in a message
CELLS = 400_000  # read together: bounds the memory
LOOK = 20  # rows that show what separates the fields, and whether the first one names them


def read_table(
    path: Path,
    required: Mapping[str, str],
    separator: str | None = None,
    *,
    option: str | None = "--csv",
) -> pd.DataFrame:
    """Read a table with a header; every value is text, as `TableFile` reads it.

    `required` maps each column that must be there to the option that names it (or to '').
    """
    table = open_table(path, separator, option)
    table.require(required)
    return pd.concat(list(table.read_chunks()))


def open_table(
    path: Path, separator: str | None = None, option: str | None = "--csv"
) -> "TableFile":
    """Open a table; the separator, unless it is given, is the one that divides it best.

    Raises `LesionfastError` for a file that can't be read, or a text file without columns.
    """
    table = TableFile(path, guess_separator(path) if separator is None else separator, option)
    if path.suffix.lower() == ".txt" and len(table.header) < 2:
        raise LesionfastError(
            f"{path} is text without columns. Name a table such as a CSV file, or the character "
            "between its fields with --separator."
        )
    return table


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its suffix.

    A Parquet file with pictures is none, nor is text without columns.
    """
    suffix = path.suffix.lower()
    if suffix not in (".txt", *PARQUET):
        return suffix in TABLE_SUFFIXES
    try:
        return bool(open_table(path).header)
    except LesionfastError:
        return False


def guess_separator(path: Path) -> str:
    """Return the separator that a CSV declares, else the one that divides it best.

    That is the one which finds the most names in the first row, of those by which most rows below
    have as many fields; by default a comma.
    """
    if not is_text(path):
        return ","
    declared = None
    with suppress(LesionfastError), readable(path, None):  # opening it says what is wrong
        declared = find_declared(path)
    return declared or max(SEPARATORS, key=lambda separator: count_fields(path, separator))


def count_fields(path: Path, separator: str) -> tuple[int, int, int]:
    """Return the names if the rows below fit them, the names, and the fields of the rows below."""
    first_rows = peek(path, separator)
    if not first_rows:
        return 0, 0, 0
    header, *rows = first_rows
    names = sum(any(set(name) - {*SEPARATORS}) for name in header)
    rows = [row for row in rows if any(row)]
    alike = sum(len(row) >= len(header) and not any(row[len(header) :]) for row in rows)
    fits = names > 1 and 2 * alike >= len(rows)
    return names if fits else 0, names, sum(map(len, rows)) if names else 0


def peek(path: Path, separator: str) -> list[list[str]]:
    """Return the first rows of a table, those before an error if there is one."""
    rows: list[list[str]] = []
    with suppress(LesionfastError), readable(path, None):
        for row in islice(read_records(path, separator), LOOK):
            rows.append([value.strip() for value in row[: MOST_COLUMNS + 1]])
    return rows


class TableFile:
    """A table whose first row names the columns; its values are text without spaces around them.

    `separator` is one character, or 'tab', between the fields of a CSV; `option` is the one that
    names the file, '' for an argument of `predict`, None if none does. Excel and Parquet files are
    read alike. Raises `LesionfastError` for a file that can't be read so.
    """

    def __init__(self, path: Path, separator: str = ",", option: str | None = "--csv") -> None:
        self.path, self.option = path, option
        self.separator = parse_separator(separator)
        self.header = read_header(path, self.separator, option)
        if len(self.header) > MOST_COLUMNS:
            raise LesionfastError(
                f"{path} has {len(self.header):,} columns; at most {MOST_COLUMNS:,} are read. "
                "Remove those that you do not need."
            )
        name, count = Counter(filter(None, self.header)).most_common(1)[0]
        if count > 1:
            raise LesionfastError(
                f"{path} has {'two' if count == 2 else count} columns '{name}'. Rename one of them "
                "in the file."
            )
        self._check_title()

    def _check_title(self) -> None:
        """Raise `LesionfastError` if the first row has one field and one below has several."""
        (title, *names), rows = filter(None, self.header), peek(self.path, self.separator)
        below = [number for number, row in enumerate(rows, 1) if sum(map(bool, row)) > 1]
        if not names and below:
            raise LesionfastError(
                f"the first row of {self.path} does not name the columns: it is "
                f"'{shorten(title, MOST_OF_NAME)}' alone, and row {below[0]} has "
                f"{len(rows[below[0] - 1])} fields. Remove the rows above the column names."
            )

    def require(self, columns: Mapping[str, str]) -> None:
        """Raise `LesionfastError` unless all columns are there; see `read_table`."""
        missing = next((name for name in columns if name not in self.header), None)
        if missing is None:
            return
        best = find_separator(self.path, columns, self.separator)
        if is_text(self.path) and best != self.separator:
            typed = self.option in ("--csv", "")
            add = f"Add --separator '{SEPARATORS[best]}'." if typed else "Save it with commas."
            raise LesionfastError(
                f"the fields of {self.path} are separated by '{SEPARATORS[best]}', not by "
                f"'{SEPARATORS.get(self.separator, self.separator)}'. {add}"
            )
        option = columns[missing]
        raise LesionfastError(
            f"column '{missing}' is not in {self.path.name}; it has: {list_columns(self.header)}."
            f"{did_you_mean(missing, self.header)} "
            + (f"Name yours with {option}." if option else "Add it to the file.")
        )

    def read_chunks(self, report: bool = True) -> Iterator[pd.DataFrame]:
        """Yield the rows, some thousand at a time; what was skipped or filled is logged at the end.

        The index counts rows as a spreadsheet does: the header is row 1.
        """
        counts: Counter[str] = Counter()
        start, size = 2, max(CELLS // len(self.header), CELLS // MOST_COLUMNS)
        with readable(self.path, self.option):
            records = read_records(self.path, self.separator)
            next(records)
            fitting = self._cut(records, start, counts)
            while rows := list(islice(fitting, size)):
                table = self._as_frame(rows, start, counts)
                start += len(rows)
                if len(table):
                    counts["rows"] += len(table)
                    yield table
        if not counts["rows"]:
            other = f" with {self.option}" if self.option else ""
            raise LesionfastError(f"{self.path} has a header but no rows. Name another CSV{other}.")
        if report:
            self._report(counts)

    def _cut(
        self, rows: Iterator[list[str]], start: int, counts: Counter[str]
    ) -> Iterator[list[str]]:
        """Yield rows no longer than the header, which are collected: a line may have millions."""
        width = len(self.header)
        for number, row in enumerate(rows, start):
            yield row if len(row) <= width else self._fit(row, number, counts)

    def _as_frame(self, rows: list[list[str]], start: int, counts: Counter[str]) -> pd.DataFrame:
        """Return rows, the first of them row `start` of the file, without blank ones."""
        if not any(rows):  # blank lines alone
            counts["blank"] += len(rows)
            return pd.DataFrame()
        if set(map(len, rows)) != {len(self.header)}:
            rows = [self._fit(row, start + i, counts) for i, row in enumerate(rows)]
        index, columns = pd.RangeIndex(start, start + len(rows)), {}
        for name, values in zip(self.header, zip(*rows, strict=True), strict=True):
            if name:
                stripped = tuple(map(str.strip, values))
                if stripped != values:
                    counts["stripped"] += sum(map(ne, values, stripped))
                columns[name] = pd.Series(list(stripped), index, dtype="str")
        table = pd.DataFrame(columns)
        if not (table.iloc[:, 0] == "").any():
            return table
        blank = (table == "").all(axis=1)
        counts["blank"] += int(blank.sum())
        return table[~blank]

    def _fit(self, row: list[str], number: int, counts: Counter[str]) -> list[str]:
        """Return row `number` with as many fields as the header; a longer one is an error."""
        width = len(self.header)
        if any(row[width:]):
            raise LesionfastError(
                f"{self.path} can't be read as CSV: row {number} has {len(row)} fields, the header "
                f"has {width}. Look for an extra separator, or put quotes around the field that "
                "contains one."
            )
        if any(row) and len(row) < width:
            counts["short"] += 1
            counts["first short"] = counts["first short"] or number
        return row[:width] + [""] * (width - len(row))

    def _report(self, counts: Counter[str]) -> None:
        unnamed = self.header.count("")
        example = find_encoding(self.path)[1] if is_text(self.path) else ""
        if example:
            logger.warning(
                "%s is not in UTF-8 and was read as Windows-1252, such as '%s'. If that is not "
                "what it says, save it as 'CSV UTF-8'",
                self.path.name, shorten(example, MOST_OF_NAME),
            )  # fmt: skip
        for count, sentence in [
            (counts["stripped"], f"removed spaces around {pluralize(counts['stripped'], 'value')}"),
            (counts["blank"], f"skipped {pluralize(counts['blank'], 'blank row')}"),
            (unnamed, f"ignored {pluralize(unnamed, 'column')} without a name"),
            (
                counts["short"],
                f"{pluralize(counts['short'], 'row')} with fewer fields than the header (first: row"
                f" {counts['first short']}); the missing fields count as empty",
            ),
        ]:
            if count:
                logger.warning("%s: %s", self.path.name, sentence)


@contextmanager
def readable(path: Path, option: str | None) -> Iterator[None]:
    """Turn what the system says of a file that can't be read into `LesionfastError`."""
    if not path.is_file():
        what_to_type = f" Name the CSV with {option}." if option else " Name a CSV file."
        raise LesionfastError(f"there is no file {path}.{what_to_type}")
    try:
        yield
    except UnicodeError as error:
        raise LesionfastError(
            f"{path} is not text in UTF-8 ({error}). Save it as 'CSV UTF-8' and try again."
        ) from None
    except OSError as error:
        raise LesionfastError(f"{path} can't be read: {error.strerror or error}.") from None


def parse_separator(typed: str) -> str:
    """Return the character that `typed` stands for; 'tab' is a tab."""
    separator = {"tab": "\t", "\\t": "\t"}.get(typed, typed)
    if len(separator) != 1 or separator in '"\r\n':
        raise LesionfastError(
            f"--separator is '{typed}', which is not one character. Type one of: "
            f"{', '.join(map(repr, SEPARATORS.values()))}."
        )
    return separator


def find_separator(path: Path, columns: Iterable[str], default: str = ",") -> str:
    """Return the separator that finds the most of some column names, `default` if none does."""
    wanted = set(columns)

    def count_found(separator: str) -> int:
        try:
            return len(wanted & set(read_header(path, separator)))
        except LesionfastError:
            return 0

    return max([default, *SEPARATORS], key=count_found)


def list_columns(names: Sequence[str]) -> str:
    """Return column names for an error: the first thirty, long ones shortened."""
    return list_first((shorten(name, MOST_OF_NAME) for name in names), 30)


def read_header(path: Path, separator: str, option: str | None = None) -> list[str]:
    """Return the column names in the first row; raises `LesionfastError` if there are none."""
    with readable(path, option):
        names = [name.strip() for name in next(read_records(path, separator), [])]
    if not any(names):
        raise LesionfastError(
            f"{path} is empty or starts with a blank line. Its first line must name the columns."
        )
    return names
