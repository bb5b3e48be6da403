"""What each ingredient of a recipe gives inside a dataset, and on images that look different.

    python tests/bench/recipe.py --data HAM10000 --out recipe --size 96 --epochs 3 --seeds 2

Each row of `ROWS` changes the recipe. Every row is trained on the same five folds of lesions, and
scored on the pooled out-of-fold predictions of all images; test images are not held out, and
nothing else is chosen on what is scored. With --by look the folds are five groups of images whose
backgrounds look alike (vignette, brightness, hue, sharpness), each held out in turn, as images of
another clinic would be: what a row loses there, against its own folds of lesions, tells whether it
will hold elsewhere. Differences are paired: the same lesions are drawn for all rows. Several
processes may work on one --out; finished runs are not trained again.
"""

import argparse
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from lesionfast.config import TrainConfig
from lesionfast.data.augment import Recipe, register_augmentation, standard
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import Classes, probability_columns
from lesionfast.run import Run
from lesionfast.stats.bootstrap import Found, interval, resampled
from lesionfast.stats.calibration import weighted_calibration
from lesionfast.stats.measures import weighted_metrics
from lesionfast.stats.metrics import ALL

FOLDS = 5
RECIPE = "the recipe"
ROWS: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "the default before": {"unfreeze": "fresh", "size": 128, "epochs": 5, "augment": "soft"},
    "all layers": {"unfreeze": "fresh"},
    "last four stages": {"unfreeze": "fresh:4"},
    "last two stages": {"unfreeze": "fresh:2"},
    "no head-only epochs": {"head_epochs": 0},
    "no EMA of the weights": {"ema": 0.0},
    "twice the learning rate": {"lr": 2e-3},
    "rates falling by 0.7 a stage": {"lr_decay": 0.7},
    "batches of 64": {"batch_size": 64},
    "batches of 64, twice the rate": {"batch_size": 64, "lr": 2e-3},
    "weight decay 0.1": {"weight_decay": 0.1},
    "logit adjustment": {"loss": "logit_adjusted"},
    "label smoothing 0.05": {"label_smoothing": 0.05},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
    "age, sex and site": {"metadata": "age,sex,localization"},
    "no age and sex": {"fusion": "none", "metadata": "none"},
    "no change of sharpness or tint": {"augment": "soft"},
    "dihedral augmentation": {"augment": "dihedral"},
    "strong augmentation": {"augment": "strong"},
    "no augmentation": {"augment": "none"},
    "12 epochs": {"epochs": 12},
    "24 epochs": {"epochs": 24},
    "128 pixels": {"size": 128},
    "144 pixels": {"size": 144},
    "144 pixels, 24 epochs": {"size": 144, "epochs": 24},
}
SHOWN = ("log loss", "macro AUC", "balanced accuracy", "melanoma at 90 %", "melanoma AUC", "ECE")


@register_augmentation("soft")
def soft() -> Recipe:
    """The standard augmentation without its changes of sharpness and white balance."""
    return replace(standard(), sharpen=0.0, blur=0.0, tint=0.0)


def main() -> None:
    """Train what is missing and print the table."""
    arguments = parse()
    logging.getLogger("lesionfast").setLevel(logging.ERROR)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(1, arguments.seeds + 1):
        for name in arguments.rows:
            for fold in range(FOLDS):
                train_fold(arguments, name, seed, fold)
    found = table(arguments)
    found.to_csv(out / f"{arguments.by}.csv", index=False)
    print(found.to_string(index=False, float_format="%.3f"))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--by", choices=("lesion", "look"), default="lesion", help="the folds")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of weights and batch order")
    parser.add_argument("--size", type=int, default=TrainConfig.size)
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="only these rows")
    return parser.parse_args()


def train_fold(arguments: argparse.Namespace, name: str, seed: int, fold: int) -> None:
    """Train one row on one fold with one seed, unless that is done or another process does it."""
    from lesionfast.training.experiment import train

    run = find_run(arguments, arguments.by, name, seed, fold)
    with suppress(Timeout), FileLock(f"{run}.lock", timeout=0):
        if run.exists():
            return
        plain = TrainConfig(
            data=arguments.data, size=arguments.size, epochs=arguments.epochs, tta=1, test=0.0,
            folds=FOLDS, fold=fold, seed=seed, split_seed=0,
        )  # fmt: skip
        config = replace(plain, **ROWS[name])
        df = load_dataset(config)
        if arguments.by == "look":
            looks = group_looks(df, FOLDS)
            df = df.assign(split=np.where(looks == fold, "valid", "train"))
        made = train(df, config, run.parent, run.name)
        print(f"{run.name}: {made.metrics['train_seconds']:.0f} s", flush=True)


def find_run(arguments: argparse.Namespace, by: str, name: str, seed: int, fold: int) -> Path:
    """Return the directory of a run."""
    row = name.replace(" ", "-").replace(",", "").replace(".", "")
    return Path(arguments.out) / f"{by}-{row}-{seed}-{fold}"


def group_looks(df: pd.DataFrame, k: int) -> np.ndarray:
    """Return the look of each image (n,), 0 to k - 1; images of a lesion have that of most."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    pixels = open_images(df["path"].tolist(), 64, resize="crop").pixels
    described = StandardScaler().fit_transform(describe_backgrounds(pixels))
    look = KMeans(k, n_init=10, random_state=0).fit_predict(described)
    return pd.Series(look).groupby(df["group"].to_numpy()).transform(lambda s: s.mode()[0]).values


def describe_backgrounds(pixels: np.ndarray) -> np.ndarray:
    """Return vignette, brightness, red, blue and sharpness (n, 5) of skin beside the lesion.

    `pixels` are uint8 (n, size, size, 3). The skin is a ring around the centre; the vignette is
    the brightness of the corners over that of the ring, the sharpness the median step of green
    from row to row, as a logarithm.
    """
    size = pixels.shape[1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(y, x) / (size / 2)
    corner, ring = radius > 1.22, (radius > 0.8) & (radius <= 1)
    found = []
    for image in pixels:
        image = image.astype(np.float32) / 255
        skin = np.median(image[ring], axis=0)
        step = np.median(np.abs(np.diff(image[:, :, 1], axis=0)))
        vignette = image[corner].mean() / (image[ring].mean() + 1e-3)
        red, _, blue = skin / (skin.sum() + 1e-3)
        found.append((vignette, skin.mean(), red, blue, np.log(step + 1e-3)))
    return np.array(found)


def table(arguments: argparse.Namespace) -> pd.DataFrame:
    """Return the pooled metrics of each whole row, and its differences, with 95 % intervals."""
    by = arguments.by
    drawn = {name: found for name in arguments.rows if (found := measure(arguments, by, name))}
    inside = {name: measure(arguments, "lesion", name) for name in drawn} if by == "look" else {}
    first = drawn.get(RECIPE)
    rows = []
    for name, (values, resamples) in drawn.items():
        row = {"row": name}
        for metric in SHOWN:
            row[metric] = values[metric]
            if name != RECIPE and first:
                change = values[metric] - first[0][metric]
                low, high = interval(resamples[metric] - first[1][metric])
                row[f"{metric}, change"] = f"{change:+.3f} [{low:+.3f}, {high:+.3f}]"
        if inside.get(name):
            key = "balanced accuracy"
            low, high = interval(inside[name][1][key] - resamples[key])
            loss = inside[name][0][key] - values[key]
            row["lost on other looks"] = f"{loss:.3f} [{low:.3f}, {high:.3f}]"
        rows.append(row)
    return pd.DataFrame(rows)


def measure(
    arguments: argparse.Namespace, by: str, name: str
) -> tuple[dict[str, float], dict[str, np.ndarray]] | None:
    """Return the metrics of a row, mean over the seeds, and those of each resample of lesions.

    None while a run of the row is missing.
    """
    of_seeds = []
    for seed in range(1, arguments.seeds + 1):
        runs = [Run(find_run(arguments, by, name, seed, fold)) for fold in range(FOLDS)]
        if not all(run.path.exists() and run.finished for run in runs):
            return None
        of_seeds.append(measure_pooled(runs))
    values = {key: np.mean([one[0][key] for one in of_seeds]) for key in SHOWN}
    return values, {key: np.mean([one[1][key] for one in of_seeds], axis=0) for key in SHOWN}


def measure_pooled(runs: list[Run]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the metrics of the pooled out-of-fold predictions of runs, and their resamples."""
    parts = [run.predictions_of("valid") for run in runs]
    rows, classes = pd.concat(parts), runs[0].classes
    priors = np.repeat([run.model["prior"] for run in runs], [len(part) for part in parts], axis=0)
    truth = rows["target"].map(list(classes).index).to_numpy()
    p = rows[probability_columns(classes)].to_numpy()
    p = p / p.sum(axis=1, keepdims=True)
    decision = (p / priors).argmax(axis=1)  # the balanced rule, each by the prior of its run
    find = pooled_metrics(truth, p, decision, classes)
    return resampled(find, truth, rows["group"].to_numpy())


def pooled_metrics(
    truth: np.ndarray, p: np.ndarray, decision: np.ndarray, classes: Classes
) -> Callable[[np.ndarray], Found]:
    """Return a function of weights (b, n) that gives each metric of `SHOWN`, (b,)."""
    metrics = weighted_metrics(truth, p, decision, classes)
    calibration = weighted_calibration(truth, p, classes)
    number = list(classes).index(classes.melanoma)
    ranking = np.argsort(-p[:, number], kind="stable")
    positive = (truth == number)[ranking]

    def find(weights: np.ndarray) -> Found:
        found = metrics(weights)
        ordered = weights[:, ranking]
        alarms = (ordered * ~positive).cumsum(axis=1)
        hits = (ordered * positive).cumsum(axis=1)
        last = (alarms <= 0.1 * alarms[:, -1:]).sum(axis=1) - 1
        reached = np.take_along_axis(hits, np.maximum(last, 0)[:, None], axis=1)[:, 0]
        values = (
            found["log_loss", ALL], found["macro_auc", ALL], found["balanced_accuracy", ALL],
            reached / hits[:, -1], found["auc", classes.melanoma], calibration(weights)["ece", ALL],
        )  # fmt: skip
        return dict(zip(SHOWN, values, strict=True))

    return find


if __name__ == "__main__":
    main()
