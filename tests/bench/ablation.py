"""What each ingredient of the default recipe gives: one row each, paired with the recipe itself.

    python tests/bench/ablation.py --data HAM10000 --out ablation --seeds 3

Each row changes one thing. All train on the same share of the training lesions and are scored on
validation only; test images are not read. The difference to the recipe is the mean over the seeds,
its interval comes from a bootstrap over validation lesions and seeds. Several processes may work on
one --out at the same time; finished runs are not trained again.
"""

import argparse
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.evaluation.comparison import align_images, resample_runs
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run
from lesionfast.stats.bootstrap import RESAMPLES, interval

RECIPE = "the recipe, 1 view"
ROWS: dict[str, dict] = {  # --tta 8 is a row, so that the others predict one view each
    RECIPE: {},
    "8 dihedral views": {"tta": 8},
    "no EMA of the weights": {"ema": 0.0},
    "no head-only epochs": {"unfreeze": "none"},
    "head kept when all layers train": {"unfreeze": "two-step"},
    "learning rates falling by 0.7 a stage": {"lr_decay": 0.7},
    "half the learning rate": {"lr": TrainConfig.lr / 2},
    "twice the learning rate": {"lr": TrainConfig.lr * 2},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "class weights": {"balance": "weights"},
    "logit adjustment": {"loss": "logit_adjusted"},
    "no augmentation": {"augment": "none"},
    "dihedral augmentation": {"augment": "dihedral"},
    "strong augmentation": {"augment": "strong"},
    "no age and sex": {"fusion": "none", "metadata": "none"},
    "gated fusion": {"fusion": "gated"},
    "max and mean pooling": {"pool": "concat"},
    "growing from half the size": {"start_size": 32},
    "96 pixels": {"size": 96},
    "128 pixels": {"size": 128},
}


def main() -> None:
    """Train what is missing and print the table."""
    arguments = parse()
    logging.getLogger("lesionfast").setLevel(logging.ERROR)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    base = TrainConfig(data=arguments.data, size=arguments.size, epochs=arguments.epochs, tta=1)
    df = part_of(load_dataset(base), arguments.share)
    for seed in range(1, arguments.seeds + 1):
        for name in arguments.rows or ROWS:
            with suppress(Timeout), FileLock(out / f"{folder(name, seed)}.lock", timeout=0):
                if not (out / folder(name, seed)).exists():
                    train_row(df, replace(base, seed=seed, **ROWS[name]), out, name, seed)
    table(out, arguments.seeds).to_csv(out / f"ablation-{arguments.seeds}.csv", index=False)
    print(table(out, arguments.seeds).to_string(index=False, float_format="%.3f"))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of weights and batch order")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the training lesions to use"
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), help="train only these rows")
    return parser.parse_args()


def part_of(df: pd.DataFrame, share: float) -> pd.DataFrame:
    """Return all validation rows, and a share of the training lesions of each class."""
    rng, train = np.random.default_rng(0), df[df["split"] == "train"]
    kept: list[str] = []
    for _, rows in train.groupby("target"):
        lesions = np.sort(rows["group"].unique())
        kept += list(rng.permutation(lesions)[: max(1, round(share * len(lesions)))])
    wanted = (df["split"] == "valid") | (df["split"] == "train") & df["group"].isin(kept)
    return df[wanted].reset_index(drop=True)


def folder(name: str, seed: int) -> str:
    """Return the name of a run's directory."""
    return f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def train_row(df: pd.DataFrame, config: TrainConfig, out: Path, name: str, seed: int) -> None:
    """Train one row with one seed, in a run directory of its own."""
    from lesionfast.training.experiment import predict_again, train

    if set(ROWS[name]) == {"tta"}:  # the recipe's own weights
        recipe = Run(out / folder(RECIPE, seed))
        run = predict_again(recipe, df, config, out, folder(name, seed))
    else:
        run = train(df, config, out, folder(name, seed))
    print(f"{folder(name, seed)}: {run.metrics['train_seconds']:.0f} s", flush=True)


def table(out: Path, seeds: int) -> pd.DataFrame:
    """Return the validation metrics of each finished row, and its difference to the recipe."""
    ended = {
        name: [
            run for seed in range(1, seeds + 1) if (run := Run(out / folder(name, seed))).finished
        ]
        for name in ROWS
    }
    whole = {name: runs for name, runs in ended.items() if len(runs) == seeds}
    read = [Interpretation.from_run(run, "valid") for runs in whole.values() for run in runs]
    drawn = resample_runs(read, align_images(read), RESAMPLES, seed=0)
    drawn = np.stack([drawn["balanced_accuracy", number] for number in range(len(read))])
    drawn = drawn.reshape(len(whole), seeds, RESAMPLES)
    taken = np.random.default_rng(0).integers(0, seeds, (1, seeds, RESAMPLES))
    means = np.take_along_axis(drawn, taken, axis=1).mean(axis=1)
    rows = []
    for number, (name, runs) in enumerate(whole.items()):
        figures = [run.metrics["valid"] for run in runs]
        balanced = [figure["rules"]["balanced"]["balanced_accuracy"] for figure in figures]
        low, high = interval(means[number] - means[list(whole).index(RECIPE)])
        about = {"row": name, "balanced accuracy": np.mean(balanced), "low": low, "high": high}
        about |= {"macro AUC": np.mean([figure["macro_auc"] for figure in figures])}
        rows.append(about | {"seconds": np.mean([run.metrics["train_seconds"] for run in runs])})
    found = pd.DataFrame(rows)
    first = found.loc[found["row"] == RECIPE, "balanced accuracy"].item()
    found.insert(2, "difference", found["balanced accuracy"] - first)
    return found


if __name__ == "__main__":
    main()
