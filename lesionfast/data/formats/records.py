"""The rows of a table as text: of a CSV in any usual encoding, an Excel or a Parquet file."""

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from lesionfast.data.formats.excel import EXCEL, as_text, read_sheet
from lesionfast.data.formats.members import COMPRESSED
from lesionfast.errors import LesionfastError, import_extra, shorten

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
MOST_TEXT = 2**29  # characters of all rows of a table that is packed
MOST_CELL = 2**17  # characters of a field, as of a CSV; Excel has at most 32,767
MOST_BLANK = 2**20  # lines without anything, one after another
MOST_CHUNK = 2**28  # bytes that a column of a Parquet file has in a group of rows, unpacked
RATIO = 100  # by which a file of a table is packed, at most, if what it unpacks to is large
BATCH = 5_000  # rows of a Parquet file read together


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
    """Yield rows; raises `LesionfastError` if a field or all text is far more than there can be.

    A file that has a long text once can name it in a million rows.
    """
    left = most = allow(path, MOST_TEXT)
    header: list[str] = []
    for number, row in enumerate(rows, 1):
        lengths, header = [*map(len, row)], header or row
        if (longest := max(lengths, default=0)) > MOST_CELL:
            place = lengths.index(longest)
            name = header[place] if place < len(header) and number > 1 else ""
            column = f"column '{shorten(name)}'" if name else f"column {place + 1}"
            raise LesionfastError(
                f"{path} is not a table: row {number} has a field of more than {MOST_CELL:,} "
                f"characters, in {column}. Remove the column, or shorten its texts."
            )
        left -= sum(lengths)
        if left < 0:
            raise LesionfastError(
                f"{path} unpacks to more than {most >> 20:,} MB of text, maybe a decompression "
                "bomb. Save its table as 'CSV UTF-8'."
            )
        yield row


def allow(path: Path, most: int) -> int:
    """Return how much may be unpacked from a file: more than `most` from a large one."""
    return max(most, RATIO * path.stat().st_size)


def is_text(path: Path) -> bool:
    """Return whether a table is a CSV or the like, with separators between its fields."""
    return path.suffix.lower() not in (*EXCEL, *PARQUET, *UNREAD)


def read_csv(path: Path, separator: str) -> Iterator[list[str]]:
    """Yield the fields of each row of a CSV; a first line such as sep=; is no row."""
    row, blank, ended = 0, 0, False

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
                blank = 0 if fields else blank + 1
                if blank > MOST_BLANK:
                    raise LesionfastError(
                        f"{path} has more than {MOST_BLANK:,} blank lines above row {row}. Remove "
                        "them."
                    )
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
    `UnicodeError` for a file that is none of them, `LesionfastError` for one that is compressed.
    """
    state = path.stat()
    return look_for_encoding(path, state.st_mtime_ns, state.st_size)


@lru_cache(64)
def look_for_encoding(path: Path, changed: int, size: int) -> tuple[str, str]:
    """Return what `find_encoding` does of a file last changed then."""
    with path.open("rb") as file:
        start = file.read(4096)
        if start.startswith(COMPRESSED):
            raise LesionfastError(f"{path} is compressed. Unpack it, and name the table in it.")
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
            check_chunks(path, file.metadata)
        yield names
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(BATCH, columns=names):
                if batch.nbytes > allow(path, MOST_TEXT):  # the file said that it is less
                    raise too_large(path, allow(path, MOST_TEXT))
                named = zip(names, batch.columns, strict=True)
                columns = [list_texts(column, pyarrow, path, name) for name, column in named]
                yield from map(list, zip(*columns, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise LesionfastError(
            f"{path} can't be read as a Parquet file ({reason}). Copy or download it again, or "
            "save its table as 'CSV UTF-8'."
        ) from None


def check_chunks(path: Path, metadata: Any, names: Sequence[str] | None = None) -> None:
    """Raise `LesionfastError` for a column that unpacks to gigabytes, by what a file says.

    By default no column may; else those of some names.
    """
    most = allow(path, MOST_CHUNK)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        read = [one for one in columns if names is None or one.path_in_schema in names]
        for column in read:
            if column.total_uncompressed_size > most:
                raise too_large(path, most, column.path_in_schema)


def too_large(path: Path, most: int, column: str = "") -> LesionfastError:
    """Return the error about a group of rows, or a column of it, that is too large to be read."""
    what = f"column '{shorten(column)}' in a group of rows" if column else "a group of rows"
    return LesionfastError(
        f"{path} has {what} that unpacks to more than {most >> 20:,} MB, maybe a decompression "
        "bomb. Write it again with smaller row groups."
    )


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


def list_texts(column: Any, pyarrow: Any, path: Path, name: str) -> list[str]:
    """Return the values of a column of a Parquet file as text; errors say its name."""
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        return [value or "" for value in column.to_pylist()]
    coded = column
    if not pyarrow.types.is_dictionary(column.type):
        coded = column.dictionary_encode()
    codes, dictionary = coded.indices, coded.dictionary
    if len(dictionary) > len(codes):  # of all batches so far
        codes = codes.dictionary_encode()
        codes, dictionary = codes.indices, dictionary.take(codes.dictionary)
    try:
        values = dictionary.to_pylist()
    except (OverflowError, ValueError):  # Python has no such dates
        raise LesionfastError(
            f"column '{shorten(name)}' of {path} ({column.type}) has a time that is not in the "
            "years 1 to 9999. Correct it, or save the column as text."
        ) from None
    texts = [*map(as_text, values), ""]
    return [texts[-1 if code is None else code] for code in codes.to_pylist()]
