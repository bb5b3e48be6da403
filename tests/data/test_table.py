"""A CSV is read as text, or refused with what to type; training and prediction read each alike.

What is wrong ends in a sentence, never a traceback.
"""

import bz2
import gzip
import logging
import lzma
import sys
from datetime import datetime

import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data import table
from lesionfast.data.encoder import BadValue, MetadataEncoder
from lesionfast.data.formats import excel
from lesionfast.data.metadata import load_metadata
from lesionfast.data.table import TableFile, open_table, read_table
from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import MetadataReader, find_items

NAMES = {"image_id": "--image", "dx": "--target"}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes bytes to a CSV and returns its path."""

    def to_file(content: bytes | str):
        path = tmp_path / "cases.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def refusal(path, required=NAMES, separator=","):
    """Return the message with which a table is refused."""
    with pytest.raises(LesionfastError) as error:
        read_table(path, required, separator)
    return str(error.value)


def test_values_are_text_and_rows_count_like_a_spreadsheet(write):
    table = read_table(write("image_id,dx,age\n0012,nv,80.0\n0013,mel,\n"), NAMES)
    assert table.index.tolist() == [2, 3]
    assert table["image_id"].tolist() == ["0012", "0013"]
    assert table["age"].tolist() == ["80.0", ""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_encodings_with_and_without_byte_order_mark(write, encoding):
    text = "image_id,dx\na,nävus\n"
    marked = encoding == "utf-16-le-bom"
    content = b"\xff\xfe" + text.encode("utf-16-le") if marked else text.encode(encoding)
    table = read_table(write(content), NAMES)
    assert list(table) == ["image_id", "dx"]
    assert table["dx"].tolist() == ["nävus"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_encodings_without_a_mark_are_found(write, caplog, encoding):
    table = read_table(write("image_id,dx\na,nävus\n".encode(encoding)), NAMES)
    assert table["dx"].tolist() == ["nävus"] and not caplog.text


@pytest.mark.parametrize("before", [0, 5000, 2**20 - 19, 2**20 - 18], ids=str)
def test_windows_1252_is_read_where_utf_8_fails_and_said_with_an_example(write, caplog, before):
    content = b"image_id,dx\n" + b"a,nv\n" * (before // 5) + "b,“nävus”\n".encode("cp1252")
    table = read_table(write(content), NAMES)
    assert table["dx"].iloc[-1] == "“nävus”"
    assert (
        "cases.csv is not in UTF-8 and was read as Windows-1252, such as '“nävus”'. If that is not "
        "what it says, save it as 'CSV UTF-8'" in caplog.text
    )
    assert caplog.text.count("Windows-1252") == 1


@pytest.mark.parametrize(
    "content",
    [
        "image_id,dx\na,nävus\n".encode() + b"b,n\xe4vus\n",
        b"image_id,dx\na,n\x81vus\n",
        b"image_id,dx\na,\xe4\x07\n",
        "image_id,dx\na,nävus".encode()[:-5] + b"\xc3",
    ],
    ids=["UTF-8 with other bytes", "bytes without a meaning", "a bell", "UTF-8 cut off"],
)
def test_what_is_neither_utf_8_nor_windows_1252_is_refused(write, content):
    if content.endswith(b"\xc3"):
        content = content.replace(b"n\xc3", "nävus,n".encode() + b"\xc3")
    assert "Save it as 'CSV UTF-8'" in refusal(write(content))


def test_the_separator_is_the_one_by_which_the_rows_fit_the_header(write):
    rows = "id;age (years, months, days);dx\na;45;nv\nb;50;mel\n"
    assert open_table(write(rows)).header == ["id", "age (years, months, days)", "dx"]
    assert open_table(write("a b,dx\nx | y,nv\nx | z,mel\n")).header == ["a b", "dx"]
    assert open_table(write("sep=|\nid,1|dx\na|nv\n")).header == ["id,1", "dx"]
    assert open_table(write("SEP=\t\r\nid\tdx\r\na\tnv\r\n")).header == ["id", "dx"]
    assert open_table(write("id\na\n")).header == ["id"]


def test_rows_count_from_the_header_although_a_line_declares_the_separator(write):
    table = open_table(write("sep=;\nimage_id;dx\na;nv\n"))
    assert next(table.read_chunks()).index.tolist() == [2]


def test_a_title_before_the_header_is_refused_with_its_rows(write):
    for separator in (",", ";", "\t"):
        text = f"Cases of 2024\n\nimage_id{separator}dx{separator}age\na{separator}nv{separator}1\n"
        with pytest.raises(LesionfastError) as error:
            open_table(write(text))
        assert "it is 'Cases of 2024' alone, and row 3 has 3 fields." in str(error.value)
        assert str(error.value).endswith("Remove the rows above the column names.")


def test_text_that_is_no_table_is_not_one(tmp_path):
    path = tmp_path / "attribution.txt"
    path.write_text("Images of the Department of Dermatology\nLicence: CC-BY\n")
    with pytest.raises(LesionfastError, match="is text without columns"):
        open_table(path)
    path.write_text("image_id\tdx\na\tnv\n")
    assert open_table(path).header == ["image_id", "dx"]


def test_a_spreadsheet_that_is_only_named_csv_is_refused(write):
    assert "Save it as 'CSV UTF-8'" in refusal(write(b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xff\xd8"))


@pytest.mark.parametrize("content", ["", "\n", "\nimage_id,dx\na,nv\n", "\ufeff"])
def test_an_empty_file_says_so(write, content):
    assert "is empty or starts with a blank line" in refusal(write(content))


@pytest.mark.parametrize("content", ["image_id,dx", "image_id,dx\n", "image_id,dx\n\n,\n"])
def test_a_header_alone_says_so(write, content):
    assert "has a header but no rows" in refusal(write(content))


def test_a_missing_file_and_a_folder(tmp_path):
    assert "there is no file" in refusal(tmp_path / "none.csv")
    assert "Name the CSV with --csv" in refusal(tmp_path)


def test_a_missing_column_names_the_nearest_the_others_and_the_option(write):
    message = refusal(write("image_id,diagnosis,DX\na,nv,1\n"))
    assert message == (
        "column 'dx' is not in cases.csv; it has: image_id, diagnosis, DX. "
        "Did you mean 'DX'? Name yours with --target."
    )


@pytest.mark.parametrize(("separator", "typed"), [(";", ";"), ("\t", "tab"), ("|", "|")])
def test_another_separator_is_found_and_can_be_typed(write, separator, typed):
    path = write(f"image_id{separator}dx\na{separator}nv\n")
    assert f"Add --separator '{typed}'" in refusal(path)
    assert read_table(path, NAMES, typed)["dx"].tolist() == ["nv"]


def test_a_comma_file_read_with_another_separator(write):
    assert "Add --separator ','" in refusal(write("image_id,dx\na,nv\n"), separator=";")


@pytest.mark.parametrize("typed", ["", ";;", "\n", '"'])
def test_a_separator_is_one_character(write, typed):
    assert "not one character" in refusal(write("image_id,dx\na,nv\n"), separator=typed)


def test_a_column_that_comes_twice_is_refused(write):
    assert "two columns 'age'" in refusal(write("image_id,dx,age,age\na,nv,1,2\n"))


@pytest.mark.parametrize("rows", ["a,nv,1\n", "a,nv\nb,nv,1\n", 'a,"nv\nb,mel\n'])
def test_rows_that_do_not_fit_the_header_are_refused(write, rows):
    assert "can't be read as CSV" in refusal(write("image_id,dx\n" + rows))


def test_fields_that_a_short_row_lacks_are_empty(write):
    table = read_table(write("image_id,dx,age,sex\na,nv\nb,mel,50,male\n"), NAMES)
    assert table.loc[2].tolist() == ["a", "nv", "", ""]


def test_short_rows_and_columns_without_a_name_are_counted(write, caplog):
    table = read_table(write("image_id,dx,age,\na,nv,,x\nb,mel,\nc,mel\n"), NAMES)
    assert list(table) == ["image_id", "dx", "age"] and len(table) == 3
    assert "cases.csv: 2 rows with fewer fields than the header (first: row 3)" in caplog.text
    assert "cases.csv: ignored 1 column without a name" in caplog.text


def test_a_table_is_the_same_in_parts_and_as_a_whole(write, monkeypatch, caplog):
    rows = "".join(f"a{i},nv \n\n" for i in range(999))
    path = write(f"image_id,dx\n{rows}")
    whole = read_table(path, NAMES)
    monkeypatch.setattr(table, "CELLS", 20)
    parts = list(TableFile(path).read_chunks())
    assert len(parts) > 100
    pd.testing.assert_frame_equal(pd.concat(parts), whole)
    assert caplog.text.count("removed spaces around 999 values") == 2
    assert caplog.text.count("skipped 999 blank rows") == 2


def test_blank_rows_are_left_out_and_counted(write, caplog):
    table = read_table(write("image_id,dx\r\na,nv\r\n\r\n,\r\nb,mel\r\n\r\n"), NAMES)
    assert table.index.tolist() == [2, 5]
    assert "skipped 3 blank rows" in caplog.text


def test_blanks_around_values_and_names_are_taken_off_and_counted(write, caplog):
    table = read_table(write('image_id ,"dx"\n"a ", "nv"\nb,mel\t\n'), NAMES)
    assert table.to_numpy().tolist() == [["a", "nv"], ["b", "mel"]]
    assert "removed spaces around 2 values" in caplog.text


def test_quoted_separators_line_ends_and_quotes(write, caplog):
    table = read_table(write('image_id,dx\n"a,b","a ""nv"""\nc,"x\ny"\n'), NAMES)
    assert table.to_numpy().tolist() == [["a,b", 'a "nv"'], ["c", "x\ny"]]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


HEADER = "image_id,lesion_id,dx,age,sex\n"
A, B = "a,L1,nv,45,male\n", "b,L2,mel,50,female\n"
PLAIN = HEADER + A + B
MORE = PLAIN + "c,L3,nv,60,male\n"  # most ages are numbers, whatever the first is
RIGHT = {"a": (45, "male"), "b": (50, "female")}
MORE_RIGHT = RIGHT | {"c": (60, "male")}
HALF = MORE_RIGHT | {"a": (45.5, "male")}
FIFTY = (50.5, "female")
NO_AGE = {"a": (None, "male"), "b": (50, "female")}
CUT = {"a": (45, "male"), "b": (None, None)}
NEITHER = {"a": (None, None), "b": (50, "female")}
NO_TEXT = "Save it as 'CSV UTF-8'"
EMPTY = "is empty or starts with a blank line"
NO_ROWS = "has a header but no rows"
OPEN = "Look for a quote that is not closed there"
IMPOSSIBLE = "not an age in years"
PACKED = "is compressed. Unpack it, and name the table in it"
FILES = {  # the content, and what is read or the words of the refusal, for training and prediction
    "plain": (PLAIN, RIGHT),
    "UTF-8 with a mark": (PLAIN.encode("utf-8-sig"), RIGHT),
    "UTF-16": (PLAIN.encode("utf-16"), RIGHT),
    "UTF-16, the other way round": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), RIGHT),
    "UTF-32": (PLAIN.encode("utf-32"), RIGHT),
    "UTF-32, the other way round": (b"\0\0\xfe\xff" + PLAIN.encode("utf-32-be"), RIGHT),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), RIGHT),
    "UTF-32 without a mark": (PLAIN.encode("utf-32-be"), RIGHT),
    "UTF-16 cut in a character": (PLAIN.encode("utf-16")[:-1], NO_TEXT),
    "Latin-1": (PLAIN.replace("nv", "nävus").encode("latin-1"), RIGHT),
    "Latin-1 late": (
        (PLAIN + "x,L,nv,1,male\n" * 9000 + "é,L,nv").encode("latin-1"), RIGHT
    ),
    "Windows-1252": (PLAIN.replace("nv", "“nv”").encode("cp1252"), RIGHT),
    "UTF-8 and Latin-1": (PLAIN.replace("nv", "nävus").encode() + b"c,L,n\xe4vus,,", NO_TEXT),
    "two marks": (b"\xef\xbb\xbf" + PLAIN.encode("utf-8-sig"), RIGHT),
    "a mark alone": (b"\xef\xbb\xbf", EMPTY),
    "a mark of UTF-16 alone": (b"\xff\xfe", EMPTY),
    "NUL in a field": (PLAIN.replace("45", "4\0005"), "row 2 has a NUL byte"),
    "NUL at the end": (PLAIN + "\0", "row 4 has a NUL byte"),
    "zeros of a torn copy": (bytes(5000), "row 1 has a NUL byte"),
    "gzip": (gzip.compress(PLAIN.encode()), PACKED),
    "bzip2": (bz2.compress(PLAIN.encode()), PACKED),
    "xz": (lzma.compress(PLAIN.encode()), PACKED),
    "a spreadsheet": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xff\xd8", NO_TEXT),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", NO_TEXT),
    "random bytes": (bytes(range(255, 0, -1)) * 40, NO_TEXT),
    "a web page": ("<!DOCTYPE html>\n<html>\n<p>404</p>\n</html>\n", "image.id"),
    "JSON": ('[{"image_id": "a", "age": 45}]', NO_ROWS),
    "an empty file": ("", EMPTY),
    "a blank line": ("\n", EMPTY),
    "blanks": ("   \n\t\n", EMPTY),
    "separators alone": (",,,\n,,,\n", EMPTY),
    "a blank line before the header": ("\n" + PLAIN, EMPTY),
    "a title before the header": ("Cases of 2024\n\n" + PLAIN, "row 3 has 5 fields"),
    "no header": (A + B, "name the columns"),
    "a header alone": (HEADER, NO_ROWS),
    "a header without a line end": (HEADER.strip(), NO_ROWS),
    "a header and blank rows": (HEADER + "\n,,,,\n\n", NO_ROWS),
    "no line end at the end": (PLAIN.strip(), RIGHT),
    "line ends of Windows": (PLAIN.replace("\n", "\r\n"), RIGHT),
    "line ends of the old Mac": (PLAIN.replace("\n", "\r"), RIGHT),
    "line ends mixed": (HEADER.replace("\n", "\r\n") + A + B.replace("\n", "\r"), RIGHT),
    "line ends doubled": (PLAIN.replace("\n", "\r\r\n"), RIGHT),
    "blank rows between": (HEADER + A + "\n,,,,\n \n" + B + "\n\n", RIGHT),
    "blanks in the header": (PLAIN.replace(",", ", "), RIGHT),
    "blanks before separators": (PLAIN.replace(",", " ,"), RIGHT),
    "tabs and hard blanks around": (PLAIN.replace("45", "\t45\u00a0"), RIGHT),
    "all in quotes": ('"' + PLAIN.strip().replace(",", '","').replace("\n", '"\n"') + '"', RIGHT),
    "blanks and quotes": (PLAIN.replace(",nv,", ', "nv" ,'), RIGHT),
    "a quote that is open in the middle": (PLAIN.replace("nv", '"nv'), f"row 2: .*{OPEN}"),
    "a quote that is open at the end": (PLAIN.replace("female", '"female'), f"row 3: .*{OPEN}"),
    "a quote that is open in the header": ('"' + PLAIN, f"row 1: .*{OPEN}"),
    "an open quote before much": (HEADER + '"' + (A + B) * 9000, f"row 2: field larger.*{OPEN}"),
    "quotes in a field": (PLAIN.replace("nv", '"a ""nv"""'), RIGHT),
    "a line end in a field": (PLAIN.replace("nv", '"n\nv"'), RIGHT),
    "a field above 128 KB": (PLAIN.replace("nv", "n" * 140_000), "row 2: field larger"),
    "a line of a million separators": (PLAIN + "," * 10**6, RIGHT),
    "a line of a million fields": (PLAIN + "x," * 10**6, "row 4 has 1000001 fields, the header"),
    "a million columns": (",".join(f"c{i}" for i in range(10**6)), "has 1,000,000 columns"),
    "5,001 columns": (PLAIN.replace("sex", "sex" + ",x" * 4996), "has 5,001 columns; at most"),
    "a short row": (PLAIN.replace(",45,male", ""), NEITHER),
    "a row of an id alone": (HEADER + "a\n" + B, ("'dx' .* empty in row 2", NEITHER)),
    "a file that was cut off": (PLAIN[:-15], ("'dx' .* empty in row 3", CUT)),
    "a long row": (PLAIN.replace("45", "4,5"), "row 2 has 6 fields, the header has 5"),
    "a long row at the end": (PLAIN + "c,L3,nv,1,male,x\n", "row 4 has 6 fields"),
    "separators at each line's end": (PLAIN.replace("\n", ",,\n"), RIGHT),
    "separators at each row's end": (HEADER + (A + B).replace("\n", ",,\n"), RIGHT),
    "row numbers without a name": (f",{HEADER}1,{A}2,{B}", RIGHT),
    "two columns of one name": (PLAIN.replace("sex", "age"), "has two columns 'age'"),
    "three columns of one name": (PLAIN.replace("dx,age,sex", "dx,dx,dx"), "has 3 columns 'dx'"),
    "two of one name but for blanks": (PLAIN.replace("sex", " age "), "has two columns 'age'"),
    "semicolons": (PLAIN.replace(",", ";"), RIGHT),
    "tabs": (PLAIN.replace(",", "\t"), RIGHT),
    "bars": (PLAIN.replace(",", "|"), RIGHT),
    "the separator on a line of its own": ("sep=;\n" + PLAIN.replace(",", ";"), RIGHT),
    "the separator, and UTF-16": (("sep=\t\n" + PLAIN.replace(",", "\t")).encode("utf-16"), RIGHT),
    "the separator on a line alone": ("sep=;\n", EMPTY),
    "a decimal comma": (MORE.replace("45", '"45,5"'), HALF),
    "a decimal comma, semicolons": (MORE.replace(",", ";").replace("45", "45,5"), HALF),
    "a decimal comma and a point": (
        MORE.replace("45", '"45,5"').replace("50", "50.5"), ("'50.5', '45,5'", HALF | {"b": FIFTY})
    ),
    "an age of 1,234": (MORE.replace("45", '"1,234"'), ("read in two ways: '1,234'", "can mean")),
    "an age with a plus": (MORE.replace("45", "85+"), MORE_RIGHT | {"a": (85, "male")}),
    "an age above 90": (MORE.replace("45", ">90"), MORE_RIGHT | {"a": (90, "male")}),
    "an age of 90 or more": (MORE.replace("45", ">= 90"), MORE_RIGHT | {"a": (90, "male")}),
    "an age in words": (MORE.replace("45", "90 or older"), MORE_RIGHT | {"a": (90, "male")}),
    "an age below 5": (MORE.replace("45", "<5"), MORE_RIGHT | {"a": (5, "male")}),
    "an age band": (MORE.replace("45", "40-50"), MORE_RIGHT),
    "an age band with a long dash": (MORE.replace("45", "40 – 50"), MORE_RIGHT),
    "an age band in words": (MORE.replace("45", "40 to 50"), MORE_RIGHT),
    "an age interval": (MORE.replace("45", '"[40, 50)"'), MORE_RIGHT),
    "age bands alone": (PLAIN.replace("45", "40-50").replace("50,f", "45-55,f"), RIGHT),
    "an age band the wrong way round": (MORE.replace("45", "50-40"), ("mixes .*", IMPOSSIBLE)),
    "an age in years": (MORE.replace("45", "45 years"), MORE_RIGHT),
    "an age in y": (MORE.replace("45", "45y"), MORE_RIGHT),
    "an age in months": (MORE.replace("45", "6 months"), ("months, not in years", "in years")),
    "ages in years and months": (
        MORE.replace("45", "6 months").replace("50", "50 y"), ("several units", "in years")
    ),
    "a date of birth as the age": (MORE.replace("45", "1979-05-01"), ("holds dates", IMPOSSIBLE)),
    "sexes as letters": (PLAIN.replace("female", "F").replace("male", "M"), RIGHT),
    "sexes in capitals": (PLAIN.replace("female", "FEMALE").replace(",male", ",MALE"), RIGHT),
    "sexes as words": (PLAIN.replace("female", "Woman").replace(",male", ",man"), RIGHT),
    "sexes in German": (PLAIN.replace("female", "weiblich").replace(",male", ",männlich"), RIGHT),
    "sexes in Latin-1": (PLAIN.replace(",male", ",männlich").encode("latin-1"), RIGHT),
    "UNK": (PLAIN.replace("45,male", "UNK,UNK"), NEITHER),
    "dashes": (PLAIN.replace("45,male", "-,--"), NEITHER),
    "question marks": (PLAIN.replace("45,male", "?,?"), NEITHER),
    "not available": (PLAIN.replace("45,male", "Not available,N.A."), NEITHER),
    "none and a dot": (PLAIN.replace("45,male", "None,."), NEITHER),
    "a class called none": (PLAIN.replace(",nv,", ",none,"), RIGHT),
    "a class called unknown": (PLAIN.replace(",nv,", ",unknown,"), RIGHT),
    "a class called -": (PLAIN.replace(",nv,", ",-,"), RIGHT),
    "an age of 1e308": (PLAIN.replace("45", "1e308"), IMPOSSIBLE),
    "an age of 999": (PLAIN.replace("45", "999"), IMPOSSIBLE),
    "an age of -40": (PLAIN.replace("45", "-40"), IMPOSSIBLE),
    "an age of infinity": (MORE.replace("45", "inf"), ("mixes numbers and text", IMPOSSIBLE)),
    "an age that is a word": (MORE.replace("45", "old"), ("mixes numbers and text", IMPOSSIBLE)),
    "an age that is nan": (PLAIN.replace("45", "NaN"), NO_AGE),
    "an age that is empty": (PLAIN.replace("45", ""), NO_AGE),
    "an age and a sex that are unknown": (PLAIN.replace("45,male", "unknown,N/A"), NEITHER),
    "ids with a suffix": (PLAIN.replace("\na,", "\na.jpg,").replace("\nb,", "\nb.JPG,"), RIGHT),
    "an id of 5,000 characters": (PLAIN.replace("\na,", f"\n{'a' * 5000},"), {"b": (50, "female")}),
    "another name of the id": (
        PLAIN.replace("image_id", "Image_ID"),
        RIGHT,
    ),
    "formulas": (PLAIN.replace("nv", "=cmd|' /C calc'!A0"), RIGHT),
    "escape sequences": (PLAIN.replace("nv", "\x1b[31mnv"), RIGHT),
    "a column more": (PLAIN.replace("sex\n", "sex,note\n").replace("male\n", "male,x\n"), RIGHT),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, empty: they are found, not read."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / name).touch()
    return folder


def read_to_train(path, folder):
    """Return age and sex of each image, None if not known, as a training reads them."""
    df = load_metadata(DataConfig(csv=str(path), images=str(folder)))
    values = df.set_index("image_id")[["age", "sex"]].T
    return {name: tuple(None if pd.isna(x) else x for x in row) for name, row in values.items()}


def read_to_predict(path, folder):
    """Return the same as `predict` gives them to a model; raises the first error of a row."""
    rows = pd.DataFrame({"age": [45.0, 50.0], "sex": ["male", "female"]})
    reader, found = MetadataReader(MetadataEncoder(["age", "sex"]).fit(rows)), {}
    for item in find_items([str(path)], images=folder, columns=["age", "sex"]):
        try:
            cleaned = reader.read(item.metadata)
        except BadValue as bad:
            raise LesionfastError(f"{bad}.") from None
        if item.path is not None:
            stem = item.path.rsplit("/", 1)[-1].removesuffix(".jpg")
            found[stem] = tuple(None if pd.isna(x) else x for x in cleaned.values())
    return found


@pytest.mark.parametrize("read", [read_to_train, read_to_predict], ids=["train", "predict"])
@pytest.mark.parametrize("name", FILES)
def test_each_table_is_read_right_or_refused_in_a_sentence(tmp_path, folder, name, read):
    content, expected = FILES[name]
    if isinstance(expected, tuple):
        expected = expected[read is read_to_predict]
    path = tmp_path / "cases.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(expected, dict):
        assert read(path, folder) == expected
    else:
        with pytest.raises(LesionfastError, match=f"(?s){expected}") as error:
            read(path, folder)
        assert len(str(error.value)) < 1000 and str(error.value)[-1] in ".)'"


SHEET = [line.split(",") for line in PLAIN.splitlines()]
CELLS = [SHEET[0], ["a", "L1", "nv", 45.0, "male"], ["b", "L2", "mel", 50, "female"]]


def write_sheets(path, **sheets):
    """Write an Excel file with a sheet of rows for each name."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


SHEETS = {  # of an Excel file, and what is read or the words of the refusal
    "numbers as numbers": ({"Cases": CELLS}, RIGHT),
    "numbers as text": ({"Cases": SHEET}, RIGHT),
    "an empty sheet first": ({"Sheet1": [], "Cases": CELLS}, RIGHT),
    "a note on another sheet": ({"Cases": CELLS, "Note": [["Cases of"], ["2024"]]}, RIGHT),
    "two sheets with tables": ({"A": CELLS, "B": CELLS}, "2 sheets that hold a table: 'A', 'B'"),
    "no sheet with a table": ({"Sheet1": []}, EMPTY),
    "a title above": ({"Cases": [["Cases"], [], *CELLS]}, "'Cases' alone, and row 3 has 5 fields"),
    "blank rows between": ({"Cases": [CELLS[0], [], CELLS[1], [None] * 5, CELLS[2]]}, RIGHT),
    "a blank row first": ({"Cases": [[], *CELLS]}, EMPTY),
    "an empty cell": ({"Cases": [CELLS[0], ["a", "L1", "nv"], CELLS[2]]}, NEITHER),
    "a value beside the table": ({"Cases": [*CELLS, ["c", "L", "nv", 1, "male", "x"]]}, "6 fields"),
    "two columns of one name": ({"Cases": [["age", "age"], [1, 2]]}, "has two columns 'age'"),
    "a header alone": ({"Cases": CELLS[:1]}, NO_ROWS),
}


@pytest.mark.parametrize("read", [read_to_train, read_to_predict], ids=["train", "predict"])
@pytest.mark.parametrize("name", SHEETS)
def test_each_sheet_is_read_right_or_refused_in_a_sentence(tmp_path, folder, name, read, caplog):
    sheets, expected = SHEETS[name]
    path = write_sheets(tmp_path / "cases.xlsx", **sheets)
    if isinstance(expected, dict):
        assert read(path, folder) == expected
        assert "fewer fields" not in caplog.text
    else:
        with pytest.raises(LesionfastError, match=expected):
            read(path, folder)


def test_values_of_excel_are_text_as_a_csv_has_them(tmp_path):
    day, moment = datetime(2024, 5, 1), datetime(2024, 5, 1, 9, 30)
    values = ["0012", 60.0, 45.5, 12, True, day, moment, day.time(), 1e20, None, " x "]
    names = [f"c{i}" for i in range(len(values))]
    path = write_sheets(tmp_path / "a.XLSX", Cases=[names, values])
    row = read_table(path, {}).iloc[0].tolist()
    assert row[:6] == ["0012", "60", "45.5", "12", "True", "2024-05-01"]
    assert row[6:] == ["2024-05-01 09:30:00", "00:00:00", "1e+20", "", "x"]


def test_hidden_sheets_do_not_count(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    path = write_sheets(tmp_path / "a.xlsx", Old=CELLS[::-1], Cases=CELLS)
    book = openpyxl.load_workbook(path)
    book["Old"].sheet_state = "hidden"
    book.save(path)
    assert open_table(path).header == SHEET[0]


@pytest.mark.parametrize("keep", [100, 3000, -200])
def test_a_damaged_excel_file_is_refused_with_what_to_do(tmp_path, keep):
    path = write_sheets(tmp_path / "cases.xlsx", Cases=CELLS * 200)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LesionfastError, match="can't be read as an Excel file .* save it again"):
        read_table(path, {})


def test_an_excel_file_as_large_as_that_of_isic_2024_is_read(tmp_path, monkeypatch):
    cells, cell = 401_059 * 55, '<c r="AA123456"><v>12.34567890</v></c>'
    assert 2 * cells * len(cell) < excel.MOST_UNPACKED and excel.MOST_ROWS > 2 * 401_059
    path = write_sheets(tmp_path / "cases.xlsx", Cases=CELLS * 200)
    with monkeypatch.context() as patch:
        patch.setattr(excel, "MOST_UNPACKED", 2**13)
        with pytest.raises(LesionfastError, match="it unpacks to more than"):
            read_table(path, {})
    assert open_table(path).header == SHEET[0]


def test_other_spreadsheets_are_refused_with_what_to_do(tmp_path):
    path = tmp_path / "cases.xls"
    path.write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(LesionfastError, match="of a kind that is not read. Save it as .xlsx"):
        open_table(path)


def write_parquet(path, **columns):
    """Write a Parquet file."""
    pytest.importorskip("pyarrow")
    pd.DataFrame(columns).to_parquet(path)
    return path


@pytest.mark.parametrize("read", [read_to_train, read_to_predict], ids=["train", "predict"])
def test_a_parquet_file_without_pictures_is_a_table(tmp_path, folder, read):
    columns = dict(zip(SHEET[0], zip(*CELLS[1:], strict=True), strict=True))
    path = write_parquet(tmp_path / "cases.parquet", **columns)
    assert read(path, folder) == RIGHT


def test_values_of_parquet_are_text_as_a_csv_has_them(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet",
        id=["0012", None],
        age=[60.0, None],
        size=[4.5, 0.1],
        n=[1, 2],
        flag=[True, False],
        day=pd.to_datetime(["2024-05-01", None]),
        kind=pd.Categorical(["x", None]),
    )
    table = read_table(path, {"id": ""})
    assert table.loc[2].tolist() == ["0012", "60", "4.5", "1", "True", "2024-05-01", "x"]
    assert table.loc[3].tolist() == ["", "", "0.1", "2", "False", "", ""]


def test_a_parquet_file_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "CELLS", 100)
    path = write_parquet(tmp_path / "a.parquet", id=range(10_001), dx=["nv"] * 10_001)
    parts = list(open_table(path).read_chunks())
    assert len(parts) > 100
    assert pd.concat(parts)["id"].tolist() == [str(i) for i in range(10_001)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([b"x"], "holds images itself, in column 'image'"),
        ([{"bytes": b"x", "path": "a"}], "holds images itself, in column 'image'"),
        ([[1, 2]], "column 'image' of .* holds list<.*not one value a row"),
    ],
)
def test_a_parquet_file_of_pictures_or_lists_is_no_table(tmp_path, values, words):
    with pytest.raises(LesionfastError, match=words):
        open_table(write_parquet(tmp_path / "a.parquet", image=values, dx=["nv"]))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_parquet_file_is_refused_with_what_to_do(tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(LesionfastError, match="can't be read as a Parquet file .* again"):
        open_table(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("suffix", "extra", "module"),
    [("xlsx", "excel", "openpyxl"), ("parquet", "parquet", "pyarrow")],
)
def test_without_the_extra_the_error_says_what_to_install(
    tmp_path, monkeypatch, suffix, extra, module
):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"cases.{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(LesionfastError, match=rf"pip install 'lesionfast\[{extra}\]'"):
        open_table(path)
