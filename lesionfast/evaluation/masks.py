"""Masks: how well heat maps lie on the lesions. NumPy alone, where explanations need torch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lesionfast.data.images import fit_square, read_image
from lesionfast.errors import LesionfastError
from lesionfast.stats.bootstrap import RESAMPLES, drawn_rows, interval, wilson

if TYPE_CHECKING:
    from lesionfast.evaluation.explain import Explanation

logger = logging.getLogger("lesionfast")

ENDINGS = ("_segmentation.png", ".png")  # as in the archives of ISIC, or plain
SPREAD = 0.2  # of the blob: its standard deviation as a share of the side


def compare_with_masks(explanation: "Explanation", folder: Path) -> pd.DataFrame:
    """Return how well maps lie on the lesions of a folder of masks; see `score_maps`.

    Masks are named IMAGE_ID_segmentation.png or IMAGE_ID.png, white where the lesion is. A warning
    counts missing and unreadable ones. Raises `LesionfastError` if none is left.
    """
    model, rows = explanation.run.model, explanation.rows
    masks, bad = read_masks(folder, rows["image_id"], model["size"], model["resize"])
    if bad:
        name, why = next(iter(bad.items()))
        text = "%d of %d images have no usable mask in %s, such as %s: %s"
        logger.warning(text, len(bad), len(rows), folder, name, why)
    is_masked = rows["image_id"].isin(masks).to_numpy()
    rows = rows[is_masked]
    lesions = rows["group" if "group" in rows else "image_id"]
    stacked = np.stack([masks[name] for name in rows["image_id"]])
    return score_maps(explanation.maps[is_masked], stacked, lesions)


def read_masks(
    folder: Path, image_ids: Sequence[str], size: int, resize: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return image id -> mask, bool (size, size), and image id -> why there is none.

    Raises `LesionfastError` if there is no mask at all.
    """
    if not Path(folder).is_dir():
        raise LesionfastError(f"there is no folder {folder}. Name a folder of masks with --masks.")
    masks, bad = {}, {}
    for name in image_ids:
        files = [Path(folder) / f"{name}{ending}" for ending in ENDINGS]
        file = next(filter(Path.is_file, files), None)
        try:
            masks[name] = read_mask(file, size, resize)
        except LesionfastError as error:
            bad[name] = str(error)
    if not masks:
        first = next(iter(bad.values()), "there are no images")
        raise LesionfastError(
            f"{folder} has no usable mask of these {len(bad)} images ({first}). Name a folder "
            f"with files such as {next(iter(image_ids), 'ISIC_0024306')}{ENDINGS[0]}."
        )
    return masks, bad


def read_mask(file: Path | None, size: int, resize: str) -> np.ndarray:
    """Return a mask as bool (size, size), cut and resized as the picture is.

    Raises `LesionfastError` where there is no file, and no lesion in it.
    """
    if file is None:
        raise LesionfastError("there is no file")
    grey = fit_square(read_image(str(file)).convert("L"), size, resize)
    mask = np.asarray(grey) > 127
    if not mask.any():
        raise LesionfastError("it shows no lesion")
    return mask


def score_maps(
    maps: np.ndarray, masks: np.ndarray, lesions: Sequence, *, resamples: int = RESAMPLES, seed=0
) -> pd.DataFrame:
    """Return the share of heat inside the lesion and the pointing game, of maps and of a blob.

    Maps are (n, H, W) from 0, masks bool (n, H, W). Columns: measure ('share inside' or 'pointing
    game', Zhang et al. 2018, doi:10.1007/s11263-017-1059-x), of ('map', 'centred blob' or
    'difference', in pairs), n, value, low, high: 95 % intervals from a bootstrap over lesions. A
    map that is 0 everywhere has no share and is left out of `n`.
    """
    used = maps.reshape(len(maps), -1).any(axis=1)
    if not used.any():
        raise LesionfastError("every map is 0: no image supports its class. Explain another class.")
    maps, masks = maps[used], masks[used]
    codes = np.unique(np.asarray(lesions)[used], return_inverse=True)[1]
    blob = np.broadcast_to(centred_blob(*masks.shape[1:]), masks.shape)
    rows = []
    for measure, score in (("share inside", share_inside), ("pointing game", pointing_game)):
        own, other = score(maps, masks), score(blob, masks)
        for of, values in (("map", own), ("centred blob", other), ("difference", own - other)):
            low, high = mean_interval(values, codes, resamples, seed)
            if low == high and of != "difference":
                low, high = wilson(values.mean(), len(np.unique(codes)))
            rows.append((measure, of, len(values), float(values.mean()), low, high))
    return pd.DataFrame(rows, columns=["measure", "of", "n", "value", "low", "high"])


def share_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map's heat that lies inside its mask, (n,)."""
    return (maps * masks).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return 1 where the hottest pixel is inside the mask, (n,); of ties the share inside."""
    hottest = maps == maps.max(axis=(1, 2), keepdims=True)
    return share_inside(hottest.astype(np.float64), masks)


def centred_blob(height: int, width: int) -> np.ndarray:
    """Return a Gaussian (height, width) in the centre, where most photographs have the lesion."""
    y, x = (np.arange(n) / n - (n - 1) / (2 * n) for n in (height, width))
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * SPREAD**2))


def mean_interval(
    values: np.ndarray, lesions: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values (n,) when lesions (n,) are resampled."""
    same_class = np.zeros(len(values), np.int64)
    drawn = drawn_rows(same_class, lesions, resamples, seed)
    means = [weights @ values / weights.sum(axis=1) for weights in drawn]
    return interval(np.concatenate(means))
