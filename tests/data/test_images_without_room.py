"""Images whose array has no room are decoded whenever they are read, and give the same."""

import multiprocessing
import pickle

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import lesionfast as lf
from lesionfast.cache import list_entries
from lesionfast.config import SplitConfig
from lesionfast.data import images as module
from lesionfast.data.audit import audit
from lesionfast.data.images import SourcePixels, iterate_rows, open_images
from lesionfast.errors import LesionfastError

COUNT, SIZE = 12, 32
WHOLE = COUNT * SIZE * SIZE * 3


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Pictures of noise; the cache is an empty folder of this test's own."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    rng, found = np.random.default_rng(0), []
    for i in range(COUNT):
        found.append(str(tmp_path / f"{i:03d}.jpg"))
        Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(found[-1])
    return found


@pytest.fixture
def no_room(monkeypatch):
    """A cache that is too small for the array."""
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "20K")


def damage(path):
    with open(path, "r+b") as file:
        file.truncate(300)


def test_what_is_read_is_what_the_array_would_hold(paths, monkeypatch, caplog):
    caplog.set_level("INFO")
    right = np.array(open_images(paths, SIZE).pixels)
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "20K")
    for entry in list_entries():
        entry.file.unlink()
    pixels = open_images(paths, SIZE).pixels
    assert isinstance(pixels, SourcePixels)
    assert (
        "take 41.0 kB, and there is room for at most 20.0 kB (LESIONFAST_CACHE_SIZE): they are"
        in (caplog.text)
    )
    assert (pixels.shape, pixels.dtype, pixels.ndim, len(pixels)) == (
        right.shape,
        "uint8",
        4,
        COUNT,
    )
    whole = np.arange(COUNT)
    for rows in (3, -1, slice(2, 9, 3), slice(0), [5, 1, 5, 0], whole[:, None], whole % 3 == 0):
        np.testing.assert_array_equal(pixels[rows], right[rows])
        if not isinstance(rows, slice):
            where = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else rows
            np.testing.assert_array_equal(np.take(pixels, where, axis=0), right[where])
    np.testing.assert_array_equal(list(pixels), right)
    np.testing.assert_array_equal(list(iterate_rows(pixels, [7, 2])), right[[7, 2]])
    np.testing.assert_array_equal(pixels.choose([7, 2])[:], right[[7, 2]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pixels))[4:6], right[4:6])
    with pytest.raises(IndexError):
        pixels[COUNT]


def test_each_image_is_tried_once_and_remembered(paths, no_room, caplog):
    caplog.set_level("INFO")
    for _ in range(2):
        open_images(paths, SIZE)
        open_images(paths, 2 * SIZE)
    assert caplog.text.count("Trying to decode each of them, once") == 1
    assert caplog.text.count("they are decoded whenever they are read") == 4
    assert list_entries() == []


def test_bad_images_are_known_before_and_skipped_as_ever(paths, no_room):
    damage(paths[5])
    with pytest.raises(
        LesionfastError, match="1 of 12 images can't be read: .*005.jpg: .*Truncated"
    ):
        open_images(paths, SIZE)
    for _ in range(2):
        images = open_images(paths, SIZE, skip_bad=True)
        assert list(images.bad) == [5] and isinstance(images.pixels, SourcePixels)
        assert (images.pixels[[5, 5]] == 0).all() and images.pixels[4].any()
        assert (images.pixels.choose([4, 5])[1] == 0).all()


def test_an_image_that_breaks_afterwards_is_an_error_with_its_name(paths, no_room):
    pixels = open_images(paths, SIZE).pixels
    damage(paths[5])
    assert pixels[:5].any()
    with pytest.raises(LesionfastError, match="005.jpg: .*They could be read before"):
        pixels[3:7]


def test_a_forked_process_reads_for_itself(paths, no_room):
    pixels = open_images(paths, SIZE).pixels
    right = pixels[:]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(pixels.take, ([0, 1], [2], [9, 3]))
    np.testing.assert_array_equal(np.concatenate(found), right[[0, 1, 2, 9, 3]])


def test_a_disk_without_room_for_the_array_is_no_obstacle(small_disk, paths, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("LESIONFAST_CACHE", str(small_disk))
    images = open_images(paths, 256)
    assert isinstance(images.pixels, SourcePixels) and images.pixels[3].any()
    assert "MB of free disk space: they are decoded" in caplog.text
    assert {file.suffix for file in (small_disk / "images").iterdir()} == {".json"}
    assert isinstance(open_images(paths, 64).pixels, np.ndarray)


def test_a_tenth_of_the_disk_stays_free(paths, monkeypatch):
    monkeypatch.setattr("lesionfast.cache.free_bytes", lambda path: WHOLE + 5000)
    assert isinstance(open_images(paths, SIZE).pixels, SourcePixels)
    monkeypatch.setattr("lesionfast.cache.free_bytes", lambda path: int((WHOLE + 5000) / 0.9))
    assert isinstance(open_images(paths, SIZE).pixels, np.ndarray)


def test_without_a_cache_an_array_takes_half_of_the_free_memory_at_most(paths, monkeypatch, caplog):
    caplog.set_level("INFO")
    right = open_images(paths, SIZE, cache=False).pixels
    monkeypatch.setattr(module, "free_memory", lambda: WHOLE)
    pixels = open_images(paths, SIZE, cache=False).pixels
    assert isinstance(pixels, SourcePixels) and pixels.filename is None
    np.testing.assert_array_equal(pixels[:], right)
    assert "kB of free memory" in caplog.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small dataset by class."""
    root, rng = tmp_path_factory.mktemp("skin"), np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8) // 2 + 100 * (i % 2)
        (root / "data" / ("mel", "nv")[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "data" / ("mel", "nv")[i % 2] / f"{i}.png")
    return root / "data"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_learns_and_predicts_the_same(folder, workers, tmp_path, monkeypatch):
    def train(name):
        monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / name))
        given = {"size": 32, "arch": "test_resnet", "weights": "none", "epochs": 2, "tta": 2}
        run = lf.train(
            lf.load_data(str(folder)), out=str(tmp_path / f"runs-{name}"), workers=workers, **given
        )
        history = pd.read_csv(run.path / "history.csv").drop(columns="seconds", errors="ignore")
        return history, pd.read_csv(run.path / "predictions.csv")

    history, predictions = train("array")
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "50K")
    others, other_predictions = train("none")
    assert not list((tmp_path / "none" / "images").glob("*.npy"))
    pd.testing.assert_frame_equal(others, history)
    pd.testing.assert_frame_equal(other_predictions, predictions)


def test_a_dataset_is_checked_without_room_as_with_it(folder, tmp_path, monkeypatch):
    found = []
    for limit in ("1G", "50K"):
        monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / limit))
        monkeypatch.setenv("LESIONFAST_CACHE_SIZE", limit)
        found.append(audit(SplitConfig(data=str(folder))).to_json())
    assert found[0] == found[1]
