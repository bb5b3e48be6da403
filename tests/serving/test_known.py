"""What is said of a person is cleaned for the model; what training never saw is refused or said."""

import numpy as np
import pandas as pd
import pytest

from lesionfast.data.encoder import BadValue, MetadataEncoder
from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import Known

TRAIN = pd.DataFrame(
    {"age": [40.0, 60, 50], "sex": ["male", "female", "male"], "thickness": [0.5, 4, 1]}
)


@pytest.fixture
def known():
    """Of a model that takes age, sex and a thickness in millimetres."""
    return Known(MetadataEncoder(TRAIN.columns).fit(TRAIN))


def test_in_a_table_what_training_never_saw_counts_as_not_known_and_is_said(known, caplog):
    rows = [{"age": "50", "sex": "Frau", "thickness": value} for value in ("1e20", "-500", "2")]
    cleaned = [known.clean(row) for row in rows]
    assert [np.isnan(row["thickness"]) for row in cleaned] == [True, True, False]
    encoded = known.encode(cleaned)
    assert encoded.dtype == np.float32 and np.isfinite(encoded).all() and np.abs(encoded).max() < 9
    known.report()
    for words in ("sex Frau (3)", "thickness 1e20 (1)", "Thickness is missing for 2 of 3 images"):
        assert words in caplog.text


@pytest.mark.parametrize(
    "told", [{"age": "999"}, {"age": "1e308"}, {"thickness": "1e308"}, {"thickness": "thick"}]
)
def test_what_a_column_can_not_have_is_an_error_in_a_table_too(known, told):
    with pytest.raises(BadValue, match="which is not"):
        known.clean(told)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"sex": "Frau"},
            "which the model never saw in training. Type one of: female, male, unknown.",
        ),
        (
            {"thickness": "1e20"},
            "far from all training values.*. Type for example thickness=",
        ),
        ({"age": 5500}, "age is '5500', which is not an age in years .* Type for example age=50."),
    ],
)
def test_what_a_person_types_is_refused(known, told, message):
    with pytest.raises(LesionfastError, match=message):
        known.check(told)
    known.check({"sex": "unknown", "age": None, "thickness": " 2.5 "})
