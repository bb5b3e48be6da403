"""Pictures of every kind become upright RGB, decoded once and mapped from the cache."""

import logging
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image, features

from lesionfast.cache import is_sound
from lesionfast.data.images import find_sizes, open_images, read_image
from lesionfast.errors import LesionfastError
from lesionfast.files import UNFINISHED

SIZE = 32
RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of this test's own."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def write_images(folder, count=12, seed=0):
    """Write JPEGs of one colour each, with a frame of another; return their paths."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        image = Image.new("RGB", (80, 60), tuple(rng.integers(0, 256, 3)))
        image.paste(tuple(rng.integers(0, 256, 3)), (20, 15, 60, 45))
        paths.append(str(folder / f"{i:03d}.jpg"))
        image.save(paths[-1], quality=95)
    return paths


def arrays(cache):
    return sorted(cache.glob("*.npy"))


def test_pixels_are_those_of_the_files_in_order(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    images = open_images(paths, SIZE)
    assert images.pixels.shape == (12, SIZE, SIZE, 3) and images.pixels.dtype == np.uint8
    assert images.bad == {}
    for pixels, path in zip(images.pixels, paths, strict=True):
        middle = np.asarray(Image.open(path))[30, 40]
        assert np.abs(pixels[16, 16].astype(int) - middle).max() <= 2


def test_squish_shows_all_and_crop_the_centre_square(cache, tmp_path):
    image = Image.new("RGB", (90, 30), "blue")
    image.paste("red", (30, 0, 60, 30))
    image.save(tmp_path / "thirds.png")
    squish = open_images([tmp_path / "thirds.png"], 30, cache=False).pixels[0]
    crop = open_images([tmp_path / "thirds.png"], 30, resize="crop", cache=False).pixels[0]
    assert (squish[:, [2, 15, 27]] == [[0, 0, 255], [255, 0, 0], [0, 0, 255]]).all()
    assert (crop == [255, 0, 0]).all()


def test_shrinking_averages_instead_of_picking(cache, tmp_path):
    board = np.indices((256, 256)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    pixels = open_images([tmp_path / "board.png"], 16, cache=False).pixels
    assert np.abs(pixels.astype(int) - 128).max() <= 2


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same(cache, tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    large = noise.resize((2000, 1600), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=90)
    large.save(tmp_path / "large.png")
    jpeg, png = open_images([tmp_path / f"large.{s}" for s in ("jpg", "png")], 64).pixels
    assert np.abs(jpeg.astype(int) - png).mean() < 2


def test_the_cache_is_mapped_read_only_and_used_again(cache, tmp_path, caplog):
    paths = write_images(tmp_path / "a")
    first = open_images(paths, SIZE)
    assert isinstance(first.pixels, np.memmap) and not first.pixels.flags.writeable
    written = [(file, file.stat().st_mtime_ns) for file in arrays(cache)]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="lesionfast"):
        again = open_images(paths, SIZE)
    assert "Decoding" not in caplog.text
    assert [(file, file.stat().st_mtime_ns) for file in arrays(cache)] == written
    assert (again.pixels == first.pixels).all()


def test_without_cache_it_is_a_plain_array_and_nothing_is_written(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    images = open_images(paths, SIZE, cache=False)
    assert not isinstance(images.pixels, np.memmap) and not cache.exists()
    assert (images.pixels == open_images(paths, SIZE).pixels).all()


def test_no_images_are_no_problem(cache):
    assert open_images([], SIZE).pixels.shape == (0, SIZE, SIZE, 3)


def test_size_and_resize_have_arrays_of_their_own(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    shapes = {open_images(paths, n, resize=r).pixels.shape for n in (8, 16) for r in ("squish",)}
    open_images(paths, 8, resize="crop")
    assert len(shapes) == 2 and len(arrays(cache)) == 3


@pytest.mark.parametrize("request_", [{"size": 0}, {"size": 8, "resize": "stretch"}])
def test_an_impossible_size_says_what_to_type(cache, request_):
    with pytest.raises(LesionfastError, match="--size of 1 or more and --resize squish or crop"):
        open_images([], **request_)


def test_zip_and_folder_share_an_array(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"deep/{os.path.basename(path)}")
    inside = [f"{tmp_path}/all.zip/deep/{os.path.basename(path)}" for path in paths]
    from_zip, from_folder = open_images(inside, SIZE).pixels, open_images(paths, SIZE).pixels
    assert (from_zip == from_folder).all()
    assert len(arrays(cache)) == 1


def test_a_changed_file_is_decoded_again(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    before = np.array(open_images(paths, SIZE).pixels)
    Image.new("RGB", (80, 60), "white").save(paths[3])
    after = open_images(paths, SIZE).pixels
    assert (after[3] == 255).all()
    assert (np.delete(after, 3, axis=0) == np.delete(before, 3, axis=0)).all()


def test_a_file_changed_to_the_same_size_and_time_is_noticed(cache, tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.bmp")
    state = (tmp_path / "a.bmp").stat()
    assert open_images([tmp_path / "a.bmp"], 8).pixels[0, 0, 0].tolist() == [255, 0, 0]
    (tmp_path / "a.bmp").write_bytes((tmp_path / "b.bmp").read_bytes())
    os.utime(tmp_path / "a.bmp", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert open_images([tmp_path / "a.bmp"], 8).pixels[0, 0, 0].tolist() == [0, 0, 255]


def test_a_touched_file_of_the_same_content_is_not_decoded_again(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    open_images(paths, SIZE)
    os.utime(paths[0], (1, 1))
    open_images(paths, SIZE)
    assert len(arrays(cache)) == 1


DAMAGES = {
    "a flipped bit": lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:],
    "zeroed pixels": lambda data: data[:4096] + bytes(4096) + data[8192:],
    "truncated": lambda data: data[: len(data) // 2],
    "another shape": lambda data: data.replace(b"(12, 32, 32, 3)", b"(24, 16, 32, 3)"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_pixels_are_noticed_said_and_decoded_again(damage, cache, tmp_path, caplog):
    paths = write_images(tmp_path / "a")
    right = np.array(open_images(paths, SIZE).pixels)
    (file,) = arrays(cache)
    file.write_bytes(damage(file.read_bytes()))
    is_sound.cache_clear()
    assert (open_images(paths, SIZE).pixels == right).all()
    assert f"{file} is damaged" in caplog.text and len(arrays(cache)) == 1


@pytest.mark.parametrize(
    "damage", [lambda text: "[1, 2", lambda text: text.replace('"bad": []', '"bad": [3]')]
)
def test_a_damaged_note_is_said_and_written_again(damage, cache, tmp_path, caplog):
    paths = write_images(tmp_path / "a")
    right = np.array(open_images(paths, SIZE).pixels)
    (note,) = cache.glob("*.json")
    text = note.read_text()
    note.write_text(damage(text))
    assert (open_images(paths, SIZE).pixels == right).all()
    assert f"{note} is damaged" in caplog.text
    assert len(arrays(cache)) == 1 and note.read_text() == text


def test_another_version_of_a_decoder_decodes_again(cache, tmp_path, monkeypatch):
    paths = write_images(tmp_path / "a")
    open_images(paths, SIZE)
    monkeypatch.setattr(features, "version", lambda name: f"{name} of another version")
    open_images(paths, SIZE)
    assert len(arrays(cache)) == 2


def test_bad_images_are_counted_and_named_with_the_way_on(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    for i in (2, 7):
        with open(paths[i], "r+b") as file:
            file.truncate(300)
    with pytest.raises(LesionfastError, match="2 of 12 images can't be read") as caught:
        open_images(paths, SIZE)
    assert paths[2] in str(caught.value) and paths[7] in str(caught.value)
    assert "truncated" in str(caught.value).lower() and "--skip-bad" in str(caught.value)
    assert {file.suffix for file in cache.iterdir()} == {".json"}


@pytest.mark.parametrize("use_cache", [True, False])
def test_bad_images_can_be_skipped_now_and_from_the_cache(use_cache, cache, tmp_path, caplog):
    paths = write_images(tmp_path / "a")
    right = np.array(open_images(paths, SIZE, cache=False).pixels)
    with open(paths[5], "wb"):
        pass
    for _ in range(2):
        images = open_images(paths, SIZE, skip_bad=True, cache=use_cache)
        assert list(images.bad) == [5] and "empty" in images.bad[5]
        assert (images.pixels[5] == 0).all()
        assert (np.delete(images.pixels, 5, 0) == np.delete(right, 5, 0)).all()
    assert "1 of 12" in caplog.text
    with pytest.raises(LesionfastError, match="--skip-bad"):
        open_images(paths, SIZE, cache=use_cache)


def test_an_array_with_bad_images_is_not_taken_for_a_whole_one(cache, tmp_path):
    paths = write_images(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in paths:
            archive.write(path, os.path.basename(path))
    data = bytearray((tmp_path / "all.zip").read_bytes())
    data[200] ^= 0xFF  # within the first member: its directory entry stays right
    (tmp_path / "all.zip").write_bytes(data)
    inside = [f"{tmp_path}/all.zip/{os.path.basename(path)}" for path in paths]
    assert list(open_images(inside, SIZE, skip_bad=True).bad) == [0]
    assert open_images(paths, SIZE).bad == {}
    assert (open_images(paths, SIZE).pixels[0] > 0).any()


def test_nothing_but_bad_images_is_an_error_even_if_skipped(cache, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(LesionfastError, match="1 of 1 image can"):
        open_images([tmp_path / "a.jpg"], SIZE, skip_bad=True)


def test_progress_ends_at_the_total(cache, tmp_path):
    calls = []
    open_images(
        write_images(tmp_path / "a"), SIZE, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (12, 12)


def test_a_cache_that_cannot_be_written_says_what_to_type(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(LesionfastError, match=r"LESIONFAST_CACHE .* or train with --no-cache"):
        open_images(write_images(tmp_path / "a", 2), SIZE)


def test_a_cache_on_a_read_only_disk_is_read(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE", str(small_disk))
    paths = write_images(tmp_path / "a")
    right = np.array(open_images(paths, SIZE).pixels)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert (open_images(paths, SIZE).pixels == right).all()
    with pytest.raises(LesionfastError, match="the file system is read-only.*LESIONFAST_CACHE"):
        open_images(paths, SIZE, resize="crop")


def start_process(paths, *lines):
    """Start a Python process that runs some lines; `paths` are its arguments."""
    code = "\n".join(["import sys, time", "from lesionfast.data.images import open_images", *lines])
    return subprocess.Popen([sys.executable, "-c", code, *paths], stdout=subprocess.PIPE, text=True)


def test_two_processes_build_the_same_cache_at_once(cache, tmp_path):
    paths = write_images(tmp_path / "a", 300)
    gate = tmp_path / "gate"
    wait = f"import os\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.001)"
    work = (
        "done = []\n"
        "pixels = open_images(sys.argv[1:], 64, progress=lambda *now: done.append(now)).pixels\n"
        "print(int(pixels.sum()), len(done))"
    )
    processes = [start_process(paths, "print('ready', flush=True)", wait, work) for _ in "ab"]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    gate.touch()
    told = [process.communicate(timeout=600)[0].split() for process in processes]
    assert {int(each[0]) for each in told} == {
        int(open_images(paths, 64, cache=False).pixels.sum())
    }
    assert sorted(each[1] for each in told) == ["0", "2"]  # one decoded the blocks of 256, once
    assert {file.suffix for file in cache.iterdir()} == {".json", ".npy"}
    assert len(arrays(cache)) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_while_building_leaves_nothing_that_is_taken_for_a_cache(cache, tmp_path):
    paths = write_images(tmp_path / "a", 300)
    stop = "def stop(done, total): print('building', flush=True); time.sleep(600)"
    process = start_process(paths, stop, "open_images(sys.argv[1:], 64, progress=stop)")
    assert process.stdout.readline() == "building\n"
    process.kill()
    process.wait()
    assert list(cache.glob(f"{UNFINISHED}*")) and not arrays(cache)
    right = open_images(paths, 64, cache=False).pixels
    assert (open_images(paths, 64).pixels == right).all()
    assert {file.suffix for file in cache.iterdir()} == {".json", ".npy"}


def read_pixels(image, path, **options):
    """Save a picture, read it back and return its pixels (h, w, 3)."""
    image.save(path, **options)
    read = read_image(str(path))
    assert read.mode == "RGB"
    return np.asarray(read).astype(int)


def test_grey_becomes_three_equal_channels(tmp_path):
    values = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    read = read_pixels(Image.fromarray(values), tmp_path / "grey.png")
    assert (read == values[:, :, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(suffix, tmp_path):
    values = np.array([[0, 257, 128 * 257, 200 * 257 + 100, 65535]], np.uint16)
    read = read_pixels(Image.fromarray(values), tmp_path / f"deep.{suffix}")
    assert read[0, :, 0].tolist() == [0, 1, 128, 200, 255]
    assert (read == read[:, :, :1]).all()


def test_32_bits_are_refused_rather_than_guessed(tmp_path):
    Image.fromarray(np.array([[0, 100_000]], np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.array([[0.0, 0.5]], np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(LesionfastError, match="32 bits; save it with 8"):
        read_image(str(tmp_path / "int.tif"))
    with pytest.raises(LesionfastError, match="floating-point"):
        read_image(str(tmp_path / "float.tif"))


def test_a_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    read = read_pixels(image, tmp_path / "palette.png")
    assert read[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    read = read_pixels(image, tmp_path / "rgba.png")
    assert read[0].tolist() == [list(RED), list(WHITE), [204, 204, 204]]


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    read = read_pixels(image, tmp_path / "palette.png", transparency=0)
    assert read[0].tolist() == [list(WHITE), [200, 100, 50]]


def test_grey_with_alpha_is_laid_over_white(tmp_path):
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (100, 0))
    assert read_pixels(image, tmp_path / "la.png")[0, :, 0].tolist() == [100, 255]


def test_cmyk_gives_the_printed_colour(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    read = read_pixels(image, tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read - RED).max() < 6


# where the red top left corner of the stored picture belongs
@pytest.mark.parametrize(
    ("orientation", "corner"), enumerate(["tl", "tr", "br", "bl", "tl", "tr", "br", "bl"], 1)
)
def test_exif_orientation_is_applied(orientation, corner, tmp_path):
    size = (30, 20) if orientation < 5 else (20, 30)
    image = Image.new("RGB", (30, 20), "white")
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    read = read_image(str(tmp_path / "turned.jpg"))
    assert read.size == size
    y, x = (2 if corner[0] == "t" else size[1] - 3), (2 if corner[1] == "l" else size[0] - 3)
    array = np.asarray(read).astype(int)
    assert np.abs(array[y, x] - RED).max() < 10
    assert (np.abs(array[-1 - y, -1 - x] - WHITE) < 10).all()


def broken_files(folder):
    """Write one file of each kind of damage; return name -> what the error says."""
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    image.save(folder / "whole.jpg")
    image.save(folder / "whole.png")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:-600])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("Page not found")
    (folder / "header.jpg").write_bytes(whole[:20])
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(folder / "bomb.png")
    return {
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
        "empty.jpg": r"empty \(0 bytes\)",
        "text.jpg": "not a picture in a supported format",
        "header.jpg": "can't be read",
        "bomb.png": "decompression bomb",
        "missing.jpg": "there is no such file",
    }


def test_sizes_are_those_of_the_headers_in_files_and_zip_files(tmp_path):
    exif = Image.Exif()
    exif[0x9286] = b"-" * 50_000  # the size comes after it
    Image.new("RGB", (31, 40)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (300, 20)).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_text("no image")
    names = ["a.jpg", "b.png", "c.jpg"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / name, name)
    paths = [f"{tmp_path}/{part}{name}" for part in ("", "all.zip/") for name in names]
    sizes = find_sizes([*paths, f"{tmp_path}/none.jpg"]).tolist()
    assert sizes == [[31, 40], [300, 20], [0, 0]] * 2 + [[0, 0]]


def test_each_kind_of_damage_is_named_with_its_reason(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(LesionfastError, match=reason) as caught:
            read_image(str(tmp_path / name))
        assert name in str(caught.value) and "Replace the file." in str(caught.value)
