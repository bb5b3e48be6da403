import cv2
import numpy as np
import pytest
import torch

from lesionfast.data.duplicates import (
    FAMILY,
    LEAST,
    SIDE,
    ZOOMS,
    find_candidates,
    find_related,
    ignore,
    read_features,
    whiten,
    workers,
)


@pytest.fixture(scope="module")
def pictures(photograph):
    """Drawn photographs, of which the last five show the first five again, changed."""
    rng = np.random.default_rng(0)
    drawn = [photograph(rng) for _ in range(30)]
    again = [image.crop((50, 37, 150, 112)) for image in drawn[:3]]
    again += [image.point(lambda value: value * 0.7) for image in drawn[3:5]]
    return np.stack([np.asarray(image.resize((SIDE, SIDE))) for image in [*drawn, *again]])


@pytest.fixture(scope="module")
def features(pictures):
    return read_features(pictures, None, ignore)


def test_features_are_one_row_for_each_zoom_and_progress_ends(pictures, features):
    calls = []
    again = read_features(pictures[:20], None, lambda *state: calls.append(state))
    assert again.shape == (20, len(ZOOMS), features.shape[2]) and again.dtype == np.float16
    np.testing.assert_allclose(again, features[:20], atol=1e-2)
    assert calls == [(16, 20), (20, 20)]


def test_features_are_kept_in_a_file_and_read_from_it(pictures, features, tmp_path):
    file = tmp_path / "features.npy"
    np.testing.assert_array_equal(read_features(pictures, file, ignore), features)
    assert file.is_file()
    np.testing.assert_array_equal(read_features(0 * pictures, file, ignore), features)


def test_whitened_rows_have_length_1(features):
    for rows in whiten(features):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-4)


def test_pictures_changed_or_enlarged_are_the_first_candidates(features):
    pairs = find_candidates(features, np.arange(len(features)), ignore)
    first = [tuple(pair) for pair in pairs.tolist()]
    assert set(first[:5]) >= {(3, 33), (4, 34)}
    assert set(first[:70]) >= {(i, 30 + i) for i in range(5)}  # of 595 pairs


def test_pairs_are_of_two_groups_and_come_once(features):
    groups = np.arange(len(features)) // 2
    pairs = find_candidates(features, groups, ignore)
    assert (groups[pairs[:, 0]] != groups[pairs[:, 1]]).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs) <= LEAST


def test_two_pictures_are_enough_and_blank_ones_do_no_harm():
    blank = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    features = read_features(blank, None, ignore)
    assert find_candidates(features, np.arange(2), ignore).tolist() == [[0, 1]]


def test_workers_give_the_threads_of_the_libraries_back():
    before = torch.get_num_threads(), cv2.getNumThreads()
    with pytest.raises(KeyError), workers() as threads:
        used = threads.submit(lambda: (torch.get_num_threads(), cv2.getNumThreads())).result()
        raise KeyError
    assert used == (1, 1)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


def test_all_pictures_of_joined_groups_are_related():
    groups = np.array([0, 0, 1, 2, 2, 3])
    pairs = find_related([(0, 2, 0.9, ""), (2, 3, 0.8, "")], groups)
    wanted = {(0, 2), (1, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 3), (2, 4)}
    assert {tuple(pair) for pair in pairs.tolist()} == wanted
    assert find_related([], groups).shape == (0, 2)
    many = np.repeat([0, 1], FAMILY)
    assert find_related([(0, FAMILY, 0.9, "")], many).shape == (0, 2)
