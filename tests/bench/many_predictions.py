"""`lesionfast predict` on many files: images a second, its share of the bare model, peak memory.

    python tests/bench/many_predictions.py MODEL --data HAM10000 --images 10000

MODEL is a run or an exported folder. The bare model and the prediction of a tenth of the images
take turns; the median share is reported. If there are fewer files than asked for, they are used
again. Memory is the peak of a separate process, for a tenth of the images and for all of them.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from itertools import cycle, islice

ROUNDS, PASSES = 10, 50


def main() -> None:
    """Print the table, or with --only the peak memory of predicting so many images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run or an exported folder")
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--images", type=int, default=10_000, help="files to predict")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        list(map(len, prediction(given.model, given.data, given.only)))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    rounds = list(measure(given))
    print(f"{given.images:,} files, one view, {ROUNDS} rounds, median")
    print(f"bare forward pass       {statistics.median(bare for bare, _ in rounds):8.1f} images/s")
    print(
        f"lesionfast predict      {statistics.median(whole for _, whole in rounds):8.1f} images/s"
    )
    print(f"share of the bare       {statistics.median(b / a for a, b in rounds):8.2f}")
    for images in (given.images // 10, given.images):
        print(f"peak memory, {images:>9,}  {peak(given, images):8.2f} GiB")


def prediction(model: str, data: str, images: int):
    """Yield the tables of so many images of a dataset, by one view."""
    from lesionfast.data.sources import list_images
    from lesionfast.serving.inputs import Item
    from lesionfast.serving.predictor import Predictor

    paths = islice(cycle(list_images(data)["path"]), images)
    yield from Predictor(model, views=1).stream(Item(path, path) for path in paths)


def measure(given: argparse.Namespace):
    """Yield images per second of the bare model and of the prediction, in turns."""
    import torch

    from lesionfast.data.loaders import images_at_once
    from lesionfast.data.sources import list_images
    from lesionfast.models.inference import TorchEngine
    from lesionfast.models.precision import autocast
    from lesionfast.serving.inputs import Item
    from lesionfast.serving.predictor import Predictor

    predictor = Predictor(given.model, views=1)
    engine: TorchEngine = predictor.engine
    size, n = predictor.bundle.size, images_at_once(engine.device)
    image = torch.rand(n, 3, size, size, device=engine.device)
    image = image.contiguous(memory_format=torch.channels_last)
    metadata = torch.zeros(n, predictor.bundle.encoder.width, device=engine.device)
    bare = engine.model  # as it was trained: the first prediction folds a copy
    paths = cycle(list_images(given.data)["path"].tolist())
    list(predictor.stream(Item(path, path) for path in islice(paths, n)))
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(PASSES):
            with torch.inference_mode(), autocast(engine.precision, image.device):
                bare(image, metadata)
        alone = time.perf_counter()
        list(predictor.stream(Item(path, path) for path in islice(paths, given.images // ROUNDS)))
        ended = time.perf_counter()
        yield PASSES * n / (alone - started), given.images // ROUNDS / (ended - alone)


def peak(given: argparse.Namespace, images: int) -> float:
    """Return the peak memory in GiB of a process that predicts so many images."""
    command = [sys.executable, __file__, given.model, "--data", given.data, "--only", str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
