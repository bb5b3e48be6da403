import re
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from lesionfast.data.duplicates import (
    AGREE,
    MIRROR,
    THRESHOLD,
    WORKING,
    correlate,
    describe_transform,
    find_keypoints,
    fit,
    verify,
)


def picture(seed, side=WORKING):
    """Speckled skin with a dark round spot: uint8 (side, side)."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) - side / 2
    spot = 70 / (1 + np.exp(-(np.hypot(x, y) - side / 5)))
    speckle = 120 * gaussian_filter(rng.normal(size=(side, side)), side / 60)
    return np.clip(90 + spot + speckle, 0, 255).astype(np.uint8)


def turn(image, turns, mirrored):
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_turns_and_mirrors_are_found_and_laid_over(turns, mirrored):
    first, second = picture(0), turn(picture(0), turns, mirrored)
    agreeing, affine = fit(find_keypoints(first), find_keypoints(second), mirrored)
    assert agreeing > 30
    turned = ["", "turned left by 90°", "turned (left|right) by 180°", "turned right by 90°"][turns]
    words = ", ".join(["mirrored"] * mirrored + [turned] * (turns > 0)) or "not turned"
    assert re.fullmatch(words, describe_transform(affine))
    assert correlate(first, second, affine) > 0.9


def test_a_descriptor_in_a_mirror_is_that_of_the_mirrored_picture():
    image = picture(1)
    seen = cv2.KeyPoint(80, 90, 12, 30)
    mirrored = cv2.KeyPoint(WORKING - 1 - 80, 90, 12, 180 - 30)
    sift = cv2.SIFT_create()
    _, first = sift.compute(image, [seen])
    _, second = sift.compute(turn(image, 0, True), [mirrored])
    assert np.abs(first[:, MIRROR] - second).mean() < 3 < np.abs(first - second).mean()


def test_round_spots_on_other_skin_do_not_agree():
    grey = np.stack([picture(seed) for seed in range(8)])
    pixels = np.repeat(grey[..., None], 3, axis=3)
    pairs = np.array([(0, i) for i in range(1, 8)])
    done = []
    assert verify(pixels, pairs, lambda *state: done.append(state)) == []
    assert done == [(7, 7)]


def test_the_wider_picture_comes_first_and_the_transform_is_said():
    large = picture(1, 2 * WORKING)
    turned = Image.fromarray(large).rotate(8, Image.Resampling.BICUBIC)
    part = np.asarray(turned.crop((104, 88, 104 + WORKING, 88 + WORKING)))
    wide = np.asarray(Image.fromarray(large).resize((WORKING, WORKING), Image.Resampling.BOX))
    pixels = np.repeat(np.stack([part, wide])[..., None], 3, axis=3)
    ((a, b, score, transform),) = verify(pixels, np.array([(0, 1)]), lambda *_: None)
    assert (a, b) == (1, 0) and THRESHOLD <= score < 1
    assert transform in [f"turned left by {degrees}°, enlarged 2.0 times" for degrees in (7, 8, 9)]


def test_threads_find_the_same_every_time():
    first, second = find_keypoints(picture(2)), find_keypoints(picture(3))
    with ThreadPoolExecutor(4) as threads:
        fits = list(threads.map(lambda _: fit(first, second, False), range(20)))
    assert len({(agreeing, affine.tobytes()) for agreeing, affine in fits}) == 1


def test_distorted_and_blank_pictures_do_not_agree():
    first, second = picture(4), cv2.resize(picture(4), (WORKING, WORKING // 3))
    assert fit(find_keypoints(first), find_keypoints(second), False)[0] < AGREE
    blank = np.zeros((WORKING, WORKING), np.uint8)
    places, descriptors = find_keypoints(blank)
    assert places.shape == (0, 2) and descriptors.shape == (0, 128)
    assert fit((places, descriptors), find_keypoints(first), False)[0] == 0
    assert correlate(blank, blank, np.eye(2, 3)) == 0


def test_a_transform_is_said_in_words():
    assert describe_transform(np.eye(2, 3)) == "not turned"
    turn = cv2.getRotationMatrix2D((0, 0), 87, 1.31)  # counter-clockwise
    assert describe_transform(turn) == "turned left by 87°, enlarged 1.3 times"
    mirror = turn[:, :2] @ np.diag([-1, 1])
    assert describe_transform(mirror) == "mirrored, turned left by 87°, enlarged 1.3 times"
