"""What all files of images have in common."""

import io

import numpy as np
import pytest
from PIL import Image

from lesionfast.data.formats.members import encode_pixels


def test_only_pixels_of_8_bits_are_encoded():
    for shape in ((3,), (2, 2, 4), (2, 2, 3, 1), (0, 2)):
        with pytest.raises(ValueError, match="uint8 of shape"):
            encode_pixels(np.zeros(shape, np.uint8))
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert (np.asarray(Image.open(io.BytesIO(encode_pixels(pixels)))) == pixels[..., 0]).all()
