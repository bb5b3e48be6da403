"""Find images that are, or all but are, in a dataset twice."""

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
from lesionfast.data.images import Images, content_digest, list_codecs, open_images, read_image
from lesionfast.data.sources import count_threads

VERSION = 2  # part of every key: raise it when the search changes
SIDE = 96  # pixels of the pictures compared
SHARE, LEAST = 0.09, 100  # of the candidates, that are looked at closely
THRESHOLD = 0.6  # score from which a pair counts as the same
STAGES = (20, 60, 90, 100)  # percent of the time when each stage ends
CHUNK = 256  # pairs compared between two reports of progress

Progress = Callable[[int, int], None]


def find_near_duplicates(
    df: pd.DataFrame,
    progress: Progress | None = None,
    *,
    images: Images | None = None,
    cache: bool = True,
) -> pd.DataFrame:
    """Return pairs of images of different groups that show the same, best first.

    Found are copies of a photograph, and photographs taken once more in the same way: turned by
    quarters, mirrored, a little tilted, shifted, enlarged up to 2.5 times, in other colours. `df`
    has image_id, path, group and target. Columns: image_a, image_b, group_a, group_b, target_a,
    target_b, score (0.6 to 1) and transform (what makes b of a, the wider one). `images` are
    those of `open_pictures`, if they are open already. The result is kept in the user's cache.
    """
    groups, track = pd.factorize(df["group"])[0], Track(progress)

    def find() -> tuple[pd.DataFrame, bool]:
        opened = images or open_pictures(df["path"].tolist(), track.stage(0))
        return search(opened, groups, track), not opened.bad

    if not cache:
        return name_pairs(df, find()[0])
    with cache_errors(cache_folder()):
        file = cache_folder() / "duplicates" / f"{search_key(df, groups)}.json"
        kept = read_note(file)
        if kept is not None:
            return name_pairs(df, pd.DataFrame(kept))
        pairs, complete = find()
        if complete:
            write_note(file, pairs.to_dict("list"))
    return name_pairs(df, pairs)


def open_pictures(paths: list[str], progress: Progress | None = None) -> Images:
    """Decode the centre squares that are compared, bad images left out."""
    options = {"resize": "crop", "cache": False, "skip_bad": True, "report": False}
    return open_images(paths, SIDE, **options, progress=progress)


def search_key(df: pd.DataFrame, groups: np.ndarray) -> str:
    """Return a key of everything that the result of a search depends on."""
    made = [str(VERSION), list_codecs(), np.__version__, scipy.__version__]
    return hash_lines([*made, content_digest(df["path"].tolist()), *map(str, groups)])[:32]


class Track:
    """Tells the percentage of a work of several stages."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def stage(self, number: int) -> Progress:
        """Return the `progress(done, total)` of one stage."""
        start, end = (0, *STAGES)[number : number + 2]

        def report(done: int, total: int) -> None:
            if self._progress:
                self._progress(start + (end - start) * done // max(total, 1), STAGES[-1])

        return report


def search(images: Images, groups: np.ndarray, track: Track) -> pd.DataFrame:
    """Return positions `a` and `b`, score and transform of the pairs that show the same."""
    good = np.setdiff1d(np.arange(len(groups)), list(images.bad))
    matches: list[tuple[int, int, Match]] = []
    if len(np.unique(groups[good])) > 1:
        pixels = images.pixels[good] if images.bad else images.pixels
        candidates = find_candidates(pixels, groups[good], track.stage(1))
        matches = verify(to_grey(pixels), candidates, track)
    rows = [(good[a], good[b], round(m.score, 3), m.describe()) for a, b, m in matches]
    pairs = pd.DataFrame(rows, columns=["a", "b", "score", "transform"])
    return pairs.sort_values(["score", "a", "b"], ascending=[False, True, True], ignore_index=True)


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return the luminance of RGB pictures (n, s, s, 3): uint8 (n, s, s)."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.stack([(picture @ weights).round().astype(np.uint8) for picture in pixels])


def verify(
    pictures: np.ndarray, candidates: Candidates, track: Track
) -> list[tuple[int, int, Match]]:
    """Return the candidates whose texture agrees: first a coarse look at all, then a close one."""
    targets = [
        texture(np.asarray(Image.fromarray(picture).resize((COARSE, COARSE))))
        for picture in pictures
    ]

    def look(i: int) -> tuple[float, int]:
        a, b = candidates.pairs[i]
        return compare_views(pictures[a], candidates.crops[i], targets[b])

    def look_closely(i: int) -> tuple[int, int, Match]:
        a, b = map(int, candidates.pairs[i])
        return a, b, register(pictures[a], candidates.crops[i], pictures[b], seen[i][1])

    numbers = range(len(candidates.pairs))
    seen = list(in_parallel(look, numbers, track.stage(2)))
    best = sorted(numbers, key=lambda i: -seen[i][0])[: max(LEAST, int(SHARE * len(seen)))]
    matches = list(in_parallel(look_closely, best, track.stage(3)))
    return [each for each in matches if each[2].score >= THRESHOLD]


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
    alike = sets_of(hash_of(pixels) for pixels in images.pixels)
    sets = []
    for positions in alike:
        good = [i for i in positions if i not in images.bad]
        whole = [np.asarray(read_image(df["path"].iloc[i])) for i in good] if good[1:] else []
        same = sets_of(f"{each.shape}{hash_of(each)}" for each in whole)
        sets += [[good[i] for i in part] for part in same]
    return sets


def sets_of(keys: Iterable[str]) -> list[list[int]]:
    """Return the positions of equal keys, where there are two or more."""
    positions: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        positions.setdefault(key, []).append(i)
    return [each for each in positions.values() if len(each) > 1]


def hash_of(pixels: np.ndarray) -> str:
    """Return a hash of an array's bytes."""
    return hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16).hexdigest()
