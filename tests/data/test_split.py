"""No lesion crosses, shares are met, and the split is the same everywhere."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lesionfast.config import DataConfig, SplitConfig
from lesionfast.data.metadata import load_metadata
from lesionfast.data.parts.drawing import assign_split
from lesionfast.data.parts.groups import join_groups
from lesionfast.data.split import load_data, load_dataset, read_split, split_metadata, write_split
from lesionfast.errors import LesionfastError

SIZES = {"nv": 300, "mel": 80, "bcc": 20, "df": 7}  # lesions


def make_table(sizes: dict[str, int] = SIZES, seed: int = 0) -> pd.DataFrame:
    """Return lesions of 1 to 6 images, in the columns of `read_metadata`."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(list(sizes), list(sizes.values()))
    lesion = np.repeat(np.arange(len(classes)), rng.choice([1, 2, 3, 6], len(classes)))
    images = rng.permutation(len(lesion))
    df = pd.DataFrame(
        {
            "image_id": [f"I{i:05d}" for i in images],
            "target": classes[lesion],
            "group": [f"L{i}" for i in lesion],
        }
    )
    return df.sort_values("image_id").reset_index(drop=True)


def shares(df: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return the share of a part per class: columns images and lesions."""
    lesions = df.drop_duplicates("group")
    inside = {"images": df[df["split"] == part], "lesions": lesions[lesions["split"] == part]}
    whole = {"images": df, "lesions": lesions}
    count = {
        name: inside[name]["target"].value_counts() / whole[name]["target"].value_counts()
        for name in whole
    }
    return pd.DataFrame(count).fillna(0)


def refusal(function, *values, **options) -> str:
    """Return the message with which a call is refused."""
    with pytest.raises(LesionfastError) as error:
        function(*values, **options)
    return str(error.value)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "options", [{}, {"val": 0.3, "test": 0.4}, {"test": 0}, {"folds": 4, "fold": 2}]
)
def test_no_lesion_crosses_and_no_class_is_missing_anywhere(seed, options):
    df = assign_split(make_table(seed=seed), seed=seed, **options)
    assert (df.groupby("group")["split"].nunique() == 1).all()
    parts = {"train", "valid"} if options.get("test") == 0 else {"train", "valid", "test"}
    assert set(df["split"]) == parts
    assert (pd.crosstab(df["target"], df["split"]) > 0).all(axis=None)


@pytest.mark.parametrize("val", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("test", [0.05, 0.15, 0.3])
def test_lesions_are_shared_out_to_the_nearest_one(val, test):
    df = assign_split(make_table(), val=val, test=test)
    lesions = df.drop_duplicates("group")
    count = pd.crosstab(lesions["target"], lesions["split"])
    size = pd.Series(SIZES)
    for part, share in {"valid": val, "test": test}.items():
        error = (count[part] - (share * size).clip(lower=1)).abs()
        assert (error <= 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_images_are_shared_out_as_evenly_as_lesions(seed):
    df = assign_split(make_table({"nv": 600, "mel": 400}), seed=seed)
    for part in ("valid", "test"):
        assert (shares(df, part) - 0.15).abs().max(axis=None) < 0.01


def test_ham10000_has_the_asked_share_of_every_class(ham10000):
    df = assign_split(load_metadata(DataConfig(data=str(ham10000))))
    assert (df.groupby("group")["split"].nunique() == 1).all()
    for part in ("valid", "test"):
        share = shares(df, part)
        assert (share - 0.15).abs().max(axis=None) < 0.006  # one image of df: 0.0087 / 2
        assert (df["split"] == part).mean() == pytest.approx(0.15, abs=0.001)


def test_the_order_of_rows_and_the_other_columns_are_nothing():
    df = make_table()
    split = assign_split(df).set_index("image_id")["split"]
    mixed = df.sample(frac=1, random_state=1).assign(age=1.0)
    again = assign_split(mixed)
    assert again.index.tolist() == mixed.index.tolist()
    pd.testing.assert_series_equal(again.set_index("image_id")["split"].loc[split.index], split)


def test_the_names_of_lesions_are_nothing():
    df = make_table()
    renamed = df.assign(group="X" + df["group"].str[::-1])
    assert assign_split(renamed)["split"].tolist() == assign_split(df)["split"].tolist()


def test_the_table_is_not_changed():
    df = make_table()
    before = df.copy()
    assign_split(df)
    pd.testing.assert_frame_equal(df, before)


def test_seeds_differ_and_one_seed_does_not():
    df = make_table()
    splits = [assign_split(df, seed=seed)["split"].tolist() for seed in (1, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2] != splits[3] != splits[0]


def test_every_lesion_can_be_test():
    df = make_table({"nv": 9, "mel": 9})
    tested = set()
    for seed in range(60):
        split = assign_split(df, seed=seed)
        tested |= set(split.loc[split["split"] == "test", "group"])
    assert tested == set(df["group"])


def test_the_split_of_a_seed_is_known_for_ever():
    ids = pd.Series(list("abcdefghijklmnop"))
    df = pd.DataFrame({"image_id": ids, "group": ids, "target": ["mel"] * 6 + ["nv"] * 10})
    split = assign_split(df, seed=42, val=0.2, test=0.3)
    parts = split.groupby("split")["group"].agg("".join)
    assert parts.to_dict() == {"test": "afhip", "train": "bceklmno", "valid": "dgj"}


def test_another_process_with_other_hashes_splits_alike(tmp_path):
    df = make_table()
    df.to_csv(tmp_path / "table.csv", index=False)
    code = (
        "import sys, pandas as pd; from lesionfast.data.split import *; "
        "from lesionfast.data.parts.drawing import assign_split; "
        "print(write_split(assign_split(pd.read_csv(sys.argv[1])), sys.argv[2]))"
    )
    files = [str(tmp_path / "table.csv"), str(tmp_path / "other.csv")]
    command = [sys.executable, "-c", code, *files]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert write_split(assign_split(df), tmp_path / "split.csv") == other


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_share_the_rest_and_leave_the_test_alone(folds):
    df = make_table()
    test = assign_split(df)["split"] == "test"
    validated = pd.Series(0, df.index)
    for fold in range(folds):
        split = assign_split(df, folds=folds, fold=fold)
        assert (split.groupby("group")["split"].nunique() == 1).all()
        assert ((split["split"] == "test") == test).all()
        validated += split["split"] == "valid"
        share = (split["split"] == "valid").sum() / (~test).sum()
        assert share == pytest.approx(1 / folds, abs=0.02)
    assert (validated[~test] == 1).all()
    assert (validated[test] == 0).all()


@pytest.mark.parametrize(
    ("val", "test"), [(0.5, 0.5), (0.9, 0.2), (0, 0.1), (-0.1, 0.1), (0.1, -0.1), (1, 0), (0.1, 1)]
)
def test_impossible_shares_are_refused(val, test):
    message = refusal(assign_split, make_table(), val=val, test=test)
    assert f"--val {val} and --test {test} leave no" in message
    assert "such as --val 0.15 --test 0.15" in message


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_impossible_seeds_are_refused(seed):
    assert f"--seed is {seed}" in refusal(assign_split, make_table(), seed=seed)


def test_shares_that_are_no_numbers_are_refused():
    assert "--val nan" in refusal(assign_split, make_table(), val=float("nan"))
    assert "--test nan" in refusal(assign_split, make_table(), test=float("nan"))


@pytest.mark.parametrize(
    ("folds", "fold", "typed"),
    [
        (1, 0, "--folds 5"),
        (0, 0, "--folds 5"),
        (-3, 0, "--folds 5"),
        (5, 5, "--fold 0 to --fold 4"),
        (5, -1, "--fold 0 to --fold 4"),
        (None, 1, "--folds 5 with it"),
    ],
)
def test_impossible_folds_are_refused(folds, fold, typed):
    assert typed in refusal(assign_split, make_table(), folds=folds, fold=fold)


def test_a_class_needs_a_lesion_for_every_part():
    sizes = {"nv": 50, "mel": 30}
    assert set(assign_split(make_table({**sizes, "df": 3}))["split"]) == {"train", "valid", "test"}
    message = refusal(assign_split, make_table({**sizes, "df": 2}))
    assert "needs 3 lesions of each class" in message
    assert "'df' has 2" in message
    assign_split(make_table({**sizes, "df": 2}), test=0)
    assign_split(make_table({**sizes, "df": 5}), folds=4)
    message = refusal(assign_split, make_table({**sizes, "df": 5, "vasc": 4}), folds=5)
    assert "needs 6 lesions of each class" in message
    assert "'vasc' has 4, 'df' has 5" in message
    assert "only one class, 'nv'" in refusal(assign_split, make_table({"nv": 50}))


def test_the_rarest_class_is_in_every_part_whatever_the_shares():
    table = make_table({"nv": 50, "df": 4})
    for val, test in [(0.01, 0.01), (0.45, 0.5), (0.98, 0.01), (0.01, 0.98)]:
        df = assign_split(table, val=val, test=test)
        assert (pd.crosstab(df["target"], df["split"]) > 0).all(axis=None)


def test_the_file_of_a_split_is_canonical(tmp_path):
    df = assign_split(make_table()).assign(age=1.0)
    mixed = df.sample(frac=1, random_state=3)
    assert write_split(df, tmp_path / "a.csv") == write_split(mixed, tmp_path / "b.csv")
    content = (tmp_path / "a.csv").read_bytes()
    assert content == (tmp_path / "b.csv").read_bytes()
    assert content.startswith(b"image_id,group,target,split\nI00000,")
    assert b"\r" not in content
    other = assign_split(df, seed=1)
    assert write_split(other, tmp_path / "c.csv") != write_split(df, tmp_path / "a.csv")


def test_a_written_split_is_read_again(tmp_path):
    df = assign_split(make_table(), seed=7)
    write_split(df, tmp_path / "split.csv")
    mixed = df.drop(columns="split").sample(frac=1, random_state=3)
    again = read_split(mixed, tmp_path / "split.csv")
    assert again["split"].tolist() == df["split"].loc[mixed.index].tolist()
    config = SplitConfig(split=str(tmp_path / "split.csv"), seed=1)
    pd.testing.assert_frame_equal(split_metadata(mixed, config), again)


def test_a_config_is_split_by_its_seed_and_shares():
    df = make_table()
    config = SplitConfig(seed=3, val=0.2, test=0.1)
    expected = assign_split(df, seed=3, val=0.2, test=0.1)
    pd.testing.assert_frame_equal(split_metadata(df, config), expected)
    expected = assign_split(df, seed=3, test=0.1, folds=3, fold=1)
    config = SplitConfig(seed=3, test=0.1, folds=3, fold=1)
    pd.testing.assert_frame_equal(split_metadata(df, config), expected)


@pytest.fixture
def written(tmp_path):
    """A table, and a function that writes its split after a change and returns the file."""
    df = assign_split(make_table())

    def write(change=lambda table: table):
        path = tmp_path / "split.csv"
        change(df.copy()).to_csv(path, index=False)
        return path

    return df.drop(columns="split"), write


def test_images_that_the_split_lacks_are_counted(written):
    df, write = written
    message = refusal(read_split, df, write(lambda table: table.iloc[3:]))
    assert f"3 of {len(df):,} images are not in the split" in message
    assert "'I00000'" in message


def test_images_that_only_the_split_has_are_counted(written, caplog):
    df, write = written
    assert len(read_split(df.iloc[:-2], write())) == len(df) - 2
    assert "left out 2 images that the data does not have" in caplog.text


def test_other_words_than_the_three_are_refused(written):
    df, write = written
    path = write(lambda table: table.replace({"split": {"valid": "val"}}))
    message = refusal(read_split, df, path)
    assert "'val' in row" in message
    assert "Did you mean 'valid'?" in message


def test_a_lesion_in_two_parts_is_refused(written):
    df, write = written

    def tear(table):
        group = table["group"].value_counts().index[0]
        table.loc[table.index[table["group"] == group][0], "split"] = "valid"
        table.loc[table.index[table["group"] == group][1], "split"] = "test"
        return table

    message = refusal(read_split, df, write(tear))
    assert "1 lesion" in message
    assert f"'{df['group'].value_counts().index[0]}'" in message
    assert "test" in message.split(", in ")[1]


def test_an_image_that_comes_twice_is_refused(written):
    df, write = written
    path = write(lambda table: pd.concat([table, table.iloc[[4]]]))
    assert "'I00004' is in" in refusal(read_split, df, path)


def test_empty_parts_and_classes_without_training_are_refused(written):
    df, write = written
    path = write(lambda table: table.assign(split="train"))
    assert "no image in 'valid'" in refusal(read_split, df, path)
    path = write(lambda t: t.assign(split=t["split"].mask(t["target"] == "df", "test")))
    assert "no image of class df in 'train'" in refusal(read_split, df, path)


def test_a_file_without_the_columns_is_refused(written):
    df, write = written
    path = write(lambda table: table.rename(columns={"split": "part"}))
    assert "column 'split' is not in split.csv" in refusal(read_split, df, path)
    assert "with --split" in refusal(read_split, df, path.with_name("none.csv"))


def test_joined_lesions_are_one_group_over_any_number_of_steps():
    df = make_table({"nv": 8, "mel": 4}).drop_duplicates("group").reset_index(drop=True)
    ids, groups = df["image_id"], df["group"]
    pairs = [(ids[0], ids[1]), (ids[2], ids[1]), (ids[5], ids[4]), (ids[3], ids[3])]
    for given in (pairs, iter(pairs)):
        joined = join_groups(df, given)["group"]
        assert joined[0] == joined[1] == joined[2] == min(groups[:3])
        assert joined[4] == joined[5] == min(groups[4:6])
        assert joined[3] == groups[3]
        assert joined.iloc[6:].tolist() == groups.iloc[6:].tolist()


def test_joining_nothing_changes_nothing():
    df = make_table()
    pd.testing.assert_frame_equal(join_groups(df, []), df)
    pd.testing.assert_frame_equal(join_groups(df, [("I00000", "gone")]), df)


def test_joined_lesions_of_two_classes_do_not_cross():
    df = make_table()
    nv, mel = (df.loc[df["target"] == name, "image_id"].tolist()[:20] for name in ("nv", "mel"))
    joined = join_groups(df, zip(nv, mel, strict=True))
    split = assign_split(joined)
    assert (split.groupby("group")["split"].nunique() == 1).all()
    part = split.set_index("image_id")["split"]
    assert part[nv].tolist() == part[mel].tolist()


def test_a_loaded_table_can_be_loaded_again():
    df = load_data()
    again = load_data(df)
    columns = ["image_id", "target", "group", "split"]
    pd.testing.assert_frame_equal(again[columns], df[columns])


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"val": 2.0}, "leave no train"),
        ({"fold": 2}, "--fold 2 needs --folds"),
        ({"folds": 5, "fold": 5}, "Type --fold 0 to --fold 4"),
        ({"map": "melanoma"}, "which is neither a pair nor a file"),
        ({"split": "mine.csv", "folds": 4}, "say in two ways what the parts are"),
    ],
)
def test_a_wrong_option_is_named_before_data_is_read(option, problem):
    with pytest.raises(LesionfastError, match=problem):
        load_dataset(SplitConfig(data="no such folder", **option))
    with pytest.raises(LesionfastError, match="no such folder does not exist"):
        load_dataset(SplitConfig(data="no such folder"))
