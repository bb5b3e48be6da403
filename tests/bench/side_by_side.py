"""What the benchmarks against other libraries share: one split, one process a system, one table."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback

System = Callable[[argparse.Namespace], dict]
OURS, SAME_TIME = "lesionfast", "same time"
REACHED = "time to the plain balanced accuracy, s"


def compare(script: str, name: str, plain: System, description: str) -> None:
    """Run a plain system and lesionfast in turns on one split, and print a table or JSON."""
    arguments = parse(description)
    systems = {name: plain, OURS: run_lesionfast, SAME_TIME: run_lesionfast}
    if arguments.system:
        print(json.dumps(systems[arguments.system](arguments)))
        return
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        extract_images(Path(arguments.data), Path(folder))
        if arguments.limit:
            arguments.data = limited(Path(arguments.data), Path(folder), arguments.limit)
        for _ in range(arguments.rounds):
            found = {name: run(script, name, arguments, folder)}
            reach = found[name]["balanced accuracy, validation, better rule"]
            found[OURS] = run(script, OURS, arguments, folder, reach=reach)
            if arguments.same_time:
                seconds = found[name]["training time, s"]
                found[SAME_TIME] = run(script, SAME_TIME, arguments, folder, reach, f"{seconds}s")
            rounds.append(found)
    print(json.dumps(rounds, indent=2)) if arguments.json else print_table(rounds, arguments)


def parse(description: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--arch", default="tf_efficientnet_lite0", help="backbone: a timm name")
    parser.add_argument(
        "--weights", default="auto", help="'none' starts from random weights, to measure speed"
    )
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument(
        "--epochs", type=int, default=5, help="epochs; the first one trains the head alone"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--limit", type=int, help="use only this many lesions of each class")
    parser.add_argument(
        "--rounds", type=int, default=1, help="rounds in which the systems take turns"
    )
    parser.add_argument(
        "--same-time",
        action="store_true",
        help="also run lesionfast with the plain system's time as its budget",
    )
    parser.add_argument("--json", action="store_true")
    for hidden in ("--system", "--folder", "--budget"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--reach", type=float, default=1.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(
    script: str,
    name: str,
    arguments: argparse.Namespace,
    folder: str,
    reach: float = 1.0,
    budget: str = "",
) -> dict[str, Any]:
    """Run one system in a fresh process with an empty cache and return its figures."""
    command = [sys.executable, script, "--system", name, "--folder", folder, "--reach", str(reach)]
    for option in ("data", "arch", "weights", "size", "epochs", "seed"):
        command += [f"--{option}", str(getattr(arguments, option))]
    command += ["--budget", budget] if budget else []
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"LESIONFAST_CACHE": cache}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=environment, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def extract_images(data: Path, folder: Path) -> None:
    """Unpack the images for a system that reads files only."""
    for archive in data.glob("*.zip"):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder / "images")


def limited(data: Path, folder: Path, lesions: int) -> str:
    """Return a data folder beside the images with so many lesions of each class of `data`."""
    import pandas as pd

    found = folder / "data"
    found.mkdir()
    for archive in data.glob("*.zip"):
        (found / archive.name).symlink_to(archive.resolve())
    csv = next(data.glob("*.csv"))
    df = pd.read_csv(csv)
    kept = df.drop_duplicates("lesion_id").groupby("dx").head(lesions)["lesion_id"]
    df[df["lesion_id"].isin(kept)].to_csv(found / csv.name, index=False)
    return str(found)


def prior_of(df, classes: list[str]):
    """Return the share of each class among the training rows, (K,)."""
    counts = df[df["split"] == "train"]["target"].value_counts()[classes].to_numpy()
    return counts / counts.sum()


def configuration(arguments: argparse.Namespace):
    """Return what both systems share, as a configuration of lesionfast."""
    from lesionfast.config import TrainConfig

    shared = {name: getattr(arguments, name) for name in ("data", "arch", "weights", "seed")}
    if arguments.budget:
        return TrainConfig(**shared, patience=0, budget=arguments.budget)
    epochs = arguments.epochs - 1  # through the backbone, after those of the head
    return TrainConfig(**shared, size=arguments.size, epochs=epochs, patience=0)


def figures(
    valid: tuple,
    test: tuple,
    classes: list[str],
    prior,
    seconds: dict[str, float],
    trained: int,
) -> dict[str, float]:
    """Return the figures that are compared; `valid` and `test` are (probabilities, truth).

    `seconds` are those of preparing, of the fit, of predicting the test images, one view each, and
    of an image while all layers learn, validation left out.
    """
    from lesionfast.stats.metrics import summarize

    found = {}
    for name, (probabilities, truth) in {"validation": valid, "test": test}.items():
        about = summarize(truth, probabilities, classes, prior)
        better = max(rule["balanced_accuracy"] for rule in about["rules"].values())
        found[f"balanced accuracy, {name}, better rule"] = better
        found[f"macro AUC, {name}"] = about["macro_auc"]
    own, workers = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    processor = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
    return found | {
        "training time, s": seconds["prepare"] + seconds["fit"],
        "images per second, fit": trained / seconds["fit"],
        "images per second, all layers": 1 / seconds["image"],
        "images per second, prediction": len(test[1]) / seconds["predict"],
        "processor time of all processes, s": processor,
        "peak memory, GiB": own.ru_maxrss / 2**20,
    }


def run_lesionfast(arguments: argparse.Namespace) -> dict[str, float | None]:
    """Train with lesionfast's defaults, and note when validation reached `--reach`."""
    from lesionfast.data.split import load_dataset
    from lesionfast.run import Run
    from lesionfast.training import experiment
    from lesionfast.training.fitting import fit
    from lesionfast.training.record import evaluate
    from lesionfast.training.speed.budget import fit_to_budget

    config = configuration(arguments)
    df = load_dataset(config)
    started = time.perf_counter()
    config = fit_to_budget(config, df)
    learn = experiment.prepare_learner(df, config)
    clock = reaching_clock(started, arguments.reach)
    learn.add_cbs([clock, last := LastEpoch()])
    prepared = time.perf_counter()
    run = Run.create(Path(arguments.folder) / "runs", config)
    experiment.write_preparation(learn, run)
    training = fit(learn, run)
    seconds = {"prepare": prepared - started, "fit": time.perf_counter() - prepared}
    seconds["image"] = last.seconds / len(learn.dls.train_ds)
    evaluate(learn, run, training)
    with learn.no_bar():
        _, seconds["predict"] = timed(lambda: learn.get_preds(ds_idx=2))
    of_head = config.weights != "none"  # else all layers learn from the start
    trained = len(learn.dls.train_ds) * (config.epochs + of_head)
    parts = [predictions_of(run, name) for name in ("valid", "test")]
    found = figures(*parts, run.classes, run.model["prior"], seconds, trained)
    return found | {REACHED: clock.seconds}


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and how many seconds that took."""
    started = time.perf_counter()
    found = function()
    return found, time.perf_counter() - started


class LastEpoch(Callback):
    """Measures `seconds`: those of the training part of the last epoch."""

    order, run_valid = 70, False

    def before_train(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def after_train(self) -> None:
        """Read it."""
        self.seconds = time.perf_counter() - self.started


def reaching_clock(started: float, reach: float):
    """Return a callback whose `seconds` are those until validation first reached `reach`."""

    class Clock(Callback):
        order, seconds = 80, None

        def after_epoch(self) -> None:
            names = list(self.recorder.metric_names)[1:]
            value = self.recorder.values[-1][names.index("balanced_accuracy")]
            if self.seconds is None and value >= reach:
                self.seconds = time.perf_counter() - started

    return Clock()


def predictions_of(run, split: str) -> tuple:
    """Return probabilities (n, K) and truth (n,) of a run's predictions as NumPy arrays."""
    table = run.predictions[run.predictions["split"] == split]
    probabilities = table[[f"p_{each}" for each in run.classes]].to_numpy()
    return probabilities, table["target"].map(run.classes.index).to_numpy()


def pretrained(config, folder: Path) -> str:
    """Write the weights that lesionfast starts from as a file for timm and return its path.

    '' if it starts from random ones.
    """
    if config.weights == "none":
        return ""
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


def print_table(rounds: list[dict[str, dict]], arguments: argparse.Namespace) -> None:
    """Print the median of each figure over the rounds, and its ratio to the plain system's."""
    names = list(rounds[0])
    print(
        f"{arguments.arch}, {arguments.size} px, {arguments.epochs} epochs, "
        f"{os.cpu_count()} cores, median of {len(rounds)} rounds; ratio: median over the rounds"
    )
    print(f"{'':44}" + "".join(f"{name:>12}" for name in names) + f"{'ratio':>9}")
    for figure in rounds[0][OURS]:
        plain = "training time, s" if figure == REACHED else figure
        cells = [shown([found[name].get(figure, "") for found in rounds]) for name in names]
        ratios = [ratio(found[OURS][figure], found[names[0]][plain]) for found in rounds]
        print(f"{figure:44}" + "".join(f"{each:>12}" for each in cells) + f"{shown(ratios):>9}")


def ratio(ours: float | None, plain: float) -> float | str | None:
    """Return ours : plain, None if ours was never reached, '' if plain is 0."""
    if not plain:
        return ""
    return None if ours is None else ours / plain


def shown(values: list) -> str:
    """Return the median, 'never' if a round did not get there, '' where there is no figure."""
    if "" in values:
        return ""
    return "never" if None in values else f"{statistics.median(values):.3f}"
