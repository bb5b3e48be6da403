"""A CSV is read as text, or refused with what to type."""

import logging

import pandas as pd
import pytest

from lesionfast.data import table
from lesionfast.data.table import CsvFile, read_table
from lesionfast.errors import LesionfastError

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
