import pytest

from lesionfast.errors import LesionfastError
from lesionfast.registry import Registry


def test_a_miss_names_the_option_the_nearest_and_the_known():
    registry = Registry("loss", "--loss")

    @registry.register("cross_entropy")
    def build():
        """The first line.

        More.
        """

    assert registry["cross_entropy"] is build
    assert registry.describe() == {"cross_entropy": "The first line."}
    with pytest.raises(LesionfastError, match="there is no loss 'cross_entrpy'. Did you mean 'cro"):
        registry["cross_entrpy"]
    with pytest.raises(LesionfastError, match="Known: cross_entropy. Choose one with --loss"):
        registry["zzz"]


def test_a_name_is_given_once_and_described():
    registry = Registry("loss", "--loss")
    with pytest.raises(AssertionError, match="no docstring"):
        registry.register("bare")(lambda: None)
