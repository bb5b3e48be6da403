"""What is said of classes by name is read, and errors say what to type."""

import numpy as np
import pytest

from lesionfast.emphasis import read_costs, read_subclasses, read_weights_of
from lesionfast.errors import LesionfastError

CLASSES = ["bcc", "mel", "nv"]


def test_weights_costs_and_subclasses_are_read():
    np.testing.assert_array_equal(read_weights_of("mel=2, bcc=1.5", CLASSES), [1.5, 2, 1])
    np.testing.assert_array_equal(read_weights_of(None, CLASSES), [1, 1, 1])
    costs = read_costs("mel:nv=4,bcc:nv=2", CLASSES)
    np.testing.assert_array_equal(costs, [[0, 0, 2], [0, 0, 4], [0, 0, 0]])
    assert read_subclasses("mel=3,nv=2", CLASSES) == {"mel": 3, "nv": 2}
    assert read_subclasses(None, CLASSES) == {}


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
