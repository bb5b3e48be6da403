"""Run directories as a training leaves them, with predictions of a model that errs as models do."""

import json
import shutil
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lesionfast.config import TrainConfig
from lesionfast.evaluation import canvas
from lesionfast.evaluation.metrics import summarize
from lesionfast.runs import Run

SHARES = {
    "akiec": 0.033,
    "bcc": 0.051,
    "bkl": 0.110,
    "df": 0.012,
    "mel": 0.111,
    "nv": 0.669,
    "vasc": 0.014,
}
COLUMNS = (
    "epoch,phase,lr,train_loss,valid_loss,balanced_accuracy,macro_auc,mel_sensitivity,accuracy"
)
HISTORY = f"""{COLUMNS}
1,head,0.002,1.52,1.21,0.52,0.87,0.40,0.61
2,head + last 1 stage,0.0018,1.20,1.02,0.61,0.91,0.52,0.66
3,head + last 2 stages,0.0014,1.05,0.95,0.66,0.92,0.60,0.70
4,all,0.0009,0.97,0.90,0.70,0.94,0.63,0.72
5,all,0.0004,0.92,0.88,0.72,0.94,0.66,0.73
6,all,0.0001,0.90,0.87,0.71,0.94,0.64,0.73
"""


def predict(classes: list[str], n: int, seed: int) -> pd.DataFrame:
    """Return n rows of target, p_<class>, age and sex; every class occurs."""
    rng = np.random.default_rng(seed)
    shares = np.array([SHARES.get(name, 0.1) for name in classes])
    drawn = rng.choice(len(classes), n - len(classes), p=shares / shares.sum())
    truth = np.concatenate([np.arange(len(classes)), drawn])
    logits = rng.normal(size=(n, len(classes))) + np.log(shares)
    logits[np.arange(n), truth] += rng.normal(2.5, 1.5, n)
    odds = np.exp(logits)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    ages = np.where(rng.random(n) < 0.05, np.nan, rng.integers(1, 18, n) * 5.0)
    return pd.DataFrame(
        {
            "target": np.asarray(classes, dtype=object)[truth],
            **{f"p_{name}": probabilities[:, i] for i, name in enumerate(classes)},
            "age": ages,
            "sex": rng.choice(np.array(["male", "female", None], dtype=object), n),
        }
    )


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Run]:
    """A function that writes a finished run and returns it."""

    def make(
        classes: tuple[str, ...] = tuple(SHARES), n: int = 600, rule: str = "balanced", **columns
    ) -> Run:
        path = tmp_path / "runs" / f"20260102-030405-{len(classes)}-{n}-{rule}"
        path.mkdir(parents=True)
        names = list(classes)
        prior = np.array([SHARES.get(name, 0.1) for name in names])
        prior /= prior.sum()
        tables = [
            predict(names, n, seed).assign(split=split)
            for seed, split in enumerate(("valid", "test"))
        ]
        table = pd.concat(tables, ignore_index=True)
        ids = [f"ISIC_{i:07d}" for i in range(len(table))]
        paths = [str(tmp_path / "images" / f"{name}.jpg") for name in ids]
        table.insert(0, "image_id", ids)
        table = table.assign(group=ids, path=paths, **columns)
        summaries = {
            split: summarize(
                rows["target"].map(names.index).to_numpy(),
                rows[[f"p_{name}" for name in names]].to_numpy(),
                names,
                prior,
            )
            for split, rows in table.groupby("split")
        }
        told = {"split_sha256": "0123456789abcdef" * 4, "train_seconds": 90.0}
        told |= {"best_epoch": 5, "status": "finished", "images_per_second": 12.0}
        model = {"arch": "resnet18", "classes": names, "prior": prior.tolist(), "rule": rule}
        (path / "config.json").write_text(TrainConfig(arch="resnet18", rule=rule).to_json())
        (path / "model.json").write_text(json.dumps(model))
        (path / "history.csv").write_text(HISTORY)
        (path / "metrics.json").write_text(json.dumps(told | summaries))
        table.to_csv(path / "predictions.csv", index=False)
        table[["image_id", "group", "split"]].to_csv(path / "split.csv", index=False)
        return Run(path)

    return make


@pytest.fixture
def images(tmp_path) -> Callable[[pd.DataFrame], None]:
    """A function that writes a small JPEG file for each row of a table with `path`."""

    def write(rows: pd.DataFrame) -> None:
        rng = np.random.default_rng(0)
        (tmp_path / "images").mkdir(exist_ok=True)
        for path in rows["path"]:
            small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((40, 30)).save(path)

    return write


@pytest.fixture
def make_worse() -> Callable[[Run, str, float], Run]:
    """A function that copies a run with noise on its logits, other rows first, and a count."""

    def make(run: Run, name: str, noise: float, prior: list[float] | None = None) -> Run:
        path = run.path.with_name(name)
        shutil.copytree(run.path, path, copy_function=shutil.copy)  # newer than the first
        rng = np.random.default_rng(int(noise * 100))
        table = run.predictions.sample(frac=1, random_state=1)
        columns = [f"p_{each}" for each in run.classes]
        odds = np.exp(np.log(table[columns]) + rng.normal(0, noise, (len(table), len(columns))))
        odds *= 1 if prior is None else np.divide(prior, run.model["prior"])
        table[columns] = odds.div(odds.sum(axis=1), axis=0)
        table.to_csv(path / "predictions.csv", index=False)
        model = run.model | {"parameters": 3_400_000, "fusion": "film"}
        model |= {} if prior is None else {"prior": prior}
        (path / "model.json").write_text(json.dumps(model))
        return Run(path)

    return make


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures that are saved while a test runs, by their file's name without suffix."""
    found: dict[str, Figure] = {}
    print_png = canvas.FigureCanvasAgg.print_png

    def remember(self, path, **options):
        found[path.stem] = self.figure
        print_png(self, path, **options)

    monkeypatch.setattr(canvas.FigureCanvasAgg, "print_png", remember)
    return found
