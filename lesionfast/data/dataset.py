"""From a configuration to the split table that every experiment starts from."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from lesionfast.config import SplitConfig
from lesionfast.console import counting_bar
from lesionfast.data.metadata import load_metadata
from lesionfast.data.splits import join_groups, restore_split, split_metadata

logger = logging.getLogger("lesionfast")


def load_dataset(config: SplitConfig, split: Path | None = None) -> pd.DataFrame:
    """Return the checked and split table: find the data, read it, join near-duplicates, split.

    `split`, the split.csv of a run, decides instead of `config`; what the data lacks was said when
    that was written, and is not said again. Raises `LesionfastError` for bad data.
    """
    if split is not None:
        with no_garbage_collection(), no_warnings():
            df = load_metadata(config)
        return restore_split(df, split)
    with no_garbage_collection():
        df = load_metadata(config)
    if config.join_duplicates:
        from lesionfast.data.duplicates import find_near_duplicates

        with counting_bar("comparing images") as progress:
            found = find_near_duplicates(df, progress, cache=config.cache)
        pairs = found[["image_a", "image_b"]]
        df = join_groups(df, pairs.itertuples(index=False, name=None))
    return split_metadata(df, config)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's cyclic collector off: it would look through millions of names, over and over.

    What is not part of a cycle is freed all the same.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Keep warnings back; an error is an exception and is not held up."""

    def is_graver(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logger.addFilter(is_graver)
    try:
        yield
    finally:
        logger.removeFilter(is_graver)
