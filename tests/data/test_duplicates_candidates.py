import numpy as np
import pytest

from lesionfast.data.duplicates import (
    MOST,
    NEIGHBOURS,
    SMALL,
    describe,
    find_candidates,
    ring_filters,
    shrink,
)


@pytest.fixture(scope="module")
def pictures():
    """Soft random pictures: uint8 (60, 96, 96, 3)."""
    noise = np.random.default_rng(0).random((60, 6, 6, 3))
    return (np.kron(noise, np.ones((1, 16, 16, 1))) * 255).astype(np.uint8)


def test_shrinking_averages(pictures):
    small = shrink(pictures).reshape(len(pictures), 3, SMALL, SMALL)
    expected = pictures[3, 4:8, 92:96, 1].mean() / 255
    assert small[3, 1, 1, 23] == pytest.approx(expected, abs=1e-5)


def test_harmonic_0_is_an_average_and_the_others_see_no_flat_colour():
    totals = ring_filters(1.3, 0.07, -0.07).sum(axis=0)
    averages = np.isclose(totals, 1, atol=1e-4)
    assert averages.sum() == 6  # the centre and five rings
    assert np.abs(totals[~averages]).max() < 1e-4


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_description_is_the_same_turned_or_mirrored(turns, mirrored, pictures):
    turned = np.rot90(pictures[:, :, ::-1] if mirrored else pictures, turns, axes=(1, 2))
    same = describe(shrink(turned), 1.3, 0, 0) - describe(shrink(pictures), 1.3, 0, 0)
    other = describe(shrink(pictures[::-1]), 1.3, 0, 0) - describe(shrink(pictures), 1.3, 0, 0)
    assert np.abs(same).max() < 1e-4 < 0.1 < np.abs(other).max()


def test_a_description_is_the_same_in_other_light(pictures):
    darker = (pictures * 0.6 + 20).astype(np.uint8)
    change = describe(shrink(darker), 1, 0, 0) - describe(shrink(pictures), 1, 0, 0)
    assert np.abs(change).max() < 0.03


def test_the_nearest_of_a_turned_picture_is_the_picture(pictures):
    both = np.concatenate([pictures, np.rot90(pictures[:5], 1, axes=(1, 2))])
    done = []
    pairs, _ = find_candidates(both, np.arange(len(both)), lambda *state: done.append(state))
    first = {tuple(sorted(pair)) for pair in pairs[:5].tolist()}
    assert first == {(i, 60 + i) for i in range(5)}
    assert done[-1] == (65, 65)


def test_pairs_are_of_two_groups_and_come_once(pictures):
    groups = np.arange(len(pictures)) // 2
    pairs, crops = find_candidates(pictures, groups, lambda *_: None)
    ends = np.sort(pairs, axis=1)
    assert (groups[ends[:, 0]] != groups[ends[:, 1]]).all()
    assert len(np.unique(ends, axis=0)) == len(ends) <= min(MOST, NEIGHBOURS * len(pictures))
    assert crops.shape == (len(ends), 3)


def test_two_pictures_are_enough_and_blank_ones_do_no_harm():
    blank = np.zeros((2, 96, 96, 3), np.uint8)
    pairs, _ = find_candidates(blank, np.arange(2), lambda *_: None)
    assert np.sort(pairs).tolist() == [[0, 1]]
