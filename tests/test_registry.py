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
    with pytest.raises(LesionfastError, match="Choose one with --loss: cross_entropy."):
        registry["zzz"]


def test_a_builder_is_described_and_the_last_of_a_name_counts():
    registry = Registry("loss", "--loss")
    builders = [type("Builder", (), {"__doc__": text}) for text in ("Old.", "New.")]
    assert [registry.register("mine")(builder) for builder in builders] == builders
    assert registry.describe() == {"mine": "New."}
    with pytest.raises(AssertionError, match="no docstring"):
        registry.register("bare")(lambda: None)
