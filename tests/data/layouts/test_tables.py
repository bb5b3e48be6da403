"""Any table with images: its columns are found, its paths are matched, what is unclear is asked."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata
from lesionfast.data.split import load_data
from lesionfast.errors import LesionfastError


def draw(path: Path, seed: int = 0) -> None:
    """Write a small picture, another one for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def draw_all(root: Path, *names: str, start: int = 0) -> None:
    for seed, name in enumerate(names, start):
        draw(root / name, seed)


def save(path: Path, header: str, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def load(path: Path, **options):
    return load_metadata(DataConfig(data=str(path), **options))


def refusal(path: Path, **options) -> str:
    with pytest.raises(LesionfastError) as error:
        load(path, **options)
    return str(error.value)


FORMS = {  # how a table may write the path of DIR/img/a/x.png
    "below DIR": "img/a/x.png",
    "with a dot": "./img/a/x.png",
    "absolute": "{root}/img/a/x.png",
    "elsewhere": "/home/someone/download/img/a/x.png",
    "of Windows": "C:\\Users\\me\\img\\a\\x.png",
    "in another case": "IMG/A/X.PNG",
    "without suffix": "img/a/x",
    "with another suffix": "img/a/x.jpg",
    "with spaces": " img/a/x.png ",
    "name alone": "x.png",
    "beside the table": "../img/a/x.png",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["table.csv", "meta/table.csv"])
def test_a_path_is_found_however_it_is_written(tmp_path, form, place):
    draw_all(tmp_path, "img/a/x.png", "img/b/y.png")
    written = FORMS[form].format(root=tmp_path)
    rows = [f"{written},mel", f"{written.replace('x', 'y').replace('a/', 'b/')},nv"]
    if form in ("elsewhere", "absolute", "of Windows", "in another case"):
        rows = [f"{written},mel", "img/b/y.png,nv"]
    save(tmp_path / place, "filepath,label", *rows)
    df = load(tmp_path).sort_values("target")
    assert df["path"].tolist() == [f"{tmp_path}/img/a/x.png", f"{tmp_path}/img/b/y.png"]
    assert not df["image_id"].str.contains(r"[/\\]", regex=True).any()


def test_names_that_recur_in_folders_become_ids_of_their_own(tmp_path):
    draw_all(tmp_path, "img/mel/1.png", "img/nv/1.png", "img/nv/2.png")
    save(
        tmp_path / "t.csv", "path,label", "img/mel/1.png,mel", "img/nv/1.png,nv", "img/nv/2.png,nv"
    )
    df = load(tmp_path)
    assert df["image_id"].tolist() == ["2", "mel-1", "nv-1"]
    assert df["path"].str.endswith(("nv/2.png", "mel/1.png", "nv/1.png")).all()


def test_a_path_whose_folder_is_not_there_is_not_the_image_of_another(tmp_path, caplog):
    draw_all(tmp_path, "img/nv/1.png", "img/nv/2.png")
    rows = ["img/mel/1.png,mel", "img/nv/1.png,nv", "img/nv/2.png,nv"]
    save(tmp_path / "t.csv", "path,label", *rows)
    assert load(tmp_path)["target"].tolist() == ["nv", "nv"]
    assert "Left out 1 row without an image: img-mel-1" in caplog.text


def test_a_table_names_images_outside_its_folder(tmp_path):
    draw_all(tmp_path / "far", "x.png", "y.png")
    file = save(
        tmp_path / "in" / "t.csv", "image,label", f"{tmp_path}/far/x.png,mel", "../far/y.png,nv"
    )
    for data in (file, file.parent):
        assert load(data)["image_id"].tolist() == ["x", "y"]


def test_the_column_of_images_is_found_by_what_it_holds(tmp_path):
    draw_all(tmp_path, "x.png", "y.png")
    save(tmp_path / "t.csv", "id,photograph,label", "1,x.png,mel", "2,y.png,nv")
    assert load(tmp_path)["image_id"].tolist() == ["x", "y"]


def test_numbers_of_rows_are_not_the_images_beside_a_column_of_files(tmp_path):
    draw_all(tmp_path, *(f"{i}.png" for i in range(9)))
    order = [3, 1, 4, 0, 5, 2, 6, 8, 7]
    rows = [f"{i},{image}.png,{'mel' if i % 2 else 'nv'}" for i, image in enumerate(order)]
    save(tmp_path / "t.csv", "id,photo,dx", *rows)
    df = load(tmp_path).set_index("image_id")
    assert df.loc["3", "target"] == "nv" and df.loc["1", "target"] == "mel"


def test_an_id_that_says_unknown_joins_nothing(tmp_path):
    draw_all(tmp_path, *(f"a{i}.png" for i in range(6)))
    ids = ["unknown", "None", "-", "NA", "p1", "p1"]
    rows = [f"a{i},{'mel' if i % 2 else 'nv'},{ids[i]}" for i in range(6)]
    save(tmp_path / "t.csv", "image_id,dx,patient_id", *rows)
    assert load(tmp_path)["group"].tolist() == ["a0", "a1", "a2", "a3", "p1", "p1"]


def test_groups_are_counted_by_what_they_are(tmp_path):
    draw_all(tmp_path, "a.png", "b.png")
    save(tmp_path / "t.csv", "image_id,dx,PatientID", "a,mel,1", "b,nv,2")
    config = DataConfig(data=str(tmp_path))
    assert "2 classes, 2 patients." in describe(find_dataset(config), load_metadata(config))


def test_names_that_differ_in_case_only_are_two_images(tmp_path):
    draw_all(tmp_path, "i/x1.png", "i/X1.png", "i/x2.png", "i/X2.png")
    save(
        tmp_path / "t.csv", "path,dx", "i/x1.png,mel", "i/x2.png,mel", "i/X1.png,nv", "i/X2.png,nv"
    )
    targets = load(tmp_path).set_index("path")["target"].rename(lambda path: Path(path).name[0])
    assert set(targets.items()) == {("x", "mel"), ("X", "nv")}


def test_of_several_columns_of_images_the_dermoscopic_one_is_read_and_said(tmp_path):
    draw_all(tmp_path, "c1.png", "c2.png", "d1.png", "d2.png")
    save(
        tmp_path / "t.csv",
        "clinical_file,dermoscopy_file,label",
        "c1.png,d1.png,mel",
        "c2.png,d2.png,nv",
    )
    config = DataConfig(data=str(tmp_path))
    df = load_metadata(config)
    assert df["image_id"].tolist() == ["d1", "d2"]
    note = "The images are those of column 'dermoscopy_file'; for others type --image "
    assert describe(find_dataset(config), df).endswith(f"{note}clinical_file.")
    assert load(tmp_path, images_of="clinical")["image_id"].tolist() == ["c1", "c2"]
    assert load(tmp_path, image="clinical_file")["image_id"].tolist() == ["c1", "c2"]


def test_ids_in_another_case_are_found(tmp_path):
    draw_all(tmp_path, "ISIC_1.PNG", "isic_2.png")
    save(tmp_path / "t.csv", "image_id,dx", "isic_1,mel", "ISIC_2.jpg,nv")
    df = load(tmp_path)
    assert df["path"].tolist() == [f"{tmp_path}/isic_2.png", f"{tmp_path}/ISIC_1.PNG"]


def test_a_column_named_path_can_be_typed(tmp_path):
    draw_all(tmp_path, "a/x.png", "b/y.png")
    save(tmp_path / "t.csv", "path,label", "a/x.png,mel", "b/y.png,nv")
    assert load(tmp_path, image="path")["image_id"].tolist() == ["x", "y"]
    assert load(tmp_path, image="path", target="label")["target"].tolist() == ["mel", "nv"]


def test_a_table_of_a_foundation_model_has_its_split(tmp_path):
    names = [f"{part}{n}" for part in ("train", "val", "test") for n in range(2)]
    draw_all(tmp_path, *(f"{name}.png" for name in names))
    rows = [f"{name}.png,{n % 2},{name[:-1]}" for n, name in enumerate(names)]
    save(tmp_path / "t.csv", "image,label,split", *rows)
    parts = load(tmp_path)["split"].value_counts().to_dict()
    assert parts == {"train": 2, "valid": 2, "test": 2}


def test_a_table_for_each_part(tmp_path):
    for start, part in enumerate(("train", "val", "test")):
        draw_all(tmp_path, f"{part}/1.png", f"{part}/2.png", start=10 * start)
        save(tmp_path / f"{part}.csv", "image,label", f"{part}/1.png,mel", f"{part}/2.png,nv")
    df = load(tmp_path)
    assert (df["split"].replace("valid", "val") == df["path"].str.split("/").str[-2]).all()
    assert find_dataset(DataConfig(data=str(tmp_path))).name.startswith("tables of parts (test.csv")


def test_tables_of_parts_that_share_a_lesion_are_not_said_to_be_the_split(tmp_path, caplog):
    draw_all(tmp_path, *(f"{n}.png" for n in range(12)))
    rows = [f"{n},{('mel', 'nv')[n % 2]},L{n % 10}" for n in range(12)]
    save(tmp_path / "train.csv", "image,label,lesion_id", *rows[:8])
    save(tmp_path / "test.csv", "image,label,lesion_id", *rows[8:])
    df = load(tmp_path)
    assert "share images or lesions" in caplog.text and "are the split" not in caplog.text
    assert "split" not in df
    caplog.clear()
    assert (load(tmp_path, group="none")["split"] == "test").sum() == 4  # as was typed
    assert "Its own parts (train, test) are the split" in caplog.text


def test_a_test_table_without_labels_does_not_matter(tmp_path):
    draw_all(tmp_path, *(f"{n}.png" for n in range(6)))
    save(tmp_path / "train.csv", "image,label", "0,mel", "1,nv", "2,mel", "3,nv")
    save(tmp_path / "test.csv", "image", "4", "5")
    save(tmp_path / "sample_submission.csv", "image,target", "4,0")
    assert len(load(tmp_path)) == 4


def test_rows_that_repeat_another_are_counted_and_those_that_differ_refused(tmp_path, caplog):
    draw_all(tmp_path, "x.png", "y.png")
    save(tmp_path / "t.csv", "image,label,age", "x.png,mel,40", "x.png,mel,40", "y.png,nv,50")
    assert len(load(tmp_path)) == 2
    assert "Left out 1 row equal to another, such as row 3" in caplog.text
    save(tmp_path / "t.csv", "image,label,age", "x.png,mel,40", "x.png,nv,40", "y.png,nv,50")
    assert "repeats 1 image id; the first is" in refusal(tmp_path)


def test_copies_in_several_folders_and_zips_are_one_image(tmp_path):
    draw_all(tmp_path, "one/x.png", "one/y.png")
    draw_all(tmp_path, "two/x.png", "two/y.png")
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.write(tmp_path / "one" / "x.png", "x.png")
    for values in (("x", "y"), ("one/x.png", "one/y.png"), ("imgs/x.png", "imgs/y.png")):
        save(tmp_path / "t.csv", "image,label", f"{values[0]},mel", f"{values[1]},nv")
        assert load(tmp_path)["image_id"].tolist() == ["x", "y"]


def test_resized_copies_and_masks_are_left_out_aloud(tmp_path, caplog):
    draw_all(tmp_path, "images/x.png", "images/y.png")
    draw_all(tmp_path, "images_resized/x.png", "images_resized/y.png", "masks/x.png", start=9)
    save(tmp_path / "t.csv", "image,label", "x,mel", "y,nv")
    df = load(tmp_path)
    assert df["path"].str.contains("/images/").all()
    assert "Left out 3 images in folders of masks or resized copies" in caplog.text


def test_a_dataframe_with_names_that_recur(tmp_path):
    parts = [f"{folder}/{n}.png" for folder in ("mel", "nv") for n in range(4)]
    draw_all(tmp_path, *parts)
    df = pd.DataFrame(
        {"path": [f"{tmp_path}/{part}" for part in parts], "dx": ["mel"] * 4 + ["nv"] * 4}
    )
    loaded = load_data(df)
    assert loaded["image_id"].is_unique and "mel-0" in set(loaded["image_id"])
    beside = load_data(df.assign(path=parts).rename(columns={"path": "file"}), images=str(tmp_path))
    assert beside["path"].tolist() == loaded["path"].tolist()


BROKEN = {
    "no target": (
        {"t.csv": ["image,age,grade", "x.png,40,I", "y.png,50,I"]},
        "no column of t.csv is known to hold the diagnosis; it has: image (2 values), age (2 "
        "values), grade (1 value). Name yours with --target.",
    ),
    "no images": (
        {"t.csv": ["patient,age,label", "1,40,mel", "2,50,nv"]},
        "known. Of its 2 images t.csv names 0. Type --csv FILE --images DIR --image COLUMN",
    ),
    "images of others": (
        {"t.csv": ["image,label", "p.png,mel", "q.png,nv"]},
        "none of the 2 images of t.csv was found. The first is 'p'; the image files found are: x",
    ),
    "two tables": (
        {"mine.csv": ["image,label", "x,mel", "y,nv"], "his.csv": ["image,label", "x,nv", "y,nv"]},
        "holds 2 tables that may be the metadata: his.csv (2 images), mine.csv (2 images). Type",
    ),
    "parts with other columns": (
        {"train.csv": ["image,label", "x,mel"], "test.csv": ["file,label", "y,nv"]},
        "holds 2 tables that may be the metadata: ",
    ),
    "empty labels": (
        {"t.csv": ["image,label", "x,mel", "y,"]},
        "column 'label' of t.csv is empty in row 3 (the header is row 1). Fill it in",
    ),
    "a torn quote": (
        {"t.csv": ["image,label", 'x,"mel', "y,nv"]},
        "a quote is open until the end of the file",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tables_are_refused_with_what_to_do(tmp_path, name):
    tables, message = BROKEN[name]
    draw_all(tmp_path, "x.png", "y.png")
    for table, lines in tables.items():
        save(tmp_path / table, *lines)
    assert message in refusal(tmp_path)


def test_two_different_images_that_fit_a_name_are_both_named(tmp_path):
    draw_all(tmp_path, "one/x.png", "two/x.png", "two/y.png")
    save(tmp_path / "t.csv", "image,label", "img/x.png,mel", "img/y.png,nv")
    message = refusal(tmp_path)
    assert "two different images fit 'img/x.png' in t.csv: " in message
    assert "one/x.png and" in message and "two/x.png. Remove one of them, or write" in message


def test_options_that_name_no_column(tmp_path):
    draw_all(tmp_path, "x.png", "y.png")
    save(tmp_path / "t.csv", "image,label", "x,mel", "y,nv")
    assert "Did you mean 'image'? Name yours with --image." in refusal(tmp_path, image="imag")
    assert "Did you mean 'label'? Name yours with --target." in refusal(tmp_path, target="labl")


def test_one_hot_columns_may_say_true_and_false(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.jpg").touch()
    (tmp_path / "truth.csv").write_text("image,MEL,NV\na,TRUE,FALSE\nb,FALSE,TRUE\n")
    where = {"csv": str(tmp_path / "truth.csv"), "images": str(tmp_path / "images")}
    df = load_metadata(DataConfig(**where, target="MEL,NV"))
    assert df["target"].tolist() == ["MEL", "NV"]
