"""Some images of a run's data as its model sees them, to compare one form of it with another."""

import numpy as np
import pandas as pd

from lesionfast.data.dataset import load_dataset
from lesionfast.data.images import open_images
from lesionfast.runs import Run
from lesionfast.serving.bundle import Bundle


def draw_images(
    run: Run, bundle: Bundle, split: str, most: int | None = None
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return rows, pixels uint8 and metadata float32 of images of one split, drawn at random.

    Raises `LesionfastError` if the run's data is elsewhere.
    """
    df = load_dataset(run.config, split=run.file("split.csv"))
    df = df[df["split"] == split]
    df = df.sample(min(most or len(df), len(df)), random_state=0)
    options = {"resize": run.config.resize, "cache": False, "skip_bad": run.config.skip_bad}
    images = open_images(df["path"].tolist(), bundle.size, **options, report=False)
    good = np.setdiff1d(np.arange(len(df)), list(images.bad))
    df = df.iloc[good]
    return df, images.pixels[good], bundle.encoder.transform(df)
