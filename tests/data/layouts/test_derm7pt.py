"""derm7pt is read with its own split, one picture of a case or both, and what is wrong is said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import DataConfig, SplitConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata, read_dataset
from lesionfast.data.split import load_dataset

DIAGNOSES = {
    "basal cell carcinoma": "BCC",
    "clark nevus": "NEV",
    "reed or spitz nevus": "NEV",
    "melanoma (in situ)": "MEL",
    "melanoma (less than 0.76 mm)": "MEL",
    "melanoma metastasis": "MEL",
    "dermatofibroma": "MISC",
    "lentigo": "MISC",
    "melanosis": "MISC",
    "vascular lesion": "MISC",
    "seborrheic keratosis": "SK",
}
WHOLE = (44, 5, 44)  # dermoscopic pictures, groups of diagnoses, cases
BOTH = (87, 5, 44)  # the last case has one file for both


@pytest.fixture(scope="session")
def written_derm7pt(tmp_path_factory) -> Path:
    """A small derm7pt: four cases of each diagnosis."""
    folder = tmp_path_factory.mktemp("derm7pt") / "release_v0"
    names = [name for name in DIAGNOSES for _ in range(4)]
    n = np.arange(len(names))
    rows = pd.DataFrame({"case_num": n + 1, "diagnosis": names, "seven_point_score": n % 7})
    rows = rows.assign(
        pigment_network=np.array(["absent", "typical", "atypical"])[n % 3],
        level_of_diagnostic_difficulty=np.array(["low", "medium", "high"])[n % 3],
        elevation=np.array(["flat", "palpable"])[n % 2],
        location="back",
        sex=np.array(["male", "female"])[n // 2 % 2],
        management="excision",
        clinic=[f"NEL/NEL{i:03d}.JPG" for i in n],
        derm=[f"{'FCl' if i % 2 else 'NEL'}/Nel{i:03d}a.jpg" for i in n],
        case_id=np.where(n % 11 == 0, "0" + pd.Series(n).astype(str), ""),
        notes="",
    )
    rows.loc[n[-1], "clinic"] = rows.loc[n[-1], "derm"]
    for path in {*rows["clinic"], *rows["derm"]}:
        path = folder / "images" / path.replace("FCl", "FCL")  # the release has it so once
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path, hash(path.name))
    (folder / "meta").mkdir()
    rows.to_csv(folder / "meta" / "meta.csv", index=False)
    for part, which in [("train", n % 4 < 2), ("valid", n % 4 == 2), ("test", n % 4 == 3)]:
        table = pd.DataFrame({"indexes": n[which]})
        table.to_csv(folder / "meta" / f"{part}_indexes.csv", index=False)
    return folder.parent


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(abs(seed)).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 36)).save(path)


@pytest.fixture
def derm(written_derm7pt, tmp_path) -> Path:
    return shutil.copytree(written_derm7pt, tmp_path / "data")


@pytest.mark.parametrize(
    ("kind", "counts"), [("dermoscopic", WHOLE), ("clinical", WHOLE), ("all", BOTH)]
)
def test_the_pictures_asked_for_are_read(written_derm7pt, summarize, caplog, kind, counts):
    assert summarize(written_derm7pt, images_of=kind) == counts
    assert "without a row" not in caplog.text
    assert "without an image" not in caplog.text


def test_the_split_is_its_own(written_derm7pt):
    df = load_dataset(SplitConfig(data=str(written_derm7pt), images_of="all"))
    cases = df.assign(n=df["case_num"] - 1).set_index("n")["split"].groupby(level=0).first()
    assert cases[[0, 1, 2, 3]].tolist() == ["train", "train", "valid", "test"]
    assert cases.value_counts().to_dict() == {"train": 22, "valid": 11, "test": 11}


def test_diagnoses_are_grouped_as_in_the_paper_and_their_names_stay(written_derm7pt, summarize):
    df = load_metadata(DataConfig(data=str(written_derm7pt)))
    pairs = df[["diagnosis", "target"]].drop_duplicates()
    assert dict(pairs.itertuples(index=False)) == DIAGNOSES
    assert df["localization"].eq("back").all()
    assert summarize(written_derm7pt, target="diagnosis") == (44, 11, 44)


def test_it_says_what_it_is(written_derm7pt):
    config = DataConfig(data=str(written_derm7pt))
    found = find_dataset(config)
    assert describe(found, read_dataset(found, config)) == (
        "This looks like derm7pt: 44 images, 5 classes, 44 cases. The dermoscopic images are "
        "used, 43 others are not (type --images-of clinical or --images-of all). The diagnoses "
        "count as five groups, as in the paper (type --target diagnosis for their names)."
    )


@pytest.mark.parametrize("name", ["management", "diagnosis", "level_of_diagnostic_difficulty"])
def test_what_follows_from_the_diagnosis_is_no_input(written_derm7pt, summarize, refuse, name):
    assert summarize(written_derm7pt, metadata="sex,elevation,localization") == WHOLE
    assert f"'{name}' of meta.csv can't be an input" in refuse(written_derm7pt, metadata=name)


def edit(change: Callable[[pd.DataFrame], pd.DataFrame], name="meta") -> Callable[[Path], None]:
    """Return a change of a folder: one of its tables is rewritten."""

    def rewrite(folder: Path) -> None:
        path = folder / "release_v0" / "meta" / f"{name}.csv"
        change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)

    return rewrite


def change(**columns) -> Callable[[Path], None]:
    return edit(lambda rows: rows.assign(**columns))


def first(column: str, value: str) -> Callable[[Path], None]:
    """Return a change of the first value of a column."""
    return change(**{column: lambda rows: rows[column].where(rows.index > 0, value)})


def lift(folder: Path) -> None:
    for path in (folder / "release_v0").iterdir():
        path.rename(folder / path.name)


def whisper(folder: Path) -> None:
    """Write folders and files in lower case, as some file systems do."""
    for path in sorted(folder.rglob("images/*/*")):
        lower = path.with_name(path.name.lower())
        path.rename(lower)
    for path in sorted((folder / "release_v0" / "images").iterdir()):
        path.rename(path.with_name(f"{path.name.lower()}_"))
        path.with_name(f"{path.name.lower()}_").rename(path.with_name(path.name.lower()))


def flatten(folder: Path) -> None:
    for path in list(folder.rglob("*.*[gG]")):
        path.rename(folder / path.name)


def rename_tables(folder: Path) -> None:
    meta = folder / "release_v0" / "meta"
    (meta / "meta.csv").rename(folder / "cases.csv")
    (meta / "valid_indexes.csv").rename(meta / "val.csv")


def zip_beside(folder: Path) -> None:
    shutil.make_archive(str(folder / "release_v0"), "zip", folder, "release_v0/images")


def backslashes(folder: Path) -> None:
    change(derm=lambda rows: "C:\\derm7pt\\images\\" + rows["derm"].str.replace("/", "\\"))(folder)


def same_names(folder: Path) -> None:
    """Name all pictures 1.jpg to 44.jpg, in two folders."""
    images = folder / "release_v0" / "images"
    for kind in ("derm", "clinic"):
        (images / kind).mkdir()
        for n in range(44):
            draw(images / kind / f"{n}.jpg", n + 100 * (kind == "derm"))
    change(
        derm=[f"derm/{n}.jpg" for n in range(44)], clinic=[f"clinic/{n}.jpg" for n in range(44)]
    )(folder)


def remove(*names: str) -> Callable[[Path], None]:
    def unlink(folder: Path) -> None:
        for name in names:
            next(folder.rglob(name)).unlink()

    return unlink


@pytest.mark.parametrize(
    ("damage", "counts"),
    [
        (lift, WHOLE),
        (whisper, WHOLE),
        (flatten, WHOLE),
        (rename_tables, WHOLE),
        (zip_beside, WHOLE),
        (backslashes, WHOLE),
        (same_names, WHOLE),
        (edit(lambda rows: rows.rename(columns=str.upper)), WHOLE),
        (edit(lambda rows: rows.drop(columns="case_id")), WHOLE),
        (edit(lambda rows: rows.drop(columns="case_num")), WHOLE),
        (edit(lambda rows: rows.drop(columns="clinic")), WHOLE),
        (change(diagnosis=lambda rows: rows["diagnosis"].str.title()), WHOLE),
        (remove("*_indexes.csv", "*_indexes.csv", "*_indexes.csv"), WHOLE),
        (remove("Nel000a.jpg"), (43, 5, 43)),
        (first("derm", ""), (43, 5, 43)),
        (first("diagnosis", ""), (43, 5, 43)),
    ],
)  # fmt: skip
def test_what_people_have_is_read(derm, summarize, damage, counts):
    damage(derm)
    assert summarize(derm) == counts


def test_pictures_of_one_name_in_two_folders_are_two(derm, summarize):
    same_names(derm)
    assert summarize(derm, images_of="all") == (88, 5, 44)


def test_what_was_left_out_is_counted(derm):
    first("derm", "")(derm)
    notes = find_dataset(DataConfig(data=str(derm))).notes
    assert "Left out 1 case without such an image." in notes


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (remove("valid_indexes.csv"), ["there is none for valid", "or remove all three"]),
        (edit(lambda rows: rows.iloc[:-1]), ["meta.csv has 43 cases", "'43' in row 12"]),
        (edit(lambda rows: rows.iloc[1:], "train_indexes"), ["row number 0 is in no part"]),
        (edit(lambda rows: rows.replace("0", "2"), "train_indexes"),
         ["row number 2 is in several parts (1 such)", "or remove all"]),
        (edit(lambda rows: rows.replace("0", "a"), "train_indexes"),
         ["train_indexes.csv has 'a' in row 2", "numbered from 0 to 43", "or remove all"]),
        (first("diagnosis", "angioma"), ["'angioma' in row 2", "none of the groups", "--target"]),
        (remove("meta.csv"), ["looks like derm7pt", "has test_indexes.csv", "Put meta.csv beside"]),
        (edit(lambda rows: rows.drop(columns="derm")), ["'derm' is not in meta.csv", "it has"]),
        (edit(lambda rows: rows.drop(columns="diagnosis")), ["'diagnosis' is not in meta.csv"]),
        (first("derm", "FCl/Nel001a.jpg"), ["repeats 1 image id"]),
        (change(derm="x/y.jpg"), ["repeats 43 image id"]),
        (lambda folder: shutil.rmtree(folder / "release_v0" / "images"), ["none of the 44 images"]),
        (lambda folder: draw(folder / "NEL000.jpg", 1), []),
        (lambda folder: draw(folder / "Nel000a.jpg", 1), ["two different images", "Remove one"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(derm, refuse, summarize, damage, parts):
    damage(derm)
    if not parts:  # another clinical picture does no harm among the dermoscopic ones
        assert summarize(derm) == WHOLE
        return
    message = refuse(derm)
    assert all(part in message for part in parts), message


def test_a_split_of_ones_own_needs_no_index_files(derm):
    remove("valid_indexes.csv")(derm)
    assert find_dataset(SplitConfig(data=str(derm), split="new")).split is None
