"""Columns that give the label away are refused as inputs; honest ones are not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesionfast.config import DataConfig, TrainConfig
from lesionfast.data.columns.leaks import check_inputs
from lesionfast.data.metadata import load_metadata
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError


@pytest.fixture
def df() -> pd.DataFrame:
    """A hundred lesions of three classes, with honest and telling columns."""
    rng = np.random.default_rng(0)
    target = pd.Series(np.repeat(["bkl", "mel", "nv"], [20, 30, 50]))
    return pd.DataFrame(
        {
            "image_id": [f"I{i}" for i in range(100)],
            "target": target,
            "group": [f"L{i}" for i in range(100)],
            "age": rng.integers(1, 18, 100) * 5.0,
            "sex": rng.choice(["female", "male"], 100),
            "code": target.map({"bkl": 0.0, "mel": 1.0, "nv": 2.0}),
            "ward": target + rng.choice(["1", "2"], 100),
            "malignant": target.map({"bkl": "no", "mel": "yes", "nv": "no"}),
            "excised": (target == "mel").map({True: "yes", False: np.nan}),
            "clinic": "A",
            "patient": [f"P{i}" for i in range(100)],
        }
    )


def check(df: pd.DataFrame, metadata: str) -> None:
    """Check inputs as the reading of a file cases.csv does."""
    check_inputs(Path("cases.csv"), df, DataConfig(metadata=metadata))


def test_honest_columns_pass(df):
    check(df, "age,sex,clinic")
    check(df, "none")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("code", "(2.0 is always nv in 50 lesions, 1.0 is always mel in 30 lesions, 0.0 is"),
        ("ward", "gives the label away"),
        ("malignant", "on its own it removes 91% of the uncertainty whether a lesion is mel ("),
        ("excised", "gives the label away: on its own it removes 91% of the uncertainty"),
        ("patient", "is an id: it has 100 different values in 100 lesions"),
        ("target", "is the label, an id or a split"),
        ("split", "is the label, an id or a split"),
        ("image_id", "is the label, an id or a split"),
    ],
)
def test_telling_columns_are_refused_with_the_reason(df, name, reason):
    with pytest.raises(LesionfastError) as error:
        check(df, f"age,{name}")
    assert reason in str(error.value)
    assert f"Remove it from --metadata age,{name}" in str(error.value)


SHARES = {"nv": 670, "bkl": 110, "mel": 110, "bcc": 50, "akiec": 33, "vasc": 14, "df": 13}
MALIGNANT = ("mel", "bcc", "akiec")


@pytest.fixture(scope="module", params=["a thousand lesions", "the sample"])
def lesions(request) -> pd.DataFrame:
    """Lesions with the class shares of HAM10000, and those of the sample."""
    if request.param == "the sample":
        df = load_dataset(TrainConfig())
        return df[~df["group"].duplicated()].reset_index(drop=True)
    target = pd.Series([name for name, count in SHARES.items() for _ in range(count)])
    ids = [f"L{i}" for i in range(len(target))]
    return pd.DataFrame({"image_id": ids, "group": ids, "target": target})


def wrong(column: pd.Series, share: float, rng: np.random.Generator) -> pd.Series:
    """Return a column in which a share of the rows has the value of another row."""
    return column.mask(rng.random(len(column)) < share, column.sample(frac=1, random_state=1).array)


def half(column: pd.Series, rng: np.random.Generator) -> pd.Series:
    """Return a column of which half is missing."""
    return column.mask(rng.random(len(column)) < 0.5)


def codes(y: pd.Series) -> pd.Series:
    """Return numbers that stand for the classes."""
    return y.rank(method="dense")


def marked(y: pd.Series, yes: str = "yes", no: str | float = "no") -> pd.Series:
    """Return which lesions are melanomas."""
    return (y == "mel").map({True: yes, False: no})


def suffix(y: pd.Series, rng: np.random.Generator) -> pd.Series:
    """Return a column with a number from 1 to 9 after each value."""
    return y + "-" + pd.Series(rng.integers(1, 10, len(y)).astype(str))


LEAKS = {
    "a copy": lambda y, rng: y.copy(),
    "other names": lambda y, rng: y.map({n: f"D{i}" for i, n in enumerate(SHARES)}),
    "the same in any case": lambda y, rng: y.where(rng.random(len(y)) < 0.5, y.str.upper()),
    "numeric codes": lambda y, rng: codes(y),
    "codes with noise": lambda y, rng: codes(y) + rng.normal(0, 0.15, len(y)),
    "with a suffix": suffix,
    "95 % right": lambda y, rng: wrong(y, 0.05, rng),
    "codes that are 95 % right": lambda y, rng: wrong(codes(y), 0.05, rng),
    "half missing": half,
    "codes of which half is missing": lambda y, rng: half(codes(y), rng),
    "95 % right and half missing": lambda y, rng: half(wrong(y, 0.05, rng), rng),
    "melanoma or not": lambda y, rng: marked(y),
    "melanoma or not, 95 % right": lambda y, rng: wrong(marked(y), 0.05, rng),
    "melanoma or not, half missing": lambda y, rng: half(marked(y), rng),
    "melanoma or not, 95 % right, half missing": lambda y, rng: half(
        wrong(marked(y), 0.05, rng), rng
    ),
    "only melanomas marked": lambda y, rng: marked(y, no=np.nan),
    "only half of the melanomas marked": lambda y, rng: half(marked(y, no=np.nan), rng),
    "malignant or not": lambda y, rng: y.isin(MALIGNANT).map({True: "yes", False: "no"}),
    "malignant or not, with a suffix": lambda y, rng: suffix(
        y.isin(MALIGNANT).map({True: "yes", False: "no"}), rng
    ),
    "malignant or not, 95 % right, half missing": lambda y, rng: half(
        wrong(y.isin(MALIGNANT).astype(float), 0.05, rng), rng
    ),
    "missing for one class alone": lambda y, rng: pd.Series(rng.normal(50, 9, len(y))).mask(
        y == "mel"
    ),
    "missing for half of one class alone": lambda y, rng: pd.Series(rng.normal(50, 9, len(y))).mask(
        (y == "mel") & (rng.random(len(y)) < 0.5)
    ),
    "known for half of one class alone": lambda y, rng: pd.Series(rng.normal(50, 9, len(y))).where(
        (y == "mel") & (rng.random(len(y)) < 0.5)
    ),
    "ids in the order of the classes": lambda y, rng: y.rank(method="first"),
    "dates in the order of the classes": lambda y, rng: pd.Series(
        pd.Timestamp("2020-01-01") + pd.to_timedelta(y.rank(method="first"), "D")
    ).astype(str),
    "weeks in the order of the classes": lambda y, rng: (y.rank(method="first") // 7).map(
        "week {:.0f}".format
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_the_label_under_another_name_is_refused(lesions, kind):
    """Wholly or one-sidedly, also where a twentieth is wrong or half is not known."""
    column = LEAKS[kind](lesions["target"], np.random.default_rng(0))
    with pytest.raises(LesionfastError, match="'note' of cases.csv can't be an input: it "):
        check(lesions.assign(note=column), "note")


HONEST = {
    "nothing": lambda y, rng: pd.Series(rng.choice(list("abcdefgh"), len(y))),
    "a measure": lambda y, rng: pd.Series(rng.normal(0, 1, len(y)) + (y == "mel")),
    "a sign that half of the melanomas have": lambda y, rng: pd.Series(
        rng.random(len(y)) < np.where(y == "mel", 0.5, 0.05)
    ).map({True: "yes", False: "no"}),
    "often missing": lambda y, rng: half(pd.Series(rng.normal(0, 1, len(y))), rng),
    "more often missing for one class": lambda y, rng: pd.Series(rng.normal(0, 1, len(y))).mask(
        rng.random(len(y)) < np.where(y == "nv", 0.12, 0.02)
    ),
    "a site where nearly all are of the most frequent class": lambda y, rng: pd.Series(
        np.where((y == "nv") & (rng.random(len(y)) < 0.1), "foot", "back")
    ),
    "a young age, which nevi have": lambda y, rng: pd.Series(
        rng.normal(np.where(y == "nv", 42, 60), 14, len(y)).round(-1)
    ),
}


@pytest.mark.parametrize("kind", HONEST)
def test_what_speaks_for_a_class_without_giving_it_away_passes(lesions, kind):
    column = HONEST[kind](lesions["target"], np.random.default_rng(0))
    check(lesions.assign(note=column), "note")


PAD = {"ACK": 9, "BCC": 9, "MEL": 10, "NEV": 9, "SCC": 10, "SEK": 9}  # 56 lesions
CANCER = ("BCC", "MEL", "SCC")


@pytest.fixture(scope="module")
def few() -> pd.DataFrame:
    """Fifty-six lesions of six classes, three of which are cancer."""
    target = pd.Series([name for name, count in PAD.items() for _ in range(count)])
    ids = [f"L{i}" for i in range(len(target))]
    return pd.DataFrame({"image_id": ids, "group": ids, "target": target})


def some(y: pd.Series, share: float) -> pd.Series:
    """Return which lesions are marked, evenly: a share of them."""
    return pd.Series((np.arange(len(y)) * share) % 1 < share)


ONE_SIDED = {  # of few lesions
    "every cancer has a biopsy": (
        lambda y: (y.isin(CANCER) | some(y, 0.4)).map({True: "True", False: "False"}),
        r"none of the 15 lesions where it is False is BCC, MEL or SCC \(8 would be by "
        r"chance\); they are 56% of the other lesions",
    ),
    "only cancers are excised": (
        lambda y: (y.isin(CANCER) & some(y, 0.5)).map({True: "yes", False: "no"}),
        "none of the .* where it is yes is anything but BCC, MEL or SCC",
    ),
    "a thickness of melanomas alone": (
        lambda y: pd.Series(np.arange(len(y)) / 9).where(y == "MEL"),
        "it removes 61% of the uncertainty whether a lesion is MEL",
    ),
    "a thickness of some melanomas": (
        lambda y: pd.Series(np.arange(len(y)) / 9).where((y == "MEL") & some(y, 0.6)),
        "known is always MEL in 8 lesions",
    ),
    "a mark that only cancers lack": (
        lambda y: pd.Series("x", y.index).where(~y.isin(CANCER) & some(y, 0.7)),
        "none of the 21 lesions where it is known is BCC, MEL or SCC",
    ),
}


@pytest.mark.parametrize("kind", ONE_SIDED)
def test_one_sided_columns_are_refused_with_the_evidence_also_of_few_lesions(few, kind):
    column, words = ONE_SIDED[kind]
    with pytest.raises(LesionfastError, match=words):
        check(few.assign(note=column(few["target"])), "note")


def test_chance_is_not_refused_also_of_few_lesions(few):
    rng = np.random.default_rng(0)
    for _ in range(40):
        columns = {
            "itch": rng.choice(["True", "False", None], len(few)),
            "grew": rng.choice(["True", "False"], len(few), p=[0.9, 0.1]),
            "region": rng.choice(list("abcdefg"), len(few)),
            "fitspatrick": rng.integers(1, 7, len(few)) * 1.0,
            "diameter": np.where(rng.random(len(few)) < 0.4, np.nan, rng.gamma(2, 4, len(few))),
        }
        check(few.assign(**columns), ",".join(columns))


def test_ham10000_has_no_leak_in_age_sex_and_site_however_few_the_lesions(ham10000):
    df = load_metadata(DataConfig(data=str(ham10000)))
    lesions = df[~df["group"].duplicated()]
    for size in (60, 200, 600, 2000):
        for seed in range(5):
            check(lesions.sample(size, random_state=seed), "age,sex,localization")


def test_answers_that_only_patients_with_a_biopsy_gave_are_a_warning(few, caplog):
    rng = np.random.default_rng(0)
    asked = few["target"].isin(CANCER) | some(few["target"], 0.3)
    smoke = pd.Series(rng.choice(["True", "False"], len(few))).where(asked)
    check(few.assign(smoke=smoke), "smoke")
    assert "Column 'smoke': none of the " in caplog.text
    assert "where it is missing is BCC, MEL or SCC" in caplog.text
    assert "--missing drop, or the column out of --metadata" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *("biopsed", "concomitant_biopsy", "mel_thick_mm", "mel_mitotic_index", "iddx_full"),
        *("iddx_3", "tbp_lv_dnn_lesion_confidence", "diagnosis_2", "diagnosis_confirm_type"),
        *("dx_type", "benign_malignant", "melanocytic", "management", "Biopsied", "histopathology"),
    ],
)
def test_columns_that_are_known_with_the_diagnosis_alone_are_refused_by_name(few, name):
    with pytest.raises(LesionfastError, match=f"'{name}' .* can't be an input: .*--allow-leak"):
        check(few.assign(**{name: 1.0}), name)


def test_allow_leak_makes_a_warning_of_it_but_not_of_the_label(few, caplog):
    df = few.assign(biopsed=few["target"].isin(CANCER).astype(str), age=50.0)
    config = DataConfig(metadata="age,biopsed", allow_leak="biopsed")
    check_inputs(Path("cases.csv"), df, config)
    assert "Column 'biopsed' is an input (--allow-leak), but it gives the label away" in caplog.text
    with pytest.raises(LesionfastError, match="it is the label"):
        check_inputs(Path("a.csv"), df, DataConfig(metadata="target", allow_leak="target"))
    with pytest.raises(LesionfastError, match="--allow-leak names 'biopsy', which is not one of"):
        check_inputs(Path("a.csv"), df, DataConfig(metadata="age", allow_leak="biopsy"))


def test_a_patient_with_two_diagnoses_counts_once_for_each(few):
    """Twenty-eight patients, each of whom has two lesions: they would be too few otherwise."""
    order = few.sample(frac=1, random_state=0).reset_index(drop=True)
    patients = order.assign(group=[f"P{i // 2}" for i in range(len(order))])
    column = patients["target"].isin(CANCER).map({True: "True", False: "False"})
    with pytest.raises(LesionfastError, match="gives the label away"):
        check(patients.assign(note=column), "note")


def test_missing_values_give_nothing_away_where_their_rows_are_dropped(lesions):
    column = LEAKS["missing for one class alone"](lesions["target"], np.random.default_rng(0))
    df = lesions.assign(note=column)
    with pytest.raises(LesionfastError, match="missing is always mel"):
        check(df, "note")
    check_inputs(Path("cases.csv"), df, DataConfig(metadata="note", missing="drop"))


def test_the_sample_s_own_columns_pass():
    df = load_dataset(TrainConfig())
    check(df, "age,sex,localization")


def test_a_column_named_twice_is_refused(df):
    with pytest.raises(LesionfastError, match="it is named twice"):
        check(df, "age,sex,age")


def test_a_few_lesions_prove_nothing(df):
    few = df.iloc[[0, 1, 20, 21, 50, 51]]
    check(few, "age,sex,code,malignant")


def test_many_images_of_a_few_lesions_prove_nothing(df):
    lesions = df.iloc[[0, 20, 50]]
    many = pd.concat([lesions] * 30, ignore_index=True)
    check(many, "age,sex,malignant")


@pytest.mark.parametrize("name", ["dx_type", "dx", "lesion_id", "image_id"])
def test_ham10000_refuses_what_tells(ham10000, name):
    with pytest.raises(LesionfastError, match=f"column '{name}' of HAM10000_metadata.csv"):
        load_metadata(DataConfig(data=str(ham10000), metadata=f"age,{name}"))


def test_ham10000_says_why_dx_type_is_refused(ham10000):
    with pytest.raises(LesionfastError, match="follow_up is always nv"):
        load_metadata(DataConfig(data=str(ham10000), metadata="dx_type"))


def test_ham10000_takes_age_sex_and_site(ham10000):
    df = load_metadata(DataConfig(data=str(ham10000), metadata="age,sex,localization"))
    assert {"age", "sex", "localization"} <= set(df)
