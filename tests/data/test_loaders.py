"""Loaders give whole batches of images, metadata and classes, read in the background if asked."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.data.images import open_images
from lesionfast.data.loaders import LesionDataLoaders, read_ahead
from lesionfast.data.split import load_dataset

TINY = TrainConfig(arch="test_resnet", weights="none", size=64, batch_size=32)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


def test_a_batch_is_image_metadata_and_class(df):
    dls = LesionDataLoaders.from_df(df, TINY)
    image, metadata, target = dls.one_batch()
    assert image.shape == (32, 3, 64, 64) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert metadata.shape == (32, dls.encoder.width) and metadata.dtype == torch.float32
    assert target.dtype == torch.int64 and list(dls.vocab) == sorted(df["target"].unique())


def test_every_loader_reads_its_own_rows_unaugmented_but_the_training_one(df):
    dls = LesionDataLoaders.from_df(df, replace(TINY, augment="none"))
    for index, name in enumerate(("train", "valid", "test")):
        rows = dls.rows[dls.rows["split"] == name]
        loader = dls[index].new(shuffle=False, drop_last=False)
        batches = list(loader)
        targets = torch.cat([batch[2] for batch in batches])
        assert [dls.vocab[t] for t in targets] == rows["target"].tolist()
        metadata = torch.cat([batch[1] for batch in batches]).numpy()
        np.testing.assert_array_equal(metadata, dls.encoder.transform(rows))


def test_batches_hold_the_pixels_of_the_files(df):
    dls = LesionDataLoaders.from_df(df, TINY)
    rows = dls.rows[dls.rows["split"] == "valid"]
    pixels = open_images(rows["path"].tolist(), 64, resize=TINY.resize, cache=False).pixels
    image = torch.cat([batch[0] for batch in dls.valid])
    np.testing.assert_array_equal((image.numpy() * 255).round(), pixels.transpose(0, 3, 1, 2))


def test_fewer_rows_than_the_batch_size_still_make_a_batch(df):
    small = df.groupby(["split", "target"]).head(2).reset_index(drop=True)
    dls = LesionDataLoaders.from_df(small, replace(TINY, batch_size=512))
    assert len(dls.train) == 1 and len(dls.one_batch()[0]) == (small["split"] == "train").sum()


def test_reading_ahead_gives_the_same_batches_one_of_them_early(df):
    made = threading.Semaphore(0)

    def counted():
        for batch in LesionDataLoaders.from_df(df, TINY).valid.read_batches(iter(range(50))):
            made.release()
            yield batch

    ahead = read_ahead(counted())
    first = next(ahead)
    assert made.acquire(timeout=600) and made.acquire(timeout=600)  # the second was not asked for
    plain = list(LesionDataLoaders.from_df(df, TINY).valid.read_batches(iter(range(50))))
    for ours, own in zip([first, *ahead], plain, strict=True):
        for one, other in zip(ours, own, strict=True):
            assert torch.equal(one, other) and type(one) is type(other)


def test_an_error_of_a_batch_that_is_read_ahead_is_raised():
    def broken():
        yield (torch.zeros(1),)
        raise OSError("the disk is gone")

    ahead = read_ahead(broken())
    next(ahead)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
