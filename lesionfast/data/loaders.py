"""DataBlock -> DataLoaders: (image, metadata) -> class, a whole batch with one index."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import Category, CategoryMap, IntToFloatTensor, Normalize, ToTensor
from fastai.imports import dispatch
from fastai.torch_core import TensorBase, TensorCategory, show_image
from fastai.vision.core import PILImage, TensorImage
from fastai.vision.data import get_grid
from fastcore.basics import chunked
from fasttransform import DisplayedTransform, Pipeline
from PIL import Image

from lesionfast.config import SplitConfig, TrainConfig
from lesionfast.console import printable
from lesionfast.data.augment import BatchAugment, Share, build_recipe
from lesionfast.data.corrections.applying import correct_late
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import Pixels, describe_bad, fill, open_dataset_images
from lesionfast.data.sources import FileReader
from lesionfast.data.split import PARTS, configure, load_data, load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.run import Run

Sampler = Callable[[Random], list[int]]
Batch = tuple[TensorBase, ...]
Progress = Callable[[int, int], None]


class TensorMetadata(TensorBase):
    """Encoded metadata: float32 (B, width)."""

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Mix rows with weights that have the dimensions of an image, as fastai's MixUp does."""
        kwargs = dict(kwargs or {})
        if func is torch.lerp and isinstance(kwargs.get("weight"), torch.Tensor):
            kwargs["weight"] = kwargs["weight"].reshape(-1, 1)
        return super().__torch_function__(func, types, args, kwargs)


class LesionImages(TensorImage):
    """Images that come with metadata, as fastai's interpretation shows them."""


class ReadRows(DisplayedTransform):
    """Read what an array holds for the number or numbers "row" of a row or rows of the metadata."""

    def __init__(self, array: Pixels, tensor_type: type[TensorBase]) -> None:
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

    def decodes(self, code: TensorCategory) -> Category:
        """Return the name of a class number."""
        return Category(self.vocab[int(code)])


class BatchLoader(TfmdDL):
    """A fastai DataLoader that reads a whole batch with one index, and can be reseeded.

    `sampler`, where there is one, draws the positions of an epoch (class balancing); copies
    made by `new`, such as fastai's for predictions, read every row once.
    """

    sampler: Sampler | None = None
    share = Share()  # of several processes; not on copies made by `new`
    classes: list[str] | None = None  # of rows without labels
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
            rows = {"row": numbers[positions[self.share.of_batch(len(positions))]]}
            image, *others = (read.tfms(rows) for read in self.dataset.tls)
            yield (self.change_items(image), *others)

    def change_items(self, image: TensorImage) -> TensorImage:
        """Return images uint8 (B, 3, H, W) after the item transforms, if there are any."""
        if all(isinstance(tfm, ToTensor) for tfm in self.after_item.fs):
            return image
        pictures = (PILImage.create(one) for one in image.movedim(1, -1).numpy())
        return TensorImage(torch.stack([self.after_item(picture) for picture in pictures]))

    def empty(self) -> "BatchLoader":
        """Return a loader of the same transforms without data."""
        kinds = ((TensorImage, np.uint8), (TensorMetadata, np.float32))
        tfms: list[Any] = [[ReadRows(np.zeros((0, 1), kind), of)] for of, kind in kinds]
        tfms.append([ReadTarget(np.zeros(0, np.int64), list(self.vocab))])
        return self.new(Datasets(self.dataset.items.iloc[:0], tfms=tfms, n_inp=2, do_setup=False))

    @property
    def names(self) -> list[str]:
        """The names of the classes, also without labels."""
        return list(self.vocab if self.classes is None else self.classes)

    def get_idxs(self) -> list[int]:
        """Return the positions of one epoch in order."""
        positions = super().get_idxs() if self.sampler is None else self.sampler(self.rng)
        return positions[self.share.of_epoch(len(positions))]

    def take(self, share: Share) -> None:
        """Read what one of several processes has to read."""
        self.share = share
        for transform in self.after_batch.fs:
            if isinstance(transform, BatchAugment):
                transform.take(share, self.bs)

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
        images, metadata, *labels = self.decode(self.one_batch() if b is None else b)
        captions = [self.encoder.in_words(vector) for vector in metadata.numpy()[:max_n]]
        if labels:
            targets = labels[0] if self.parents is None else np.take(self.parents, labels[0])
            names = [self.names[target] for target in targets.tolist()]
            captions = [f"{name}\n{words}" for name, words in zip(names, captions, strict=False)]
        draw_pictures(images[:max_n], captions)
        return None

    def _pre_show_batch(self, b: Any, max_n: int = 9) -> tuple[Any, Any, Any]:
        """Return images, targets and samples; the type of the images chooses `plot_top_losses`."""
        register_top_losses()
        images, targets, samples = super()._pre_show_batch(b, max_n=len(b[0]))
        return LesionImages(images[0]), targets, samples

    def show_results(
        self, b: Any, out: Any, max_n: int = 9, show: bool = True, **kwargs: Any
    ) -> Any:
        """Draw up to `max_n` pictures of a batch with truth, if it is known, and decision."""
        images, _, *labels = self.decode(b)
        decisions = out[0] if isinstance(out, tuple) else out
        captions = [f"→ {self.names[code]}" for code in decisions.tolist()]
        if labels:
            names = [self.names[code] for code in labels[0].tolist()]
            captions = [f"{name}\n{words}" for name, words in zip(names, captions, strict=False)]
        draw_pictures(images[:max_n], captions[:max_n])


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


def plot_top_losses(
    x: LesionImages,
    y: TensorCategory,
    samples: Any,
    outs: Any,
    raws: Any,
    losses: Any,
    nrows: int | None = None,
    ncols: int | None = None,
    figsize: Any = None,
    **kwargs: Any,
) -> None:
    """Draw the images of the largest losses, for fastai's `Interpretation.plot_top_losses`."""
    title = "Decision / truth / loss / highest probability"
    axes = get_grid(len(samples), nrows=nrows, ncols=ncols, figsize=figsize, title=title)
    for axis, sample, out, raw, loss in zip(axes, samples, outs, raws, losses, strict=False):
        decision, truth = out[0], sample[-1]
        words = f"{decision} / {truth} / {float(loss):.2f} / {float(raw.max()):.2f}"
        show_image(sample[0], ctx=axis, title=words, **kwargs)


@cache
def register_top_losses() -> None:
    """Make fastai draw with `plot_top_losses`; registered before fastai's own it would lose."""
    import fastai.interpret  # noqa: F401

    dispatch(plot_top_losses)


def draw_pictures(images: torch.Tensor, captions: list[str]) -> None:
    """Draw images (B, 3, H, W) in a grid with their captions."""
    for axis, image, caption in zip(get_grid(len(captions)), images, captions, strict=False):
        show_image(image, ctx=axis, title=printable(caption))
        axis.title.set_parse_math(False)  # a name may have a dollar in it


class LesionDataLoaders(DataLoaders):
    """fastai DataLoaders (train, valid, test) of (image, metadata) -> class.

    A batch is (image float32 (B, 3, H, W) in 0..1, metadata float32 (B, width), class number (B,)).
    Make them with `from_df`, `from_csv`, `from_folder` or `from_run`, which raise `LesionfastError`
    for bad data and unknown options. They keep `config` (the options),
    `encoder` (of the metadata), `rows` (of the images that can be read), `split` (all rows),
    `pixels` (the decoded images, uint8 (n, H, W, 3), at the positions of the column "row"; where
    they have no room, `SourcePixels`, which decodes what is read) and `bad` (why images were
    skipped, by image id).

    >>> dls = lf.LesionDataLoaders.from_df(df, size=64, bs=16)
    >>> image, metadata, target = dls.one_batch()
    >>> image.shape
    torch.Size([16, 3, 64, 64])
    """

    config: TrainConfig
    encoder: MetadataEncoder
    rows: pd.DataFrame
    split: pd.DataFrame
    pixels: Pixels
    bad: dict[str, str]

    @classmethod
    def from_df(
        cls,
        df: pd.DataFrame,
        config: TrainConfig | None = None,
        *,
        size: int | None = None,
        bs: int | None = None,
        item_tfms: Any = None,
        batch_tfms: Any = None,
        encoder: MetadataEncoder | None = None,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> "LesionDataLoaders":
        """Return the DataLoaders of a table from `load_data`.

        `size` is the side of the square images in pixels, `bs` the images per batch; `options` are
        those of `lesionfast train`, such as `metadata`. `batch_tfms` replace the augmentation
        recipe; `item_tfms` see one PIL image of that size at a time, and are slow. The metadata
        encoder is fitted on the training rows and the `classes` are those of the table, unless they
        are given; `progress(done, total)` is called while images are decoded. Raises
        `LesionfastError` if the split or an image is missing or bad.
        """
        named = {"size": size, "batch_size": bs}
        options |= {name: value for name, value in named.items() if value is not None}
        config = configure(df, config, **options)
        df = correct_late(df, config)
        images = open_dataset_images(df, config, progress)
        df = df.assign(row=np.arange(len(df)))
        rows = df[~df["row"].isin(images.bad)].reset_index(drop=True)
        if encoder is None:
            encoder = MetadataEncoder(config.metadata_columns).fit(rows[rows["split"] == "train"])
        tfms = item_tfms, read_batch_tfms(batch_tfms, config)
        classes = sorted(df["target"].unique()) if classes is None else list(classes)
        block = lesion_block(images.pixels, encoder, df, classes, *tfms)
        dls = cls.from_block(block, rows, config)
        dls.config, dls.encoder, dls.rows, dls.split = config, encoder, rows, df
        dls.pixels = images.pixels
        dls.bad = {df["image_id"].iloc[row]: reason for row, reason in images.bad.items()}
        for loader in dls:
            loader.encoder = encoder
        return dls

    @classmethod
    def from_block(
        cls, block: DataBlock, rows: pd.DataFrame, config: TrainConfig
    ) -> "LesionDataLoaders":
        """Return the loaders of a block over rows, for the device of the options."""
        device = pick_device(config.device)
        loaders = block.dataloaders(
            rows,
            bs=min(config.batch_size, int((rows["split"] == "train").sum())),
            val_bs=images_at_once(device),
            num_workers=config.workers,
            device=device,
        ).loaders
        return cls(*loaders, device=device)

    @classmethod
    def from_run(
        cls, run: Run, df: pd.DataFrame | None = None, config: TrainConfig | None = None
    ) -> "LesionDataLoaders":
        """Return the DataLoaders of a run: its data, split, options and metadata encoder.

        `df` and `config` replace the run's own. Raises `LesionfastError` if the data is missing.

        >>> lf.LesionDataLoaders.from_run(run).n_inp
        2
        """
        config = replace(config or run.config, weights="none")
        if df is None:
            df = load_dataset(config, split=run.file("split.csv"))
        given = {"encoder": MetadataEncoder.from_run(run), "classes": run.classes}
        return cls.from_df(df, config, **given)

    @classmethod
    def from_csv(cls, csv: str | Path, images: str | Path, **kwargs: Any) -> "LesionDataLoaders":
        """Return the DataLoaders of a metadata CSV file and the folder or file of its images.

        The keywords are those of `load_data` and `from_df`.

        >>> lf.LesionDataLoaders.from_csv(csv, folder, size=32).vocab  # doctest: +ELLIPSIS
        ['akiec', 'bcc', ...]
        """
        return cls._load(str(csv), {"images": images, **kwargs})

    @classmethod
    def from_folder(cls, path: str | Path, **kwargs: Any) -> "LesionDataLoaders":
        """Return the DataLoaders of a dataset folder as downloaded.

        The keywords are those of `load_data` and `from_df`.
        """
        return cls._load(path, kwargs)

    @classmethod
    def _load(cls, data: str | Path, kwargs: dict[str, Any]) -> "LesionDataLoaders":
        names = [setting.name for setting in fields(SplitConfig)]
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        return cls.from_df(load_data(data, **given), **kwargs)

    def test_dl(
        self, test_items: Any, rm_type_tfms: Any = None, with_labels: bool = False, **kwargs: Any
    ) -> BatchLoader:
        """Return a loader of other images, as fastai's `test_dl`.

        `test_items` is a table with the columns `path` and the model's metadata, such as age in
        years, or a list of paths, PIL images, uint8 arrays (H, W, 3), or rows of a table (dicts or
        Series). What is missing of the metadata counts as unknown. `with_labels` takes the column
        `target`. Raises `LesionfastError` for images that can't be read.
        """
        rows = as_table(test_items)
        known = self.has(rows)
        pixels = self.pixels[rows["row"].to_numpy()] if known else self.decode_images(rows)
        encoded = self.encoder.transform(self.encoder.read(rows))
        rows = rows.assign(row=np.arange(len(rows)))
        tfms: list[Any] = [[ReadRows(pixels, TensorImage)], [ReadRows(encoded, TensorMetadata)]]
        if with_labels:
            codes = encode_targets(rows, list(self.vocab))
            tfms.append([ReadTarget(codes, list(self.vocab))])
        loader = self.valid.new(Datasets(rows, tfms=tfms, n_inp=2), **kwargs)
        loader.encoder, loader.classes = self.encoder, list(self.vocab)
        return loader

    def has(self, rows: pd.DataFrame) -> bool:
        """Return whether all rows have images of these DataLoaders, which are decoded."""
        if not {"row", "image_id", "path"} <= set(rows) or not len(self.split):
            return False
        if not rows["row"].between(0, len(self.split) - 1).all():
            return False
        keys = ["image_id", "path"]
        own = self.split[keys].iloc[rows["row"].to_numpy(int)].to_numpy()
        return bool(
            (own == rows[keys].to_numpy()).all() and not rows["image_id"].isin(self.bad).any()
        )

    def decode_images(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the images of a table, uint8 (n, size, size, 3)."""
        size, resize = self.config.size, self.config.resize
        pixels = np.zeros((len(rows), size, size, 3), np.uint8)
        with FileReader() as reader:
            bad = {
                i: why
                for i, source in enumerate(rows["path"])
                if (why := fill(pixels[i], source, resize, reader))
            }
        if bad:
            problem = describe_bad(rows["path"].tolist(), bad)
            raise LesionfastError(f"{problem}. Replace them, or leave them out.")
        return pixels

    def copy(self) -> "LesionDataLoaders":
        """Return the same DataLoaders with training targets and order that may be changed."""
        image, metadata, target = self.train.dataset.tls
        target = copy(target)
        target.tfms = Pipeline([copy(read) for read in target.tfms.fs])
        for read in target.tfms.fs:
            if isinstance(read, ReadTarget):
                read.array = read.array.copy()
        train = self.train.new(Datasets(tls=[image, metadata, target], n_inp=2))
        train.encoder = self.encoder
        other = type(self)(train, *self.loaders[1:], path=self.path, device=self.device)
        for name in ("config", "encoder", "rows", "split", "pixels", "bad"):
            setattr(other, name, getattr(self, name))
        return other

    def new_empty(self) -> "LesionDataLoaders":
        """Return DataLoaders without data, which `learn.export()` keeps."""
        empty = LesionDataLoaders(*(loader.empty() for loader in self.loaders), device=self.device)
        empty.config, empty.encoder = self.config, self.encoder
        empty.rows, empty.split = self.rows.iloc[:0], self.split.iloc[:0]
        empty.pixels, empty.bad = self.pixels[:0].copy(), {}
        return empty


def as_table(items: Any) -> pd.DataFrame:
    """Return images to predict as a table with the column `path`: a path or the picture itself."""
    if isinstance(items, pd.DataFrame):
        table = items
    else:
        one = isinstance(items, str | Path | Mapping | pd.Series | Image.Image | np.ndarray)
        table = pd.DataFrame([as_row(item) for item in ([items] if one else items)])
    if not len(table):
        raise LesionfastError("there are no items to predict. Pass a table, or a list of paths.")
    if "path" not in table:
        raise LesionfastError(
            f"the items have no 'path'; they have: {', '.join(map(str, table))}. Add the path of "
            "each image."
        )
    return table.reset_index(drop=True)


def as_row(item: Any) -> dict[str, Any]:
    """Return one image to predict as a row."""
    if isinstance(item, Mapping | pd.Series):
        return dict(item)
    return {"path": str(item) if isinstance(item, Path) else item}


def read_batch_tfms(batch_tfms: Any, config: TrainConfig) -> list[Any]:
    """Return the transforms of a batch: the recipe of the options, or those of the user."""
    if batch_tfms is None:
        return [BatchAugment(build_recipe(config.augment), config.seed)]
    tfms = list(batch_tfms) if isinstance(batch_tfms, Iterable) else [batch_tfms]
    check_not_normalized(tfms)
    return tfms


def check_not_normalized(tfms: Iterable[Any]) -> None:
    """Raise `LesionfastError` if transforms of a batch normalise the images."""
    if any(isinstance(tfm, Normalize) for tfm in tfms):
        raise LesionfastError(
            "the batches are normalised (Normalize), but the model normalises the images itself. "
            "Leave Normalize out."
        )


def lesion_block(
    pixels: Pixels,
    encoder: MetadataEncoder,
    df: pd.DataFrame,
    classes: list[str],
    item_tfms: Any,
    batch_tfms: list[Any],
) -> DataBlock:
    """Return the DataBlock (image, metadata) -> class over the rows of `df`.

    `pixels` is uint8 (n, H, W, 3), aligned with the column "row" of `df`.
    """
    return DataBlock(
        blocks=(
            TransformBlock(
                type_tfms=[ReadRows(pixels, TensorImage)], batch_tfms=[IntToFloatTensor()]
            ),
            TransformBlock(type_tfms=[ReadRows(encoder.transform(df), TensorMetadata)]),
            TransformBlock(type_tfms=[ReadTarget(encode_targets(df, classes), classes)]),
        ),
        n_inp=2,
        dl_type=BatchLoader,
        splitter=split_positions,
        item_tfms=item_tfms,
        batch_tfms=batch_tfms,
    )


def encode_targets(df: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Return the class numbers (n,) of the column `target`; raises `LesionfastError`."""
    codes = pd.Categorical(df.get("target", pd.Series(dtype=str)), categories=classes).codes
    if len(codes) != len(df) or (codes < 0).any():
        raise LesionfastError(
            f"labels need a column 'target' with these classes: {', '.join(classes)}. Add it, or "
            "leave with_labels out."
        )
    return codes.astype(np.int64)


def split_positions(df: pd.DataFrame) -> list[list[int]]:
    """Return the positions of the train, valid and test rows."""
    return [np.flatnonzero(df["split"] == name).tolist() for name in PARTS]


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
    try:
        return torch.device(name)
    except RuntimeError:
        raise LesionfastError(
            f"--device is '{name}', which is no device. Type auto, cpu, cuda or mps."
        ) from None


def images_at_once(device: torch.device) -> int:
    """Return how many images to run at once where nothing is learned from them.

    On a CPU few enough for the activations of a thread to stay in its cache: up to a third faster.
    """
    return 8 * torch.get_num_threads() if device.type == "cpu" else 128
