"""Plain fastai against lesionfast: same backbone, weights, split, size and epochs.

    python tests/bench/vs_fastai.py --data HAM10000 --epochs 5

Plain fastai is what its documentation recommends: ImageDataLoaders with as many workers as
cores, Resize, aug_transforms, Normalize, vision_learner, fine_tune. Each system runs in a process
of its own. Its time is from the split table to the trained weights, decoding included; images per
second are the training images of the epochs of all layers and one more, over the time of the fit,
validation included. For lesionfast that one is all of the head's epochs, on cached features.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

SYSTEMS = ("fastai", "lesionfast")


def main() -> None:
    """Run both systems on one split and print a table, or JSON."""
    arguments = parse()
    if arguments.system:
        print(json.dumps(SYSTEM[arguments.system](arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        extract_images(Path(arguments.data), Path(folder))
        results = {name: run(name, arguments, folder) for name in SYSTEMS}
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print_comparison(results, arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--arch", default="tf_efficientnet_lite0", help="a timm name")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=5, help="the first of the head alone")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, arguments: argparse.Namespace, folder: str) -> dict:
    """Run one system in a fresh process with an empty image cache and return its figures."""
    command = [sys.executable, __file__, "--system", name, "--folder", folder]
    for option in ("data", "arch", "size", "epochs", "seed"):
        command += [f"--{option}", str(getattr(arguments, option))]
    environment = os.environ | {"LESIONFAST_CACHE": f"{folder}/cache"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def extract_images(data: Path, folder: Path) -> None:
    """Unpack the images for plain fastai, which reads files only."""
    for archive in data.glob("*.zip"):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder / "images")


def configuration(arguments: argparse.Namespace):
    """Return what both systems share, as a configuration of lesionfast."""
    from lesionfast.config import TrainConfig

    return TrainConfig(
        data=arguments.data,
        arch=arguments.arch,
        size=arguments.size,
        epochs=arguments.epochs - 1,  # through the backbone, after those of the head
        seed=arguments.seed,
        patience=0,
    )


def figures(probabilities, truth, classes, prior, seconds: dict, trained: int) -> dict:
    """Return the figures that are compared."""
    import resource

    from lesionfast.evaluation.metrics import summarize

    found = summarize(truth, probabilities, classes, prior)
    own, workers = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    processor = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
    return {
        "balanced accuracy, argmax": found["rules"]["argmax"]["balanced_accuracy"],
        "balanced accuracy, balanced rule": found["rules"]["balanced"]["balanced_accuracy"],
        "macro AUC": found["macro_auc"],
        "training time, s": sum(seconds.values()),
        "images per second": trained / seconds["fit"],
        "processor time of all, s": processor,
        "peak memory, GiB": own.ru_maxrss / 2**20,
    }


def run_lesionfast(arguments: argparse.Namespace) -> dict:
    """Train with lesionfast's defaults."""
    from lesionfast.data.dataset import load_dataset
    from lesionfast.runs import Run
    from lesionfast.training import experiment

    config = configuration(arguments)
    df = load_dataset(config)
    started = time.perf_counter()
    learn = experiment.prepare_learner(df, config)
    prepared = time.perf_counter()
    run = Run.create(Path(arguments.folder) / "runs", config)
    experiment.write_preparation(learn, run)
    training = experiment.fit(learn, run)
    seconds = {"prepare": prepared - started, "fit": time.perf_counter() - prepared}
    experiment.evaluate(learn, run, training)
    table = run.predictions[run.predictions["split"] == "test"]
    probabilities = table[[f"p_{each}" for each in run.classes]].to_numpy()
    truth = table["target"].map(run.classes.index).to_numpy()
    trained = len(learn.dls.train_ds) * arguments.epochs
    return figures(probabilities, truth, run.classes, run.model["prior"], seconds, trained)


def run_fastai(arguments: argparse.Namespace) -> dict:
    """Train with a plain vision_learner and fine_tune on the same rows."""
    import numpy as np
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
    test = df[df["split"] == "test"]
    probabilities, _ = learn.get_preds(dl=dls.test_dl(test))
    classes = list(dls.vocab)
    truth = test["target"].map(classes.index).to_numpy()
    counts = df[df["split"] == "train"]["target"].value_counts()[classes].to_numpy()
    trained = len(dls.train_ds) * arguments.epochs
    prior = np.asarray(counts / counts.sum())
    return figures(probabilities.double().numpy(), truth, classes, prior, seconds, trained)


def pretrained(config, folder: Path) -> str:
    """Write the weights that lesionfast starts from as a file for timm and return its path."""
    import timm
    import torch

    from lesionfast.models.backbones import create_backbone

    found = create_backbone(config.arch, size=config.size, weights=config.weights)
    with torch.device("meta"):
        classifier = timm.create_model(config.arch).state_dict()
    state = found.body.net.state_dict()  # a timm body; it lacks the classifier only
    empty = {k: torch.zeros(v.shape) for k, v in classifier.items() if k not in state}
    assert len(empty) == 2, f"weights without a match: {list(empty)[:3]}"
    torch.save(state | empty, folder / "backbone.pth")
    return str(folder / "backbone.pth")


def print_comparison(results: dict[str, dict], arguments: argparse.Namespace) -> None:
    """Print one row a figure, with the ratio lesionfast : fastai."""
    print(
        f"{arguments.arch}, {arguments.size} px, {arguments.epochs} epochs, {os.cpu_count()} cores"
    )
    print(f"{'':34}{'fastai':>10}{'lesionfast':>12}{'ratio':>8}")
    for name, plain in results["fastai"].items():
        ours = results["lesionfast"][name]
        print(f"{name:34}{plain:10.3f}{ours:12.3f}{ours / plain:8.2f}")


SYSTEM = {"fastai": run_fastai, "lesionfast": run_lesionfast}

if __name__ == "__main__":
    main()
