"""A plain PyTorch and timm loop against lesionfast: same backbone, weights, split, size, epochs.

    python tests/bench/vs_timm.py --data HAM10000 --epochs 5

The plain loop is that of timm's own training script: timm's transforms without RandAugment, a
DataLoader over image files with a worker for each core, channels-last, bfloat16 where the hardware
is fast at it, AdamW, a cosine schedule with a warm-up epoch; all layers learn from the start. Each
system runs in a process of its own, in turns.
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from side_by_side import compare, configuration, figures, pretrained


def run_timm(arguments: argparse.Namespace) -> dict:
    """Train as timm's train.py does on the same rows."""
    import timm
    import torch
    from timm.data import create_transform, resolve_data_config
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from torch.utils.data import DataLoader

    from lesionfast.data.dataset import load_dataset
    from lesionfast.data.loaders import pick_device
    from lesionfast.training.precision import precision

    config = configuration(arguments)
    df = load_dataset(config)
    classes, device = sorted(df["target"].unique()), pick_device("auto")
    weights = pretrained(config, Path(arguments.folder))
    images = Path(arguments.folder) / "images"
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    model = timm.create_model(
        config.arch,
        pretrained=True,
        pretrained_cfg_overlay={"file": weights},
        num_classes=len(classes),
    ).to(device, memory_format=torch.channels_last)
    about = resolve_data_config({"input_size": (3, config.size, config.size)}, model=model)

    def loader(name: str) -> DataLoader:
        training = name == "train"
        return DataLoader(
            Files(
                df[df["split"] == name],
                images,
                classes,
                create_transform(**about, is_training=training, auto_augment=None),
            ),
            batch_size=config.batch_size,
            shuffle=training,
            drop_last=training,
            num_workers=os.cpu_count(),
            persistent_workers=training,
        )

    bfloat16 = precision("auto", device) == "bfloat16"
    cast = (lambda: torch.autocast(device.type, torch.bfloat16)) if bfloat16 else nullcontext
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=config.weight_decay)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=arguments.epochs, warmup_t=1, warmup_lr_init=1e-6
    )
    train = loader("train")
    prepared = time.perf_counter()
    for epoch in range(arguments.epochs):
        model.train()
        for image, target in train:
            with cast():
                logits = model(image.to(device, memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits.float(), target.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step(epoch + 1)
        probabilities, truth = predict(model, loader("valid"), device, cast)
        decided = probabilities.argmax(axis=1) == truth
        print(f"epoch {epoch + 1}: loss {loss:.3f}, accuracy {decided.mean():.3f}", file=sys.stderr)
    seconds = {"prepare": prepared - started, "fit": time.perf_counter() - prepared}
    parts = [predict(model, loader(name), device, cast) for name in ("valid", "test")]
    counts = df[df["split"] == "train"]["target"].value_counts()[classes].to_numpy()
    trained = len(train.dataset) * arguments.epochs
    return figures(*parts, classes, counts / counts.sum(), seconds, trained)


def predict(model, loader, device, cast):
    """Return probabilities (n, K) and truth (n,) as NumPy arrays."""
    import torch

    found, targets = [], []
    model.eval()
    with torch.inference_mode():
        for image, target in loader:
            with cast():
                logits = model(image.to(device, memory_format=torch.channels_last))
            found.append(logits.double().softmax(dim=1).cpu())
            targets.append(target)
    return torch.cat(found).numpy(), torch.cat(targets).numpy()


class Files:
    """A dataset of image files and class numbers, as torch's DataLoader wants it."""

    def __init__(self, rows, images: Path, classes: list[str], transform) -> None:
        self.paths = [images / Path(path).name for path in rows["path"]]
        self.targets = rows["target"].map(classes.index).tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        from PIL import Image

        picture = Image.open(self.paths[index]).convert("RGB")
        return self.transform(picture), self.targets[index]


if __name__ == "__main__":
    compare(__file__, "timm", run_timm, __doc__.splitlines()[0])
