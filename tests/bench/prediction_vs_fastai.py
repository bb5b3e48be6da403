"""fastai's `get_preds` on files against lesionfast's prediction, in turns, of the test images.

    python tests/bench/prediction_vs_fastai.py --data HAM10000

Neither is trained: the same backbone runs. Plain fastai is the one of vs_fastai.py, with as many
workers as cores; lesionfast reads the pixels that a training has decoded.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from side_by_side import extract_images
from vs_fastai import plain_learner

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.training.learner import lesion_learner

TEST = 2  # the place of the test images among the loaders


def main() -> None:
    """Print the images per second of both, and their ratio, round by round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--arch", default=TrainConfig.arch)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    config = TrainConfig(data=given.data, arch=given.arch, weights="none")
    df = load_dataset(config)
    df["file"] = [Path(path).name for path in df["path"]]
    test = df[df["split"] == "test"]
    with tempfile.TemporaryDirectory() as folder:
        extract_images(Path(given.data), Path(folder))
        plain = plain_learner(df, config, Path(folder), "")
        ours = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
        files = plain.dls.test_dl(test)
        with plain.no_bar(), ours.no_bar():
            ours.get_preds(ds_idx=TEST)
            rounds = [
                (
                    rate(lambda: plain.get_preds(dl=files), len(test)),
                    rate(lambda: ours.get_preds(ds_idx=TEST), len(test)),
                )
                for _ in range(given.rounds)
            ]
    for plain_rate, our_rate in rounds:
        print(
            f"fastai {plain_rate:6.1f}   lesionfast {our_rate:6.1f}   {our_rate / plain_rate:.2f} x"
        )
    print(f"median of the ratios {statistics.median(b / a for a, b in rounds):.2f}")


def rate(predict: Callable[[], object], images: int) -> float:
    """Return images per second."""
    started = time.perf_counter()
    predict()
    return images / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
