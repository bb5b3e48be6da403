"""Names in lists come back whole, whatever is in them."""

import pytest

from lesionfast.config import DataConfig
from lesionfast.diagnoses import join_names, quote, split_names, split_unquoted

NAMES = ["mel", "basal cell", "a, b", "c=d", "e:f", 'the "best"', " edge ", '"', "nävus", ",,"]


def test_what_is_joined_is_split_again():
    assert split_names(join_names(NAMES)) == NAMES
    assert [name for name in NAMES if quote(name) == name] == ["mel", "basal cell", "nävus"]


@pytest.mark.parametrize("separator", [",", "=", ":"])
def test_a_separator_within_quotes_does_not_split(separator):
    typed = f'"a{separator}b"{separator} c {separator}""'
    assert split_unquoted(typed, separator) == [f'"a{separator}b"', " c ", '""']


def test_metadata_columns_with_commas_are_quoted():
    assert DataConfig(metadata='age, "site, side"').metadata_columns == ["age", "site, side"]
    assert DataConfig(metadata="none").metadata_columns == []
