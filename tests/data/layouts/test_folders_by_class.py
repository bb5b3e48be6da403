"""Folders named like their class are a dataset; what is no class is left out aloud."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionfast.config import DataConfig, SplitConfig
from lesionfast.data.layouts.base import NO_LESIONS
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import load_metadata
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError

CLASSES = ("mel", "nv", "bcc")
PARTS = ("train", "val", "test")


def draw(path: Path, seed: int) -> None:
    """Write a small picture, another one for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def write(root: Path, *folders: str, each: int = 2, start: int = 0, name: str = "p{}.png") -> None:
    """Draw some pictures in each folder, none like another."""
    for folder in folders:
        for _ in range(each):
            draw(root / folder / name.format(start), start)
            start += 1


def tree(parts=PARTS, classes=CLASSES) -> list[str]:
    return [f"{part}/{name}" for part in parts for name in classes]


def load(root: Path):
    return load_metadata(DataConfig(data=str(root)))


def summary(root: Path) -> str:
    config = DataConfig(data=str(root))
    return describe(find_dataset(config), load_metadata(config))


def test_the_parts_of_the_folders_are_the_split(written):
    config = SplitConfig(data=str(written("folders_by_class")))
    df = load_dataset(config)
    assert (len(df), df["target"].nunique(), df["group"].nunique()) == (88, 7, 88)
    assert (df["split"].replace("valid", "val") == df["path"].str.split("/").str[-3]).all()
    assert (df["target"] == df["path"].str.split("/").str[-2]).all()
    found = describe(find_dataset(config), df)
    assert found == (
        f"This looks like folders by class: 88 images, 7 classes. {NO_LESIONS} "
        "Its own parts are the split."
    )


@pytest.mark.parametrize(
    "folders",
    [
        tree(("Train", "Validation", "TEST")),
        tree(("train", "valid", "test")),
        tree(("train_dir", "val_dir", "test_dir")),
        tree(("train_sep", "valid", "test")),
        tree(("TrainImages", "ValImages", "TestImages")),
        tree(("data/train/images", "data/val/images", "data/test/images")),
        tree(("ISIC_Training_Input", "ISIC_Validation_Input", "ISIC_Test_Input")),
        [f"{name}/{part}" for name in CLASSES for part in PARTS],
        tree(("one deeper/and again/train", "one deeper/and again/val", "one deeper/again/test")),
        [f"{place}/site 3" for place in tree()],
    ],
    ids=lambda folders: folders[0],
)
def test_parts_and_classes_are_found_however_they_are_written(tmp_path, folders):
    write(tmp_path, *folders)
    df = load(tmp_path)
    assert len(df) == 18 and set(df["target"]) == set(CLASSES)
    assert set(df["split"]) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    "folders",
    [
        CLASSES,
        [f"up/and/away/{name}" for name in CLASSES],
        [f"images/{name}" for name in CLASSES],
        [f"fold_{n}/{name}" for n in range(3) for name in CLASSES],
        [f"{name}/patient_{n}" for n, name in enumerate(CLASSES)],
        ["malignant/mel", "malignant/bcc", "benign/nv", "benign/bkl"],
        ["0", "1", "2"],
    ],
    ids=lambda folders: folders[0],
)
def test_classes_alone_are_found(tmp_path, folders):
    write(tmp_path, *folders)
    df = load(tmp_path)
    assert len(df) == 2 * len(folders) and "split" not in df
    expected = {"benign", "malignant"} if "benign/nv" in folders else set(CLASSES)
    assert set(df["target"]) == (set("012") if "0" in folders else expected)


def test_a_zip_of_the_tree_beside_it_or_alone_is_the_tree(tmp_path):
    write(tmp_path / "a", *tree())
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for path in (tmp_path / "a").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "a"))
    beside = load(tmp_path)
    assert len(beside) == 18 and set(beside["target"]) == set(CLASSES)
    (tmp_path / "b").mkdir()
    (tmp_path / "archive.zip").rename(tmp_path / "b" / "archive.zip")
    alone = load(tmp_path / "b")
    assert alone["image_id"].tolist() == beside["image_id"].tolist()
    assert alone["split"].tolist() == beside["split"].tolist()


def test_the_same_tree_twice_is_one(tmp_path, caplog):
    for root in (tmp_path, tmp_path / "data"):
        write(root, *(f"{part}/{name}" for part in ("train", "test") for name in CLASSES), each=4)
    df = load(tmp_path)
    assert len(df) == 24 and set(df["target"]) == set(CLASSES)
    assert "Ignored 24 images with the content of another" in caplog.text


def test_a_zip_for_each_class(tmp_path):
    for seed, name in enumerate(CLASSES):
        draw(tmp_path / "x.png", seed)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.write(tmp_path / "x.png", f"{seed}.png")
        (tmp_path / "x.png").unlink()
    assert set(load(tmp_path)["target"]) == set(CLASSES)


def test_names_that_recur_become_paths(tmp_path):
    for seed, folder in enumerate(tree()):
        draw(tmp_path / "up" / folder / "1.png", seed)
        draw(tmp_path / "up" / folder / f"only here {seed}.png", 100 + seed)
    ids = load(tmp_path)["image_id"]
    assert ids.is_unique and "train-mel-1" in set(ids) and "only here 0" in set(ids)


def test_resized_copies_masks_and_pictures_without_class_are_left_out_aloud(tmp_path):
    write(tmp_path / "images", *CLASSES)
    write(tmp_path / "images_resized", *CLASSES, start=50)
    write(tmp_path / "masks", *CLASSES, start=100)
    write(tmp_path / "images", "mel", start=150, name="p{}_segmentation.png", each=1)
    write(tmp_path / "test", ".", start=200, each=5)
    found = summary(tmp_path)
    assert "6 images, 3 classes" in found
    assert "Left out 5 images outside the folders of classes." in found
    assert "Left out 6 images in folders of resized or otherwise processed copies." in found
    assert "Left out 7 images that are masks." in found


def test_resized_pictures_alone_are_the_dataset(tmp_path):
    write(tmp_path / "resized", *tree())
    assert len(load(tmp_path)) == 18


def test_a_flat_test_folder_has_no_labels(tmp_path):
    write(tmp_path, *tree(("train", "valid")))
    write(tmp_path, "test", start=50, each=4)
    found = summary(tmp_path)
    assert len(find_dataset(DataConfig(data=str(tmp_path))).unlabelled) == 4  # to be predicted
    assert "Left out 4 images outside the folders of classes." in found
    assert "Its own parts (train, valid) are the split; test is drawn from train." in found


def test_the_same_bytes_in_two_parts_are_one_image_and_stay_in_the_test(tmp_path, caplog):
    write(tmp_path, *tree())
    draw(tmp_path / "train" / "mel" / "again.png", 99)
    draw(tmp_path / "test" / "mel" / "another name.png", 99)
    df = load(tmp_path)
    assert len(df) == 19 and df.set_index("image_id").at["another name", "split"] == "test"
    assert "1 image lies in several parts of the dataset" in caplog.text
    assert "Ignored 1 image with the content of another" in caplog.text


def test_the_same_bytes_in_two_classes_are_an_error_that_names_both(tmp_path):
    write(tmp_path, *tree())
    draw(tmp_path / "train" / "mel" / "one.png", 99)
    draw(tmp_path / "test" / "nv" / "other.png", 99)
    with pytest.raises(LesionfastError, match=r"test/nv/other\.png and train/mel/one\.png are the"):
        load(tmp_path)


def test_lesions_come_back_from_a_table_of_isic_ids(tmp_path):
    write(tmp_path, *tree(), name="ISIC_{:07d}_aug.png")
    lines = [f"ISIC_{n:07d},{40 + n},L{n // 2 * 2},male" for n in range(16)]
    header = "image,age_approx,lesion_id,sex\n"
    (tmp_path / "metadata.csv").write_text(header + "\n".join(lines) + "\n")
    found = summary(tmp_path)
    assert "18 images, 3 classes, 8 lesions, 2 without a lesion id" in found
    assert "Lesion ids are those of metadata.csv, for 16 of the images." in found
    df = load(tmp_path)
    assert df["age"].notna().sum() == 16 and df["group"].nunique() == 10


def test_pictures_of_one_isic_image_stay_together(tmp_path):
    write(tmp_path, *CLASSES, each=2, name="ISIC_{:07d}.png")
    write(tmp_path, *CLASSES, each=2, name="ISIC_{:07d}_flipped.png")
    for path in tmp_path.rglob("*_flipped.png"):  # other pixels, the same lesion
        Image.open(path).rotate(90, expand=True).save(path)
    df = load(tmp_path)
    assert len(df) == 12 and df["group"].nunique() == 6


def test_pictures_of_one_isic_image_stay_together_where_the_table_has_no_lesion(tmp_path):
    write(tmp_path, *CLASSES, each=2, name="ISIC_{:07d}.png")
    write(tmp_path, *CLASSES, each=2, name="ISIC_{:07d}_flipped.png")
    for path in tmp_path.rglob("*_flipped.png"):
        Image.open(path).rotate(90, expand=True).save(path)
    (tmp_path / "lesions.csv").write_text("isic_id,lesion_id\nISIC_0000000,IL_0000007\n")
    df = load(tmp_path)
    assert len(df) == 12 and df["group"].nunique() == 6


def test_one_isic_image_in_two_classes_is_an_error_that_names_both(tmp_path):
    write(tmp_path, *CLASSES)
    draw(tmp_path / "mel" / "ISIC_0024306.png", 70)
    draw(tmp_path / "nv" / "ISIC_0024306.png", 71)
    with pytest.raises(LesionfastError, match=r"ISIC_0024306 lies in .*mel/.*, nv/.*Remove"):
        load(tmp_path)


def test_two_files_that_differ_in_the_suffix_only(tmp_path):
    write(tmp_path, *CLASSES)
    draw(tmp_path / "mel" / "a.png", 70)
    draw(tmp_path / "mel" / "a.bmp", 71)
    with pytest.raises(LesionfastError, match=r"mel/a\.bmp and mel/a\.png\. Remove one of them"):
        load(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ["HAM10000_images_part_1", "HAM10000_images_part_2"],
        ["images", "images_resized", "masks"],
        ["train", "valid", "test"],
        ["mel"],
        ["train/mel", "test/mel"],
        [f"IL_{n:07d}" for n in range(30)],
        ["images/imgs_part_1/imgs_part_1", "images/imgs_part_2/imgs_part_2"],
    ],
    ids=lambda folders: folders[0],
)
def test_folders_that_are_no_classes(tmp_path, folders):
    write(tmp_path, *folders)
    with pytest.raises(LesionfastError, match="Type --csv FILE --images DIR instead of --data"):
        load(tmp_path)


def test_a_usable_table_wins_and_another_one_does_not_matter(tmp_path):
    write(tmp_path, *CLASSES)
    (tmp_path / "results.csv").write_text("epoch,loss\n1,0.5\n")
    assert find_dataset(DataConfig(data=str(tmp_path))).name == "folders by class"
    rows = "".join(f"p{n},{'mel' if n % 2 else 'nv'}\n" for n in range(6))
    (tmp_path / "table.csv").write_text("image,label\n" + rows)
    assert find_dataset(DataConfig(data=str(tmp_path))).name == "a table (table.csv)"
