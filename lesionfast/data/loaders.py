"""DataBlock -> DataLoaders: (image, metadata) -> class, a whole batch with one index."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import CategoryMap, IntToFloatTensor
from fastai.torch_core import TensorBase, TensorCategory, show_image
from fastai.vision.core import TensorImage
from fastai.vision.data import get_grid
from fastcore.basics import chunked
from fasttransform import DisplayedTransform

from lesionfast.config import TrainConfig
from lesionfast.data.augment import BatchAugment, augmentations
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import open_dataset_images
from lesionfast.data.split import PARTS
from lesionfast.errors import LesionfastError

Sampler = Callable[[Random], list[int]]
Batch = tuple[TensorBase, ...]


class TensorMetadata(TensorBase):
    """Encoded metadata: float32 (B, width)."""


class ReadRows(DisplayedTransform):
    """Read what an array holds for the number or numbers "row" of a row or rows of the metadata."""

    def __init__(self, array: np.ndarray, tensor_type: type[TensorBase]) -> None:
        super().__init__()
        self.array, self.tensor_type = array, tensor_type

    def encodes(self, rows: Any) -> TensorBase:
        """Return the array at the rows' positions as a tensor; images become (…, 3, H, W)."""
        values = torch.as_tensor(np.take(self.array, rows["row"], axis=0))
        if self.tensor_type is TensorImage:
            values = values.movedim(-1, -3)  # a view: the batch is channels-last in memory
        return self.tensor_type(values)


class ReadTarget(ReadRows):
    """Read the class number of rows; carries the vocabulary that fastai asks for."""

    def __init__(self, codes: np.ndarray, classes: list[str]) -> None:
        super().__init__(codes, TensorCategory)
        self.vocab, self.c = CategoryMap(classes, sort=False), len(classes)


class BatchLoader(TfmdDL):
    """A fastai DataLoader that reads a whole batch with one index, and can be reseeded.

    `sampler`, where there is one, draws the positions of an epoch (class balancing); copies
    made by `new`, such as fastai's for predictions, read every row once.
    """

    sampler: Sampler | None = None
    parents: list[int] | None = None  # the classes of targets that are sub-classes
    encoder: MetadataEncoder  # of the rows; not on copies made by `new`

    def create_batches(self, samples: Iterable[int]) -> Iterator[Batch]:
        """Yield (image, metadata, target) batches before the batch transforms.

        For a GPU a thread reads and copies the next batch while the GPU works on this one.
        """
        batches = self.read_batches(samples)
        if self.device is None or self.device.type != "cuda" or self.fake_l.num_workers:
            return batches
        return read_ahead(copy_batch(batch, self.device) for batch in batches)

    def read_batches(self, samples: Iterable[int]) -> Iterator[Batch]:
        """Yield the batches one after the other."""
        numbers = self.dataset.items["row"].to_numpy()
        for positions in chunked(samples, self.bs, self.drop_last):
            rows = {"row": numbers[positions]}
            yield tuple(read.tfms(rows) for read in self.dataset.tls)

    def get_idxs(self) -> list[int]:
        """Return the positions of one epoch in order."""
        return super().get_idxs() if self.sampler is None else self.sampler(self.rng)

    def set_sampler(self, sampler: Sampler | None) -> None:
        """Draw the positions of each epoch with `sampler(rng)`, a list; None: every row once."""
        self.sampler = sampler
        self.n = len(self.dataset) if sampler is None else len(sampler(Random(0)))
        self.bs = min(self.bs, self.n)

    def reseed(self, seed: int) -> None:
        """Make the next epoch's order and augmentation those that belong to `seed`."""
        self.rng = Random(seed)
        for transform in self.after_batch.fs:
            if isinstance(transform, BatchAugment):
                transform.reseed(seed)

    def show_batch(self, b: Any = None, max_n: int = 9, show: bool = True, **kwargs: Any) -> Any:
        """Draw up to `max_n` pictures of a batch with class, age and sex of each in words."""
        if not show:
            return super().show_batch(b, max_n=max_n, show=False)
        images, metadata, targets = self.decode(self.one_batch() if b is None else b)
        targets = targets if self.parents is None else np.take(self.parents, targets)
        captions = [
            f"{self.vocab[target]}\n{self.encoder.in_words(vector)}"
            for target, vector in zip(targets[:max_n].tolist(), metadata.numpy(), strict=False)
        ]
        draw_pictures(images[:max_n], captions)
        return None

    def show_results(
        self, b: Any, out: Any, max_n: int = 9, show: bool = True, **kwargs: Any
    ) -> Any:
        """Draw up to `max_n` pictures of a batch with truth and decision."""
        images, _, targets = self.decode(b)
        pairs = zip(targets[:max_n].tolist(), out[:max_n].tolist(), strict=True)
        draw_pictures(images[:max_n], [f"{self.vocab[t]}\n→ {self.vocab[d]}" for t, d in pairs])


def copy_batch(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a GPU; the copy from pinned memory does not wait for the GPU's work."""
    return tuple(x.pin_memory().to(device, non_blocking=True) for x in batch)


def read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches, while a thread makes the next one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def draw_pictures(images: torch.Tensor, captions: list[str]) -> None:
    """Draw images (B, 3, H, W) in a grid with their captions."""
    for axis, image, caption in zip(get_grid(len(captions)), images, captions, strict=False):
        show_image(image, ctx=axis, title=caption)


def lesion_block(
    pixels: np.ndarray, encoder: MetadataEncoder, df: pd.DataFrame, config: TrainConfig
) -> DataBlock:
    """Return the DataBlock (image, metadata) -> class over the rows of `df`.

    `pixels` is uint8 (n, H, W, 3), aligned with the column "row" of `df`.
    """
    classes = sorted(df["target"].unique())
    codes = pd.Categorical(df["target"], categories=classes).codes.astype(np.int64)
    return DataBlock(
        blocks=(
            TransformBlock(
                type_tfms=[ReadRows(pixels, TensorImage)], batch_tfms=[IntToFloatTensor()]
            ),
            TransformBlock(type_tfms=[ReadRows(encoder.transform(df), TensorMetadata)]),
            TransformBlock(type_tfms=[ReadTarget(codes, classes)]),
        ),
        n_inp=2,
        dl_type=BatchLoader,
        splitter=split_positions,
        batch_tfms=[BatchAugment(augmentations[config.augment](), config.seed)],
    )


def split_positions(df: pd.DataFrame) -> list[list[int]]:
    """Return the positions of the train, valid and test rows."""
    return [np.flatnonzero(df["split"] == name).tolist() for name in PARTS]


def build_dls(
    df: pd.DataFrame,
    config: TrainConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    encoder: MetadataEncoder | None = None,
) -> DataLoaders:
    """Return fastai DataLoaders (train, valid, test) over a split table.

    A batch is (image float32 (B, 3, H, W) in 0..1, metadata float32 (B, width), class number
    (B,)). The metadata encoder is fitted on the training rows unless it is given. Kept are
    `dls.encoder`, `dls.rows`, `dls.split` (all rows, with skipped bad images), `dls.pixels` (the
    decoded images, uint8 (n, H, W, 3), at the positions of the column "row") and `dls.bad` (why
    images were skipped, by image id). Raises `LesionfastError` if the split or an image is missing
    or bad.
    """
    config = config or TrainConfig()
    check_split(df)
    images = open_dataset_images(df, config, progress)
    df = df.assign(row=np.arange(len(df)))
    rows = df[~df["row"].isin(images.bad)].reset_index(drop=True)
    device = pick_device(config.device)
    if encoder is None:
        encoder = MetadataEncoder(config.metadata_columns).fit(rows[rows["split"] == "train"])
    dls = lesion_block(images.pixels, encoder, df, config).dataloaders(
        rows,
        bs=min(config.batch_size, int((rows["split"] == "train").sum())),
        val_bs=images_at_once(device),
        num_workers=config.workers,
        device=device,
    )
    dls.encoder, dls.rows, dls.split, dls.pixels = encoder, rows, df, images.pixels
    dls.bad = {df["image_id"].iloc[row]: reason for row, reason in images.bad.items()}
    for loader in dls:
        loader.encoder = encoder
    return dls


def pick_device(name: str) -> torch.device:
    """Return the device of that name; 'auto' is CUDA, else Apple MPS, else the CPU.

    Raises `LesionfastError` for a device that this machine does not have.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind, there in present.items() if there), "cpu")
    if not present.get(name, True):
        raise LesionfastError(
            f"PyTorch finds no {name} device. Type --device auto or --device cpu."
        )
    return torch.device(name)


def images_at_once(device: torch.device) -> int:
    """Return how many images to run at once where nothing is learned from them.

    On a CPU few enough for the activations of a thread to stay in its cache: up to a third faster.
    """
    return 8 * torch.get_num_threads() if device.type == "cpu" else 128


def check_split(df: pd.DataFrame) -> None:
    """Raise `LesionfastError` unless `df` has training and validation rows."""
    if "split" not in df:
        raise LesionfastError("the table has no column 'split'. Call assign_split(df) first.")
    for name in PARTS[:2]:
        if not (df["split"] == name).any():
            raise LesionfastError(
                f"the table has no row in '{name}'. Split it again with assign_split(df)."
            )
