import inspect
import linecache
import re

import pytest

from lesionfast.errors import LesionfastError
from lesionfast.registry import Registry, calling_module, short_digest


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
    registry.register("bare", module="notebook")(lambda: None)
    assert registry.describe()["bare"] == "Registered by notebook."


def test_a_name_must_be_one_that_can_be_typed():
    for name in ("", "my loss", "a:b", "../x", 3):
        with pytest.raises(LesionfastError, match="can't be registered"):
            Registry("loss", "--loss").register(name)


def test_a_replacement_is_logged_once_and_only_modules_of_others_are_kept(caplog):
    registry = Registry("loss", "--loss")
    with caplog.at_level("INFO", logger="lesionfast"):
        for module in (None, "mine", "mine"):
            registry.register("a", module=module)(lambda: None)
    assert caplog.messages == ["the loss 'a' is replaced"]
    assert registry.modules == {"a": "mine"}
    registry.register("a")(lambda: None)
    assert registry.modules == {} and calling_module() == __name__


def test_a_digest_tells_two_entries_of_one_name_apart():
    registry, digests = Registry("loss", "--loss"), []
    for text in ("return 1", "return 2", "return 1"):
        source = f"class Mine:\n    def forward(self):\n        {text}\n"
        linecache.cache["<cell>"] = len(source), None, source.splitlines(True), "<cell>"
        exec(compile(source, "<cell>", "exec"), names := {"__name__": "__main__"})
        registry.register("mine", "__main__")(names["Mine"])
        digests.append(registry.digests["mine"])
    del linecache.cache["<cell>"]
    assert digests[0] == digests[2] != digests[1] and re.fullmatch("[0-9a-f]{8}", digests[0])
    registry.register("class", "__main__")(Registry)
    registry.register("object", "__main__")(Registry("a", "b"))
    assert registry.digests["class"] == short_digest(inspect.getsource(Registry))
    assert registry.digests["object"] != registry.digests["class"]
