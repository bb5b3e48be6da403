"""What a frozen encoder adds to a run of five folds: heads on its features, blended with the run.

    lesionfast train --data HAM10000 --folds 5 --all --name five
    python tests/bench/two_towers.py runs/five --data HAM10000 \
        --weights vit_small_patch14_dinov2.safetensors --size 154

Every image is predicted by heads that have not seen its fold: balanced logistic regression on the
class token and the mean patch of DINOv2's ViT-S/14, after the classes' shares are put back. The
weight of the blend of logarithms is fitted on the predictions of the other folds. Test images are
left out. The features are kept in the current folder. Prints the pooled metrics of the run, the
heads and the blend, with differences to the run that are paired by lesion.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from recipe import pooled_metrics
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import checkpoint_filter_fn

from lesionfast.config import TrainConfig
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import Classes
from lesionfast.stats.bootstrap import interval, resampled

ARCH = "vit_small_patch14_dinov2"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.no_grad()
def encode(paths: list[str], weights: str, size: int) -> np.ndarray:
    """Return class token and mean patch (n, 768) of the centre squares, in bfloat16."""
    net = timm.create_model(ARCH, img_size=size, num_classes=0).eval()
    net.load_state_dict(checkpoint_filter_fn(load_file(weights), net))
    pixels = open_images(paths, size, resize="crop").pixels
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (MEAN, STD))
    found, started = [], time.perf_counter()
    for start in range(0, len(pixels), 64):
        x = torch.tensor(np.asarray(pixels[start : start + 64])).permute(0, 3, 1, 2) / 255
        with torch.autocast("cpu", torch.bfloat16):
            tokens = net.forward_features((x - mean) / std).float()
        found.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).numpy())
        if start % 1024 == 0:
            print(f"{start} of {len(pixels)}: {time.perf_counter() - started:.0f} s", flush=True)
    return np.concatenate(found)


def head(x: np.ndarray, y: np.ndarray, new: np.ndarray, strength: float) -> np.ndarray:
    """Return the probabilities (n, K) of new features by a balanced logistic regression of x, y."""
    scale = StandardScaler().fit(x)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
    p = model.fit(scale.transform(x), y).predict_proba(scale.transform(new))
    p *= np.bincount(y, minlength=p.shape[1])
    return p / p.sum(axis=1, keepdims=True)


def blend(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Return the normalised geometric mean of probabilities, `weight` that of b."""
    logits = (1 - weight) * np.log(a.clip(1e-9)) + weight * np.log(b.clip(1e-9))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def fit_weight(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> float:
    """Return the weight of b with the least log loss."""
    return float(minimize_scalar(lambda w: log_loss(blend(a, b, w), y), bounds=(0, 1)).x)


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(p[np.arange(len(y)), y].clip(1e-9)).mean())


def main() -> None:
    """Encode, fit, blend, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run of --folds 5 --all")
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--weights", required=True, help=f"safetensors of timm's {ARCH}")
    parser.add_argument("--size", type=int, default=154, help="pixels, a multiple of 14")
    parser.add_argument("--strengths", nargs="+", type=float, default=[1e-2], help="C of the heads")
    given = parser.parse_args()
    run = pd.read_csv(given.run / "predictions.csv").set_index("image_id")
    run = run[run["split"] != "test"]
    columns = [name for name in run if name.startswith("p_")]
    classes = Classes([name.removeprefix("p_") for name in columns])
    df = load_dataset(TrainConfig(data=given.data)).set_index("image_id").loc[run.index]
    fold = pd.Series(-1, index=run.index)
    for number in range(5):
        split = pd.read_csv(given.run / f"fold-{number}" / "split.csv").set_index("image_id")
        fold[split.index[split["split"] == "valid"].intersection(run.index)] = number
    assert (fold >= 0).all()
    y = run["target"].map(list(classes).index).to_numpy()
    cnn, fold = run[columns].to_numpy(), fold.to_numpy()
    kept = Path(f"{ARCH}-{given.size}.npy")
    if not kept.exists():
        np.save(kept, encode(df["path"].tolist(), given.weights, given.size))
    x = np.load(kept)
    found = {"the run": cnn}
    for strength in given.strengths:
        heads, both, weights = np.zeros_like(cnn), np.zeros_like(cnn), []
        for held in (fold == number for number in range(5)):
            heads[held] = head(x[~held], y[~held], x[held], strength)
        for held in (fold == number for number in range(5)):
            weights.append(fit_weight(cnn[~held], heads[~held], y[~held]))
            both[held] = blend(cnn[held], heads[held], weights[-1])
        print(f"strength {strength:g}: weights of the heads", np.round(weights, 2), flush=True)
        found |= {f"heads {strength:g}": heads, f"blend {strength:g}": both}
    print(table(found, y, run["group"], classes))


def table(found: dict[str, np.ndarray], y: np.ndarray, groups: pd.Series, classes: Classes) -> str:
    """Return the metrics of each, and the paired differences to the first."""
    prior = np.bincount(y) / len(y)
    rows, first = [], None
    for name, p in found.items():
        find = pooled_metrics(y, p, (p / prior).argmax(axis=1), classes)
        values, resamples = resampled(find, y, groups.to_numpy())
        row = {"": name} | {metric: f"{value:.3f}" for metric, value in values.items()}
        if first is not None:
            for metric, value in values.items():
                low, high = interval(resamples[metric] - first[1][metric])
                row[metric] += f" {value - first[0][metric]:+.3f} [{low:+.3f}, {high:+.3f}]"
        first = first or (values, resamples)
        rows.append(row)
    return pd.DataFrame(rows).to_string(index=False)


if __name__ == "__main__":
    main()
