"""DermaMNIST and its like are read from one .npz file; broken ones are refused."""

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

SIZES = {"train": 21, "val": 7, "test": 14}


def draw(n: int, side: int = 8, channels: int | None = 3) -> np.ndarray:
    shape = (n, side, side) if channels is None else (n, side, side, channels)
    return np.random.default_rng(n).integers(0, 255, shape, dtype=np.uint8)


def arrays(side: int = 8, channels: int | None = 3, classes: int = 7) -> dict[str, np.ndarray]:
    """Return images and labels as MedMNIST has them."""
    found = {}
    for part, n in SIZES.items():
        found[f"{part}_images"] = draw(n, side, channels)
        found[f"{part}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % classes
    return found


def save(path: Path, **changed) -> Path:
    """Write a file, with other arrays in place of some; None leaves one out."""
    kept = {name: array for name, array in (arrays() | changed).items() if array is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **kept)
    return path


def load(path: Path):
    return load_metadata(DataConfig(data=str(path)))


def test_the_parts_of_dermamnist_are_the_split_and_its_numbers_are_diagnoses(tmp_path):
    file = save(tmp_path / "dermamnist.npz")
    for data in (tmp_path, file):
        config = SplitConfig(data=str(data))
        df = load_dataset(config)
        assert df["split"].value_counts().to_dict() == {"train": 21, "valid": 7, "test": 14}
        assert sorted(df["target"].unique()) == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
        assert df.set_index("image_id").at["train-04", "target"] == "mel"
        assert df.set_index("image_id").at["train-04", "path"].endswith(".npz/train_images/4")
        assert describe(find_dataset(config), df) == (
            f"This looks like DermaMNIST (8 x 8 pixels): 42 images, 7 classes. {NO_LESIONS} "
            "Its own parts are the split."
        )


def test_dermamnist_under_another_name_is_known_by_its_parts(tmp_path):
    parts, rng = {}, np.random.default_rng(0)
    for part, n in {"train": 7007, "val": 1003, "test": 2005}.items():
        parts[f"{part}_images"] = rng.integers(0, 255, (n, 2, 2, 3), np.uint8)
        parts[f"{part}_labels"] = np.arange(n)[:, None] % 7
    found = find_dataset(DataConfig(data=str(save(tmp_path / "renamed.npz", **parts))))
    assert found.name.startswith("DermaMNIST") and "mel" in set(found.rows["target"])


def test_of_several_sizes_the_largest_is_read_and_said(tmp_path):
    save(tmp_path / "in" / "dermamnist.npz")
    save(tmp_path / "in" / "dermamnist_16.npz", **arrays(16))
    save(tmp_path / "in" / "dermamnist_12.npz", **arrays(12))
    found = find_dataset(DataConfig(data=str(tmp_path)))
    assert found.name == "DermaMNIST (16 x 16 pixels)"
    note = "The largest images are read, those of dermamnist_16.npz, not "
    assert found.notes[0] == f"{note}dermamnist.npz, dermamnist_12.npz."
    assert "dermamnist_16.npz" in found.rows["path"].iloc[0]


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_grey_and_colour_of_any_medmnist_with_numbers_as_classes(tmp_path, channels):
    df = load(save(tmp_path / "breastmnist.npz", **arrays(8, channels, classes=3)))
    assert sorted(df["target"].unique()) == ["0", "1", "2"] and len(df) == 42


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool])
def test_labels_of_any_whole_numbers_and_flat(tmp_path, dtype):
    changed = {f"{part}_labels": (np.arange(n) % 2).astype(dtype) for part, n in SIZES.items()}
    df = load(save(tmp_path / "x.npz", **changed))
    assert df["target"].nunique() == 2


def test_without_a_validation_part_a_split_is_drawn(tmp_path):
    file = save(tmp_path / "dermamnist.npz", val_images=None, val_labels=None)
    assert "split" not in load(file) and len(load(file)) == 35


def test_a_montage_and_notes_beside_do_not_matter(tmp_path):
    save(tmp_path / "dermamnist.npz")
    Image.fromarray(draw(1)[0]).save(tmp_path / "dermamnist_montage.jpg")
    (tmp_path / "info.csv").write_text("flag,n_channels\ndermamnist,3\n")
    assert len(load(tmp_path)) == 42


BROKEN = {
    "9 dimensions": (
        {"val_labels": np.zeros((7,) + (1,) * 8, np.uint8)},
        "an image has one label: shape (7, 1)",
    ),
    "several labels": ({"test_labels": np.zeros((14, 14), np.uint8)}, "such as ChestMNIST"),
    "float": ({"train_labels": np.zeros((21, 1))}, "float64 in 'train_labels', but a label is a"),
    "text": ({"train_labels": np.full((21, 1), "mel")}, "but a label is a whole number"),
    "lengths": ({"train_labels": np.zeros((20, 1), int)}, "20 labels for 21 images in 'train'"),
    "no labels": ({"test_labels": None}, "has no 'test_labels'; it has: train_images"),
    "no images": ({"val_images": None}, "has no 'val_images'; it has: train_images"),
    "pickled": ({"train_labels": np.array([[{}]] * 21)}, "pickled Python objects, which are never"),
    "float images": ({"train_images": draw(21) / 255}, "'train_images' is no array of images"),
    "3-dimensional": ({"val_images": np.zeros((7, 4, 4, 4, 1), np.uint8)}, "is no array of images"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_what_to_do(tmp_path, name):
    changed, message = BROKEN[name]
    file = save(tmp_path / "dermamnist.npz", **changed)
    for data in (tmp_path, file):
        with pytest.raises(LesionfastError) as error:
            load(data)
        assert message in str(error.value) and "dermamnist.npz" in str(error.value)
        assert "numpy.savez_compressed" in str(error.value)


def test_a_file_that_is_cut_off(tmp_path):
    file = save(tmp_path / "dermamnist.npz")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(LesionfastError, match=r"dermamnist\.npz is not a complete .* Download it"):
        load(tmp_path)


def test_two_data_sets_beside_each_other(tmp_path):
    save(tmp_path / "dermamnist.npz")
    save(tmp_path / "pathmnist.npz", **arrays(16, classes=3))
    with pytest.raises(LesionfastError, match="holds several datasets: .* Type the file in place"):
        load(tmp_path)


def test_another_npz_is_no_dataset(tmp_path):
    np.savez(tmp_path / "features.npz", x=np.zeros((3, 4)))
    with pytest.raises(LesionfastError, match="there are no images in .* Type --data"):
        load(tmp_path)
