"""Class names have one spelling each, and become what the options say; every change is counted."""

import logging
import time

import pandas as pd
import pytest

from lesionfast.config import DataConfig, TrainConfig, read_option
from lesionfast.data.columns.labels import (
    drop_classes,
    expand_map,
    read_map,
    settle_labels,
    settle_rare,
)
from lesionfast.data.metadata import load_metadata, settle_inputs
from lesionfast.data.split import OPTIONS, configure, load_data
from lesionfast.errors import LesionfastError

LABELS = ["nv", "nv", "NV", "nv ", "Melanoma, NOS", "ak", "akiec", "scc", "df", "df"]


@pytest.fixture(autouse=True)
def all_messages(caplog):
    """Log lines of every level are caught."""
    caplog.set_level(logging.INFO)


def settle(labels=tuple(LABELS), column: str = "dx", **options) -> list[str]:
    """Return the classes of images, each a lesion of its own, after all steps."""
    df = pd.DataFrame({"target": list(labels), "group": [f"L{i}" for i in range(len(labels))]})
    config = DataConfig(**{name: read_option(value) for name, value in options.items()})
    before = df.copy()
    settled = drop_classes(settle_labels(df, config, column), config)
    pd.testing.assert_frame_equal(df, before)
    assert settled.index.isin(df.index).all()
    return settled["target"].tolist()


def refusal(labels=tuple(LABELS), **options) -> str:
    """Return the message with which options are refused."""
    with pytest.raises(LesionfastError) as error:
        settle(labels, **options)
    return str(error.value)


def test_spellings_of_a_class_are_one_the_commonest(caplog):
    assert settle() == ["nv"] * 4 + LABELS[4:]
    assert "'NV' (1 image), 'nv ' (1 image) counted as class 'nv' (2 images)" in caplog.text
    assert settle(["B", "b", "a", "A", "A"]) == ["B", "B", "A", "A", "A"]
    assert settle(["basal  cell", "Basal cell", "Basal cell"]) == ["Basal cell"] * 3


def test_a_table_with_one_spelling_stays_as_it_is(caplog):
    assert settle(["nv", "mel"]) == ["nv", "mel"]
    assert not caplog.text
    assert settle(["", "0", "1"]) == ["", "negative", "positive"]


@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        ("malignant", ["True", "False", "True"], ["malignant", "benign", "malignant"]),
        ("Benign_Malignant", ["0", "1", "0"], ["benign", "malignant", "benign"]),
        ("benign", ["1", "0", "1"], ["benign", "malignant", "benign"]),
        ("is_cancer", ["no", "yes", "NO"], ["benign", "malignant", "benign"]),
        ("MEL", ["0.0", "1.0", "0.0"], ["not MEL", "MEL", "not MEL"]),
        ("is_melanoma", ["f", "t", "f"], ["not melanoma", "melanoma", "not melanoma"]),
        ("nevus", ["0", "1", "1"], ["not nevus", "nevus", "nevus"]),
        ("target", ["0", "1", "0"], ["negative", "positive", "negative"]),
        ("stage", ["0", "1", "2"], ["0", "1", "2"]),
        ("label", ["1", "1", "1"], ["1", "1", "1"]),
        ("malignant", ["benign", "malignant", "benign"], ["benign", "malignant", "benign"]),
    ],
)
def test_binary_targets_get_names(column, values, names, caplog):
    assert settle(values, column) == names
    if names != values:
        assert f"Column {column} is binary: its classes are called" in caplog.text


def test_a_map_may_name_the_values_of_a_binary_target():
    assert settle(["0", "1"], "target", map=["0=nv", "1=mel"]) == ["nv", "mel"]
    assert settle(["0", "1"], "target", map={"positive": "mel"}) == ["negative", "mel"]


@pytest.mark.parametrize(
    "typed",
    [
        ["Melanoma, NOS=mel", "ak=akiec", "scc=drop"],
        {"Melanoma, NOS": "mel", "ak": "akiec", "scc": "drop"},
        "Melanoma, NOS=mel,ak=akiec,scc=drop",
        ["ak=akiec,scc=drop", '"melanoma, nos"="mel"'],
        [" MELANOMA, NOS = mel ", "AK=AKIEC", "Scc=Drop"],
    ],
)
def test_classes_are_renamed_merged_and_dropped(typed, caplog):
    assert settle(map=typed) == ["nv"] * 4 + ["mel", "akiec", "akiec", "df", "df"]
    assert "--map: class mel is Melanoma, NOS (1 image)" in caplog.text
    assert "--map: class akiec is ak (1 image) + akiec (1 image)" in caplog.text
    assert "Left out 1 image of class scc (--map)" in caplog.text.replace("Scc", "scc")


def test_names_are_exchanged_at_once():
    assert settle(["a", "b", "c"], map=["a=b", "b=a", "c=drop"]) == ["b", "a"]
    assert settle(["a=b", "c"], map=['"a=b"=d']) == ["d", "c"]


@pytest.mark.parametrize(
    "text",
    [
        'from,to\n"Melanoma, NOS",mel\nscc,drop\n',
        "To;From\nmel;Melanoma, NOS\ndrop;scc\n",
        "diagnosis\tclass\nMelanoma, NOS\tmel\nscc\tdrop\n",
    ],
)
def test_a_file_maps_many_classes_and_a_run_does_not_need_it(tmp_path, text):
    path = tmp_path / "names, all.csv"
    path.write_text(text)
    expected = ["nv"] * 4 + ["mel", "akiec", "akiec", "df", "df"]
    assert settle(map=[path, "ak=akiec"]) == expected
    typed = read_option([path, "ak=akiec"])
    pairs = {"Melanoma, NOS": "mel", "scc": "drop", "ak": "akiec"}
    assert read_map(typed) == pairs
    kept = expand_map(typed)
    path.unlink()
    assert read_map(kept) == pairs and expand_map(kept) == kept and expand_map(None) is None


def test_a_table_that_was_loaded_with_a_file_of_names_is_trained_with_it(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("from,to\nakiec,scc\ndf,drop\n")
    df = load_data(map=path)
    assert set(df["target"]) == {"bcc", "bkl", "mel", "nv", "scc", "vasc"}
    config = configure(df, TrainConfig(map=str(path)))
    assert config.map == df.attrs[OPTIONS]["map"]
    assert read_map(config.map) == {"akiec": "scc", "df": "drop"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": ["akic=x"]}, "--map names 'akic', which is not a class. Did you mean 'akiec'? "
         'The data has: "Melanoma, NOS", ak, akiec, df, nv, scc'),
        ({"map": ["names.csv"]}, "has 'names.csv', which is neither a pair nor a file. Type old="),
        ({"map": ["ak="]}, "has 'ak=', where a name is missing. Type old=new, or old=drop"),
        ({"map": ["=mel"]}, "has '=mel', where a name is missing"),
        ({"map": ["ak=scc", "ak=akiec"]}, "names 'ak' twice, as scc and as akiec. Keep one"),
        ({"drop_class": "sccc"}, "--drop-class names 'sccc', which is not a class. Did you mean"),
        ({"rare": "3"}, "--rare is '3'. Type a number of lesions and what becomes"),
        ({"rare": "3=keep"}, "--rare 3=drop leaves them out, --rare 3=other makes one class"),
        ({"rare": "99=drop"}, "leave none of 10 images. Drop fewer classes."),
    ],
)  # fmt: skip
def test_what_is_no_class_or_no_rule_says_what_to_type(options, message):
    assert message in refusal(**options)


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("class,name,n\nak,akiec,1\n")
    assert "has 3 columns (class, name, n), but --map needs two, from and to" in refusal(map=[path])
    path.write_text("from,to\nak,\n")
    assert "has 'ak=', where a name is missing" in refusal(map=[path])


def test_classes_are_dropped_in_any_spelling(caplog):
    assert settle(drop_class=["DF", "melanoma, nos"]) == ["nv"] * 4 + ["ak", "akiec", "scc"]
    assert "Left out 3 images of class df, Melanoma, NOS (--drop-class)" in caplog.text
    assert settle(drop_class="scc", map=["ak=scc"])[-3:] == ["akiec", "df", "df"]


def test_rare_classes_are_counted_by_lesions(caplog):
    df = pd.DataFrame({"target": ["a"] * 4 + ["b"] * 4 + ["c"], "group": list("112344445")})
    assert settle_rare(df, "2=drop")["target"].unique().tolist() == ["a"]
    assert "Left out 5 images of class b (1 lesion), c (1 lesion) (--rare 2=drop)" in caplog.text
    assert settle_rare(df, "2 = Other")["target"].tolist() == ["a"] * 4 + ["other"] * 5
    assert "Put 5 images into class other (--rare 2 = Other): b (1 lesion), c" in caplog.text
    assert settle_rare(df, "1=drop") is df
    named = df.replace({"target": {"a": "Other"}})
    assert settle_rare(named, "2=other")["target"].unique().tolist() == ["Other"]


def test_what_is_dropped_is_no_image_without_a_row(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    rows = [("a", "NV", "L1"), ("b", "nv", "L1"), ("c", "scc", "L2"), ("d", "mel", "L2")]
    for name, _, _ in rows:
        (tmp_path / "images" / f"{name}.jpg").touch()
    text = "".join(f"{','.join(row)}\n" for row in rows)
    (tmp_path / "cases.csv").write_text(f"image_id,dx,lesion_id\n{text}")
    where = {"csv": str(tmp_path / "cases.csv"), "images": str(tmp_path / "images")}
    with pytest.raises(LesionfastError, match="more than one label; the first is 'L2' with mel"):
        load_metadata(DataConfig(**where))
    df = load_metadata(DataConfig(map="scc=drop", metadata="none", **where))
    assert df[["image_id", "target", "group"]].to_numpy().tolist() == [
        ["a", "NV", "L1"], ["b", "NV", "L1"], ["d", "mel", "L2"],
    ]  # fmt: skip
    assert "without a row" not in caplog.text and "Left out 1 image of class scc" in caplog.text


def test_a_million_labels_take_a_moment():
    df = pd.DataFrame({"target": ["NV", "nv", "mel", "scc"] * 250_000})
    df["group"] = df.index.astype(str)
    config = DataConfig(map="scc=drop", rare="3=other")
    start = time.process_time()
    assert len(drop_classes(settle_labels(df, config, "dx"), config)) == 750_000
    assert time.process_time() - start < 5


def test_a_training_keeps_the_pairs_of_a_file(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("from,to\nak,akiec\n")
    df = pd.DataFrame({"age": [1.0]})
    for metadata in ("auto", "none"):
        settled = settle_inputs(df, TrainConfig(map=str(path), metadata=metadata))
        assert read_map(settled.map) == {"ak": "akiec"} and "names.csv" not in settled.map
