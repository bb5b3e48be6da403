"""What each ingredient of the recipe gives, in plain PyTorch: on a GPU five folds in one graph.

    python tests/bench/sketch.py --data HAM10000 --weights tf_efficientnet_lite0.pt --out sketch

The recipe of lesionfast without fastai: the same backbone, loss, schedule, moving average and kinds
of augmentation. A step of the five models is one CUDA graph, so that a row takes 20 seconds on one
H100 where the trainings themselves take minutes. Every row is scored on the pooled out-of-fold
predictions of all images; "other looks" hold out images whose backgrounds look alike. `recipe.py`
trains the same with lesionfast. On a CPU there is no graph, and a row takes half an hour or more.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from recipe import FOLDS, group_looks, pooled_metrics
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from lesionfast.config import TrainConfig
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import Classes
from lesionfast.files import write_atomically
from lesionfast.stats.bootstrap import interval, resampled

ARCH, SOURCE = "tf_efficientnet_lite0", 150  # pixels of the square that is cut from each picture
VIEWS = {1: (0,), 4: (0, 2, 5, 7)}  # quarter turns; from 4 on mirrored as well
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Options:
    """One row: the recipe, unless it says otherwise. `frozen` counts the stem and the blocks."""

    by: str = "lesion"
    size: int = 112
    frozen: int = 3
    epochs: int = 8
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    ema: float = 0.99
    mixup: float = 0.0
    metadata: str = "age,sex"
    sharpen: float = 0.5
    blur: float = 1.0
    tint: float = 0.05
    seed: int = 0


BEFORE = Options(size=128, frozen=0, epochs=5, sharpen=0.0, blur=0.0, tint=0.0)
ROWS = {
    "the recipe": Options(),
    "another seed": Options(seed=1),
    "twice the learning rate": Options(lr=2e-3),
    "three times the rate": Options(lr=3e-3),
    "twice the rate, 12 epochs": Options(lr=2e-3, epochs=12),
    "twice the rate, batches of 64": Options(lr=2e-3, batch_size=64),
    "twice the rate, mixup 0.2": Options(lr=2e-3, mixup=0.2),
    "one more block frozen": Options(frozen=4),
    "age, sex and site": Options(metadata="age,sex,localization"),
    "no change of sharpness and tint": Options(sharpen=0.0, blur=0.0, tint=0.0),
    "128 pixels": Options(size=128),
    "the default before": BEFORE,
    "other looks": Options(by="look"),
    "other looks, the default before": replace(BEFORE, by="look"),
}


class Net(nn.Module):
    """The backbone, whose first parts are frozen, and a linear layer on it and the metadata."""

    def __init__(self, weights: str, frozen: int, width: int, classes: int) -> None:
        super().__init__()
        self.body = timm.create_model(ARCH, num_classes=0)
        self.body.load_state_dict(torch.load(weights), strict=False)
        first, last = (self.body.conv_stem, self.body.bn1), (self.body.conv_head, self.body.bn2)
        parts = [nn.Sequential(*first), *self.body.blocks, nn.Sequential(*last)]
        self.frozen, self.trained = parts[:frozen], parts[frozen:]
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(self.body.num_features + width, classes)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(False)
        for part in (*self.trained, self.head):
            part.requires_grad_(True)

    def forward(self, x: Tensor, metadata: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, 3, H, W) in 0..1 and metadata (B, M)."""
        x = (x - 0.5) / 0.5
        with torch.no_grad():
            for part in self.frozen:
                x = part(x)
        for part in self.trained:
            x = part(x)
        pooled = self.dropout(x.float().mean((2, 3)))
        return self.head(torch.cat([pooled, metadata], dim=1))

    def set_mode(self, training: bool) -> None:
        """Train or predict; batch norm of frozen parts never learns."""
        self.train(training)
        for part in self.frozen:
            part.eval()


class Member:
    """The model of one fold, the state of its optimiser, and the images of its next step."""

    def __init__(self, options: Options, held_out: np.ndarray, data: "Data", weights: str) -> None:
        self.options, self.data = options, data
        self.valid, self.train = np.flatnonzero(held_out), np.flatnonzero(~held_out)
        encoder = MetadataEncoder(options.metadata.split(",")).fit(data.df.iloc[self.train])
        self.metadata = torch.tensor(encoder.transform(data.df), device=DEVICE)
        k = len(data.classes)
        self.net = Net(weights, options.frozen, self.metadata.shape[1], k)
        self.net.to(DEVICE, memory_format=torch.channels_last).set_mode(True)
        self.prior = np.bincount(data.truth[self.train], minlength=k) / len(self.train)
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        buffers = [b for b in self.net.buffers() if b.is_floating_point()]
        self.kept = [*(p.detach() for p in self.parameters), *buffers]
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.ema = [one.clone() for one in self.kept]
        self.rows = torch.zeros(options.batch_size, dtype=torch.long, device=DEVICE)

    @property
    def state(self) -> list[Tensor]:
        """Everything that a step changes."""
        return [*self.kept, *self.first, *self.second, *self.ema]

    def step(self, images: Tensor, targets: Tensor, now: dict[str, Tensor]) -> None:
        """Train on the images of `rows` with the values of the schedule `now` (AdamW)."""
        x = augment(images[self.rows].float().div_(255), self.options)
        metadata, target = self.metadata[self.rows], targets[self.rows]
        metadata = metadata * (torch.rand(len(x), 1, device=DEVICE) >= 0.25)
        if self.options.mixup:
            x = now["mix"] * x + (1 - now["mix"]) * x.roll(1, 0)
            metadata = now["mix"] * metadata + (1 - now["mix"]) * metadata.roll(1, 0)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, cache_enabled=False):
            logits = self.net(x, metadata)
        loss = F.cross_entropy(logits.float(), target)
        if self.options.mixup:
            other = F.cross_entropy(logits.float(), target.roll(1, 0))
            loss = now["mix"] * loss + (1 - now["mix"]) * other
        gradients = list(torch.autograd.grad(loss, self.parameters))
        with torch.no_grad():
            self.update(gradients, now)

    def update(self, gradients: list[Tensor], now: dict[str, Tensor]) -> None:
        """Take one step of AdamW, and move the averages of the weights."""
        parameters = [p.detach() for p in self.parameters]
        torch._foreach_mul_(self.first, now["momentum"])
        torch._foreach_add_(self.first, torch._foreach_mul(gradients, 1 - now["momentum"]))
        torch._foreach_mul_(self.second, 0.99)
        torch._foreach_addcmul_(self.second, gradients, gradients, 0.01)
        scale = torch._foreach_mul(self.second, now["correction"])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, 1e-5)
        change = torch._foreach_div(self.first, scale)
        torch._foreach_mul_(change, now["rate"])
        torch._foreach_mul_(parameters, now["decay"])
        torch._foreach_sub_(parameters, change)
        torch._foreach_mul_(self.ema, now["ema"])
        torch._foreach_add_(self.ema, torch._foreach_mul(self.kept, 1 - now["ema"]))

    @torch.no_grad()
    def predict(self, images: Tensor, views: int) -> np.ndarray:
        """Return the probabilities (n, K) of the held-out images, the mean of `views`."""
        self.net.set_mode(False)
        found = []
        for rows in torch.tensor(self.valid, device=DEVICE).split(512):
            x, total = images[rows].float().div_(255), torch.zeros((), device=DEVICE)
            for view in VIEWS[views]:
                turned = torch.rot90(x, view % 4, (2, 3))
                turned = turned.flip(3) if view > 3 else turned
                turned = turned.contiguous(memory_format=torch.channels_last)
                with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                    total = total + self.net(turned, self.metadata[rows]).float().softmax(1)
            found.append((total / views).cpu().numpy())
        return np.concatenate(found)


class Data:
    """The table, the pixels on the device, and the folds of each image."""

    def __init__(self, folder: str) -> None:
        self.df = load_dataset(TrainConfig(data=folder))
        self.classes = sorted(self.df["target"].unique())
        self.truth = self.df["target"].map(self.classes.index).to_numpy()
        self.pixels = open_images(self.df["path"].tolist(), SOURCE, resize="crop").pixels
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
        self.folds = {"look": group_looks(self.df, FOLDS), "lesion": np.zeros(len(self.df), int)}
        for fold, (_, held) in enumerate(folds.split(self.df, self.truth, self.df["group"])):
            self.folds["lesion"][held] = fold

    def images(self, size: int) -> Tensor:
        """Return all images, uint8 (n, 3, size, size), on the device."""
        parts = []
        for start in range(0, len(self.pixels), 500):
            part = torch.tensor(self.pixels[start : start + 500], device=DEVICE)
            part = part.permute(0, 3, 1, 2).float()
            part = F.interpolate(part, (size, size), mode="bicubic", antialias=True)
            parts.append(part.round().clamp(0, 255).byte())
        return torch.cat(parts)


def augment(x: Tensor, options: Options) -> Tensor:
    """Return images (B, 3, H, W) turned, zoomed, shifted, and of other sharpness and colour."""
    n, size = len(x), x.shape[-1]

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, device=DEVICE) * 2 - 1

    angle, zoom, shift = draw(n) * math.pi, torch.exp(draw(n) * math.log(1.1)), 0.2 * draw(n, 2)
    flip = (torch.rand(n, device=DEVICE) < 0.5).float() * 2 - 1
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = (cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1])
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    if options.sharpen or options.blur:
        share = torch.rand(n, 1, 1, 1, device=DEVICE) * (options.sharpen + options.blur)
        coarse = F.interpolate(F.avg_pool2d(x, 2), (size, size), mode="bilinear")
        x = x + (share - options.sharpen) * (coarse - x)
    contrast = torch.exp(draw(n) * math.log(1.1)).view(-1, 1, 1, 1)
    if options.tint:
        x = x * torch.exp(draw(n, 3) * options.tint).view(n, 3, 1, 1)
    return ((x - 0.5) * contrast + 0.5 + (0.05 * draw(n)).view(-1, 1, 1, 1)).clamp(0, 1)


def plan(options: Options, steps: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """Return what each step needs: the one-cycle rates and momenta, and the decay of the average.

    Source: Smith and Topin 2018, arXiv:1708.07120, with the constants of fastai's `fit_one_cycle`.
    """
    found, product = [], 1.0
    for number in range(steps):
        part = number / steps
        rising = part < 0.25
        turn = part / 0.25 if rising else (part - 0.25) / 0.75
        ends = (options.lr / 25, options.lr) if rising else (options.lr, options.lr / 1e5)
        lr = anneal(*ends, turn)
        momentum = anneal(*((0.95, 0.85) if rising else (0.85, 0.95)), turn)
        product *= momentum
        lam = rng.beta(options.mixup, options.mixup) if options.mixup else 1.0
        found.append(
            {
                "momentum": momentum,
                "correction": 1 / (1 - 0.99 ** (number + 1)),
                "rate": lr / (1 - product),
                "decay": 1 - lr * options.weight_decay,
                "ema": min(options.ema, (1 + number) / (10 + number)),
                "mix": max(lam, 1 - lam),
            }
        )
    return found


def anneal(start: float, end: float, part: float) -> float:
    """Return the value of half a cosine wave between two values."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def train(options: Options, data: Data, weights: str, limit: int | None) -> dict[int, np.ndarray]:
    """Train the five models side by side; return the pooled probabilities (n, K) by views.

    All take as many steps as the largest of them. `limit` ends the training after so many.
    """
    torch.manual_seed(options.seed)
    rng, size = np.random.default_rng(options.seed), options.batch_size
    images, targets = data.images(options.size), torch.tensor(data.truth, device=DEVICE)
    held_out = data.folds[options.by]
    members = [Member(options, held_out == fold, data, weights) for fold in range(FOLDS)]
    steps = options.epochs * max(len(member.train) // size for member in members)
    order = torch.stack([deal(member.train, steps, size, rng) for member in members]).to(DEVICE)
    schedule = pd.DataFrame(plan(options, steps, rng))
    values = torch.tensor(schedule.to_numpy(np.float32), device=DEVICE)
    current = torch.zeros_like(values[0])
    now = {name: current[number] for number, name in enumerate(schedule)}

    def load(number: int) -> None:
        current.copy_(values[number])
        for member, rows in zip(members, order, strict=True):
            member.rows.copy_(rows[number])

    load(0)
    take = capture(members, images, targets, now)
    for number in range(min(steps, limit or steps)):
        load(number)
        take()
    for member in members:
        torch._foreach_copy_(member.kept, member.ema)
    pooled = {views: np.zeros((len(data.df), len(data.classes))) for views in VIEWS}
    for views, p in pooled.items():
        for member in members:
            p[member.valid] = member.predict(images, views)
    pooled[0] = np.stack([members[fold].prior for fold in held_out])
    return pooled


def deal(rows: np.ndarray, steps: int, size: int, rng: np.random.Generator) -> Tensor:
    """Return the images of each step, (steps, size): one shuffle after the other."""
    each = len(rows) // size
    shuffles = [rng.permutation(rows)[: each * size] for _ in range(-(-steps // each))]
    return torch.tensor(np.concatenate(shuffles)[: steps * size]).view(steps, size)


def capture(
    members: list[Member], images: Tensor, targets: Tensor, now: dict[str, Tensor]
) -> Callable[[], Any]:
    """Return a function that takes a step of every model: on a GPU one graph, a stream for each."""

    def step_all() -> None:
        for member in members:
            member.step(images, targets, now)

    if DEVICE.type != "cuda":
        return step_all
    streams = [torch.cuda.Stream() for _ in members]
    before = [[one.clone() for one in member.state] for member in members]

    def step_beside() -> None:
        main = torch.cuda.current_stream()
        for stream, member in zip(streams, members, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                member.step(images, targets, now)
        for stream in streams:
            main.wait_stream(stream)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            step_beside()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step_beside()
    for member, state in zip(members, before, strict=True):
        torch._foreach_copy_(member.state, state)
    return graph.replay


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of HAM10000 as downloaded")
    parser.add_argument("--weights", required=True, help=f"state dict of timm's {ARCH}")
    parser.add_argument("--out", required=True, help="folder of the predictions")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--views", type=int, default=4, choices=list(VIEWS))
    parser.add_argument("--epochs", type=int, help="for all rows, in place of their own")
    parser.add_argument("--limit", type=int, help="steps, for a trial of the script")
    arguments = parser.parse_args()
    out, data = Path(arguments.out), Data(arguments.data)
    out.mkdir(parents=True, exist_ok=True)
    part = "".join(f"-{n}" for n in (arguments.epochs, arguments.limit) if n)  # of a whole row
    for name in arguments.rows:
        file = out / f"{name.replace(' ', '-')}{part}.npz"
        if not file.exists():
            options = ROWS[name]
            options = replace(options, epochs=arguments.epochs) if arguments.epochs else options
            started = time.perf_counter()
            pooled = train(options, data, arguments.weights, arguments.limit)
            kept = {f"p{views}": p for views, p in pooled.items()}
            write_atomically(file, lambda aside, kept=kept: save(aside, kept))
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    found = table(out, arguments.rows, part, arguments.views, data)
    found.to_csv(out / f"views{arguments.views}.csv", index=False)
    print(found.to_string(index=False))


def save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a file of any name."""
    with file.open("wb") as stream:
        np.savez(stream, **arrays)


def table(out: Path, names: list[str], part: str, views: int, data: Data) -> pd.DataFrame:
    """Return the pooled metrics of each row, and its paired differences to the first."""
    rows: list[dict[str, str]] = []
    first: Any = None
    for name in names:
        kept = np.load(out / f"{name.replace(' ', '-')}{part}.npz")
        p, prior = kept[f"p{views}"].astype(float), kept["p0"]
        p = p / p.sum(axis=1, keepdims=True)
        find = pooled_metrics(data.truth, p, (p / prior).argmax(axis=1), Classes(data.classes))
        values, resamples = resampled(find, data.truth, data.df["group"].to_numpy())
        first = first or (values, resamples)
        row = {"row": name}
        for metric, value in values.items():
            low, high = interval(resamples[metric] - first[1][metric])
            change = f" {value - first[0][metric]:+.3f} [{low:+.3f}, {high:+.3f}]"
            row[metric] = f"{value:.3f}" + (change if name != names[0] else "")
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
