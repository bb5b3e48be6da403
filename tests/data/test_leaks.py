"""Columns that give the label away are refused as inputs; honest ones are not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data.leaks import check_inputs, check_weights
from lesionfast.data.metadata import load_metadata
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
        ("code", "gives the label away (2.0 is always nv, 1.0 is always mel, 0.0 is always bkl)"),
        ("ward", "gives the label away"),
        ("malignant", "follows from the label (nv is always no, mel is always yes"),
        ("excised", "follows from the label (nv is always missing, mel is always yes"),
        ("target", "is the label, an id or a split"),
        ("split", "is the label, an id or a split"),
        ("image_id", "is the label, an id or a split"),
    ],
)
def test_telling_columns_are_refused_with_the_reason(df, name, reason):
    with pytest.raises(LesionfastError) as error:
        check(df, f"age,{name}")
    assert reason in str(error.value)
    assert f"Take it out of --metadata age,{name}" in str(error.value)


def test_a_column_named_twice_is_refused(df):
    with pytest.raises(LesionfastError, match="it is named twice"):
        check(df, "age,sex,age")


def test_weights_of_a_run_of_another_architecture_are_refused(df, tmp_path):
    """Two architectures can have the same tensors, and want other inputs."""
    (tmp_path / "split.csv").write_text("image_id,split\nI0,train\n")
    (tmp_path / "pretrain.json").write_text('{"arch": "tf_efficientnet_lite0"}')
    rows = df.assign(split="train")
    check_weights(rows, str(tmp_path), "tf_efficientnet_lite0")
    with pytest.raises(LesionfastError, match=r"Type --arch tf_efficientnet_lite0, or other"):
        check_weights(rows, str(tmp_path), "efficientnet_lite0")


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
