import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from lesionfast.data.duplicates import (
    COARSE,
    VIEWS,
    Match,
    agreement,
    compare_views,
    correlate,
    register,
    texture,
    turn,
)

WHOLE = np.array([1.0, 0, 0])


def picture(seed, side=96):
    """Speckled skin with a dark round spot: uint8 (side, side)."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) - side / 2
    spot = 70 / (1 + np.exp(-(np.hypot(x, y) - side / 5)))
    speckle = 120 * gaussian_filter(rng.normal(size=(side, side)), side / 60)
    return np.clip(90 + spot + speckle, 0, 255).astype(np.uint8)


def coarse(grey):
    return texture(np.asarray(Image.fromarray(grey).resize((COARSE, COARSE))))


@pytest.mark.parametrize("view", range(VIEWS))
def test_the_view_is_found_and_laid_over(view):
    first = picture(0)
    second = np.ascontiguousarray(turn(first, view))
    found = compare_views(first, WHOLE, coarse(second))
    assert found[0] > 0.9 and found[1] == view
    match = register(first, WHOLE, second, view)
    assert match.score > 0.9 and match.view == view
    assert abs(match.zoom - 1) < 0.03 and abs(match.degrees) < 2


def test_round_spots_on_other_skin_do_not_agree():
    scores = [register(picture(0), WHOLE, picture(i), 0).score for i in range(1, 8)]
    assert max(scores) < 0.5


def test_shift_zoom_and_tilt_are_found():
    large = picture(1, 192)
    turned = Image.fromarray(large).rotate(6, Image.Resampling.BICUBIC)
    part = np.asarray(turned.crop((52, 44, 52 + 96, 44 + 96)))
    wide = np.asarray(Image.fromarray(large).resize((96, 96), Image.Resampling.BOX))
    match = register(wide, np.array([1.9, 0.05, -0.02]), part, 0)
    assert match.score > 0.6
    assert match.zoom == pytest.approx(2, abs=0.08)
    assert abs(match.degrees) == pytest.approx(6, abs=1.6)


def test_blank_pictures_have_a_score():
    blank = np.zeros((96, 96), np.uint8)
    assert register(blank, WHOLE, blank, 0).score == pytest.approx(0, abs=1e-3)


def test_correlation_peaks_at_the_shift():
    detail = texture(picture(2))
    moved = np.roll(detail, (3, -4), axis=(0, 1))
    found = correlate(moved[None], detail, reach=5)[0]
    assert np.unravel_index(found.argmax(), found.shape) == (3, 11 - 4)
    assert found.max() <= 1


def test_agreement_asks_every_part_of_the_picture():
    first, other = texture(picture(3, 64)), texture(picture(4, 64))
    half = first.copy()
    half[:, 32:] = other[:, 32:]
    assert agreement(first, first) == pytest.approx(1, abs=1e-3)
    assert agreement(first, other) < 0.3 < agreement(first, half) < 0.75


def test_a_transform_is_said_in_words():
    assert Match(1, 0, 1.0, 0).describe() == "not turned"
    assert Match(1, 5, 1.31, -3).describe() == (
        "mirrored, turned by 90°, tilted by 3°, enlarged 1.3 times"
    )
