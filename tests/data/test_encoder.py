"""Metadata become float32, learned on the training rows and exactly restored from JSON."""

import json

import numpy as np
import pandas as pd
import pytest

from lesionfast.data.encoder import BadValue, MetadataEncoder, UnseenValue, read_value
from lesionfast.errors import DamageError, LesionfastError

TRAIN = pd.DataFrame(
    {"age": [40.0, 60.0, np.nan, 50.0], "sex": ["male", "female", np.nan, "male"], "flat": 3.0}
)


def test_numbers_are_standardised_and_texts_one_hot():
    encoder = MetadataEncoder(["age", "sex"]).fit(TRAIN)
    assert encoder.names == ["age", "age missing", "sex female", "sex male", "sex missing"]
    assert encoder.width == 5
    rows = encoder.transform(TRAIN)
    assert rows.dtype == np.float32
    step = np.sqrt(1.5)
    np.testing.assert_allclose(
        rows,
        [[-step, 0, 0, 1, 0], [step, 0, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 1, 0]],
        atol=1e-6,
    )


def test_only_the_training_rows_are_learned_from():
    encoder = MetadataEncoder(["age", "sex"]).fit(TRAIN)
    before = encoder.to_json()
    encoder.transform(pd.DataFrame({"age": [900.0], "sex": ["other"]}))
    assert encoder.to_json() == before


def test_a_text_never_seen_counts_as_missing_and_is_said(caplog):
    encoder = MetadataEncoder(["sex"]).fit(TRAIN)
    rows = encoder.transform(pd.DataFrame({"sex": ["other", "male", np.nan]}))
    np.testing.assert_array_equal(rows, [[0, 0, 1], [0, 1, 0], [0, 0, 1]])
    assert "sex: 1 value never seen in training, counted as missing (such as other)" in caplog.text


def test_a_constant_column_is_finite():
    np.testing.assert_array_equal(MetadataEncoder(["flat"]).fit(TRAIN).transform(TRAIN)[:, 0], 0)


def test_json_restores_every_bit():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"x": rng.normal(size=99) ** 7 / 3, "s": rng.choice(list('äb,"'), 99)})
    encoder = MetadataEncoder(["x", "s"]).fit(df)
    text = encoder.to_json()
    again = MetadataEncoder.from_learned(json.loads(text))
    assert again.to_json() == text
    assert again.columns == ["x", "s"]
    assert again.names == encoder.names
    np.testing.assert_array_equal(again.transform(df), encoder.transform(df))
    json.loads(text, parse_constant=pytest.fail)  # no NaN or Infinity


def test_no_columns_make_no_numbers():
    encoder = MetadataEncoder([]).fit(TRAIN)
    assert encoder.transform(TRAIN).shape == (4, 0)
    assert MetadataEncoder.from_learned(encoder.learned).width == 0


def test_a_column_that_training_never_knew_is_always_missing():
    encoder = MetadataEncoder(["age"]).fit(pd.DataFrame({"age": [np.nan, np.nan]}))
    np.testing.assert_array_equal(encoder.transform(TRAIN), np.ones((4, 1)))


def test_numbers_that_come_as_text_are_read_and_others_refused():
    encoder = MetadataEncoder(["age"]).fit(TRAIN)
    rows = encoder.transform(pd.DataFrame({"age": ["50", None]}))
    np.testing.assert_array_equal(rows, [[0, 0], [0, 1]])
    with pytest.raises(LesionfastError, match="should contain numbers"):
        encoder.transform(pd.DataFrame({"age": ["fifty"]}))


def test_a_column_that_is_not_there_is_named():
    encoder = MetadataEncoder(["age"]).fit(TRAIN)
    with pytest.raises(LesionfastError, match=r"needs the column 'age'.*Did you mean 'Age'"):
        encoder.transform(pd.DataFrame({"Age": [50.0]}))


def test_names_are_no_categories():
    df = pd.DataFrame({"patient": [f"P{i}" for i in range(300)]})
    with pytest.raises(LesionfastError, match="300 different texts in 300 rows"):
        MetadataEncoder(["patient"]).fit(df)


def test_empty_tables_keep_the_width():
    encoder = MetadataEncoder(["age", "sex"]).fit(TRAIN)
    assert encoder.transform(TRAIN.iloc[:0]).shape == (0, 5)


@pytest.mark.parametrize("name", ["age", "Age", "age_approx", "patient_age", "age in years"])
@pytest.mark.parametrize("age", ["1e308", "999", "5500", "-40", "121", "inf", "-inf", 1e308, 999])
def test_an_age_beyond_0_to_120_years_is_refused(name, age):
    with pytest.raises(BadValue, match=r"which is not an age in years \(0 to 120\)"):
        read_value(name, age)


def test_values_are_read_as_numbers_texts_or_not_known():
    number, text = MetadataEncoder(["age", "sex"]).fit(TRAIN).learned
    assert [read_value("age", age, number) for age in ("0", " 55.5", 120, "1e2")] == [
        0,
        55.5,
        120,
        100,
    ]
    assert [read_value("age_group", "40-50"), read_value("sex", " male ", text)] == [
        "40-50",
        "male",
    ]
    for empty in ("", "NaN", None, pd.NA, np.nan, "Unknown", " "):
        assert np.isnan(read_value("age", empty, number)) and np.isnan(
            read_value("sex", empty, text)
        )
    with pytest.raises(UnseenValue, match="sex is 'divers', which the model never saw in training"):
        read_value("sex", "divers", text)
    for wrong in ("old", "1_0", "0x10", "4 5"):
        with pytest.raises(BadValue, match="which is not an age"):
            read_value("age", wrong, number)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("age", "45,5", 45.5),
        ("age", "85+", 85),
        ("age", "45 y", 45),
        ("age", "50-59", 54.5),
        ("sex", "M", "male"),
        ("sex", "Woman", "female"),
        ("sex", "UNK", np.nan),
        ("site", "BACK", "Back"),
        ("site", " lower  extremity", "lower extremity"),
        ("itch", True, "True"),
        ("itch", "no", "False"),
        ("itch", "0", "False"),
        ("grew", "TRUE", 1),
        ("grew", False, 0),
        ("size", "12 mm", 12),
        ("size", "12", 12),
        ("size", "0,25mm", 0.25),
    ],
)
def test_other_ways_to_write_a_value_are_read_as_in_training(name, value, expected):
    df = pd.DataFrame({"age": [40.0, 60], "sex": ["male", "female"], "itch": ["True", "False"]})
    df = df.assign(site=["Back", "lower extremity"], grew=[0.0, 1.0], size=[0.0, 20.0])
    df.attrs["written"] = {"size": {"unit": "mm"}}
    encoder = MetadataEncoder(list(df)).fit(df)
    again = MetadataEncoder.from_learned(json.loads(encoder.to_json()))
    learned = next(column for column in again.learned if column["name"] == name)
    assert read_value(name, value, learned) == pytest.approx(expected, nan_ok=True)
    row = encoder.read(pd.DataFrame({name: [value]}))
    assert row[name].iloc[0] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("size", "1.2 cm", "size is '1.2 cm', but the model takes it in mm"),
        ("dose", "5 mg", "dose is '5 mg', but the model takes it without a unit"),
        ("age", "6 months", "age is '6 months', but the model takes it in years"),
        ("size", "1,234", "which can mean 1.234 or 1234"),
        ("size", "2024-05-01", "which is not a number"),
    ],
)
def test_what_can_mean_something_else_is_refused(name, value, words):
    df = pd.DataFrame({"age": [40.0, 60], "dose": [1.0, 9], "size": [1.0, 20]})
    df.attrs["written"] = {"size": {"unit": "mm"}}
    learned = {c["name"]: c for c in MetadataEncoder(list(df)).fit(df).learned}
    with pytest.raises(BadValue, match=words):
        read_value(name, value, learned[name])


def test_a_comma_means_what_it_meant_in_training():
    df = pd.DataFrame({"size": [1.0, 20]})
    df.attrs["written"] = {"size": {"comma": True}}
    assert read_value("size", "1,234", MetadataEncoder(["size"]).fit(df).learned[0]) == 1.234


def test_spellings_that_an_earlier_encoder_learned_apart_stay_apart():
    learned = {"name": "sex", "kind": "text", "values": ["F", "M", "back", "Back"]}
    assert [read_value("sex", value, learned) for value in ("M", "male", "woman", "Back")] == [
        *("M", "M", "F", "Back"),
    ]


@pytest.mark.parametrize("number", ["1e308", "-1e308", "inf", "1e31"])
def test_a_number_that_can_not_be_computed_with_is_refused(number):
    with pytest.raises(BadValue, match=f"thickness is '{number}', which is not between"):
        read_value("thickness", number)


@pytest.mark.parametrize("earlier", [False, True], ids=["this version", "an earlier one"])
def test_a_number_far_from_the_training_counts_as_missing_and_is_said(caplog, earlier):
    rng = np.random.default_rng(0)
    encoder = MetadataEncoder(["thickness"]).fit(pd.DataFrame({"thickness": rng.gamma(2, 1, 500)}))
    if earlier:
        for learned in encoder.learned:
            del learned["low"], learned["high"]
    values = [1.0, 20.0, 1e3, -1e20, 1e308, np.inf, np.nan]
    rows = encoder.transform(pd.DataFrame({"thickness": values}))
    assert np.isfinite(rows).all() and rows[:, 1].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert (
        "thickness: 4 values far from all training values, counted as missing (such as"
        in caplog.text
    )
    with pytest.raises(UnseenValue, match="'1000', which is far from all training values"):
        read_value("thickness", "1000", encoder.learned[0])


@pytest.mark.parametrize("value", [1e308, np.inf, -1e31])
def test_training_rows_with_an_impossible_number_are_refused(value):
    with pytest.raises(LesionfastError, match=r"'x' has 1 value such as .* not between"):
        MetadataEncoder(["x"]).fit(pd.DataFrame({"x": [1.0, 2.0, value]}))
    with pytest.raises(LesionfastError, match="not an age in years"):
        MetadataEncoder(["age"]).fit(pd.DataFrame({"age": [40.0, 999.0]}))


def test_a_row_of_which_nothing_is_known_is_the_mean_age_no_sex_and_both_indicators():
    encoder = MetadataEncoder(["age", "sex"]).fit(TRAIN)
    unknown = encoder.transform(pd.DataFrame({"age": [np.nan], "sex": [None]}))[0]
    np.testing.assert_array_equal(encoder.unknown, unknown)
    assert [encoder.names[i] for i in encoder.indicators] == ["age missing", "sex missing"]


@pytest.mark.parametrize(
    ("values", "told"),
    [(["male"] * 4, "is male"), ([3.0] * 4, "is 3.0"), ([np.nan] * 4, "is missing")],
)
def test_a_column_of_one_value_is_said_with_its_consequence(caplog, values, told):
    MetadataEncoder(["age", "sex"]).fit(TRAIN)
    assert not caplog.text
    MetadataEncoder(["age", "clinic"]).fit(TRAIN.assign(clinic=values))
    assert f"clinic {told} in all 4 training rows: the model learns nothing from it" in caplog.text
    assert "--metadata age" in caplog.text and caplog.text.count("training rows") == 1


COLUMNS = {  # each is a column that a person may have
    "constant": [0.001] * 1000,
    "nearly constant": [0.1 + 0.2, 0.3] * 100,
    "large": [1.7e18, 1.8e18, 1.75e18],
    "largest": [1e30, -1e30],
    "huge and constant": [9.9e29] * 7,
    "huge and nearly constant": [9e29] * 5000 + [9e29 * (1 + 1e-11)],
    "small": [1e-20, 2e-20, 5e-20],
    "smallest": [1e-300, 3e-300],
    "far apart": [0.0] * 10_000 + [1e30],
    "age": [50.1] * 1000,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_what_training_learns_can_be_opened_and_gives_numbers(name):
    df = pd.DataFrame({"age" if name == "age" else "x": COLUMNS[name]})
    encoder = MetadataEncoder(df.columns).fit(df)
    opened = MetadataEncoder.from_learned(json.loads(encoder.to_json()))
    rows = opened.transform(df)
    assert np.isfinite(rows).all() and not rows[:, 1].any()
    assert np.abs(rows).max() < 1000
    if df.iloc[:, 0].nunique() == 1:
        assert encoder.learned[0]["scale"] >= 1


@pytest.mark.parametrize(
    "change",
    [{"mean": 1e300}, {"scale": 0.0}, {"scale": -1.0}, {"scale": 1e-300}, {"high": 1e308}],
    ids=str,
)
def test_what_training_can_not_learn_is_damage(change):
    (learned,) = MetadataEncoder(["x"]).fit(pd.DataFrame({"x": [1.0, 2.0]})).learned
    with pytest.raises(DamageError, match="learned of 'x' is damaged"):
        MetadataEncoder.from_learned([learned | change])
