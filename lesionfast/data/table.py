"""Read a CSV as text, a part at a time, and say what is wrong with it.

Training, prediction and all else that reads a table of a person reads it here.
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

from lesionfast.errors import LesionfastError, did_you_mean, list_first

logger = logging.getLogger("lesionfast")

SEPARATORS = {",": ",", ";": ";", "|": "|", "\t": "tab"}  # as in the file -> as typed
MARKS = {  # byte order marks; that of UTF-32 begins as that of UTF-16
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
MOST_COLUMNS = 5_000
MOST_CHARACTERS = 2**25  # of a line: more is no table
CELLS = 400_000  # read together: bounds the memory
FIRST = 30  # names in an error


def read_table(
    path: Path, required: Mapping[str, str], separator: str = ",", *, option: str | None = "--csv"
) -> pd.DataFrame:
    """Read a CSV with a header; every value is text without surrounding blanks, '' if empty.

    `required` maps the columns that must be there to the option that names them (or to '');
    `option` is the one that names the file, '' for an argument of `predict`, None if none does.
    The index counts rows as a spreadsheet does: the header is row 1. UTF-8 is read, and UTF-16 and
    UTF-32 with a byte order mark. Raises `LesionfastError` if the file can't be read so.
    """
    return pd.concat(list(read_chunks(path, required, separator, option=option)))


def read_chunks(
    path: Path,
    required: Mapping[str, str],
    separator: str = ",",
    *,
    option: str | None = "--csv",
    report: bool = True,
) -> Iterator[pd.DataFrame]:
    """Yield a CSV in parts of some thousand rows, each as `read_table` returns the whole.

    What was left out, filled or cut is said at the end if `report`.
    """
    separator = as_separator(separator)
    counts: Counter[str] = Counter()
    with readable(path, option):
        header = read_header(path, separator)
        check_header(path, header, required, separator, option)
        records, start = read_records(path, separator), 2
        next(records)
        size = max(CELLS // len(header), CELLS // MOST_COLUMNS)
        while rows := list(islice(records, size)):
            table = as_frame(path, header, start, rows, counts)
            start += len(rows)
            if len(table):
                counts["rows"] += len(table)
                yield table
    if not counts["rows"]:
        other = f" with {option}" if option else ""
        raise LesionfastError(f"{path} has a header but no rows. Name another CSV{other}.")
    if report:
        report_counts(path, header, counts)


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


def as_separator(typed: str) -> str:
    """Return the separator that `typed` stands for ('tab' is a tab), one character."""
    separator = {"tab": "\t", "\\t": "\t"}.get(typed, typed)
    if len(separator) != 1 or separator in '"\r\n':
        raise LesionfastError(
            f"--separator is '{typed}', which is not one character. Type one of: "
            f"{', '.join(repr(each) for each in SEPARATORS.values())}."
        )
    return separator


def encoding_of(path: Path) -> str:
    """Return the encoding that the first bytes of a text file tell."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((MARKS[mark] for mark in MARKS if start.startswith(mark)), "utf-8-sig")


def read_records(path: Path, separator: str) -> Iterator[list[str]]:
    """Yield the fields of each row, [] of a blank line; raises `LesionfastError` if it is torn."""
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

    with path.open(encoding=encoding_of(path), newline="") as file:
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


def read_header(path: Path, separator: str) -> list[str]:
    """Return the column names in the first line; raises `LesionfastError` if there are none."""
    names = [name.strip() for name in next(read_records(path, separator), [])]
    if not any(names):
        raise LesionfastError(
            f"{path} is empty or starts with a blank line. Its first line must name the columns."
        )
    return names


def check_header(
    path: Path, header: list[str], required: Mapping[str, str], separator: str, option: str | None
) -> None:
    """Raise `LesionfastError` for too many columns, one that is missing and one there twice."""
    if len(header) > MOST_COLUMNS:
        raise LesionfastError(
            f"{path} has {len(header):,} columns; at most {MOST_COLUMNS:,} are read. Remove those "
            "that are not needed."
        )
    name, count = Counter(filter(None, header)).most_common(1)[0]
    if count > 1:
        raise LesionfastError(
            f"{path} has {'two' if count == 2 else count} columns '{name}'. Rename one of them in "
            "the file."
        )
    for name in required:
        if name not in header:
            suggest_separator(path, required, separator, option)
            raise missing_column(path.name, name, header, required[name])


def suggest_separator(
    path: Path, required: Mapping[str, str], separator: str, option: str | None
) -> None:
    """Raise `LesionfastError` if another separator finds more of the required columns."""
    best = find_separator(path, required, separator)
    if best != separator:
        typed = option in ("--csv", "")
        add = f"Add --separator '{SEPARATORS[best]}'." if typed else "Save it with commas."
        raise LesionfastError(
            f"the fields of {path} are separated by '{SEPARATORS[best]}', not by "
            f"'{SEPARATORS.get(separator, separator)}'. {add}"
        )


def find_separator(path: Path, names: Iterable[str], default: str = ",") -> str:
    """Return the separator that finds the most of some column names, `default` if none does."""

    def count(separator: str) -> int:
        try:
            return len(set(read_header(path, separator)) & wanted)
        except LesionfastError:
            return 0

    wanted = set(names)
    return max([default, *SEPARATORS], key=count)


def missing_column(file: str, name: str, known: list[str], option: str | None) -> LesionfastError:
    """Return the error for a column that is not there: what it has, the nearest, what to type."""
    what_to_type = f"Name yours with {option}." if option else "Add it to the file."
    return LesionfastError(
        f"column '{name}' is not in {file}; it has: {list_names(known)}."
        f"{did_you_mean(name, known)} {what_to_type}"
    )


def list_names(names: Sequence[str]) -> str:
    """Return column names for an error: the first thirty, each as far as a line goes."""
    return list_first((name if len(name) <= 80 else f"{name[:80]}…" for name in names), FIRST)


def as_frame(
    path: Path, header: list[str], start: int, rows: list[list[str]], counts: Counter[str]
) -> pd.DataFrame:
    """Return rows as a table, the first of them row `start` of the file; blank rows are left out.

    What is cut or filled is counted. Raises `LesionfastError` for a row that is too long.
    """
    if set(map(len, rows)) != {len(header)}:
        rows = [fit_row(path, header, start + i, row, counts) for i, row in enumerate(rows)]
    columns = zip(header, zip(*rows, strict=True), strict=True)
    index = pd.RangeIndex(start, start + len(rows))
    stripped = ((name, strip(values, counts)) for name, values in columns if name)
    table = pd.DataFrame({name: pd.Series(text, index, dtype="str") for name, text in stripped})
    blank = np.logical_and.reduce([table[name] == "" for name in table])
    counts["blank"] += int(blank.sum())
    return table[~blank] if blank.any() else table


def fit_row(
    path: Path, header: list[str], number: int, row: list[str], counts: Counter[str]
) -> list[str]:
    """Return a row with as many fields as the header; raises `LesionfastError` if it has more."""
    width = len(header)
    if any(row[width:]):
        raise LesionfastError(
            f"{path} can't be read as CSV: row {number} has {len(row)} fields, the header has "
            f"{width}. Look for an extra separator, or put quotes around the field that has one."
        )
    if any(row) and len(row) < width:
        counts["short"] += 1
        counts["first short"] = counts["first short"] or number
    return row[:width] + [""] * (width - len(row))


def strip(values: Sequence[str], counts: Counter[str]) -> np.ndarray:
    """Return values without blanks at both ends; how many had some is counted."""
    stripped = np.empty(len(values), object)
    stripped[:] = [value.strip() for value in values]
    if any(map(ne, values, stripped)):
        counts["strip"] += sum(map(ne, values, stripped))
    return stripped


def report_counts(path: Path, header: list[str], counts: Counter[str]) -> None:
    """Say what was cut, filled or left out of a table."""
    sentences = {
        "%d values with blanks around them, taken off": counts["strip"],
        "%d blank rows left out": counts["blank"],
        "%d columns without a name, left out": header.count(""),
    }
    for sentence, count in sentences.items():
        if count:
            logger.warning(f"%s: {sentence}", path.name, count)
    if counts["short"]:
        logger.warning(
            "%s: %d rows have fewer fields than the header, the first is row %d: missing fields "
            "count as empty", path.name, counts["short"], counts["first short"],
        )  # fmt: skip
