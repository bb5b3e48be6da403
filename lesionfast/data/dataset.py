"""From a configuration to the split table that every experiment starts from."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from lesionfast.config import SplitConfig
from lesionfast.console import counting_bar
from lesionfast.data.metadata import load_metadata
from lesionfast.data.splits import join_groups, restore_split, split_metadata


def load_dataset(config: SplitConfig, split: Path | None = None) -> pd.DataFrame:
    """Return the checked and split table: find the data, read it, join near-duplicates, split.

    `split`, the split.csv of a run, decides instead of `config`. Raises `LesionfastError` for bad
    data.
    """
    with no_garbage_collection():
        df = load_metadata(config)
    if split is not None:
        return restore_split(df, split)
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
