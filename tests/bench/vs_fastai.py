"""Plain fastai against lesionfast: same backbone, weights, split, size and epochs.

    python tests/bench/vs_fastai.py --data HAM10000 --epochs 5 --same-time

Plain fastai is what its documentation recommends: ImageDataLoaders with as many workers as
cores, Resize, aug_transforms, Normalize, vision_learner, fine_tune. Each system runs in a process
of its own, in turns. Its time is from the split table to the trained weights, decoding included;
images per second of the fit are the training images of the epochs of all layers and one more, over
its time, validation included. For lesionfast that one is all of the head's epochs, on features
that are computed once. Those of all layers are of the last epoch, without validation.
Peak memory is that of the main process, without the workers.
"""

import argparse
import sys
import time
from pathlib import Path

from side_by_side import LastEpoch, compare, configuration, figures, pretrained, prior_of, timed


def run_fastai(arguments: argparse.Namespace) -> dict:
    """Train with a plain vision_learner and fine_tune on the same rows."""
    from fastai.vision.all import set_seed

    from lesionfast.data.split import load_dataset

    config, folder = configuration(arguments), Path(arguments.folder)
    df = load_dataset(config)
    df["file"] = [Path(path).name for path in df["path"]]
    set_seed(config.seed)
    weights = pretrained(config, folder)
    started = time.perf_counter()
    learn = plain_learner(df, config, folder, weights)
    prepared = time.perf_counter()
    with learn.no_bar():
        learn.logger = lambda values: print(*values, file=sys.stderr)
        learn.fine_tune(config.epochs, cbs=(last := LastEpoch()))
    seconds = {"prepare": prepared - started, "fit": time.perf_counter() - prepared}
    seconds["image"] = last.seconds / len(learn.dls.train_ds)
    classes = list(learn.dls.vocab)
    valid = predict(learn, df[df["split"] == "valid"], classes)
    test, seconds["predict"] = timed(lambda: predict(learn, df[df["split"] == "test"], classes))
    trained = len(learn.dls.train_ds) * arguments.epochs
    return figures(valid, test, classes, prior_of(df, classes), seconds, trained)


def plain_learner(df, config, folder: Path, weights: str):
    """Return the Learner that fastai's documentation builds, over the rows that are no test."""
    from fastai.vision.all import (
        BalancedAccuracy,
        ImageDataLoaders,
        Resize,
        aug_transforms,
        vision_learner,
    )

    dls = ImageDataLoaders.from_df(
        df[df["split"] != "test"].assign(valid=lambda d: d["split"] == "valid"),
        folder / "images",
        fn_col="file",
        label_col="target",
        valid_col="valid",
        item_tfms=Resize(config.size),
        batch_tfms=aug_transforms(),
        bs=config.batch_size,
    )
    given = {"pretrained_cfg_overlay": {"file": weights}} if weights else {"pretrained": False}
    return vision_learner(dls, config.arch, metrics=BalancedAccuracy(), **given)


def predict(learn, rows, classes: list[str]) -> tuple:
    """Return probabilities (n, K) and truth (n,) of rows as NumPy arrays."""
    with learn.no_bar():
        probabilities, _ = learn.get_preds(dl=learn.dls.test_dl(rows))
    return probabilities.double().numpy(), rows["target"].map(classes.index).to_numpy()


if __name__ == "__main__":
    compare(__file__, "fastai", run_fastai, __doc__.splitlines()[0])
