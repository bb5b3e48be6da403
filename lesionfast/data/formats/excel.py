"""The rows of the sheet of an Excel file that holds a table, as text.

An Excel file is a zip file of XML, of which openpyxl builds Python objects that take many times the
memory: what it unpacks and parses is counted while it does, whatever the file says about itself.
"""

import warnings
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile
from zlib import error as ZlibError

from lesionfast.errors import LesionfastError, import_extra, list_first

EXCEL = (".xlsx", ".xlsm")
LOOK = 20  # rows that tell whether a sheet holds a table
MOST_ROWS = 2**20  # of a sheet; Excel has no more
MOST_CELLS = 2**27  # of all that is read, empty ones too: as many rows of 128 columns
MOST_START = (2**27, 2**22)  # bytes and tags before the rows: a million different texts
MOST_PART = (2**25, 2**18)  # of a part that is parsed as a whole: 64,000 styles
MOST_ROW = (2**24, 2**19)  # of a row, of the first 20, of what follows the last: 65,530 links
MOST_UNPACKED = 2**32  # bytes of all that is read
MOST_OPENED = 1_000  # parts, such as 300 sheets


def read_sheet(path: Path) -> Iterator[list[str]]:
    """Yield the rows of the sheet of an Excel file that holds a table; formulas as they came out.

    Raises `LesionfastError` if several sheets do, if the file is damaged, or if it is built to
    exhaust who reads it.
    """
    openpyxl = import_extra("openpyxl", "excel", f"{path} can't be read")
    try:
        with warnings.catch_warnings(), Book(path) as archive:
            warnings.simplefilter("ignore")  # of styles and validations, which do not matter
            width = 0
            for row in read_rows(choose_sheet(path, open_book(path, archive), archive), archive):
                archive.allow(MOST_ROW, "a row of it has")
                width = width or len(row)
                yield row + [""] * (width - len(row))
    except LesionfastError:
        raise
    except (BadZipFile, ZlibError, SyntaxError, KeyError, ValueError, TypeError, EOFError) as error:
        raise unreadable_sheet(path, error) from None
    except (AttributeError, IndexError, OverflowError) as error:
        raise unreadable_sheet(path, error) from None  # of openpyxl, about parts that do not fit
    except RuntimeError as error:  # of zipfile, about a password or a version; nested too deep
        raise unreadable_sheet(path, error) from None
    except openpyxl.utils.exceptions.InvalidFileException as error:
        raise unreadable_sheet(path, error) from None


class Book(ZipFile):
    """An Excel file of which no more is unpacked than `allow` says; then `ValueError` is raised."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._total, self._opened, self._cells = MOST_UNPACKED, 0, MOST_CELLS
        self.allow(MOST_START, "its texts have")
        if any(one.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for one in self.infolist()):
            raise ValueError("it is not packed with deflate")  # others unpack without a limit

    def allow(self, most: tuple[int, int], what: str) -> None:
        """Say how many bytes and tags may be read from now on, and what has them."""
        self.left, self._most, self._what = most[0], most, what
        self._tags = most[1]

    def open(self, name: Any, *args: Any, **options: Any) -> Any:
        """Open a part to be read, and count that."""
        self._opened += 1
        if self._opened > MOST_OPENED:
            raise ValueError("it has hundreds of sheets")
        return Part(super().open(name, *args, **options), self)

    def read(self, name: Any, pwd: bytes | None = None) -> bytes:
        """Return a part that is parsed as a whole."""
        before = self.left, self._tags, self._most, self._what
        part = getattr(name, "filename", name)
        self.allow(MOST_PART, f"its part {part} has")
        data = super().read(name, pwd)
        self.left, self._tags, self._most, self._what = before
        return data

    def count_cells(self, cells: int) -> None:
        """Count the cells of a row, empty ones too; `ValueError` if they are too many."""
        self._cells -= cells
        if self._cells < 0:
            raise ValueError(
                f"its rows have more than {MOST_CELLS:,} cells, maybe as a far column holds an "
                "empty one"
            )

    def count(self, size: int, tags: int) -> None:
        """Count what was read; `ValueError` if it is too much."""
        self.left, self._tags, self._total = self.left - size, self._tags - tags, self._total - size
        if self._total < 0:
            raise ValueError(f"it unpacks to more than {MOST_UNPACKED >> 20:,} MB")
        if self.left < 0:
            raise ValueError(f"{self._what} more than {self._most[0] >> 20} MB")
        if self._tags < 0:
            raise ValueError(f"{self._what} more than {self._most[1]:,} XML tags")


class Part:
    """A part of an Excel file that counts what is read of it."""

    def __init__(self, file: IO[bytes], book: Book) -> None:
        self._file, self._book, self._end, self._begun = file, book, b"", False
        self.close = file.close

    def read(self, size: int = -1) -> bytes:
        """Return bytes; `ValueError` for too many, and for a part that defines its own entities.

        An entity is a name for a text, which may be thousands of times as long.
        """
        data = self._file.read(self._book.left + 1 if size < 0 else size)
        self._book.count(len(data), data.count(b"<"))
        wide = b"\0" in data[:2] or data[:2] in (b"\xff\xfe", b"\xfe\xff")
        if not self._begun and wide:  # an entity is not seen in UTF-16
            raise ValueError("a part of it is not in UTF-8")
        if b"<!DOCTYPE" in self._end + data:
            raise ValueError("a part of it has a DOCTYPE, which no spreadsheet writes")
        self._begun, self._end = True, data[-8:]
        return data

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_book(path: Path, archive: Book) -> Any:
    """Return the workbook of openpyxl whose parts an archive unpacks."""
    excel = import_extra("openpyxl.reader.excel", "excel", f"{path} can't be read")
    reader = excel.ExcelReader(path, read_only=True, data_only=True, keep_links=False)
    reader.archive.close()
    reader.archive = archive
    reader.read()
    return reader.wb


def unreadable_sheet(path: Path, error: Exception) -> LesionfastError:
    """Return the error for a damaged Excel file; openpyxl puts a text of its own around some."""
    reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
    return LesionfastError(
        f"{path} can't be read as an Excel file ({reason}). Open it and save it again as .xlsx, or "
        "as 'CSV UTF-8'."
    )


def choose_sheet(path: Path, book: Any, archive: Book) -> Any:
    """Return the one visible sheet that holds a table, by default the first."""
    sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    if not sheets:
        raise LesionfastError(f"{path} has no visible sheet. Save its table as 'CSV UTF-8'.")
    tables = [sheet for sheet in sheets if holds_table(sheet, archive)]
    if len(tables) > 1:
        names = list_first([f"'{sheet.title}'" for sheet in tables], 10)
        raise LesionfastError(
            f"{path} has {len(tables)} sheets that hold a table: {names}. Keep one of them, or "
            "save the right one as 'CSV UTF-8'."
        )
    return tables[0] if tables else sheets[0]


def holds_table(sheet: Any, archive: Book) -> bool:
    """Return whether two of the first rows of a sheet have two values or more."""
    archive.allow(MOST_ROW, "its first rows have")
    return sum(sum(map(bool, row)) > 1 for row in islice(read_rows(sheet, archive), LOOK)) > 1


def read_rows(sheet: Any, archive: Book) -> Iterator[list[str]]:
    """Yield the rows of a sheet as text, up to the last value of each.

    Raises `ValueError` for more rows than Excel has, or cells than a table.
    """
    sheet.reset_dimensions()  # what the file says about itself may be wrong
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        if number > MOST_ROWS:
            raise ValueError(f"it has more than {MOST_ROWS:,} rows")
        archive.count_cells(len(values))
        row = [as_text(value) for value in values]
        while row and not row[-1]:
            row.pop()
        yield row


def as_text(value: Any) -> str:
    """Return a value of a spreadsheet as a CSV has it: 60.0 is 60, a day is 2024-05-01."""
    if value is None or value != value:
        return ""
    if isinstance(value, float | Decimal):
        whole = isfinite(value) and value == int(value) and abs(value) < 1e15
        return str(int(value)) if whole else str(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time.min else value.isoformat(" ")
    return value.isoformat() if isinstance(value, date | time) else str(value)
