"""The features kept with a run."""

import numpy as np
import pytest

from lesionfast.evaluation.interpretation import read_features, write_features
from lesionfast.runs import Run


@pytest.mark.parametrize(("largest", "dtype"), [(60_000, "F16"), (70_000, "F32")])
def test_features_too_large_for_16_bits_are_kept_in_32(tmp_path, largest, dtype):
    features = np.array([[0.5, -1.25], [largest, 0]])
    write_features(Run(tmp_path), ["a", "b"], features)
    assert dtype.encode() in (tmp_path / "features.safetensors").read_bytes()
    read = read_features(Run(tmp_path))
    assert read.index.tolist() == ["a", "b"] and (read.to_numpy() == features).all()


def test_no_features_can_be_kept(tmp_path):
    write_features(Run(tmp_path), [], np.empty((0, 4)))
    assert read_features(Run(tmp_path)).shape == (0, 4)
