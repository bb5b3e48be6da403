"""A dataset's own parts are used where they are sound; a value of a column can be held out."""

import logging

import numpy as np
import pandas as pd
import pytest

from lesionfast.config import IN_MEMORY, SplitConfig
from lesionfast.data.parts.drawing import assign_split
from lesionfast.data.split import split_metadata, write_split
from lesionfast.errors import LesionfastError

OWN = SplitConfig(data="folder")


@pytest.fixture(autouse=True)
def all_messages(caplog):
    """Log lines of every level are caught."""
    caplog.set_level(logging.INFO)


@pytest.fixture
def df() -> pd.DataFrame:
    """Images of 60 lesions of three classes, two each, in the parts of their dataset."""
    lesion = np.repeat(np.arange(60), 2)
    table = pd.DataFrame(
        {
            "image_id": [f"I{i:03d}" for i in range(120)],
            "target": np.array(["nv", "mel", "bcc"])[lesion % 3],
            "group": [f"L{i:02d}" for i in lesion],
            "source": np.array(["ham", "BCN20000", "ham", "ham"])[lesion // 3 % 4],
            "age": lesion % 5 * 10.0,
        }
    )
    parts = np.array(["train", "train", "valid", "test", "train"])[lesion // 3 % 5]
    return table.assign(split=parts)


def refusal(df: pd.DataFrame, **options) -> str:
    with pytest.raises(LesionfastError) as error:
        split_metadata(df, SplitConfig(data="folder", **options))
    return str(error.value)


def is_torn(df: pd.DataFrame) -> bool:
    return bool((df.groupby("group")["split"].nunique() > 1).any())


def test_the_datasets_own_split_is_used_and_said(df, caplog):
    assert split_metadata(df, OWN)["split"].tolist() == df["split"].tolist()
    assert "using the dataset's own split: 72 train, 24 valid, 24 test" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_new_split_or_folds_or_a_file_come_before_it(df, tmp_path, caplog):
    bare = df.drop(columns="split")
    drawn = split_metadata(df, SplitConfig(data="folder", split="new", seed=3))
    assert drawn["split"].tolist() == assign_split(bare, seed=3)["split"].tolist()
    folds = split_metadata(df, SplitConfig(data="folder", folds=4, fold=1))
    assert folds["split"].tolist() == assign_split(bare, folds=4, fold=1)["split"].tolist()
    write_split(drawn, tmp_path / "some.csv")
    config = SplitConfig(data="folder", split=str(tmp_path / "some.csv"))
    assert split_metadata(df, config)["split"].tolist() == drawn["split"].tolist()
    assert "own split" not in caplog.text and "no effect" not in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda df: df.assign(split=df["split"].mask(df.index.isin([0, 2]), "test")),
         "puts 2 lesions (or patients) in two parts (the first is 'L00', in test and train)"),
        (lambda df: df.assign(split=df["split"].mask(df["target"] == "bcc", "test")),
         "has no image of class bcc in train"),
        (lambda df: df.assign(split="test"), "has no image of class bcc, mel, nv in train"),
        (lambda df: df.assign(split=df["split"].replace("valid", "extra")),
         "has other words than train, valid, test: extra"),
    ],
)  # fmt: skip
def test_a_split_that_is_not_sound_is_drawn_anew(df, change, reason, caplog):
    split = split_metadata(change(df), OWN)
    assert f"its own split {reason}, so a new one is drawn" in caplog.text
    assert split["split"].tolist() == assign_split(df.drop(columns="split"))["split"].tolist()


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        (["valid"], "has no valid: drew 14 valid from train"),
        (["test"], "has no test: drew 14 test from train"),
        (["valid", "test"], "has no valid or test: drew 18 valid and 18 test from train"),
    ],
)
def test_parts_that_are_absent_are_drawn_from_train(df, absent, words, caplog):
    own = df.assign(split=df["split"].replace(dict.fromkeys(absent, "train")))
    split = split_metadata(own, OWN)
    assert not is_torn(split) and set(split["split"]) == {"train", "valid", "test"}
    kept = ~own["split"].eq("train")
    assert (split["split"][kept] == own["split"][kept]).all()
    assert (pd.crosstab(split["target"], split["split"]) > 0).all(axis=None)
    for part in absent:
        size = (own["split"] == "train").sum()
        assert (split["split"] == part).sum() == pytest.approx(0.15 * size, abs=4)
    assert words.partition(":")[0] in caplog.text
    mixed = split_metadata(own.sample(frac=1, random_state=1), OWN).sort_index()
    assert (mixed["split"] == split["split"]).all()


def test_without_a_test_part_none_is_drawn_if_none_is_asked(df, caplog):
    own = df.assign(split=df["split"].replace("test", "train"))
    split = split_metadata(own, SplitConfig(data="folder", test=0))
    assert set(split["split"]) == {"train", "valid"} and "no effect" not in caplog.text


def test_rows_without_a_part_join_their_lesion_or_train(df, caplog):
    holes = df["image_id"].isin(["I000", "I018", "I020", "I021"])  # I020, I021: a whole lesion
    own = df.assign(split=df["split"].mask(holes, ""))
    split = split_metadata(own, OWN)["split"]
    assert split[[0, 18]].tolist() == df["split"][[0, 18]].tolist() == ["train", "test"]
    assert split[[20, 21]].tolist() == ["train", "train"]
    assert "4 images without a part in the dataset's own split joined their lesions" in caplog.text


def test_options_without_effect_are_said(df, tmp_path, caplog):
    split_metadata(df, SplitConfig(data="folder", val=0.3))
    assert "--val 0.3 has no effect: the dataset's own split is used; --split new" in caplog.text
    caplog.clear()
    split_metadata(df, SplitConfig(data="folder", folds=4, val=0.3))
    assert "--val 0.3 has no effect: --folds 4 says what is validated" in caplog.text
    write_split(df, tmp_path / "some.csv")
    split_metadata(df, SplitConfig(data="folder", split=str(tmp_path / "some.csv"), test=0.3))
    assert "--test 0.3 has no effect: " in caplog.text
    assert "say in two ways what the parts are" in refusal(df, split="some.csv", folds=4)
    assert "--split new and --test-on source=ham" in refusal(df, split="new", test_on="source=ham")


def test_classes_that_a_part_lacks_are_named(df, caplog):
    own = df.assign(
        split=df["split"].mask((df["target"] == "mel") & (df["split"] == "test"), "train")
    )
    split_metadata(own, OWN)
    assert "test has no image of class mel, so nothing is measured of it" in caplog.text


def test_a_table_from_python_keeps_its_own_or_is_refused(df):
    memory = SplitConfig(data=IN_MEMORY)
    assert split_metadata(df, memory)["split"].tolist() == df["split"].tolist()
    with pytest.raises(LesionfastError, match="puts 1 lesion in two parts"):
        torn = df.assign(split=df["split"].mask(df["image_id"] == "I000", "test"))
        split_metadata(torn, memory)
    drawn = split_metadata(df, SplitConfig(data=IN_MEMORY, split="new"))
    assert drawn["split"].tolist() == assign_split(df.drop(columns="split"))["split"].tolist()


@pytest.mark.parametrize("typed", ["source=BCN20000", "Source=bcn20000", 'source="BCN20000"'])
def test_a_value_of_a_column_is_held_out(df, typed, caplog):
    split = split_metadata(df, SplitConfig(data="folder", test_on=typed, val=0.2))
    assert ((split["split"] == "test") == (df["source"] == "BCN20000")).all()
    rest = split[split["split"] != "test"]
    assert not is_torn(split) and set(rest["split"]) == {"train", "valid"}
    assert (rest["split"] == "valid").mean() == pytest.approx(0.2, abs=0.05)
    assert f"testing on 30 images with {typed}" in caplog.text
    numbers = split_metadata(df, SplitConfig(data="folder", test_on="age=10", folds=3, fold=2))
    assert ((numbers["split"] == "test") == (df["age"] == 10)).all()
    assert (numbers["split"] == "valid").sum() == pytest.approx(96 / 3, abs=2)


def test_lesions_on_both_sides_lose_their_other_images(df, caplog):
    df.loc[[1, 3], "source"] = "BCN20000"  # of lesions L00 and L01, whose other image is of ham
    split = split_metadata(df, SplitConfig(data="folder", test_on="source=bcn20000", test=0.5))
    assert sorted({*df["image_id"]} - {*split["image_id"]}) == ["I000", "I002"]
    assert split.index.tolist() == list(range(118)) and not is_torn(split)
    assert "Left out 2 images of lesions or patients that have others in test" in caplog.text
    assert "--test 0.5 has no effect: --test-on source=bcn20000 says" in caplog.text


def test_classes_that_only_the_held_out_part_has_are_left_out(df, caplog):
    odd = (df["source"] == "BCN20000") & (df["target"] == "bcc")
    df["target"] = df["target"].mask(odd, "scc")
    split = split_metadata(df, SplitConfig(data="folder", test_on="source=BCN20000"))
    assert set(split["target"]) == {"nv", "mel", "bcc"} and len(split) == 110
    assert "Left out 10 images in test of class scc, which no other image has" in caplog.text
    assert "test has no image of class bcc" in caplog.text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("source", "--test-on is 'source'. Type a column and a value, such as source=bcn20000."),
        ("=ham", "Type a column and a value"),
        ("sorce=ham", "which the table does not have. Did you mean 'source'? It has: target"),
        ("source=bcn2000", "no image has this value of 'source'. Did you mean 'BCN20000'? It has: "
         "BCN20000, ham."),
        ("age=old", "no image has this value of 'age'. It has: 0, 10, 20, 30, 40."),
        ("image_id=I000", "which the table does not have"),
        ("target=mel", "leaves no image to test: the others have none of its classes (mel)"),
    ],
)  # fmt: skip
def test_what_can_t_be_held_out_says_what_to_type(df, typed, message):
    assert message in refusal(df, test_on=typed)


def test_a_value_that_all_have_leaves_nothing_to_train_on(df):
    assert "leaves no image to train on" in refusal(df.assign(source="x"), test_on="source=x")
    assert "leaves no image to train on" in refusal(df.assign(group="L"), test_on="source=ham")
