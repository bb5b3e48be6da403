"""The rows of a table as text: of a CSV in any usual encoding, an Excel or a Parquet file."""

import codecs
import csv
import re
import warnings
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo
from zlib import error as ZlibError

from lesionfast.errors import LesionfastError, import_extra, list_first

EXCEL = (".xlsx", ".xlsm")
PARQUET = (".parquet",)
UNREAD = (".xls", ".xlsb", ".ods", ".numbers")  # spreadsheets of other kinds
ENCODINGS = {  # by byte order mark; that of UTF-32 begins like that of UTF-16
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
WIDE = {  # without a mark: which of four bytes are zero in plain English text
    (1, 3): "utf-16-le",
    (0, 2): "utf-16-be",
    (1, 2, 3): "utf-32-le",
    (0, 1, 2): "utf-32-be",
}
FALLBACK = "cp1252"  # Windows-1252, of which Latin-1 is nearly a part
NO_TEXT = {*range(9), 11, *range(14, 32), 127, 0x81, 0x8D, 0x8F, 0x90, 0x9D}  # bytes; in FALLBACK
OF_UTF_8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")  # more than one byte
BLOCK = 2**20  # bytes read together
DECLARED = re.compile(r"sep=([^\"\r\n])\r?\n?", re.IGNORECASE)  # a first line of Excel
MOST_CHARACTERS = 2**24  # of a line: a longer one is not from a table
MOST_UNPACKED = {  # bytes of an Excel file; its texts are kept in memory, of its sheets a row
    "texts": 2**27,
    "sheets": 2**32,
    "other parts": 2**30,
}
MOST_ROW = 2**26  # bytes of a row of a sheet
ROW_END = re.compile(rb"</(?:\w+:)?row>")
MOST_TEXT = 2**29  # characters of all rows of a table that is packed
BATCH = 5_000  # rows of a Parquet file read together
LOOK = 20  # rows that tell whether a sheet holds a table


def read_records(path: Path, separator: str) -> Iterator[list[str]]:
    """Yield the fields of each row, [] for a blank line; raises `LesionfastError` if it is torn.

    `separator` is that of a CSV. Raises `UnicodeError` for what is not text.
    """
    suffix = path.suffix.lower()
    if suffix in UNREAD:
        raise LesionfastError(
            f"{path} is a spreadsheet of a kind that is not read. Save it as .xlsx, or as 'CSV "
            "UTF-8'."
        )
    if suffix in EXCEL:
        return limit_text(path, read_sheet(path))
    return limit_text(path, read_parquet(path)) if suffix in PARQUET else read_csv(path, separator)


def limit_text(path: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield rows; raises `LesionfastError` if their text is far more than the file can hold.

    A file that has a long text once can name it in a million rows.
    """
    left = max(MOST_TEXT, 100 * path.stat().st_size)
    for row in rows:
        left -= sum(map(len, row))
        if left < 0:
            raise LesionfastError(
                f"{path} unpacks to more than {MOST_TEXT >> 20} MB of text, maybe a decompression "
                "bomb. Save its table as 'CSV UTF-8'."
            )
        yield row


def is_text(path: Path) -> bool:
    """Return whether a table is a CSV or the like, with separators between its fields."""
    return path.suffix.lower() not in (*EXCEL, *PARQUET, *UNREAD)


def read_csv(path: Path, separator: str) -> Iterator[list[str]]:
    """Yield the fields of each row of a CSV; a first line such as sep=; is no row."""
    row, ended = 0, False

    def read_lines() -> Iterator[str]:
        nonlocal ended
        first = True
        while line := file.readline(MOST_CHARACTERS):
            if "\0" in line or len(line) == MOST_CHARACTERS:
                what = "a NUL byte" if "\0" in line else "a line of more than 16 million characters"
                raise LesionfastError(
                    f"{path} is not a table: row {row + 1} has {what}. Save it as 'CSV UTF-8'."
                )
            if not (first and DECLARED.fullmatch(line)):
                yield line
            first = False
        ended = True

    with path.open(encoding=find_encoding(path)[0], newline="") as file:
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


def find_declared(path: Path) -> str | None:
    """Return the separator that the first line of a CSV declares, such as sep=;"""
    with path.open(encoding=find_encoding(path)[0], newline="") as file:
        declared = DECLARED.fullmatch(file.readline(100))
    return declared[1] if declared else None


def find_encoding(path: Path) -> tuple[str, str]:
    """Return the encoding of a file, and an example of what it says if that is a guess, else ''.

    It is UTF-8, or UTF-16 or UTF-32 with or without a byte order mark, or else Windows-1252. Raises
    `UnicodeError` for a file that is none of them.
    """
    state = path.stat()
    return look_for_encoding(path, state.st_mtime_ns, state.st_size)


@lru_cache(64)
def look_for_encoding(path: Path, changed: int, size: int) -> tuple[str, str]:
    """Return what `find_encoding` does of a file last changed then."""
    with path.open("rb") as file:
        start = file.read(4096)
        if mark := next(filter(start.startswith, ENCODINGS), None):
            return ENCODINGS[mark], ""
        zeros = {place % 4 for place, byte in enumerate(start) if not byte}
        if wide := WIDE.get(tuple(sorted(zeros))):
            return wide, ""
        file.seek(0)
        error = find_no_utf_8(file)
        if error is None:
            return "utf-8-sig", ""
        file.seek(0)
        while block := file.read(BLOCK):
            if set(block) & NO_TEXT or OF_UTF_8.search(block):
                raise error
        return FALLBACK, cut_example(file, error)


def find_no_utf_8(file: BinaryIO) -> UnicodeDecodeError | None:
    """Return the error of the first bytes that are no UTF-8, its places counted in the file."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        block = file.read(BLOCK)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            error.start += done - pending
            error.end += done - pending
            return error
        if not block:
            return None
        done += len(block)


def cut_example(file: BinaryIO, error: UnicodeDecodeError) -> str:
    """Return the field around the bytes that are no UTF-8, read as Windows-1252."""
    begin = max(error.start - 60, 0)
    file.seek(begin)
    text = file.read(120).decode(FALLBACK)
    before, after = text[: error.start - begin], text[error.start - begin :]
    return re.split(r'[,;|\t\r\n"]', before)[-1].strip() + re.split(r'[,;|\t\r\n"]', after)[0]


def read_sheet(path: Path) -> Iterator[list[str]]:
    """Yield the rows of the sheet of an Excel file that holds a table; formulas as they came out.

    Raises `LesionfastError` if several sheets do, or the file is damaged.
    """
    openpyxl = import_extra("openpyxl", "excel", f"{path} can't be read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations, which do not matter
            check_book(path)
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                width = 0
                for row in read_rows(choose_sheet(path, book)):
                    width = width or len(row)
                    yield row + [""] * (width - len(row))
            finally:
                book.close()
    except LesionfastError:
        raise
    except (BadZipFile, ZlibError, SyntaxError, KeyError, ValueError, TypeError, EOFError) as error:
        raise unreadable_sheet(path, error) from None
    except openpyxl.utils.exceptions.InvalidFileException as error:
        raise unreadable_sheet(path, error) from None


def check_book(path: Path) -> None:
    """Raise `ValueError` or `BadZipFile` for an Excel file that unpacks to gigabytes."""
    with ZipFile(path) as archive:
        members = archive.infolist()
        for part, most in MOST_UNPACKED.items():
            if sum(one.file_size for one in members if part_of_book(one) == part) > most:
                raise ValueError(f"its {part} unpack to more than {most >> 20:,} MB")
        if any(one.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for one in members):
            raise ValueError("it is not packed with deflate")
        for one in members:  # the sizes above may lie; then its checksum does not fit
            with archive.open(one) as file:
                read_through(file, part_of_book(one) == "sheets")


def part_of_book(member: ZipInfo) -> str:
    """Return which of `MOST_UNPACKED` a member of an Excel file belongs to."""
    if member.filename.endswith("Strings.xml"):
        return "texts"
    return "sheets" if member.filename.startswith("xl/worksheets/") else "other parts"


def read_through(file: IO[bytes], sheet: bool) -> None:
    """Read a file to its end; `ValueError` for a sheet with a huge row, which is kept."""
    size = 0
    while block := file.read(BLOCK):
        size = 0 if ROW_END.search(block) else size + len(block)
        if sheet and size > MOST_ROW:
            raise ValueError(f"a row of it has more than {MOST_ROW >> 20} MB")


def unreadable_sheet(path: Path, error: Exception) -> LesionfastError:
    """Return the error for a damaged Excel file."""
    return LesionfastError(
        f"{path} can't be read as an Excel file ({error}). Open it and save it again as .xlsx, or "
        "as 'CSV UTF-8'."
    )


def choose_sheet(path: Path, book: Any) -> Any:
    """Return the one visible sheet that holds a table, by default the first."""
    sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    if not sheets:
        raise LesionfastError(f"{path} has no visible sheet. Save its table as 'CSV UTF-8'.")
    tables = [sheet for sheet in sheets if holds_table(sheet)]
    if len(tables) > 1:
        names = list_first([f"'{sheet.title}'" for sheet in tables], 10)
        raise LesionfastError(
            f"{path} has {len(tables)} sheets that hold a table: {names}. Keep one of them, or "
            "save the right one as 'CSV UTF-8'."
        )
    return tables[0] if tables else sheets[0]


def holds_table(sheet: Any) -> bool:
    """Return whether two of the first rows of a sheet have two values or more."""
    return sum(sum(map(bool, row)) > 1 for row in islice(read_rows(sheet), LOOK)) > 1


def read_rows(sheet: Any) -> Iterator[list[str]]:
    """Yield the rows of a sheet as text, up to the last value of each."""
    sheet.reset_dimensions()  # what the file says about itself may be wrong
    for values in sheet.iter_rows(values_only=True):
        row = [as_text(value) for value in values]
        while row and not row[-1]:
            row.pop()
        yield row


def read_parquet(path: Path) -> Iterator[list[str]]:
    """Yield the column names and the rows of a Parquet file.

    Raises `LesionfastError` for one that holds pictures or lists, or is damaged.
    """
    parquet = import_extra("pyarrow.parquet", "parquet", f"{path} can't be read")
    pyarrow = import_extra("pyarrow", "parquet", f"{path} can't be read")
    try:
        with parquet.ParquetFile(path) as file:
            check_types(path, file.schema_arrow, pyarrow.types)
            names = [name for name in file.schema_arrow.names if not name.startswith("__index_")]
            texts = find_texts(file.schema_arrow, pyarrow.types)
        yield names
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(BATCH, columns=names):
                columns = [list_texts(column, pyarrow) for column in batch.columns]
                yield from map(list, zip(*columns, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise LesionfastError(
            f"{path} can't be read as a Parquet file ({reason}). Copy or download it again, or "
            "save its table as 'CSV UTF-8'."
        ) from None


def check_types(path: Path, schema: Any, types: Any) -> None:
    """Raise `LesionfastError` for a column that holds pictures or lists."""
    for column in schema:
        kind = column.type
        fields = [kind.field(i).type for i in range(kind.num_fields)]
        if any(
            types.is_binary(part) or types.is_large_binary(part) or types.is_fixed_size_binary(part)
            for part in [kind, *fields]
        ):
            raise LesionfastError(
                f"{path} holds images itself, in column '{column.name}'. Type its folder with "
                "--data."
            )
        if types.is_nested(kind):
            raise LesionfastError(
                f"column '{column.name}' of {path} holds {kind}, not one value a row. Remove it "
                "from the file."
            )


def find_texts(schema: Any, types: Any) -> list[str]:
    """Return the columns of text, to be read as Parquet has them: each text once."""
    return [
        one.name for one in schema if types.is_string(one.type) or types.is_large_string(one.type)
    ]


def list_texts(column: Any, pyarrow: Any) -> list[str]:
    """Return the values of a column of a Parquet file as text."""
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        return [value or "" for value in column.to_pylist()]
    coded = column
    if not pyarrow.types.is_dictionary(column.type):
        coded = column.dictionary_encode()
    texts = [*map(as_text, coded.dictionary.to_pylist()), ""]
    return [texts[-1 if code is None else code] for code in coded.indices.to_pylist()]


def as_text(value: Any) -> str:
    """Return a value of a spreadsheet as a CSV has it: 60.0 is 60, a day is 2024-05-01."""
    if value is None or value != value:
        return ""
    if isinstance(value, float | Decimal) and not isinstance(value, bool):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else str(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time.min else value.isoformat(" ")
    return value.isoformat() if isinstance(value, date | time) else str(value)
