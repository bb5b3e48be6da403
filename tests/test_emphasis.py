"""What is said of classes by name is read, and errors say what to type."""

import numpy as np
import pytest

from lesionfast.config import (
    parse_weights,
    read_costs,
    read_subclasses,
    read_weights_of,
    write_weights,
)
from lesionfast.errors import LesionfastError

CLASSES = ["bcc", "mel", "nv"]


def test_weights_costs_and_subclasses_are_read():
    np.testing.assert_array_equal(read_weights_of("mel=2, bcc=1.5", CLASSES), [1.5, 2, 1])
    np.testing.assert_array_equal(read_weights_of(None, CLASSES), [1, 1, 1])
    costs = read_costs("mel:nv=4,bcc:nv=2", CLASSES)
    np.testing.assert_array_equal(costs, [[0, 0, 2], [0, 0, 4], [0, 0, 0]])
    assert read_subclasses("mel=3,nv=2", CLASSES) == {"mel": 3, "nv": 2}
    assert read_subclasses(None, CLASSES) == {}


ODD = ["a, b", "basal cell", "c=d:e", 'the "best"', "mel"]


def test_class_names_with_commas_colons_and_quotes_are_typed_in_double_quotes():
    weights = read_weights_of('"a, b"=2, basal cell=3,"c=d:e"=4,"the ""best"""=5', ODD)
    np.testing.assert_array_equal(weights, [2, 3, 4, 5, 1])
    costs = read_costs('"a, b":"c=d:e"=4,mel:basal cell=2', ODD)
    assert costs[0, 2] == 4 and costs[4, 1] == 2 and costs.sum() == 6
    assert read_subclasses('"a, b"=3', ODD) == {"a, b": 3}
    assert parse_weights(write_weights(dict.fromkeys(ODD, 1.5))) == dict.fromkeys(ODD, 1.5)


def test_a_name_torn_at_its_comma_says_how_to_type_it():
    with pytest.raises(LesionfastError) as error:
        read_weights_of("a, b=2", ODD)
    assert str(error.value).startswith("--class-weight has 'a', which is no name=number above 0.")
    assert """in double quotes: --class-weight '"a, b"=2'.""" in str(error.value)
    with pytest.raises(LesionfastError, match="""--cost '"a, b":nv=4'."""):
        read_costs("c=d:e:mel=2", ODD)
    with pytest.raises(LesionfastError, match='The data has: "a, b", basal cell, "c=d:e"'):
        read_subclasses("bb=2", ODD)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_weights_of, "mell=2", "names 'mell'.*Did you mean 'mel'"),
        (read_weights_of, "mel", "no name=number above 0. Type such as --class-weight mel=2"),
        (read_weights_of, "mel=-1", "no name=number above 0"),
        (read_weights_of, "mel=inf", "no name=number above 0"),
        (read_weights_of, "mel=2,mel=3", "names a class twice"),
        (read_costs, "mel=2", "no pair of truth and another decision.*--cost mel:nv=4"),
        (read_costs, "mel:mel=2", "no pair of truth and another decision"),
        (read_costs, "mel:nevus=2", "names 'nevus', which is no class"),
        (read_subclasses, "mel=1", "type a whole number from 2"),
        (read_subclasses, "mel=2.5", "type a whole number from 2"),
    ],
)
def test_what_can_not_be_read_says_what_to_type(read, text, message):
    with pytest.raises(LesionfastError, match=message):
        read(text, CLASSES)
