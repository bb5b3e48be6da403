"""A CSV is read as text, or refused with what to type; training and prediction read each alike.

What is wrong ends in a sentence, never a traceback.
"""

import logging

import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data import table
from lesionfast.data.encoder import BadValue, MetadataEncoder
from lesionfast.data.metadata import load_metadata
from lesionfast.data.table import CsvFile, read_table
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


def test_latin_1_is_refused_with_the_way_out(write):
    assert "Save it as 'CSV UTF-8'" in refusal(write("image_id,dx\na,nävus\n".encode("latin-1")))
    late = "image_id,dx\n" + "a,nv\n" * 5000 + "b,nävus\n"
    assert "Save it as 'CSV UTF-8'" in refusal(write(late.encode("latin-1")))


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
    parts = list(CsvFile(path).read_chunks())
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
NO_AGE = {"a": (None, "male"), "b": (50, "female")}
CUT = {"a": (45, "male"), "b": (None, None)}
NEITHER = {"a": (None, None), "b": (50, "female")}
NO_TEXT = "Save it as 'CSV UTF-8'"
EMPTY = "is empty or starts with a blank line"
NO_ROWS = "has a header but no rows"
OPEN = "Look for a quote that is not closed there"
IMPOSSIBLE = "not an age in years"
FILES = {  # the content, and what is read or the words of the refusal, for training and prediction
    "plain": (PLAIN, RIGHT),
    "UTF-8 with a mark": (PLAIN.encode("utf-8-sig"), RIGHT),
    "UTF-16": (PLAIN.encode("utf-16"), RIGHT),
    "UTF-16, the other way round": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), RIGHT),
    "UTF-32": (PLAIN.encode("utf-32"), RIGHT),
    "UTF-32, the other way round": (b"\0\0\xfe\xff" + PLAIN.encode("utf-32-be"), RIGHT),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "row 1 has a NUL byte"),
    "UTF-32 without a mark": (PLAIN.encode("utf-32-be"), "row 1 has a NUL byte"),
    "UTF-16 cut in a character": (PLAIN.encode("utf-16")[:-1], NO_TEXT),
    "Latin-1": (PLAIN.replace("male", "männlich").encode("latin-1"), NO_TEXT),
    "Latin-1 late": ((PLAIN + "x,L,nv,1,male\n" * 9000 + "é").encode("latin-1"), NO_TEXT),
    "Windows-1252": (PLAIN.replace("nv", "“nv”").encode("cp1252"), NO_TEXT),
    "two marks": (b"\xef\xbb\xbf" + PLAIN.encode("utf-8-sig"), "image.id"),
    "a mark alone": (b"\xef\xbb\xbf", EMPTY),
    "a mark of UTF-16 alone": (b"\xff\xfe", EMPTY),
    "NUL in a field": (PLAIN.replace("45", "4\0005"), "row 2 has a NUL byte"),
    "NUL at the end": (PLAIN + "\0", "row 4 has a NUL byte"),
    "zeros of a torn copy": (bytes(5000), "row 1 has a NUL byte"),
    "a spreadsheet": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xff\xd8", NO_TEXT),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", NO_TEXT),
    "random bytes": (bytes(range(255, 0, -1)) * 40, NO_TEXT),
    "a web page": ("<!DOCTYPE html>\n<html>\n<p>404</p>\n</html>\n", "image.id"),
    "JSON": ('[{"image_id": "a", "age": 45}]', "image.id"),
    "an empty file": ("", EMPTY),
    "a blank line": ("\n", EMPTY),
    "blanks": ("   \n\t\n", EMPTY),
    "separators alone": (",,,\n,,,\n", EMPTY),
    "a blank line before the header": ("\n" + PLAIN, EMPTY),
    "a title before the header": ("Cases of 2024\n\n" + PLAIN, "image.id"),
    "no header": (A + B, "image.id"),
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
    "the separator on a line of its own": ("sep=;\n" + PLAIN.replace(",", ";"), "image.id"),
    "a decimal comma": (MORE.replace("45", '"45,5"'), ("mixes .*: '45,5'", IMPOSSIBLE)),
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
            raise LesionfastError(str(bad)) from None
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
