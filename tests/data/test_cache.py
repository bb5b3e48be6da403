"""Pictures of every mode are read right, and decoded once into a cache that can be trusted."""

import logging
import multiprocessing
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionfast.data import images as images_module
from lesionfast.data.images import open_images, read_image
from lesionfast.errors import LesionfastError

RED, BLUE = (200, 30, 40), (20, 40, 220)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def halves(size=(60, 40)):
    """A picture that is red on the left and blue on the right."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Six JPEG files of different grey levels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (60, 40), (40 * i, 100, 50)).save(folder / f"{i}.jpg", quality=95)
    return folder


def paths_in(folder):
    return sorted(map(str, folder.glob("*.jpg")))


def decoded(monkeypatch):
    """Count the arrays that are decoded from now on."""
    count, build = [], images_module.build
    monkeypatch.setattr(
        images_module, "build", lambda *a, **k: (count.append(1), build(*a, **k))[1]
    )
    return count


def test_colour_pictures_are_read_as_they_are(tmp_path):
    halves().save(tmp_path / "a.png")
    picture = np.asarray(read_image(str(tmp_path / "a.png")))
    assert tuple(picture[0, 0]) == RED and tuple(picture[0, -1]) == BLUE


def test_grey_pictures_have_three_equal_channels(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "a.png")
    assert tuple(np.asarray(read_image(str(tmp_path / "a.png")))[0, 0]) == (77, 77, 77)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (32768, 128), (65535, 255), (257, 1)])
def test_16_bits_are_scaled_not_clipped(tmp_path, value, expected):
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_image(str(tmp_path / "a.png")))[0, 0, 0] == expected


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert tuple(np.asarray(read_image(str(tmp_path / "a.png")))[0, 0]) == (255, 255, 255)
    Image.new("RGBA", (8, 8), (*RED, 255)).save(tmp_path / "a.png")
    assert tuple(np.asarray(read_image(str(tmp_path / "a.png")))[0, 0]) == RED


def test_cmyk_and_palettes_become_rgb(tmp_path):
    halves().convert("CMYK").save(tmp_path / "a.tif")
    assert np.abs(np.asarray(read_image(str(tmp_path / "a.tif")))[0, 0] - np.array(RED)).max() < 6
    halves().quantize(4).save(tmp_path / "b.png")
    assert np.abs(np.asarray(read_image(str(tmp_path / "b.png")))[0, 0] - np.array(RED)).max() < 6


def test_the_camera_s_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned by 90°
    halves().save(tmp_path / "a.png", exif=exif)
    picture = np.asarray(read_image(str(tmp_path / "a.png")))
    assert picture.shape == (60, 40, 3)
    assert tuple(picture[0, 0]) == RED and tuple(picture[-1, 0]) == BLUE


@pytest.mark.parametrize("resize", ["squish", "crop"])
def test_a_square_is_the_whole_picture_or_its_centre(tmp_path, resize):
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    square = open_images([str(tmp_path / "a.png")], 40, resize=resize).pixels[0]
    white = (square > 128).mean()
    assert white == pytest.approx(1.0 if resize == "crop" else 1 / 3, abs=0.03)


def test_the_cache_is_read_only_memory_mapped_uint8_and_holds_the_pixels(folder, own_cache):
    pixels = open_images(paths_in(folder), 32).pixels
    assert isinstance(pixels, np.memmap) and not pixels.flags.writeable
    assert pixels.shape == (6, 32, 32, 3) and pixels.dtype == np.uint8
    plain = open_images(paths_in(folder), 32, cache=False).pixels
    assert not isinstance(plain, np.memmap)
    np.testing.assert_array_equal(pixels, plain)
    assert np.abs(pixels[:, 16, 16, 0].astype(int) - 40 * np.arange(6)).max() < 4


def test_images_are_decoded_once(folder, monkeypatch):
    count = decoded(monkeypatch)
    for _ in range(3):
        open_images(paths_in(folder), 32)
    assert len(count) == 1
    open_images(paths_in(folder), 48)
    assert len(count) == 2


def test_without_a_cache_nothing_is_written(folder, own_cache):
    open_images(paths_in(folder), 32, cache=False)
    assert not own_cache.exists()


def test_a_zip_and_a_folder_of_the_same_images_share_the_cache(folder, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in paths_in(folder):
            archive.write(path, Path(path).name)
    count = decoded(monkeypatch)
    from_folder = open_images(paths_in(folder), 32).pixels
    members = [f"{tmp_path}/all.zip/{Path(path).name}" for path in paths_in(folder)]
    from_zip = open_images(members, 32).pixels
    np.testing.assert_array_equal(from_folder, from_zip)
    assert len(count) == 1


def test_a_changed_file_is_decoded_again(folder):
    before = open_images(paths_in(folder), 32).pixels[2, 16, 16].copy()
    Image.new("RGB", (60, 40), (250, 250, 250)).save(folder / "2.jpg")
    os.utime(folder / "2.jpg", ns=(1, 1))
    after = open_images(paths_in(folder), 32).pixels[2, 16, 16]
    assert before[0] < 100 and after[0] > 240


def test_a_touched_file_is_not_decoded_again(folder, monkeypatch):
    count = decoded(monkeypatch)
    open_images(paths_in(folder), 32)
    os.utime(folder / "2.jpg", ns=(1, 1))
    open_images(paths_in(folder), 32)
    assert len(count) == 1


@pytest.mark.parametrize("harm", ["cut", "foreign"])
def test_a_broken_cache_is_said_and_built_again(folder, own_cache, caplog, harm):
    expected = open_images(paths_in(folder), 32).pixels.copy()
    (file,) = own_cache.glob("*.npy")
    file.write_bytes(file.read_bytes()[:500] if harm == "cut" else b"something else")
    with caplog.at_level(logging.WARNING, "lesionfast"):
        np.testing.assert_array_equal(open_images(paths_in(folder), 32).pixels, expected)
    assert "built again" in caplog.text


def harmed(folder):
    (folder / "1.jpg").write_bytes(b"")
    (folder / "3.jpg").write_bytes((folder / "3.jpg").read_bytes()[:300])
    (folder / "4.jpg").write_bytes(b"%PDF-1.7 not a picture")
    return paths_in(folder)


@pytest.mark.parametrize("cache", [True, False])
def test_bad_images_are_counted_and_named_with_what_to_type(folder, cache):
    paths = harmed(folder)
    with pytest.raises(LesionfastError, match=r"3 of 6 images can't be read.*1\.jpg.*--skip-bad"):
        open_images(paths, 32, cache=cache)


@pytest.mark.parametrize("cache", [True, False])
def test_bad_images_are_left_out_only_when_asked_and_aloud(folder, cache, caplog):
    paths = harmed(folder)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "lesionfast"):
            found = open_images(paths, 32, cache=cache, skip_bad=True)
        assert sorted(found.bad) == [1, 3, 4] and "3 of 6" in caplog.text
    assert found.pixels[5, 16, 16, 0] > 190


def build_slowly(paths, folder, queue):
    os.environ["LESIONFAST_CACHE"] = folder
    pixels = open_images(paths, 64).pixels
    queue.put((len(pixels), int(pixels.sum(dtype=np.int64))))


def test_two_processes_may_build_the_same_cache(folder, tmp_path, own_cache):
    expected = int(open_images(paths_in(folder), 64, cache=False).pixels.sum(dtype=np.int64))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (paths_in(folder), str(tmp_path / "cache"), queue)
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [(6, expected)] * 3
    assert len(list(own_cache.glob("*.npy"))) == 1 and not list(own_cache.glob("*.partial"))


def test_a_size_or_way_of_resizing_that_is_not_known_says_what_to_type(folder):
    with pytest.raises(LesionfastError, match="--size of 1 or more"):
        open_images(paths_in(folder), 0)
    with pytest.raises(LesionfastError, match="--resize"):
        open_images(paths_in(folder), 32, resize="stretch")


def test_the_zip_files_of_ham10000_are_read_unopened(ham10000):
    """A sample of both zip files, unopened."""
    members = []
    for part in (1, 2):
        archive = ham10000 / f"HAM10000_images_part_{part}.zip"
        names = zipfile.ZipFile(archive).namelist()[::50]
        members += [f"{archive}/{name}" for name in names]
    found = open_images(members, 64)
    assert not found.bad and len(found.pixels) == 201
    assert 50 < found.pixels.mean() < 220
