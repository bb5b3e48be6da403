"""What a run's backbone makes of each image: kept with the run, read without torch."""

import json

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from lesionfast.errors import LesionfastError
from lesionfast.files import damage_explained
from lesionfast.runs import Run

NAME = "features.safetensors"


def write_features(run: Run, image_ids: list[str], features: np.ndarray) -> None:
    """Keep the pooled image features (n, F) of a run, as float16 if none is too large for it."""
    header = {"image_ids": json.dumps(image_ids)}
    fits = np.abs(features).max(initial=0) <= np.finfo(np.float16).max
    kept = np.ascontiguousarray(features, np.float16 if fits else np.float32)
    run.write(NAME, lambda aside: save_file({"features": kept}, aside, header))


def has_features(run: Run) -> bool:
    """Return whether features were kept with a run."""
    return run.holds(NAME)


def read_features(run: Run) -> pd.DataFrame:
    """Return the features of a run's images, float32, one row an image, by image id.

    Raises `LesionfastError` if none were kept (a committee, a run without a backbone, an old run).
    """
    if not run.holds(NAME):
        raise LesionfastError(
            f"{run.path} keeps no {NAME}: it looks at no image, is a committee, or is old. "
            f"Train it again: lesionfast train --config {run.path / 'config.json'}"
        )
    path = run.file(NAME)
    with damage_explained(path, run.remedy(NAME)), safe_open(path, framework="np") as file:
        ids = json.loads(file.metadata()["image_ids"])
        features = file.get_tensor("features").astype(np.float32)
        return pd.DataFrame(features, index=pd.Index(ids, name="image_id"))
