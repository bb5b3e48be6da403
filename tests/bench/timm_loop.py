"""The loop of timm's own training script, in plain PyTorch; nothing of lesionfast in it."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

LR = 1e-3


class Files(Dataset):
    """Image files and their class numbers."""

    def __init__(self, paths: list[Path], targets: list[int], transform: Callable) -> None:
        self.paths, self.targets, self.transform = paths, targets, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.open(self.paths[index]).convert("RGB")
        return self.transform(picture), self.targets[index]


def build_loader(
    rows: pd.DataFrame, classes: list[str], model: nn.Module, size: int, bs: int, training: bool
) -> DataLoader:
    """Return a loader of the rows' files, a worker a core, with timm's transforms."""
    about = resolve_data_config({"input_size": (3, size, size)}, model=model)
    transform = create_transform(**about, is_training=training, auto_augment=None)
    return DataLoader(
        Files(rows["file"].tolist(), rows["target"].map(classes.index).tolist(), transform),
        batch_size=bs,
        shuffle=training,
        drop_last=training,
        num_workers=os.cpu_count(),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
    )


class Loop:
    """Train all layers with AdamW and a cosine schedule, an epoch of warm-up in it.

    The schedule moves with every update (timm's --sched-on-updates): moved by epochs, the whole
    first of so few would be spent at the rate that the warm-up begins with.
    """

    def __init__(self, model: nn.Module, cast: Callable[[], AbstractContextManager]) -> None:
        self.model, self.cast = model, cast
        self.device = next(model.parameters()).device

    def fit(self, train: DataLoader, valid: DataLoader, epochs: int, weight_decay: float) -> None:
        """Train for so many epochs and print the validation accuracy after each."""
        optimizer = create_optimizer_v2(self.model, opt="adamw", lr=LR, weight_decay=weight_decay)
        scheduler = build_schedule(optimizer, epochs, len(train))
        for epoch in range(epochs):
            started = time.perf_counter()
            self.train_epoch(train, optimizer, scheduler, epoch * len(train))
            self.epoch_seconds = time.perf_counter() - started
            probabilities, truth = self.predict(valid)
            accuracy = (probabilities.argmax(axis=1) == truth).mean()
            print(f"epoch {epoch + 1}: validation accuracy {accuracy:.3f}", file=sys.stderr)

    def train_epoch(
        self,
        train: DataLoader,
        optimizer: torch.optim.Optimizer,
        scheduler: CosineLRScheduler,
        done: int,
    ) -> None:
        """Train for an epoch after so many updates that are done."""
        self.model.train()
        for update, (image, target) in enumerate(train, done + 1):
            loss = nn.functional.cross_entropy(self.logits(image), target.to(self.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step_update(update)

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits of images (B, 3, H, W) as float32 (B, K)."""
        with self.cast():
            return self.model(image.to(self.device, memory_format=torch.channels_last)).float()

    @torch.inference_mode()
    def predict(self, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, K) and truth (n,)."""
        self.model.eval()
        found = [(self.logits(image).double().softmax(1).cpu(), truth) for image, truth in loader]
        probabilities, truth = (torch.cat(each).numpy() for each in zip(*found, strict=True))
        return probabilities, truth


def build_schedule(
    optimizer: torch.optim.Optimizer, epochs: int, updates: int
) -> CosineLRScheduler:
    """Return the schedule over `epochs` of so many updates, the first of them the warm-up."""
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs * updates,
        warmup_t=updates,
        warmup_lr_init=1e-6,
        t_in_epochs=False,
    )
