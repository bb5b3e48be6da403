"""Conditions as they are typed, and what meets them."""

import pytest

from lesionfast.catalog.conditions import Condition, find_name, summarize_names
from lesionfast.errors import LesionfastError


@pytest.mark.parametrize(
    ("text", "meets", "fails"),
    [
        ("size>=128", [128, 224.0], [112, None, "auto"]),
        ("size < 128", [112], [128, None]),
        ("size=128", [128, 128.0], [112, None]),
        ("size==128", [128], [112]),
        ("size!=128", [112, "auto"], [128, None]),
        ("lr=1e-3", [0.001], [0.01, "auto"]),
        ("lr=auto", ["auto"], [0.01]),
        ("lr!=auto", [0.01], ["auto"]),
        ("arch~Dense", ["densenet121"], ["resnet18", None]),
        ("arch=densenet121", ["densenet121"], ["DenseNet121", "densenet"]),
        ("compile=true", [True], [False, None]),
        ("compile=no", [False], [True]),
        ("note~a=b", ["with a=b"], ["a"]),
        ("note=", [""], ["x", None]),
    ],
)
def test_a_condition_holds_for_what_it_says(text, meets, fails):
    condition = Condition.parse(text)
    assert all(condition.holds(value) for value in meets)
    assert not any(condition.holds(value) for value in fails)


@pytest.mark.parametrize("text", ["", "balanced_accuracy", ">0.7", "  = x"])
def test_what_is_no_condition_says_how_to_type_one(text):
    with pytest.raises(LesionfastError, match='quotation marks, such as --where "balanced_acc'):
        Condition.parse(text)


def test_an_order_needs_numbers_on_both_sides():
    with pytest.raises(LesionfastError, match="'0.7 and size>3', which is not a number.*once for"):
        Condition.parse("balanced_accuracy>0.7 and size>3").check([0.1])
    with pytest.raises(LesionfastError, match="arch is text, such as 'resnet18'. Type = != or ~"):
        Condition.parse("arch>3").check([None, "resnet18"])
    Condition.parse("lr>3").check(["auto", 0.1])  # some are numbers
    Condition.parse("auc>3").check([None])


def test_a_name_may_be_typed_as_an_option_and_an_unknown_one_lists_what_exists():
    metrics, options = ["macro_auc", "auc.mel", "test.auc.mel"], ["batch_size", "arch"]
    assert find_name("batch-size", metrics, options) == "batch_size"
    assert find_name("bs", metrics, options) == "batch_size"
    assert find_name("test.auc.mel", metrics, options) == "test.auc.mel"
    with pytest.raises(LesionfastError, match=r"'macro-acu'. Did you mean 'macro_auc'.*auc.CLASS"):
        find_name("macro-acu", metrics, options)
    assert summarize_names(metrics) == ["auc.CLASS", "macro_auc"]
