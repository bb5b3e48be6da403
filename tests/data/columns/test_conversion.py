"""A column of text becomes numbers or categories, and every repair is said once, with its count."""

import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesionfast.data.columns.conversion import convert
from lesionfast.data.columns.values import MISSING, is_date, read_number
from lesionfast.errors import LesionfastError

CSV = Path("cases.csv")


def read(values, name="size", is_input=True):
    """Convert a column, its rows counted from 2 as in a file."""
    rows = range(2, len(values) + 2)
    return convert(CSV, pd.Series(values, rows, name=name, dtype="str"), is_input)


NUMBERS = {
    "commas": ("size", ["3,5", "4", "0,25"], [3.5, 4, 0.25]),
    "a comma among numbers": ("size", ["3,5", "4", "5"], [3.5, 4, 5]),
    "commas with three digits": ("size", ["0,123", "3,5", "2"], [0.123, 3.5, 2]),
    "commas and whole numbers with a point": ("size", ["3,5", "4.0"], [3.5, 4]),
    "one unit": ("size", ["12 mm", "3.5mm", "7 MM"], [12, 3.5, 7]),
    "one unit and none": ("size", ["12 mm", "3"], [12, 3]),
    "a unit and commas": ("size", ["1,2 cm", "3 cm"], [1.2, 3]),
    "percent": ("size", ["20 %", "5%"], [20, 5]),
    "bounds among numbers": ("size", ["<1", "2", "3", "10+"], [1, 2, 3, 10]),
    "a range among numbers": ("size", ["1", "2", "5-7"], [1, 2, 6]),
    "ranges and bounds of ages": ("age", ["0-9", "10-19", "80+"], [4.5, 14.5, 80]),
    "age in words": ("age_approx", ["45 years", "60 y/o", "33"], [45, 60, 33]),
    "missing words": ("size", ["1", "UNK", "-", "n.a.", "none"], [1, *[np.nan] * 4]),
    "flags": ("itch", ["0", "1", "1"], [0, 1, 1]),
    "exponents": ("size", ["1e3", "-2.5E-1"], [1000, -0.25]),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_written_in_any_way(kind):
    name, values, expected = NUMBERS[kind]
    column = read(values, name)
    assert column.dtype == np.float64
    np.testing.assert_allclose(column, expected)
    np.testing.assert_allclose(read(values, name, is_input=False), expected)


TEXTS = {
    "bounds and ranges that are not ages": ("size", ["<5", "5-10", ">10"], None),
    "codes with a zero": ("ward", ["01", "02"], "codes"),
    "spaces and case": ("site", ["Back", "back", "back", "lower  leg"], ["back"] * 3),
    "true and TRUE": ("itch", ["True", "TRUE", "yes", "False", "0", "True"], ["True"] * 3),
    "digits give way to words": ("itch", ["1", "1", "1", "Yes", "0", "0", "No"], ["Yes"] * 4),
    "letters of the sex": ("gender", ["M", "f", "Male", "woman"], ["male", "female", "male"]),
    "the sex and others": ("sex", ["M", "divers"], ["male", "divers"]),
    "letters that are no sex": ("stage", ["M", "F", "m"], ["M", "F", "M"]),
    "half numbers": ("stage", ["1", "2", "1a", "2b", "3c"], ["1", "2", "1a", "2b", "3c"]),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_categories_have_one_spelling(kind):
    name, values, expected = TEXTS[kind]
    if expected == "codes":
        assert read(values, name, is_input=False).tolist() == values
        return
    column = read(values, name).tolist()
    assert column[: len(expected or values)] == (expected or values)


def test_the_commonest_spelling_wins_whatever_the_order():
    values = ["BACK"] * 2 + ["back"] * 3 + ["Back"] * 2
    for order in (values, values[::-1]):
        assert set(read(order, "site")) == {"back"}
    assert set(read(["b", "B"], "site")) == set(read(["B", "b"], "site")) == {"B"}


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "sex",
            ["M", "M", "F"],
            "sex: changed the spelling of 3 values: 'M' to 'male' (2), 'F'",
        ),
        ("size", ["3,5", "4"], "size: read 1 number with a decimal comma, such as '3,5' as 3.5"),
        ("age", ["85+", "3"], "age: read 1 bound as the number alone, such as '85+' as 85"),
        ("age", ["50-59"], "age: read 1 range as the middle, such as '50-59' as 54.5"),
        (
            "size",
            ["12 mm", "3", ""],
            "size: read 1 number with a unit, such as '12 mm' as 12 (mm); 1 number without a unit "
            "taken as mm",
        ),
        ("size", ["1", "UNK", "-", "UNK"], "size: 3 values count as missing ('-', 'UNK')"),
        ("size", ["1", "UNK"], "size: 1 value counts as missing ('UNK')"),
    ],
)
def test_every_repair_is_said_once_with_its_count(caplog, name, values, words):
    read(values, name)
    assert len(caplog.records) == 1 and caplog.records[0].getMessage().startswith(words)
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("values", [["1", "2.5", "", "NA", "unknown"], ["back", "face", "Unknown"]])
def test_what_needs_no_repair_says_nothing(caplog, values):
    with caplog.at_level(logging.INFO):
        read(values)
    assert not caplog.records


REFUSED = {
    "text among numbers": (
        ["1", "2", "3", "old", "new"],
        "mixes numbers and text: 'old' in row 5, 'new' in row 6 are not numbers. Correct them",
    ),
    "much text among numbers": (
        [*map(str, range(20)), *(f"x{i}" for i in range(9))],
        "'x0' in row 22, .*'x4' in row 26 and 4 more rows are not numbers",
    ),
    "points and commas": (["3.5", "4,5", "2"], "decimal points and decimal commas: '3.5', '4,5'"),
    "two units": (["12 mm", "1.2 cm", "3 mm"], "has several units: '12 mm', '1.2 cm'. Convert"),
    "a comma before three digits": (
        ["1,234", "2,500", "3"],
        "can be read in two ways: '1,234' in row 2, '2,500' in row 3 has a comma before three",
    ),
    "days": (["2024-05-01", "2024-06-02"], "holds dates or times, such as '2024-05-01' in row 2"),
    "German days": (["1.5.2024", "", "12.10.2023"], "holds dates or times, such as '1.5.2024'"),
    "American days": (["05/01/2024", "12/31/23"], "holds dates or times"),
    "months in words": (["May 2024", "12-Jun-23"], "holds dates or times"),
    "times": (["09:30", "10:15:00"], "holds dates or times, .*Remove it from --metadata"),
    "moments": (["2024-05-01T09:30:00Z", "2024-05-01 09:30"], "holds dates or times"),
    "an infinite number": (["1", "2", "inf"], "mixes numbers and text: 'inf' in row 4 is not a"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_inputs_that_can_not_be_read_are_refused_with_their_rows(kind):
    values, words = REFUSED[kind]
    with pytest.raises(LesionfastError, match=words) as error:
        read(values)
    assert str(error.value).startswith("column 'size' of cases.csv ")
    assert read(values, is_input=False).notna().any()  # it stays text where no model gets it


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["adult", "child", "45"], "'adult' in row 2, 'child' in row 3 are not numbers"),
        (["6 months", "8 months"], "is in months, not in years: '6 months'"),
        (["6 months", "8 years"], "has several units: '6 months', '8 years'"),
    ],
)
def test_ages_are_numbers_of_years(values, words):
    with pytest.raises(LesionfastError, match=words):
        read(values, "age")


def test_a_column_of_words_alone_may_be_called_age():
    assert read(["adult", "child"], "age").tolist() == ["adult", "child"]


def test_the_unit_is_kept_with_the_column():
    assert read(["12 mm", "3"]).attrs == {"unit": "mm"}
    assert read(["1,234", "3,5"]).attrs == {"comma": True}
    assert read(["1,234", "3,5"]).tolist() == [1.234, 3.5]
    assert read(["12", "3"]).attrs == {}


@pytest.mark.parametrize("text", ["12 abc", "4 5", "0x10", "1_0", "1,234,567", "I-II", "45-", "+"])
def test_what_is_no_number(text):
    assert read_number(text) is None


@pytest.mark.parametrize(
    "text", ["3.5", "50-59", "2019", "may", "1-2-3", "85+", "2019.5", "1/5-24"]
)
def test_what_is_no_date(text):
    assert not is_date(text)


def test_every_word_for_missing_is_missing_in_any_case():
    values = [word for text in MISSING for word in (text, text.upper(), text.title())]
    assert read(["1", *values])[3:].isna().all() and read(["x", *values])[3:].isna().all()


def test_many_ids_are_read_fast():
    ids = [f"P-{i}" for i in range(200_000)]
    started = time.process_time()
    assert read(ids, "case", is_input=False).tolist() == ids
    assert time.process_time() - started < 2
