"""OOD scores against SciPy, and where the answer is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from lesionfast.errors import LesionfastError
from lesionfast.stats.ood import (
    RIDGE,
    Distance,
    NeighbourScorer,
    OODScorer,
    describe_texture,
    unit,
)


def clusters(n: int, seed: int, far: float = 0.0) -> np.ndarray:
    """Return features (n, 12) of three classes, `far` off in a new direction."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    features = rng.normal(size=(n, 12)) * np.linspace(0.5, 2, 12)
    features[np.arange(n), codes] += 8
    features[:, 5] += far
    return features.astype(np.float32)


def spots(n: int, seed: int, sharp: float = 2.0, size: int = 56) -> np.ndarray:
    """Return pictures uint8 (n, size, size, 3) of a dark disc on pink with noise of a grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    disc = np.hypot(y, x) < rng.uniform(0.15, 0.35, (n, 1, 1))
    grain = gaussian_filter(rng.normal(size=(n, size, size, 3)), (0, sharp, sharp, 0))
    noise = 8 * grain / grain.std()
    colour = np.array([220, 160, 150]) - disc[..., None] * rng.uniform(40, 120, (n, 1, 1, 1))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scorer() -> OODScorer:
    return OODScorer.fit(clusters(600, 0), clusters(400, 1), spots(200, 0), spots(400, 1))


def test_what_is_far_in_either_way_scores_higher_and_a_twentieth_is_above(scorer):
    scores = scorer.score(clusters(400, 1), spots(400, 1))
    assert scores.shape == (400,) and scorer.threshold == np.quantile(scores, 0.95)
    assert (scores > scorer.threshold).mean() == pytest.approx(0.05)

    def above(features: np.ndarray, pixels: np.ndarray) -> float:
        return float((scorer.score(features, pixels) > scorer.threshold).mean())

    assert 0.02 < above(clusters(500, 2), spots(500, 2)) < 0.09
    assert above(clusters(200, 9, far=25.0), spots(200, 9)) > 0.95
    assert above(clusters(200, 9), spots(200, 9, sharp=0.4)) > 0.95


def test_a_distance_is_that_of_mahalanobis_in_spreads_of_validation():
    x, valid = clusters(400, 0), clusters(100, 1)
    distance = Distance.fit(x, valid)
    covariance = np.cov(x.T) + RIDGE * np.trace(np.cov(x.T)) / 12 * np.eye(12)
    expected = cdist(valid, x.mean(0)[None], "mahalanobis", VI=np.linalg.inv(covariance))[:, 0]
    logs = np.log(expected)
    np.testing.assert_allclose(
        distance.measure(valid), (logs - logs.mean()) / logs.std(), atol=2e-3
    )


def test_fewer_images_than_features_are_enough():
    rng = np.random.default_rng(0)
    x, valid, odd = (rng.normal(size=(n, 300)) * 0.1 + at for n, at in ((20, 0), (20, 0), (20, 1)))
    distance = Distance.fit(x.astype(np.float32), valid.astype(np.float32))
    assert distance.measure(odd).min() > distance.measure(valid).max()


@pytest.mark.parametrize("change", [lambda x: x * 0.6, lambda x: x * (0.8, 1.0, 1.1)])
def test_texture_depends_little_on_exposure_and_white_balance(change):
    pixels = spots(50, 0)
    plain, changed = (describe_texture(p) for p in (pixels, change(pixels).astype(np.uint8)))
    spread = describe_texture(spots(200, 1)).std(axis=0)
    sharper = describe_texture(spots(50, 0, sharp=0.4))
    assert np.abs(changed - plain).mean() < 0.25 * np.abs(sharper - plain).mean()
    assert plain.shape == (50, 28) and (spread > 0).all()


def test_texture_is_of_a_grid_that_the_size_does_not_change():
    small, large = spots(20, 0), spots(20, 0).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(describe_texture(large), describe_texture(small), atol=1e-4)
    assert describe_texture(small[:0]).shape == (0, 28)
    assert np.isfinite(describe_texture(np.zeros((2, 8, 8, 3), np.uint8))).all()


def test_what_does_not_fit_is_refused(scorer):
    x, valid, pixels = clusters(30, 0), clusters(20, 1), (spots(30, 0), spots(20, 1))
    for few in (0, 1, 19):
        with pytest.raises(LesionfastError, match=f"20 validation images; found 30 and {few}. "):
            OODScorer.fit(x, valid[:few], pixels[0], pixels[1][:few])
    assert np.isfinite(OODScorer.fit(x, valid, *pixels).threshold)
    with pytest.raises(LesionfastError, match="with 1 that are not finite"):
        OODScorer.fit(x, np.where(valid == valid[0, 0], np.nan, valid), *pixels)
    with pytest.raises(LesionfastError, match="have 3 columns, those of the training images 12"):
        scorer.score(valid[:, :3], pixels[1])
    assert scorer.score(valid[:0], pixels[0][:0]).shape == (0,)


@pytest.mark.parametrize(("n", "k"), [(6, 6), (300, 10), (1000, 20)])
def test_neighbours_are_those_of_a_full_sort(n, k):
    x, valid = unit(clusters(n, 0)), clusters(50, 1)
    expected = np.sort(cdist(unit(valid), x), axis=1)[:, k - 1]
    scores = NeighbourScorer(x, 0.5).score(valid, np.zeros((50, 8, 8, 3), np.uint8))
    np.testing.assert_allclose(scores, expected, atol=3e-3)
