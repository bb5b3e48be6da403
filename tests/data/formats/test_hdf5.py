"""HDF5 files."""

import numpy as np
import pytest

from lesionfast.data.images import read_image
from lesionfast.errors import LesionfastError

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def test_pixels_in_an_hdf5_dataset_are_an_image(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rgb"], file["grey"], file["text"] = pixels, pixels[..., 0], b"not an image"
        file["numbers"], file["wide"] = 3.5, np.zeros((4, 5), np.float32)
        file.create_group("empty")
    assert (np.asarray(read_image(f"{tmp_path}/a.h5/rgb")) == pixels).all()
    assert (np.asarray(read_image(f"{tmp_path}/a.h5/grey"))[..., 1] == pixels[..., 0]).all()
    reasons = {
        "text": "not a picture in a supported format",
        "numbers": "holds float64 of shape \\(\\), not the bytes of an image",
        "wide": "float32 of shape \\(4, 5\\); uint8 of shape \\(height, width\\)",
        "empty": "there is no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(LesionfastError, match=reason):
            read_image(f"{tmp_path}/a.h5/{name}")
