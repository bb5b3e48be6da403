"""Tables from strangers that are built to take minutes or gigabytes, or to end in a traceback.

Each is read as `train` and as `predict` read it, and refused in a sentence, or read like any other.
"""

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.formats import excel, records
from lesionfast.data.metadata import load_metadata
from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import find_items

HEADER = "image_id,lesion_id,dx,age,sex"
ROWS = [f"im{i},l{i},{'nv' if i % 2 else 'mel'},{30 + i},male" for i in range(8)]
TABLE = "\n".join([HEADER, *ROWS, ""])
CELLS = [line.split(",") for line in TABLE.split()]
SHEET, STRINGS, STYLES = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/styles.xml"
BOOK, TYPES = "xl/workbook.xml", "[Content_Types].xml"
ENTITY = b'<!DOCTYPE a [<!ENTITY a "' + b"x" * 400 + b'">]>'
OF_STRINGS = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
MEGABYTE = 2**20


def csv(text: str, times: int = 1, end: str = "") -> Callable[[Path], object]:
    """Return what writes the table, then a text many times."""
    return lambda path: path.write_text(TABLE + text * times + end)


def workbook(
    part: str, before: bytes, text: bytes, times: int = 1, start: bytes = b""
) -> Callable[[Path], None]:
    """Return what writes the table with a text many times in a part, before some other text."""

    def write(path: Path) -> None:
        book = pytest.importorskip("openpyxl").Workbook()
        for row in CELLS:
            book.active.append(row)
        book.save(path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        data = parts.get(part, b"<sst></sst>")
        begin, found, rest = data.partition(before)
        assert found
        begin = start + begin[begin.find(b"?>") + 2 if begin.startswith(b"<?") else 0 :]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in parts.keys() - {part}:
                archive.writestr(name, parts[name])
            with archive.open(part, "w") as file:
                file.write(begin)
                for _ in range(times):
                    file.write(text)
                file.write(found + rest)

    return write


def strings(path: Path) -> None:
    """Write a workbook with thousands of texts in a part that is named like a sheet."""
    name = "xl/worksheets/texts.xml"
    named = f'<Override PartName="/{name}" ContentType="{OF_STRINGS}"/>'
    workbook(TYPES, b"</Types>", named.encode())(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"<sst>" + b"<si/><!--</row>-->" * 10**5 + b"</sst>")


def parquet(columns: Callable[[], dict], **options: object) -> Callable[[Path], None]:
    """Return what writes the table with other columns."""

    def write(path: Path) -> None:
        pytest.importorskip("pyarrow")
        from pyarrow import table
        from pyarrow.parquet import write_table

        plain = {name: [row[i] for row in CELLS[1:]] for i, name in enumerate(CELLS[0])}
        write_table(table(plain | columns()), path, **options)

    return write


def times_out_of_range() -> dict:
    import pyarrow

    return {"when": pyarrow.array([2**62] * len(ROWS), pyarrow.timestamp("us"))}


def nested_lists() -> dict:
    import pyarrow

    kind = pyarrow.int8()
    for _ in range(1000):
        kind = pyarrow.list_(kind)
    return {"deep": pyarrow.nulls(len(ROWS), kind)}


def patched(central: int, local: int, value: int) -> Callable[[Path], None]:
    """Return what writes the table as a workbook with another number in the headers of its zip."""

    def write(path: Path) -> None:
        workbook(SHEET, b"</row>", b"")(path)
        data = bytearray(path.read_bytes())
        for mark, place in ((b"PK\1\2", central), (b"PK\3\4", local)):
            for found in re.finditer(mark, data):
                data[found.start() + place] = value
        path.write_bytes(data)

    return write


SPREADSHEET = b'<sheet name="S" sheetId="7" r:id="rId1"/>'
FAR = b'<row><c r="XFD9"/></row>'  # an empty cell in the last column of Excel
ROW_GAP = b'<row r="1000000000"><c r="A1000000000"><v>1</v></c></row>'
HELD: dict[str, tuple[Callable[[Path], object], str]] = {  # file: how it is made; why refused
    "fields.csv": (csv("ab," * 10**6 + "\n", 3), "row 10 has 1000001 fields"),
    "commas.csv": (csv("," * 10**6 + "\n", 3), ""),
    "blank.csv": (csv("\n", 6000), "5,000 blank lines above row"),
    "returns.csv": (csv("\r", 6000), "5,000 blank lines above row"),
    "open.csv": (csv('x,"' + "a\n" * 10**5), "row 10: field larger than field limit"),
    "long.csv": (csv('x,"' + "a" * 2 * 10**7, end='"\n'), "row 10 has a line of more than 16"),
    "nul.csv": (csv("x,\0\n"), "row 10 has a NUL byte"),
    "wide.csv": (lambda path: path.write_text(TABLE, "utf-16-le"), ""),
    "torn.csv": (lambda path: path.write_bytes(TABLE.encode("utf-16-be") + b"\0"), "not text in"),
    "class.csv": (csv(f"im9,l9,{'x ' * 5000},50,male\n"), "the name of a class has at most 1,000"),
    "twice.csv": (
        lambda path: path.write_text(TABLE.replace("sex", "age", 1)),
        "two columns 'age'",
    ),
    "ids.csv": (csv(ROWS[0] + "9\n", 2000), "repeats"),
    "sheet.xlsx": (workbook(SHEET, b"<c ", b"<c><v>&a;</v></c>", 1, ENTITY), "has a DOCTYPE"),
    "styles.xlsx": (workbook(STYLES, b"</cellXfs>", b"", 1, ENTITY), "has a DOCTYPE"),
    "book.xlsx": (workbook(BOOK, b"<sheets>", b"", 1, ENTITY), "has a DOCTYPE"),
    "types.xlsx": (workbook(TYPES, b"</Types>", b"", 1, ENTITY), "has a DOCTYPE"),
    "utf-16.xlsx": (workbook(TYPES, b"</Types>", b"", 1, b"\xff\xfe"), "not in UTF-8"),
    "formats.xlsx": (workbook(STYLES, b"</cellXfs>", b"<xf/>" * 3 * 10**5), "styles.xml has more"),
    "rows.xlsx": (workbook(SHEET, b"</sheetData>", ROW_GAP), "more than 5,000 rows"),
    "columns.xlsx": (
        workbook(SHEET, b"</sheetData>", b'<row><c r="ZZZ10"><v>1</v></c></row>' * 30_000),
        "row 10 has 18278 fields",
    ),
    "far.xlsx": (workbook(SHEET, b"</sheetData>", FAR * 200), "more than 1,048,576 cells"),
    "password.xlsx": (patched(8, 6, 1), "is encrypted, password required"),
    "version.xlsx": (patched(6, 4, 99), "zip file version 9.9"),
    "flags.xlsx": (patched(8, 6, 0x40), "strong encryption"),
    "row.xlsx": (workbook(SHEET, b"</row>", b"<c/>" * 10**5), "first rows have more than"),
    "later.xlsx": (
        workbook(SHEET, b"</sheetData>", b"<row/>" * 30 + b"<row>" + b"<c/>" * 10**5 + b"</row>"),
        "a row of it has more than",
    ),
    "after.xlsx": (workbook(SHEET, b"<pageMargins", b"<a/>" * 10**5), "first rows have more than"),
    "comments.xlsx": (
        workbook(SHEET, b"</row>", b"<c/>" * 10**4 + b"<!--</row>-->", 10),
        "first rows have more than",
    ),
    "sheets.xlsx": (workbook(BOOK, b"</sheets>", SPREADSHEET * 100), "hundreds of sheets"),
    "cell.xlsx": (
        workbook(SHEET, b"</row>", b'<c t="str"><v>' + b"x" * 10**6 + b"</v></c>"),
        "field of more than 131,072 characters",
    ),
    "digits.xlsx": (workbook(SHEET, b"</row>", b"<c><v>" + b"9" * 10**5 + b"</v></c>"), "digits"),
    "index.xlsx": (workbook(SHEET, b"</row>", b'<c t="s"><v>9</v></c>'), "index out of range"),
    "web.xlsx": (workbook(SHEET, b"</row>", b'<c><f>WEBSERVICE("http://127.0.0.1")</f></c>'), ""),
    "page.parquet": (
        parquet(lambda: {"note": ["x" * 10**7] + [""] * 7}, compression="zstd"),
        "column 'note' in a group of rows that unpacks to more than 4 MB",
    ),
    "field.parquet": (
        parquet(lambda: {"note": ["x" * 10**6] * 8}),
        "row 2 has a field of more than 131,072 characters, in column 'note'",
    ),
    "times.parquet": (parquet(times_out_of_range), "column 'when' of {path} (timestamp[us]) has"),
    "nested.parquet": (parquet(nested_lists), "too deeply nested"),
    "infinite.parquet": (parquet(lambda: {"k": [np.inf, -np.inf, np.nan, 1e308] * 2}), ""),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The images of the table."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(len(ROWS)):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"im{i}.png")
    return folder


def read_both(path: Path, images: Path) -> Iterable[str]:
    """Yield what comes of reading a table to train, and to predict."""
    readers: list[Callable[[], int]] = [
        lambda: len(load_metadata(DataConfig(csv=str(path), images=str(images)))),
        lambda: sum(1 for _ in find_items([str(path)], images=images)),
    ]
    for read in readers:
        try:
            yield str(read())
        except LesionfastError as error:
            yield str(error)


@pytest.fixture
def low(monkeypatch):
    """Lower limits, so that small files go beyond them."""
    limits = {"MOST_ROWS": 5_000, "MOST_ROW": (2**22, 2**14), "MOST_OPENED": 50}
    for name, most in {**limits, "MOST_CELLS": 2**20}.items():
        monkeypatch.setattr(excel, name, most)
    monkeypatch.setattr(records, "MOST_BLANK", 5_000)
    monkeypatch.setattr(records, "MOST_CHUNK", 2**22)


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("name", HELD)
def test_a_hostile_table_is_refused_in_a_sentence(name, tmp_path, images, memory):
    make, words = HELD[name]
    path = tmp_path / name
    make(path)
    with memory(400 * MEGABYTE):
        found = list(read_both(path, images))
    assert words.format(path=path) in found[0] and "\n" not in found[0]
    if not words:
        assert found[0] == "8"


def test_texts_are_counted_whatever_their_part_is_called(tmp_path, images, monkeypatch):
    path = tmp_path / "texts.xlsx"
    strings(path)
    monkeypatch.setattr(excel, "MOST_START", (2**27, 50_000))
    for found in read_both(path, images):
        assert "its texts have more than 50,000 XML tags" in found


def test_a_parquet_file_that_says_less_than_it_holds_is_refused(tmp_path, images, monkeypatch):
    path = tmp_path / "a.parquet"
    parquet(lambda: {"note": ["x" * 10**5] * 8}, use_dictionary=False)(path)
    monkeypatch.setattr(records, "check_chunks", lambda *_: None)
    monkeypatch.setattr(records, "MOST_TEXT", 50_000)
    monkeypatch.setattr(records, "RATIO", 1)
    for found in read_both(path, images):
        assert "unpacks to more than" in found


def test_a_column_of_long_texts_in_a_file_of_their_size_is_read(tmp_path, images, monkeypatch):
    path, numbers = tmp_path / "a.parquet", np.random.default_rng(0)
    parquet(lambda: {"note": [numbers.bytes(50_000).hex() for _ in ROWS]})(path)
    monkeypatch.setattr(records, "MOST_CHUNK", 2**18)
    monkeypatch.setattr(records, "MOST_TEXT", 2**18)
    assert [*read_both(path, images)] == ["8", "8"]


NUMBERS = ["nan", "inf", "-inf", "1e400", "-1e999", "1e308", "", "Infinity", "1_000", "0x10"]


@pytest.mark.parametrize("everywhere", [True, False], ids=["all", "one"])
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_none_are_missing_or_refused(number, everywhere, tmp_path, images):
    path = tmp_path / "a.csv"
    rows = [row.split(",") for row in ROWS]
    for row in rows if everywhere else rows[:1]:
        row[3] = number
    path.write_text("\n".join([HEADER, *map(",".join, rows)]))
    try:
        ages = load_metadata(DataConfig(csv=str(path), images=str(images)))["age"]
    except LesionfastError as error:
        assert "column 'age' of a.csv" in str(error)
    else:
        if ages.dtype == float:
            assert len(ages.dropna()) == (0 if everywhere else 7) and number in ("nan", "")
        else:  # words
            assert everywhere and set(ages) == {number}


LARGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "blank.csv": (csv("\n", 10**8), "1,048,576 blank lines"),
    "fields.csv": (csv("ab," * 5 * 10**6 + "\n", 12), "row 10 has 5000001 fields"),
    "rows.xlsx": (HELD["rows.xlsx"][0], "more than 1,048,576 rows"),
    "row.xlsx": (workbook(SHEET, b"</row>", b"<c/>" * 10**6, 100), "more than 524,288 XML tags"),
    "entity.xlsx": (workbook(TYPES, b"</Types>", b"&a;" * 10**6, 3, ENTITY), "has a DOCTYPE"),
    "page.parquet": (
        parquet(lambda: {"note": ["x" * 10**9] + [""] * 7}, compression="zstd"),
        "unpacks to more than 256 MB",
    ),
}


@pytest.mark.attack
@pytest.mark.parametrize("name", LARGE)
def test_the_command_refuses_a_large_one_with_a_sentence(name, tmp_path, images):
    make, words = LARGE[name]
    path = tmp_path / name
    make(path)
    command = [sys.executable, "-m", "lesionfast", "data", "check", "--csv", str(path)]
    done = subprocess.run([*command, "--images", str(images)], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize("age", ["inf", "1_000", "0x10"])
def test_ages_that_are_no_numbers_in_any_row_are_called_a_category(tmp_path, caplog, age):
    lines = [HEADER, *(f"im{i},l{i},{'nv' if i % 2 else 'mel'},{age},male" for i in range(8))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    for i in range(8):
        Image.new("RGB", (32, 32), (9 * i, 0, 0)).save(tmp_path / f"im{i}.jpg")
    load_metadata(DataConfig(csv=str(tmp_path / "t.csv"), images=str(tmp_path)))
    assert f"Age is not numeric, such as '{age}': it is used as a category" in caplog.text
