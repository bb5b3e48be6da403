"""Plain fastai against lesionfast: same backbone, weights, split, size and epochs.

    python tests/bench/vs_fastai.py --data HAM10000 --epochs 5 --same-time

Plain fastai is what its documentation recommends: ImageDataLoaders with as many workers as
cores, Resize, aug_transforms, Normalize, vision_learner, fine_tune. Each system runs in a process
of its own, in turns. Its time is from the split table to the trained weights, decoding included;
images per second are the training images of the epochs of all layers and one more, over the time
of the fit, validation included. For lesionfast that one is all of the head's epochs, on features
that are computed once.
"""

import argparse
import sys
import time
from pathlib import Path

from side_by_side import compare, configuration, figures, pretrained


def run_fastai(arguments: argparse.Namespace) -> dict:
    """Train with a plain vision_learner and fine_tune on the same rows."""
    from fastai.vision.all import (
        BalancedAccuracy,
        ImageDataLoaders,
        Resize,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    from lesionfast.data.dataset import load_dataset

    config = configuration(arguments)
    df = load_dataset(config)
    df["file"] = [Path(path).name for path in df["path"]]
    trainable = df[df["split"] != "test"].assign(valid=lambda d: d["split"] == "valid")
    set_seed(config.seed)
    weights = pretrained(config, Path(arguments.folder))
    started = time.perf_counter()
    dls = ImageDataLoaders.from_df(
        trainable,
        Path(arguments.folder) / "images",
        fn_col="file",
        label_col="target",
        valid_col="valid",
        item_tfms=Resize(config.size),
        batch_tfms=aug_transforms(),
        bs=config.batch_size,
    )
    learn = vision_learner(
        dls,
        config.arch,
        metrics=BalancedAccuracy(),
        pretrained_cfg_overlay={"file": weights},
    )
    prepared = time.perf_counter()
    with learn.no_bar():
        learn.logger = lambda values: print(*values, file=sys.stderr)
        learn.fine_tune(config.epochs)
    seconds = {"prepare": prepared - started, "fit": time.perf_counter() - prepared}
    classes, parts = list(dls.vocab), []
    for name in ("valid", "test"):
        rows = df[df["split"] == name]
        with learn.no_bar():
            probabilities, _ = learn.get_preds(dl=dls.test_dl(rows))
        truth = rows["target"].map(classes.index).to_numpy()
        parts.append((probabilities.double().numpy(), truth))
    counts = df[df["split"] == "train"]["target"].value_counts()[classes].to_numpy()
    trained = len(dls.train_ds) * arguments.epochs
    return figures(*parts, classes, counts / counts.sum(), seconds, trained)


if __name__ == "__main__":
    compare(__file__, "fastai", run_fastai, __doc__.splitlines()[0])
