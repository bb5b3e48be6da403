"""Find images that a dataset holds twice, exactly or nearly."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import scipy
from PIL import Image

from lesionfast.cache import cache_errors, cache_folder, hash_lines, read_note, write_note
from lesionfast.data.duplicates.neighbours import Candidates, find_candidates
from lesionfast.data.duplicates.registration import COARSE, Match, compare_views, register, texture
from lesionfast.data.images import (
    LUMA,
    Images,
    Progress,
    content_digest,
    list_codecs,
    open_images,
    read_image,
)
from lesionfast.data.sources import count_threads

VERSION = 2  # part of every key: raise it when the search changes
SIDE = 96  # pixels of the pictures compared
SHARE, LEAST = 0.09, 100  # of the candidates, that are looked at closely
THRESHOLD = 0.6  # score from which a pair counts as the same
STAGES = (0, 20, 60, 90, 100)  # percent of the time at which decoding, search and two looks end
CHUNK = 256  # pairs compared between two reports of progress


def find_near_duplicates(
    df: pd.DataFrame,
    progress: Progress | None = None,
    *,
    images: Images | None = None,
    cache: bool = True,
) -> pd.DataFrame:
    """Return pairs of images of different groups that show the same, best first.

    It finds copies of a photograph, and photographs taken again in the same way: turned by
    quarters, mirrored, slightly tilted, shifted, enlarged up to 2.5 times, in other colours. `df`
    has image_id, path, group and target. Columns: image_a, image_b, group_a, group_b, target_a,
    target_b, score (0.6 to 1) and transform (what turns a, the wider one, into b). `images` are
    those of `open_pictures`, if they are open already. The result is kept in the user's cache.
    """
    groups, paths = pd.factorize(df["group"])[0], df["path"].tolist()
    if not cache:
        opened = images or open_pictures(paths, report_stage(progress, 0))
        return name_pairs(df, search(opened, groups, progress))
    with cache_errors(cache_folder()):
        made = [str(VERSION), list_codecs(), np.__version__, scipy.__version__]
        key = hash_lines([*made, content_digest(paths), *map(str, groups)])[:32]
        file = cache_folder() / "duplicates" / f"{key}.json"
        kept = read_note(file)
        if kept is not None:
            return name_pairs(df, pd.DataFrame(kept))
        opened = images or open_pictures(paths, report_stage(progress, 0))
        pairs = search(opened, groups, progress)
        if not opened.bad:
            write_note(file, pairs.to_dict("list"))
    return name_pairs(df, pairs)


def open_pictures(paths: list[str], progress: Progress | None = None) -> Images:
    """Decode the centre squares that are compared, bad images left out."""
    options = {"resize": "crop", "cache": False, "skip_bad": True, "report": False}
    return open_images(paths, SIDE, **options, progress=progress)


def report_stage(progress: Progress | None, stage: int) -> Progress:
    """Return the `progress(done, total)` of one stage, which reports percent of the whole."""
    start, end = STAGES[stage : stage + 2]

    def report(done: int, total: int) -> None:
        if progress:
            progress(start + (end - start) * done // max(total, 1), STAGES[-1])

    return report


def search(images: Images, groups: np.ndarray, progress: Progress | None) -> pd.DataFrame:
    """Return positions `a` and `b`, score and transform of the pairs that show the same."""
    good = np.setdiff1d(np.arange(len(groups)), list(images.bad))
    matches: list[tuple[int, int, Match]] = []
    if len(np.unique(groups[good])) > 1:
        pixels = images.pixels[good] if images.bad else images.pixels
        candidates = find_candidates(pixels, groups[good], report_stage(progress, 1))
        matches = verify(to_grey(pixels), candidates, progress)
    rows = [(good[a], good[b], round(m.score, 3), m.describe()) for a, b, m in matches]
    pairs = pd.DataFrame(rows, columns=["a", "b", "score", "transform"])
    return pairs.sort_values(["score", "a", "b"], ascending=[False, True, True], ignore_index=True)


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return the luminance of RGB pictures (n, s, s, 3): uint8 (n, s, s)."""
    return np.stack([(rgb @ np.float32(LUMA)).round().astype(np.uint8) for rgb in pixels])


def verify(
    pictures: np.ndarray, candidates: Candidates, progress: Progress | None
) -> list[tuple[int, int, Match]]:
    """Return the candidates whose texture agrees: first a coarse look at all, then a close one."""
    small = (Image.fromarray(picture).resize((COARSE, COARSE)) for picture in pictures)
    targets = [texture(np.asarray(picture)) for picture in small]

    def look(i: int) -> tuple[float, int]:
        a, b = candidates.pairs[i]
        return compare_views(pictures[a], candidates.crops[i], targets[b])

    def look_closely(i: int) -> tuple[int, int, Match]:
        a, b = map(int, candidates.pairs[i])
        return a, b, register(pictures[a], candidates.crops[i], pictures[b], seen[i][1])

    numbers = range(len(candidates.pairs))
    seen = list(in_parallel(look, numbers, report_stage(progress, 2)))
    best = sorted(numbers, key=lambda i: -seen[i][0])[: max(LEAST, int(SHARE * len(seen)))]
    matches = list(in_parallel(look_closely, best, report_stage(progress, 3)))
    return [(a, b, match) for a, b, match in matches if match.score >= THRESHOLD]


def in_parallel(function: Callable[[int], Any], items: Sequence[int], progress: Progress) -> list:
    """Return the results of a function for all items, in order, from as many threads as help."""
    results: list = []
    with ThreadPoolExecutor(count_threads()) as threads:
        for start in range(0, len(items), CHUNK):
            results += threads.map(function, items[start : start + CHUNK])
            progress(len(results), len(items))
    return results


def name_pairs(df: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Turn positions into image ids, groups and classes."""
    named = {}
    for column, name in (("image_id", "image"), ("group", "group"), ("target", "target")):
        for end in ("a", "b"):
            named[f"{name}_{end}"] = df[column].to_numpy()[pairs[end].to_numpy(int)]
    return pd.DataFrame({**named, "score": pairs["score"], "transform": pairs["transform"]})


def find_exact_duplicates(df: pd.DataFrame, images: Images) -> list[list[int]]:
    """Return the positions of images with the same pixels at full size, in sets of two or more.

    `images` are those of `open_pictures`; only images alike there are read at full size.
    """
    good = [i for i in range(len(df)) if i not in images.bad]
    sets = []
    for alike in find_equal(good, (images.pixels[i] for i in good)):
        whole = [np.asarray(read_image(df["path"].iloc[i])) for i in alike]
        sets += find_equal(alike, whole)
    return sets


def find_equal(positions: list[int], pixels: Iterable[np.ndarray]) -> list[list[int]]:
    """Return the positions of equal arrays, in sets of two or more."""
    sets: dict[tuple, list[int]] = {}
    for i, array in zip(positions, pixels, strict=True):
        digest = hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest()
        sets.setdefault((array.shape, digest), []).append(i)
    return [equal for equal in sets.values() if len(equal) > 1]
