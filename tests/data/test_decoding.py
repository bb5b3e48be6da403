import numpy as np
import pytest
from PIL import Image

from lesionfast.data.images import read_image
from lesionfast.errors import LesionfastError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(image, path, **options):
    """Save a picture, read it back and return its pixels (h, w, 3)."""
    image.save(path, **options)
    read = read_image(str(path))
    assert read.mode == "RGB"
    return np.asarray(read).astype(int)


def test_grey_becomes_three_equal_channels(tmp_path):
    values = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    read = pixels(Image.fromarray(values), tmp_path / "grey.png")
    assert (read == values[:, :, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(suffix, tmp_path):
    values = np.array([[0, 257, 128 * 257, 200 * 257 + 100, 65535]], np.uint16)
    read = pixels(Image.fromarray(values), tmp_path / f"deep.{suffix}")
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
    read = pixels(image, tmp_path / "palette.png")
    assert read[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    read = pixels(image, tmp_path / "rgba.png")
    assert read[0].tolist() == [list(RED), list(WHITE), [204, 204, 204]]


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    read = pixels(image, tmp_path / "palette.png", transparency=0)
    assert read[0].tolist() == [list(WHITE), [200, 100, 50]]


def test_grey_with_alpha_is_laid_over_white(tmp_path):
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (100, 0))
    assert pixels(image, tmp_path / "la.png")[0, :, 0].tolist() == [100, 255]


def test_cmyk_gives_the_printed_colour(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    read = pixels(image, tmp_path / "cmyk.jpg", quality=95)
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


def test_each_kind_of_damage_is_named_with_its_reason(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(LesionfastError, match=reason) as caught:
            read_image(str(tmp_path / name))
        assert name in str(caught.value) and "--skip-bad" in str(caught.value)
