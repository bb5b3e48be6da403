"""Find images that a dataset holds twice, nearly: candidates first, then a closer look at them.

Candidates are neighbours by magnitudes of angular harmonics of the colours along rings around the
centre, which no turn or mirror changes. Every picture is also described cropped, at several zooms
and places, so that its own enlargements are neighbours. Distances count in units of what half a
step of zoom or place changes (linear discriminant analysis).

The closer look lays one picture over the other and correlates their texture. Shapes mislead, as
dark round moles have the same outline: pictures are filtered until skin lines, hairs and dots count
as much as outlines, and a pair must agree in every part of the picture.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy
import scipy.fft
from PIL import Image
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from lesionfast.cache import cache_errors, cache_folder, hash_lines, read_note, write_note
from lesionfast.data.images import LUMA, Images, Progress, content_digest, list_codecs, open_images
from lesionfast.data.sources import count_threads

Candidates = tuple[np.ndarray, np.ndarray]  # pairs of pictures, and the crops that are alike
VERSION = 2  # part of every key: raise it when the search changes
SIDE = 96  # pixels of the pictures compared
STAGES = (0, 20, 60, 90, 100)  # percent of the time at which decoding, search and two looks end
CHUNK = 256  # pairs compared between two reports of progress

SMALL = 24  # pixels of the pictures described
RINGS = (0.2, 0.4, 0.6, 0.8, 1.0)  # radii; the centre comes on top
HARMONICS = 6
ANGLES = 32
ZOOMS = (1.0, 1.15, 1.32, 1.52, 1.75, 2.0, 2.3)
STEP = 0.07  # between the places of crops, as a share of their side
CROPS = np.array([(z, x * STEP, y * STEP) for z in ZOOMS for x in (-1, 0, 1) for y in (-1, 0, 1)])
DIMENSIONS = 48
NEIGHBOURS = 20  # looked for a picture
MOST, MOST_EACH = 2000, 4  # candidates: so many, or so many a picture
SAMPLE = 1500  # pictures from which the discriminant is learned
BACKGROUND = 500  # pictures from which the scale of distances is learned
ROWS = 100  # pictures compared with all others at a time: bounds the memory

SHARE, LEAST = 0.09, 100  # of the candidates, that are looked at closely
THRESHOLD = 0.6  # score from which a pair counts as the same
COARSE, FINE = 48, 64  # pixels a side: for all candidates, and for those that are left
PART = 15  # pixels a side of the parts that have to agree
SEARCH = (  # factors of the zoom, degrees of tilt, and the correlation that is worth going on
    (np.linspace(0.88, 1.12, 9), (0,), 0.25),
    ((0.985, 1, 1.015), range(-9, 10, 3), 0.35),
    ((0.993, 1, 1.007), (-1.5, 0, 1.5), 0.35),
)
VIEWS = 8  # four quarter turns, each plain and mirrored


@dataclass(frozen=True)
class Match:
    """How the wider picture of a pair becomes the narrower one, and how well (score, up to 1).

    `view` is the number of quarter turns counter-clockwise, plus 4 if mirrored left to right
    before; `degrees` is the tilt on top.
    """

    score: float
    view: int
    zoom: float
    degrees: float

    def describe(self) -> str:
        """Return the transform in words: "mirrored, turned by 90°, enlarged 1.3 times"."""
        words = ["mirrored"] * (self.view >= 4)
        words += [f"turned by {90 * (self.view % 4)}°"] * (self.view % 4 > 0)
        words += [f"tilted by {abs(self.degrees):.0f}°"] * (abs(self.degrees) >= 1)
        words += [f"enlarged {self.zoom:.1f} times"] * (self.zoom >= 1.05)
        return ", ".join(words) or "not turned"


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
    with cache_errors(cache_folder()) if cache else nullcontext():
        if cache:
            made = [str(VERSION), list_codecs(), np.__version__, scipy.__version__]
            key = hash_lines([*made, content_digest(paths), *map(str, groups)])[:32]
            file = cache_folder() / "duplicates" / f"{key}.json"
        kept = read_note(file) if cache else None
        if kept is not None:
            return name_pairs(df, pd.DataFrame(kept))
        opened = images or open_pictures(paths, report_stage(progress, 0))
        pairs = search(opened, groups, progress)
        if cache and not opened.bad:
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
        matches = verify(pixels, *candidates, progress)
    rows = [(good[a], good[b], round(m.score, 3), m.describe()) for a, b, m in matches]
    pairs = pd.DataFrame(rows, columns=["a", "b", "score", "transform"])
    return pairs.sort_values(["score", "a", "b"], ascending=[False, True, True], ignore_index=True)


def verify(
    pixels: np.ndarray, pairs: np.ndarray, crops: np.ndarray, progress: Progress | None
) -> list[tuple[int, int, Match]]:
    """Return the candidates whose texture agrees: first a coarse look at all, then a close one."""
    pictures = [(rgb @ np.float32(LUMA)).round().astype(np.uint8) for rgb in pixels]  # grey
    small = (Image.fromarray(picture).resize((COARSE, COARSE)) for picture in pictures)
    targets = [texture(np.asarray(picture)) for picture in small]

    def look(i: int) -> tuple[float, int]:
        a, b = pairs[i]
        return compare_views(pictures[a], crops[i], targets[b])

    def look_closely(i: int) -> tuple[int, int, Match]:
        a, b = map(int, pairs[i])
        return a, b, register(pictures[a], crops[i], pictures[b], seen[i][1])

    numbers = range(len(pairs))
    seen = in_parallel(look, numbers, report_stage(progress, 2))
    best = sorted(numbers, key=lambda i: -seen[i][0])[: max(LEAST, int(SHARE * len(seen)))]
    matches = in_parallel(look_closely, best, report_stage(progress, 3))
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
    columns = {"image": "image_id", "group": "group", "target": "target"}
    named = {
        f"{name}_{end}": df[column].to_numpy()[pairs[end].to_numpy(int)]
        for name, column in columns.items()
        for end in ("a", "b")
    }
    return pd.DataFrame({**named, "score": pairs["score"], "transform": pairs["transform"]})


@threadpool_limits.wrap(limits=1)  # threads of our own share the work better than those of BLAS
def find_candidates(pixels: np.ndarray, groups: np.ndarray, progress: Progress) -> Candidates:
    """Return the nearest pairs of pictures that are in different groups, nearest first.

    `pixels` is uint8 (n, side, side, 3), side a multiple of 24; `groups` int (n,). The pairs are
    positions of the wider and the narrower picture, int (m, 2), and the crops the part of the wider
    one, float (m, 3): zoom and place of its centre (x, y as shares of the crop's side). Time grows
    with n squared.
    """
    small = shrink(pixels)
    projection = learn_projection(small)
    known = describe(small, 1, 0, 0) @ projection
    middle = known.mean(axis=0)
    known -= middle
    ones = np.ones((len(known), 1), np.float32)
    keys = np.concatenate([known, (known**2).sum(axis=1, keepdims=True), ones], axis=1).T.copy()
    queries = np.empty((len(CROPS), *keys.shape[::-1]), np.float32)

    def fill(number: int) -> None:
        queries[number] = scaled(describe(small, *CROPS[number]) @ projection - middle, keys)

    def search(rows: slice) -> tuple[np.ndarray, ...]:
        return nearest(queries[:, rows], keys, groups[rows, None] == groups)

    parts = []
    with ThreadPoolExecutor(count_threads()) as threads:
        list(threads.map(fill, range(len(CROPS))))
        for part in threads.map(search, blocks(len(known))):
            parts.append(part)
            progress(min(len(parts) * ROWS, len(known)), len(known))
    return best_pairs(parts)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Average square blocks of pixels: float32 (n, 3, SMALL²) in 0 to 1."""
    factor = pixels.shape[1] // SMALL
    small = np.empty((len(pixels), 3, SMALL * SMALL), np.float32)
    for rows in blocks(len(pixels)):
        tiles = pixels[rows].reshape(-1, SMALL, factor, SMALL, factor, 3)
        small[rows] = np.moveaxis(tiles.mean(axis=(2, 4)), 3, 1).reshape(-1, 3, SMALL**2) / 255
    return small


def blocks(n: int) -> list[slice]:
    """Return slices that cover n rows."""
    return [slice(start, start + ROWS) for start in range(0, n, ROWS)]


def ring_filters(zoom: float, x: float, y: float) -> np.ndarray:
    """Return the weights of pixels in each ring and harmonic of a crop.

    Float32 (SMALL², 2 + 2 * rings * HARMONICS - 1 - rings): the cosines of the centre and of all
    rings, harmonic 0 first, then the sines of harmonics above 0.
    """
    radius = 0.92 * SMALL / 2 / zoom
    blur = max(0.6, 0.09 * SMALL / zoom)
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    centre = (SMALL - 1) / 2 + np.array([x, y]) * SMALL / zoom
    cosines, sines = [], []
    for ring in (0.0, *RINGS):
        across = bell(centre[0] + ring * radius * np.cos(angle), blur)
        down = bell(centre[1] + ring * radius * np.sin(angle), blur)
        weights = np.einsum("ay,ax->ayx", down, across).reshape(ANGLES, -1)
        for harmonic in range(HARMONICS if ring else 1):
            cosines.append(np.cos(harmonic * angle) @ weights / ANGLES)
            if harmonic:
                sines.append(np.sin(harmonic * angle) @ weights / ANGLES)
    return np.array(cosines + sines, np.float32).T


def bell(centre: np.ndarray, width: float) -> np.ndarray:
    """Return Gaussian weights of a line of pixels around each centre, each with sum 1."""
    weights = np.exp(-((np.arange(SMALL) - centre[:, None]) ** 2) / (2 * width**2))
    return weights / (weights.sum(axis=1, keepdims=True) + 1e-9)


def describe(small: np.ndarray, zoom: float, x: float, y: float) -> np.ndarray:
    """Describe a crop of each picture: float32 (n, features), whatever its light and contrast."""
    plain = np.array([True] + [harmonic == 0 for _ in RINGS for harmonic in range(HARMONICS)])
    values = (small.reshape(-1, SMALL**2) @ ring_filters(zoom, x, y)).reshape(len(small), 3, -1)
    cosines, sines = values[:, :, : len(plain)], values[:, :, len(plain) :]
    means = cosines[:, :, plain]
    means = means - means.mean(axis=2, keepdims=True)
    magnitudes = 2 * np.hypot(cosines[:, :, ~plain], sines)
    features = np.concatenate([means, magnitudes], axis=2).reshape(len(small), -1)
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 0.02)


def learn_projection(small: np.ndarray) -> np.ndarray:
    """Return what turns features into DIMENSIONS that tell pictures apart best.

    Within a class vary the descriptions of one picture as the crop moves by half a step; between
    classes the pictures (Fisher 1936, doi:10.1111/j.1469-1809.1936.tb02137.x).
    """
    rng = np.random.default_rng(0)
    sample = small[rng.choice(len(small), min(SAMPLE, len(small)), replace=False)]
    half = STEP / 2
    moves = [(1.07, 0, 0), (1 / 1.07, 0, 0), (1, half, 0), (1, 0, half), (1, -half, half)]
    changes = np.concatenate(
        [
            describe(sample, zoom * factor, x, y) - describe(sample, zoom, 0, 0)
            for zoom in (1.0, 1.26, 1.6)
            for factor, x, y in moves
        ]
    )
    within = changes.T @ changes / len(changes)
    within += np.eye(len(within)) * (0.02 * np.trace(within) / len(within) + 1e-9)
    variance, axes = np.linalg.eigh(within)
    whiten = axes / np.sqrt(variance)
    spread = describe(sample, 1, 0, 0) @ whiten
    _, axes = np.linalg.eigh(np.cov(spread, rowvar=False))
    return (whiten @ axes[:, ::-1][:, :DIMENSIONS]).astype(np.float32)


def scaled(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return rows whose product with `keys` is the squared distance, as a share of the usual.

    The usual distance is the 2 % quantile of the distances to pictures drawn at random, because a
    crop with few details is near to everything.
    """
    squares = (queries**2).sum(axis=1, keepdims=True)
    rows = np.concatenate([-2 * queries, np.ones_like(squares), squares], axis=1)
    drawn = np.random.default_rng(1).permutation(keys.shape[1])[:BACKGROUND]
    rank, sample = max(1, len(drawn) // 50), keys[:, drawn]
    for block in blocks(len(rows)):
        distances = np.partition(rows[block] @ sample, rank, axis=1)
        rows[block] /= np.maximum(distances[:, rank, None], 1e-3)
    return rows


def nearest(queries: np.ndarray, keys: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return neighbours (rows, k), their distances, and the crop that is nearest of each."""
    distances = queries[0] @ keys
    for rows in queries[1:]:
        np.minimum(distances, rows @ keys, out=distances)
    distances[same] = np.inf
    count = min(NEIGHBOURS, distances.shape[1] - 1)
    neighbours = np.argpartition(distances, count, axis=1)[:, :count]
    crops = [(queries[:, i] @ keys[:, own]).argmin(axis=0) for i, own in enumerate(neighbours)]
    return neighbours, np.take_along_axis(distances, neighbours, axis=1), np.stack(crops)


def best_pairs(parts: list[tuple[np.ndarray, ...]]) -> Candidates:
    """Join the neighbours of all pictures: each pair once, nearest first, up to a limit."""
    neighbours, distances, crop = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    wider = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    pairs = np.stack([wider, neighbours.ravel()], axis=1)
    order = np.argsort(distances, axis=None, kind="stable")
    order = order[np.isfinite(distances.ravel()[order])]
    ends = np.sort(pairs[order], axis=1)
    _, first = np.unique(ends, axis=0, return_index=True)
    kept = order[np.sort(first)][: max(MOST, MOST_EACH * len(neighbours))]
    return pairs[kept], CROPS[crop.ravel()[kept]]


def texture(pictures: np.ndarray) -> np.ndarray:
    """Return the fine detail of grey pictures (..., h, w), as strong everywhere: float32."""
    pictures = pictures.astype(np.float32)
    flat = (0,) * (pictures.ndim - 2)
    detail = gaussian_filter(pictures, (*flat, 0.7, 0.7))
    detail -= gaussian_filter(pictures, (*flat, 2, 2))
    return detail / (np.sqrt(gaussian_filter(detail**2, (*flat, 3, 3))) + 0.3)


def turn(picture: np.ndarray, view: int) -> np.ndarray:
    """Return a picture (..., h, w) mirrored (view 4 to 7) and turned by view % 4 quarters."""
    return np.rot90(picture[..., ::-1] if view >= 4 else picture, view % 4, axes=(-2, -1))


def cut(picture: Image.Image, box: tuple[float, float, float], degrees: float = 0) -> np.ndarray:
    """Return a square (centre x, y and side, in pixels) tilted about its centre: (FINE, FINE)."""
    x, y, side = box
    angle = np.deg2rad(degrees)
    cosine, sine = np.array([np.cos(angle), np.sin(angle)]) * side / FINE
    half = FINE / 2
    across = (cosine, -sine, x - half * (cosine - sine))
    down = (sine, cosine, y - half * (sine + cosine))
    affine, cubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return np.asarray(picture.transform((FINE, FINE), affine, (*across, *down), cubic))


def crop_box(crop: np.ndarray, size: int) -> tuple[float, float, float]:
    """Return centre x, y and side in pixels of a crop (zoom, x, y), moved inside the picture."""
    zoom, x, y = crop
    side = size / zoom
    centre = np.clip(size / 2 + np.array([x, y]) * side, side / 2, size - side / 2)
    return float(centre[0]), float(centre[1]), side


def correlate(pictures: np.ndarray, other: np.ndarray, reach: int) -> np.ndarray:
    """Correlate textures (..., s, s) with another (..., s, s) at all shifts up to `reach`.

    Returns (..., 2 reach + 1, 2 reach + 1), up to 1, shift 0 first, then as in a Fourier
    transform. What moves out of the picture counts as disagreement.
    """
    side = scipy.fft.next_fast_len(pictures.shape[-1] + reach, real=True)
    spectrum = scipy.fft.rfft2(pictures, s=(side, side))
    spectrum *= np.conj(scipy.fft.rfft2(other, s=(side, side)))
    products = scipy.fft.irfft2(spectrum, s=(side, side))
    shifts = np.r_[0 : reach + 1, side - reach : side]
    energy = (pictures**2).sum(axis=(-2, -1)) * (other**2).sum(axis=(-2, -1))
    products = products[..., shifts, :][..., shifts]
    return products / (np.sqrt(energy)[..., None, None] + 1e-6)


def compare_views(picture: np.ndarray, crop: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """Return the best correlation of a crop of a picture with another picture, and its view.

    `picture` is grey uint8 (s, s), `other` the texture (COARSE, COARSE) of the other picture.
    """
    x, y, side = crop_box(crop, len(picture))
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    small = Image.fromarray(picture).resize((COARSE, COARSE), Image.Resampling.BILINEAR, box=box)
    detail = texture(np.asarray(small))
    views = np.stack([turn(detail, view) for view in range(VIEWS)])
    best = correlate(views, other, COARSE // 6).max(axis=(1, 2))
    return float(best.max()), int(best.argmax())


def register(picture: np.ndarray, crop: np.ndarray, other: np.ndarray, view: int) -> Match:
    """Lay a crop of a picture over another picture as well as possible (grey uint8, (s, s)).

    Zoom is searched first, then tilt, then both more finely; every time all shifts.
    """
    margin = len(picture) // 4
    padded = Image.fromarray(np.pad(picture, margin, mode="edge"))
    whole = len(picture) / 2
    target = texture(cut(Image.fromarray(other), (whole, whole, len(picture))))
    x, y, side = crop_box(crop, len(picture))
    best = (1.0, 0.0)
    for factors, tilts, enough in SEARCH:
        trials = [(best[0] * factor, best[1] + tilt) for factor in factors for tilt in tilts]
        cuts = [cut(padded, (x + margin, y + margin, side / f), tilt) for f, tilt in trials]
        details = turn(texture(np.stack(cuts)), view)
        correlation = correlate(details, target, FINE // 3)
        number, down, across = np.unravel_index(correlation.argmax(), correlation.shape)
        best = trials[number]
        if correlation.max() < enough:
            break
    reach = FINE // 3
    down, across = (int(s) - (2 * reach + 1) * (s > reach) for s in (down, across))
    score = agreement(overlap(details[number], down, across), overlap(target, -down, -across))
    return Match(score, view, float(crop[0] * best[0]), float(best[1]))


def overlap(picture: np.ndarray, down: int, across: int) -> np.ndarray:
    """Return the part of a picture that another one covers from `down` and `across` pixels on."""
    height, width = picture.shape
    return picture[max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)]


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return how well two textures agree, as a whole and in the average part of the picture.

    A part may lie one pixel off, so that a bend of the skin does not count.
    """
    rows, columns = ((side - 2) // PART for side in first.shape)
    parts = second[1 : 1 + rows * PART, 1 : 1 + columns * PART]
    best = np.full((rows, columns), -1.0)
    for down in range(3):
        for across in range(3):
            moved = first[down : down + rows * PART, across : across + columns * PART]
            energy = block_sums(moved**2) * block_sums(parts**2)
            best = np.maximum(best, block_sums(moved * parts) / (np.sqrt(energy) + 1e-6))
    whole = (first * second).sum() / (np.sqrt((first**2).sum() * (second**2).sum()) + 1e-6)
    return float((whole + best.mean()) / 2)


def block_sums(values: np.ndarray) -> np.ndarray:
    """Return the sum of each PART by PART part of an array."""
    rows, columns = (side // PART for side in values.shape)
    return values.reshape(rows, PART, columns, PART).sum(axis=(1, 3))
