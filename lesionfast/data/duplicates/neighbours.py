"""Which pictures may show the same: descriptors that no turn or mirror changes, and their nearest.

Colours are averaged along rings around the centre and decomposed into angular harmonics, whose
magnitudes stay when a picture is turned or mirrored. Every picture is also described cropped, at
several zooms and places, so that its own enlargements are neighbours. Distances count in units of
what half a step of zoom or place changes (linear discriminant analysis).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from lesionfast.data.images import Progress
from lesionfast.data.sources import count_threads

SIDE = 24  # pixels of the pictures described
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
BLOCK = 100  # pictures compared with all others at a time: bounds the memory


@dataclass(frozen=True)
class Candidates:
    """Pairs that may show the same, nearest first.

    `pairs` int (m, 2): positions of the wider and the narrower picture; `crops` float (m, 3): the
    part of the wider one, as zoom and place of its centre (x, y as shares of the crop's side).
    """

    pairs: np.ndarray
    crops: np.ndarray


@threadpool_limits.wrap(limits=1)  # threads of our own share the work better than those of BLAS
def find_candidates(pixels: np.ndarray, groups: np.ndarray, progress: Progress) -> Candidates:
    """Return the nearest pairs of pictures that are in different groups.

    `pixels` is uint8 (n, side, side, 3), side a multiple of 24; `groups` int (n,). Time and
    comparisons grow with n squared.
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
            progress(min(len(parts) * BLOCK, len(known)), len(known))
    return best_pairs(parts)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Average square blocks of pixels: float32 (n, 3, SIDE²) in 0 to 1."""
    factor = pixels.shape[1] // SIDE
    small = np.empty((len(pixels), 3, SIDE * SIDE), np.float32)
    for rows in blocks(len(pixels)):
        tiles = pixels[rows].reshape(-1, SIDE, factor, SIDE, factor, 3)
        small[rows] = np.moveaxis(tiles.mean(axis=(2, 4)), 3, 1).reshape(-1, 3, SIDE**2) / 255
    return small


def blocks(n: int) -> Iterator[slice]:
    """Yield slices that cover n rows."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def ring_filters(zoom: float, x: float, y: float) -> np.ndarray:
    """Return the weights of pixels in each ring and harmonic of a crop.

    Float32 (SIDE², 2 + 2 * rings * HARMONICS - 1 - rings): the cosines of the centre and of all
    rings, harmonic 0 first, then the sines of harmonics above 0.
    """
    radius = 0.92 * SIDE / 2 / zoom
    blur = max(0.6, 0.09 * SIDE / zoom)
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    centre = (SIDE - 1) / 2 + np.array([x, y]) * SIDE / zoom
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
    weights = np.exp(-((np.arange(SIDE) - centre[:, None]) ** 2) / (2 * width**2))
    return weights / (weights.sum(axis=1, keepdims=True) + 1e-9)


def describe(small: np.ndarray, zoom: float, x: float, y: float) -> np.ndarray:
    """Describe a crop of each picture: float32 (n, features), whatever its light and contrast."""
    plain = np.array([True] + [harmonic == 0 for _ in RINGS for harmonic in range(HARMONICS)])
    values = (small.reshape(-1, SIDE**2) @ ring_filters(zoom, x, y)).reshape(len(small), 3, -1)
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
    crop = np.stack(
        [
            (queries[:, row] @ keys[:, neighbours[row]]).argmin(axis=0)
            for row in range(len(neighbours))
        ]
    )
    return neighbours, np.take_along_axis(distances, neighbours, axis=1), crop


def best_pairs(parts: list[tuple[np.ndarray, ...]]) -> Candidates:
    """Join the neighbours of all pictures: each pair once, nearest first, up to a limit."""
    neighbours, distances, crop = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    pairs = np.stack(
        [np.repeat(np.arange(len(neighbours)), neighbours.shape[1]), neighbours.ravel()], axis=1
    )
    order = np.argsort(distances, axis=None, kind="stable")
    order = order[np.isfinite(distances.ravel()[order])]
    ends = np.sort(pairs[order], axis=1)
    _, first = np.unique(ends, axis=0, return_index=True)
    kept = order[np.sort(first)][: max(MOST, MOST_EACH * len(neighbours))]
    return Candidates(pairs[kept], CROPS[crop.ravel()[kept]])
