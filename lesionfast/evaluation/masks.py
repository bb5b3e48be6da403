"""Do heat maps lie on the lesion? Against masks that a person drew, and a blob in the centre."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lesionfast.data.decoding import fit_square
from lesionfast.data.images import read_image
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.bootstrap import RESAMPLES, drawn_rows, interval, wilson

if TYPE_CHECKING:
    from lesionfast.evaluation.attribution import Explanation

logger = logging.getLogger("lesionfast")

ENDINGS = ("_segmentation.png", ".png")  # as in the archives of ISIC, or plain
SPREAD = 0.2  # of the blob: its standard deviation as a share of the side


def compare_with_masks(explanation: "Explanation", folder: Path) -> pd.DataFrame:
    """Return how well maps lie on the lesions of a folder of masks; see `score_maps`.

    Masks are named IMAGE_ID_segmentation.png or IMAGE_ID.png, white where the lesion is. Missing
    and unreadable ones are counted in the log. Raises `LesionfastError` if none is left.
    """
    about = explanation.run.model
    masks, bad = read_masks(folder, explanation.rows["image_id"], about["size"], about["resize"])
    found = [i for i, name in enumerate(explanation.rows["image_id"]) if name in masks]
    if bad:
        name, why = next(iter(bad.items()))
        text = "%d of %d images have no mask in %s that can be used; %s: %s"
        logger.warning(text, len(bad), len(explanation.rows), folder, name, why)
    rows = explanation.rows.iloc[found]
    lesions = rows["group"] if "group" in rows else rows["image_id"]
    stacked = np.stack([masks[name] for name in rows["image_id"]])
    return score_maps(explanation.maps[found], stacked, lesions)


def read_masks(
    folder: Path, image_ids: Sequence[str], size: int, resize: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return image id -> mask, bool (size, size), and image id -> why there is none.

    A mask is cut and resized as the picture is. Raises `LesionfastError` if there is none at all.
    """
    if not Path(folder).is_dir():
        raise LesionfastError(f"there is no folder {folder}. Name one of masks with --masks.")
    masks, bad = {}, {}
    for name in image_ids:
        files = [Path(folder) / f"{name}{ending}" for ending in ENDINGS]
        file = next((each for each in files if each.is_file()), None)
        try:
            masks[name] = read_mask(file, size, resize) if file else None
            reason = "there is no file" if file is None else "no lesion is in it"
        except LesionfastError as error:
            masks[name], reason = None, str(error)
        if masks[name] is None or not masks[name].any():
            bad[name] = reason
            del masks[name]
    if not masks:
        first = next(iter(bad.values()), "there are no images")
        raise LesionfastError(
            f"{folder} has no usable mask of these {len(bad)} images ({first}). Name a folder "
            f"with files as {next(iter(image_ids), 'ISIC_0024306')}{ENDINGS[0]}."
        )
    return masks, bad


def read_mask(file: Path, size: int, resize: str) -> np.ndarray:
    """Return a mask as bool (size, size), cut and resized as a picture is."""
    grey = fit_square(read_image(str(file)).convert("L"), size, resize)
    return np.asarray(grey) > 127


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
        raise LesionfastError("every map is 0: nothing speaks for its class. Explain another one.")
    maps, masks = maps[used], masks[used]
    codes = np.unique(np.asarray(lesions)[used], return_inverse=True)[1]
    blob = np.broadcast_to(centred_blob(*masks.shape[1:]), masks.shape)
    rows = []
    for measure, find in (("share inside", share_inside), ("pointing game", pointing_game)):
        own, other = find(maps, masks), find(blob, masks)
        for of, values in (("map", own), ("centred blob", other), ("difference", own - other)):
            low, high = interval_of_mean(values, codes, resamples, seed)
            if low == high and of != "difference":
                low, high = wilson(values.mean(), len(np.unique(codes)))
            rows.append((measure, of, len(values), float(values.mean()), low, high))
    return pd.DataFrame(rows, columns=["measure", "of", "n", "value", "low", "high"])


def share_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map's heat that lies inside its mask, (n,)."""
    return (maps * masks).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return 1 where the hottest pixel is inside the mask, (n,); of equals the share inside."""
    hottest = maps == maps.max(axis=(1, 2), keepdims=True)
    return share_inside(hottest.astype(np.float64), masks)


def centred_blob(height: int, width: int) -> np.ndarray:
    """Return a Gaussian (height, width) in the centre: where a lesion is in most photographs."""
    y, x = (np.arange(n) / n - (n - 1) / (2 * n) for n in (height, width))
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * SPREAD**2))


def interval_of_mean(
    values: np.ndarray, lesions: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values (n,), lesions (n,) being drawn."""
    same = np.zeros(len(values), np.int64)
    drawn = drawn_rows(same, lesions, resamples, seed)
    means = [weights @ values / weights.sum(axis=1) for weights in drawn]
    return interval(np.concatenate(means))
