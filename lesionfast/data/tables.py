"""Read a CSV as text, and say what is wrong with it."""

import csv
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lesionfast.errors import LesionfastError, did_you_mean

logger = logging.getLogger("lesionfast")

SEPARATORS = {",": ",", ";": ";", "|": "|", "\t": "tab"}  # as in the file -> as typed
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_table(
    path: Path, required: Mapping[str, str], separator: str = ",", *, option: str = "--csv"
) -> pd.DataFrame:
    """Read a CSV with a header; every value is text without surrounding blanks, '' if empty.

    `required` maps the columns that must be there to the option that names them (or to '');
    `option` is the one that names the file.
    The index counts rows as a spreadsheet does: the header is row 1. UTF-8 and UTF-16 are read,
    with or without a byte order mark. Raises `LesionfastError` if the file can't be read so.
    """
    separator = as_separator(separator)
    if not path.is_file():
        raise LesionfastError(f"there is no file {path}. Name the CSV with {option}.")
    try:
        check_header(path, read_header(path, separator), required, separator, option)
        table = parse(path, separator)
    except UnicodeError as error:
        raise LesionfastError(
            f"{path} is not text in UTF-8 ({error}). Save it as 'CSV UTF-8' and try again."
        ) from None
    except (OSError, csv.Error, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise LesionfastError(
            f"{path} can't be read as CSV: {str(error).strip()}. Look for a row with too many "
            "fields or an open quote, and correct it."
        ) from None
    return without_blank_rows(path, strip(path, table), option)


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
        return "utf-16" if file.read(2) in UTF16_MARKS else "utf-8-sig"


def read_header(path: Path, separator: str) -> list[str]:
    """Return the column names in the first line; raises `LesionfastError` if there are none."""
    with path.open(encoding=encoding_of(path), newline="") as file:
        header = next(csv.reader(file, delimiter=separator, skipinitialspace=True), [])
    names = [name.strip() for name in header]
    if not any(names):
        raise LesionfastError(
            f"{path} is empty or starts with a blank line. Its first line must name the columns."
        )
    return names


def check_header(
    path: Path, header: list[str], required: Mapping[str, str], separator: str, option: str
) -> None:
    """Raise `LesionfastError` for a column that is missing or there twice."""
    for name in required:
        if name not in header:
            suggest_separator(path, required, separator, option)
            raise missing_column(path.name, name, header, required[name])
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice:
        raise LesionfastError(f"{path} has two columns '{twice}'. Rename one of them in the file.")


def suggest_separator(path: Path, required: Mapping[str, str], separator: str, option: str) -> None:
    """Raise `LesionfastError` if another separator finds more of the required columns."""
    found = {each: len(set(read_header(path, each)) & set(required)) for each in SEPARATORS}
    best = max(found, key=lambda each: found[each])
    if found[best] > found.get(separator, 0):
        add = (
            f"Add --separator '{SEPARATORS[best]}'."
            if option == "--csv"
            else "Save it with commas."
        )
        raise LesionfastError(
            f"the fields of {path} are separated by '{SEPARATORS[best]}', not by "
            f"'{SEPARATORS.get(separator, separator)}'. {add}"
        )


def missing_column(file: str, name: str, known: list[str], option: str) -> LesionfastError:
    """Return the error for a column that is not there: what it has, the nearest, what to type."""
    what_to_type = f"Name yours with {option}." if option else "Add it to the file."
    return LesionfastError(
        f"column '{name}' is not in {file}; it has: {', '.join(known)}."
        f"{did_you_mean(name, known)} {what_to_type}"
    )


def parse(path: Path, separator: str) -> pd.DataFrame:
    """Read all fields as text; the index is the row number with the header as row 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # fields beyond the header
        table = pd.read_csv(
            path,
            sep=separator,
            dtype=str,
            na_filter=False,
            encoding=encoding_of(path),
            skipinitialspace=True,
            skip_blank_lines=False,
            index_col=False,
        )
    table.columns = [str(name).strip() for name in table.columns]
    table.index = pd.RangeIndex(2, len(table) + 2)
    return table


def strip(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Take the blanks off both ends of every value, and say how many had some."""
    stripped, changed = {}, 0
    for name in table:
        before = table[name].tolist()
        after = [value.strip() for value in before]  # ten times as fast as pandas' own
        if after != before:
            stripped[name] = pd.Series(after, table.index, dtype=table[name].dtype)
            changed += int((stripped[name] != table[name]).sum())
    if changed:
        logger.warning("%s: %d values with blanks around them, taken off", path.name, changed)
    return table.assign(**stripped)


def without_blank_rows(path: Path, table: pd.DataFrame, option: str) -> pd.DataFrame:
    """Leave out rows without any value, counted; raises `LesionfastError` if none is left."""
    blank = (table == "").all(axis=1)
    if blank.any():
        logger.warning("%s: %d blank rows left out", path.name, blank.sum())
    if blank.all():
        raise LesionfastError(f"{path} has a header but no rows. Name another CSV with {option}.")
    return table[~blank]
