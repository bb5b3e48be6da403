"""Corrections change labels and lesions, never the split."""

import logging

import pandas as pd
import pytest

import lesionfast as lf
from lesionfast.config import DataConfig, SplitConfig
from lesionfast.data.audit import audit
from lesionfast.data.corrections.answers import Answer, append_answer, read_answers
from lesionfast.data.corrections.applying import LEFT_OUT, Effect, name_classes, restore
from lesionfast.data.split import choose_fold, deal_folds, format_folds, format_split, load_dataset
from lesionfast.errors import LesionfastError


@pytest.fixture(scope="module")
def plain() -> pd.DataFrame:
    return lf.load_data()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "corrections.csv"


def say(file, answers: dict[str, str]) -> str:
    for image, text in answers.items():
        append_answer(file, Answer.parse(image, text))
    return str(file)


def pick(df: pd.DataFrame, split: str, target: str = "nv", n: int = 1) -> list[str]:
    """Images of different lesions."""
    rows = df[(df["split"] == split) & (df["target"] == target)].drop_duplicates("group")
    return rows["image_id"].tolist()[-n:]


def by_image(df: pd.DataFrame) -> pd.DataFrame:
    return df.set_index("image_id")


def test_labels_change_and_the_split_does_not(plain, file, caplog):
    (train,), (test,), (valid,) = (pick(plain, part) for part in ("train", "test", "valid"))
    answers = {train: "is MEL", test: "is bcc", valid: "right"}
    with caplog.at_level(logging.INFO, logger="lesionfast"):
        df = lf.load_data(corrections=say(file, answers))
    assert "2 labels changed; 1 confirmed; 0 unclear images left out" in caplog.text
    rows = by_image(df)
    assert rows.loc[[train, test, valid], "target"].tolist() == ["mel", "bcc", "nv"]
    assert rows.loc[[train, test, valid], "original_target"].tolist() == ["nv"] * 3
    assert df["split"].equals(plain["split"]) and format_split(df) == format_split(plain)
    pd.testing.assert_frame_equal(restore(df), plain, check_dtype=False)


def test_unclear_images_are_left_out_of_their_part(plain, file):
    images = [*pick(plain, "train"), *pick(plain, "test")]
    df = lf.load_data(corrections=say(file, dict.fromkeys(images, "unclear")))
    assert by_image(df).loc[images, "split"].tolist() == [LEFT_OUT, LEFT_OUT]
    assert (df["split"] != plain["split"]).sum() == 2
    assert format_split(df) == format_split(plain)


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("valid", "train")])
def test_no_joined_lesion_is_in_two_parts(plain, file, first, second, caplog):
    (a,), (b,) = pick(plain, first), pick(plain, second)
    df = lf.load_data(corrections=say(file, {a: f"same lesion as {b}"}))
    rows, parts = by_image(df), df[df["split"] != LEFT_OUT].groupby("group")["split"].nunique()
    assert rows.at[a, "group"] == rows.at[b, "group"] and (parts == 1).all()
    held_out, trained = (b, a) if second == "test" else (a, b)
    assert rows.at[held_out, "split"] == by_image(plain).at[held_out, "split"]
    lesion = by_image(plain).at[trained, "group"]
    away = df[df["original_group"] == lesion]
    assert set(away["split"]) == {LEFT_OUT}
    assert Effect.of(df).moved == len(away) and Effect.of(df).joined == 2
    assert "left out of training or validation" in caplog.text


def test_folds_stay_and_no_joined_lesion_is_on_both_sides_of_one(plain, file):
    a, b = pick(plain, "train", n=2)
    (test,) = pick(plain, "test")
    answers = {a: f"same lesion as {b}", test: "unclear", pick(plain, "valid")[0]: "is df"}
    config = SplitConfig(folds=4)
    before = load_dataset(config)
    after = load_dataset(SplitConfig(folds=4, corrections=say(file, answers)))
    numbers = [deal_folds(df, config) for df in (before, after)]
    assert numbers[0].equals(numbers[1])
    assert format_folds(before, numbers[0]) == format_folds(after, numbers[1])
    for fold in range(4):
        one = choose_fold(after, numbers[1], fold, config)
        used = one[one["split"] != LEFT_OUT]
        assert (used.groupby("group")["split"].nunique() == 1).all()
        assert by_image(one).at[test, "split"] == LEFT_OUT
        own = choose_fold(before, numbers[0], fold, config)
        assert format_split(one) == format_split(own)


def test_a_renamed_or_dropped_class_is_still_known(plain, file):
    images = pick(plain, "train", n=2)
    say(file, {images[0]: "is mel", images[1]: "is vasc"})
    df = by_image(
        lf.load_data(corrections=file, map={"mel": "melanoma"}, drop_class="vasc", target="dx")
    )
    assert df.at[images[0], "target"] == "melanoma" and df.at[images[1], "split"] == LEFT_OUT


def test_what_does_not_fit_is_said(plain, file, caplog):
    (image,) = pick(plain, "train")
    say(file, {image: "right", "gone": "is mel"})
    lf.load_data(corrections=file)
    assert "left out answers about 1 image that the data does not have, such as gone" in caplog.text
    append_answer(file, Answer.parse(image, "is melanom"))
    with pytest.raises(
        LesionfastError, match="'melanom', which is not a class.*Its classes: akiec"
    ):
        lf.load_data(corrections=file)
    other = file.with_name("other.csv")
    with pytest.raises(LesionfastError, match="none of the 1 image of .* is in the data"):
        lf.load_data(corrections=say(other, {"gone": "right"}))
    last = file.with_name("last.csv")
    df = plain[plain["target"] == "df"]
    with pytest.raises(LesionfastError, match="leaves no training image of class df.*'undo'"):
        lf.load_data(corrections=say(last, dict.fromkeys(df["image_id"], "unclear")))


def test_a_part_without_images_is_refused(plain, file):
    tested = plain.loc[plain["split"] == "test", "image_id"]
    with pytest.raises(LesionfastError, match="no image in the part test: .*'undo'"):
        lf.load_data(corrections=say(file, dict.fromkeys(tested, "unclear")))


def test_a_lesion_that_has_two_classes_now_is_named(plain, file, caplog):
    lesion = plain[plain["split"] == "train"].groupby("group").filter(lambda rows: len(rows) > 1)
    image = lesion.loc[lesion["target"] == "nv", "image_id"].iloc[0]
    lf.load_data(corrections=say(file, {image: "is mel"}))
    assert "different classes after the corrections: 1 lesion, such as" in caplog.text


def test_the_original_label_is_no_input(plain, file):
    say(file, {pick(plain, "train")[0]: "is mel"})
    with pytest.raises(LesionfastError):
        lf.load_data(corrections=file, metadata="age,original_target")


def test_the_audit_counts_them(plain, file):
    images = pick(plain, "train", n=3)
    answers = {images[0]: "is mel", images[1]: "unclear", images[2]: f"same lesion as {images[0]}"}
    found = {f.check: f for f in audit(DataConfig(corrections=say(file, answers))).findings}
    assert found["labels changed by corrections"].count == 1
    assert f"{images[0]} (nv to mel)" in found["labels changed by corrections"].detail
    assert found["images left out by corrections"].count == 1
    assert found["lesions joined by corrections"].count == 2
    assert found["images"].count == len(plain) - 1


@pytest.mark.parametrize(("fate", "kept"), [("drop", LEFT_OUT), ("other", None)])
def test_answers_of_a_rare_class_count_as_the_class_does(plain, file, caplog, fate, kept):
    lesions = plain.groupby("target")["group"].nunique()
    few, rare = lesions.idxmin(), f"{lesions.min() + 1}={fate}"
    without = lf.load_data(rare=rare)
    (image,) = pick(without, "train")
    df = lf.load_data(rare=rare, corrections=say(file, {image: f"is {few.upper()}"}))
    row, part = by_image(df).loc[image], by_image(without).at[image, "split"]
    assert row["target"] == ("nv" if fate == "drop" else "other")
    assert row["split"] == (kept or part) and format_split(df) == format_split(without)
    assert f"1 answer of classes that --rare {rare} leaves out or joins count so" in caplog.text
    with pytest.raises(LesionfastError, match="which is not a class of the data"):
        lf.load_data(rare=rare, corrections=say(file, {image: "is mell"}))


def test_answers_of_a_rare_class_count_so_for_a_run_too(plain, file):
    answers = read_answers(say(file, {image: "is df" for image in pick(plain, "train")}))
    named = name_classes(answers, ["mel", "nv"], DataConfig(rare="3=drop"))
    assert list(named.values()) == ["drop"]
    named = name_classes(answers, ["mel", "nv", "Other"], DataConfig(rare="3=other"))
    assert list(named.values()) == ["Other"]
    with pytest.raises(LesionfastError, match="not a class of the data"):
        name_classes(answers, ["mel", "nv"], DataConfig())


@pytest.mark.parametrize("typed", ["melanom", "melanoma", "nve", "nevus"])
def test_a_mistyped_class_is_no_rare_one_of_a_run(file, typed):
    answers = read_answers(say(file, {"a": f"is {typed}"}))
    for rare in ("3=drop", "3=other"):
        squamous = read_answers(say(file, {"a": "is scc"}))
        assert name_classes(squamous, ["mel", "bcc", "other"], DataConfig(rare=rare)) == {
            "a": rare[2:]
        }
        with pytest.raises(LesionfastError, match=f"'{typed}', which is not a class"):
            name_classes(answers, ["mel", "nv", "other"], DataConfig(rare=rare))


def test_an_answer_of_a_name_that_becomes_a_rare_class_counts_as_that(plain, file):
    counts = lf.load_data(map="vasc=angioma").groupby("target")["group"].nunique()
    rare = f"{counts['angioma'] + 1}=drop"
    without = lf.load_data(map="vasc=angioma", rare=rare)
    (image,) = pick(without, "train")
    df = lf.load_data(map="vasc=angioma", rare=rare, corrections=say(file, {image: "is vasc"}))
    assert set(df["target"]) == set(without["target"])
    assert by_image(df).at[image, "split"] == LEFT_OUT
