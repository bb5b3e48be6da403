"""Read a CSV as text, a part at a time, and say what is wrong with it.

Training, prediction and everything else that reads a user's table reads it here; what its values
may be is for `metadata` and `encoder` to say.
"""

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import ne
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize

logger = logging.getLogger("lesionfast")

SEPARATORS = {",": ",", ";": ";", "|": "|", "\t": "tab"}  # as in the file -> as typed
ENCODINGS = {  # by byte order mark; that of UTF-32 begins like that of UTF-16
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
EMPTY = ("", "nan", "na", "n/a", "null")  # compared in lower case
MOST_COLUMNS = 5_000
MOST_CHARACTERS = 2**25  # of a line: a longer one is not from a table
CELLS = 400_000  # read together: bounds the memory


def read_table(
    path: Path,
    required: Mapping[str, str],
    separator: str | None = None,
    *,
    option: str | None = "--csv",
) -> pd.DataFrame:
    """Read a table with a header; every value is text, as `CsvFile` reads it.

    `required` maps each column that must be there to the option that names it (or to '').
    """
    table = open_table(path, separator, option)
    table.require(required)
    return pd.concat(list(table.read_chunks()))


def open_table(path: Path, separator: str | None = None, option: str | None = "--csv") -> "CsvFile":
    """Open a table; the separator, unless it is given, is the one that finds the most columns."""
    return CsvFile(path, guess_separator(path) if separator is None else separator, option)


def guess_separator(path: Path) -> str:
    """Return the separator that divides the first row into the most names, by default a comma."""

    def count_fields(separator: str) -> int:
        try:
            return sum(any(set(name) - {*SEPARATORS}) for name in read_header(path, separator))
        except LesionfastError:
            return 0

    return max(SEPARATORS, key=count_fields)


class CsvFile:
    """A CSV whose first row names the columns; its values are text without spaces around them.

    `separator` is one character, or 'tab'; `option` is the one that names the file, '' for an
    argument of `predict`, None if none does. The encoding is UTF-8, or UTF-16 or UTF-32 with a byte
    order mark. Raises `LesionfastError` for a file that can't be read so.
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

    def require(self, columns: Mapping[str, str]) -> None:
        """Raise `LesionfastError` unless all columns are there; see `read_table`."""
        missing = next((name for name in columns if name not in self.header), None)
        if missing is None:
            return
        best = find_separator(self.path, columns, self.separator)
        if best != self.separator:
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
            while rows := list(islice(records, size)):
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

    def _as_frame(self, rows: list[list[str]], start: int, counts: Counter[str]) -> pd.DataFrame:
        """Return rows, the first of them row `start` of the file, without blank ones."""
        if set(map(len, rows)) != {len(self.header)}:
            rows = [self._fit(row, start + i, counts) for i, row in enumerate(rows)]
        index, columns = pd.RangeIndex(start, start + len(rows)), {}
        for name, values in zip(self.header, zip(*rows, strict=True), strict=True):
            if name:
                stripped = np.empty(len(rows), object)
                stripped[:] = [value.strip() for value in values]
                counts["stripped"] += sum(map(ne, values, stripped))
                columns[name] = pd.Series(stripped, index, dtype="str")
        table = pd.DataFrame(columns)
        blank = np.logical_and.reduce([table[name] == "" for name in table])
        counts["blank"] += int(blank.sum())
        return table[~blank] if blank.any() else table

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
    """Turn what the system says of a file that can't be read as text into `LesionfastError`."""
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
    return list_first((name if len(name) <= 80 else f"{name[:80]}…" for name in names), 30)


def read_header(path: Path, separator: str, option: str | None = None) -> list[str]:
    """Return the column names in the first row; raises `LesionfastError` if there are none."""
    with readable(path, option):
        names = [name.strip() for name in next(read_records(path, separator), [])]
    if not any(names):
        raise LesionfastError(
            f"{path} is empty or starts with a blank line. Its first line must name the columns."
        )
    return names


def read_records(path: Path, separator: str) -> Iterator[list[str]]:
    """Yield the fields of each row, [] for a blank line; raises `LesionfastError` if it is torn."""
    row, ended = 0, False

    def read_lines() -> Iterator[str]:
        nonlocal ended
        while line := file.readline(MOST_CHARACTERS):
            if "\0" in line or len(line) == MOST_CHARACTERS:
                what = "a NUL byte" if "\0" in line else "a line of more than 32 million characters"
                raise LesionfastError(
                    f"{path} is not a table: row {row + 1} has {what}. Save it as 'CSV UTF-8'."
                )
            yield line
        ended = True

    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((ENCODINGS[mark] for mark in ENCODINGS if start.startswith(mark)), "utf-8-sig")
    with path.open(encoding=encoding, newline="") as file:
        try:
            for fields in csv.reader(read_lines(), delimiter=separator, skipinitialspace=True):
                row += 1
                if ended:  # in the middle of a row, looking for the end of a quoted field
                    raise csv.Error("a quote is open until the end of the file")
                yield fields
        except csv.Error as error:
            raise LesionfastError(
                f"{path} can't be read as CSV: row {row + (not ended)}: {error}. "
                "Look for a quote that is not closed there, and correct it."
            ) from None
