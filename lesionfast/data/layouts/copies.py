"""Images with the same bytes are one image, whatever their names are and wherever they lie."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import pandas as pd

from lesionfast.cache import cache_folder, hash_lines, read_note, write_note
from lesionfast.data.sources import content_keys
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.files import split_path, stamps

logger = logging.getLogger("lesionfast")

TO_READ = (".parquet/", ".tar/", ".h5/", ".hdf5/")
KEPT_FIRST = ("test", "valid", "train")  # of copies in several parts: a test set stays whole


def find_content(paths: list[str]) -> pd.Series:
    """Return a text for each image that is the same for images with the same bytes.

    Of files on disk, only those of one size are read. For an image that can't be read it is its
    path.
    """
    inside = [path for path in paths if split_path(path)[1] is not None]
    known = dict(zip(inside, read_keys(inside), strict=True))
    sizes = {path: size_on_disk(path) for path in paths if path not in known}
    count = Counter([*sizes.values(), *(key.partition("-")[0] for key in known.values())])
    alike = [path for path, size in sizes.items() if count[size] > 1]
    known |= sizes | dict(zip(alike, read_keys(alike), strict=True))
    return pd.Series([known[path] for path in paths], dtype="str")


def read_keys(paths: list[str]) -> list[str]:
    """Return the content key of each image, its path if it can't be read.

    The cache keeps those of images in other files than zip files, which have to be read for it.
    """
    read = any(name in path.lower() for name in TO_READ for path in paths[:1] + paths[-1:])
    note = cache_folder() / "images" / f"{hash_lines(['keys', *stamps(paths), *paths])[:32]}.json"
    keys = read_note(note, [str], len(paths)) if read else None
    if keys is None or len(keys) != len(paths) or any(map(is_unreadable, keys)):
        # what was unreadable may be readable by now
        keys = content_keys(paths)
        if read and not any(map(is_unreadable, keys)):
            with suppress(LesionfastError, OSError):  # a cache that can't be written is no problem
                write_note(note, keys)
    both = zip(keys, paths, strict=True)
    return [path if is_unreadable(key) else key for key, path in both]


def is_unreadable(key: str) -> bool:
    """Return whether a content key stands for an image that could not be read."""
    return key.startswith("unreadable")


def size_on_disk(path: str) -> str:
    """Return the bytes of a file as text; decoding says what is wrong with one without any."""
    try:
        return str(os.path.getsize(path))
    except OSError:
        return path


def keep_one_of_copies(
    rows: pd.DataFrame,
    content: pd.Series,
    names: pd.Series,
    what: str = "content",
    target: str = "target",
) -> pd.DataFrame:
    """Return rows (target, part, …) with one of those with the same content; counted in the log.

    `names` says where each is and `what` what they share, for messages. Raises `LesionfastError`
    for copies with different targets.
    """
    rows = rows.assign(content=content.to_numpy(), at=names.to_numpy())
    copied = rows[rows["content"].duplicated(keep=False)]
    labels = copied.groupby("content")[target].nunique()
    if (labels > 1).any():
        torn = copied[copied["content"] == labels.index[labels > 1][0]].drop_duplicates(target)
        first, second = torn.iloc[0], torn.iloc[1]
        raise LesionfastError(
            f"{first['at']} and {second['at']} are the same image, but one is labelled "
            f"'{first[target]}' and the other '{second[target]}' "
            f"({pluralize(int((labels > 1).sum()), 'such image')}). Remove those with the wrong "
            "label."
        )
    ranks = {part: rank for rank, part in enumerate(KEPT_FIRST)}
    order = rows.assign(rank=rows["part"].map(ranks).fillna(len(ranks)))
    kept = order.sort_values(["rank", "at"], kind="stable").drop_duplicates("content").index
    report_copies(rows, copied, what)
    return rows.loc[rows.index.isin(kept)].drop(columns=["content", "at"])


def report_copies(rows: pd.DataFrame, copied: pd.DataFrame, what: str) -> None:
    """Log how many images are copies of others, and how many of them lie in several parts."""
    if copied.empty:
        return
    count = len(rows) - rows["content"].nunique()
    if crossing := count_crossing(copied, "content"):
        parts = copied.groupby("content")["part"].nunique()
        where = copied[copied["content"] == parts.index[parts > 1][0]].iloc[0]["at"]
        logger.warning(
            "%s %s in several parts of the dataset, such as %s: one of each is kept, of the test "
            "part first",
            pluralize(crossing, "image"), "lies" if crossing == 1 else "lie", where,
        )  # fmt: skip
    logger.warning(
        "Ignored %s with the %s of another, such as %s",
        pluralize(count, "image"), what, copied["at"].iloc[-1],
    )  # fmt: skip


def count_crossing(rows: pd.DataFrame, column: str) -> int:
    """Return how many values of a column occur in several parts."""
    return int((rows.groupby(column)["part"].nunique() > 1).sum())


def settle_parts(
    rows: pd.DataFrame, target: str, groups: Sequence[str] = (), shared: int = 0
) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of the dataset's own parts if they can be used, and a note about them.

    They can if train has every class, if there is another part and if none share images or a value
    of `groups`; `shared` images were left out that others share. Parts that are missing are drawn
    from train when the dataset is split.
    """
    parts = [part for part in ("train", "valid", "test") if (rows["part"] == part).any()]
    if not parts:
        return None, ()
    has = f"Its own parts ({', '.join(parts)})"
    if shared or any(count_crossing(rows[rows[name] != ""], name) for name in groups):
        return None, (f"{has} share images or lesions, so a new split is drawn.",)
    taught = set(rows[target]) == set(rows.loc[rows["part"] == "train", target])
    if parts[0] == "train" and len(parts) > 1 and taught and (rows["part"] != "").all():
        lost = " and ".join(sorted({"valid", "test"} - {*parts}))
        drawn = f"{has} are the split; {lost} is drawn from train."
        return "part", (drawn if lost else "Its own parts are the split.",)
    return None, (f"{has} are not a complete split, so a new split is drawn.",)
