"""Whether two pictures show the same: lay one over the other and correlate their texture.

Shapes mislead: dark round moles have the same outline. So pictures are filtered until skin lines,
hairs and dots count as much as outlines, and a pair must agree in every part of the picture.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
from PIL import Image
from scipy.ndimage import gaussian_filter

COARSE = 48  # pixels a side, for all candidates
FINE = 64  # pixels a side, for those that are left
BLOCK = 15  # pixels a side of the parts that have to agree
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
    shift = [int(s) - (2 * reach + 1) * (s > reach) for s in (down, across)]
    score = agreement(*overlap(details[number], target, *shift))
    return Match(score, view, float(crop[0] * best[0]), float(best[1]))


def overlap(
    first: np.ndarray, second: np.ndarray, down: int, across: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what two pictures share if the first lies `down` and `across` pixels further."""
    height, width = first.shape[0] - abs(down), first.shape[1] - abs(across)
    top, left = max(down, 0), max(across, 0)
    first = first[top : top + height, left : left + width]
    top, left = max(-down, 0), max(-across, 0)
    return first, second[top : top + height, left : left + width]


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return how well two textures agree, as a whole and in the average part of the picture.

    A part may lie one pixel off, so that a bend of the skin does not count.
    """
    rows, columns = ((side - 2) // BLOCK for side in first.shape)
    parts = second[1 : 1 + rows * BLOCK, 1 : 1 + columns * BLOCK]
    best = np.full((rows, columns), -1.0)
    for down in range(3):
        for across in range(3):
            moved = first[down : down + rows * BLOCK, across : across + columns * BLOCK]
            energy = block_sums(moved**2) * block_sums(parts**2)
            best = np.maximum(best, block_sums(moved * parts) / (np.sqrt(energy) + 1e-6))
    whole = (first * second).sum() / (np.sqrt((first**2).sum() * (second**2).sum()) + 1e-6)
    return float((whole + best.mean()) / 2)


def block_sums(values: np.ndarray) -> np.ndarray:
    """Return the sum of each BLOCK by BLOCK part of an array."""
    rows, columns = (side // BLOCK for side in values.shape)
    return values.reshape(rows, BLOCK, columns, BLOCK).sum(axis=(1, 3))
