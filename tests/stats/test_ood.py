"""OOD scores against SciPy, and where the answer is known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from lesionfast.errors import LesionfastError
from lesionfast.stats.ood import OODScorer


def clusters(n: int, seed: int, far: float = 0.0) -> np.ndarray:
    """Return features (n, 12) of three classes, `far` off in a new direction."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    features = rng.normal(size=(n, 12)) * np.linspace(0.5, 2, 12)
    features[np.arange(n), codes] += 8
    features[:, 5] += far
    return features.astype(np.float32)


def test_what_is_far_scores_higher_and_a_twentieth_is_above_the_threshold():
    x, valid, test = (clusters(n, seed) for seed, n in enumerate((600, 400, 2000)))
    scorer = OODScorer.fit(x, valid)
    scores = scorer.score(valid)
    assert scores.shape == (400,) and scorer.threshold == np.quantile(scores, 0.95)
    assert (scores > scorer.threshold).mean() == pytest.approx(0.05)
    assert 0.02 < (scorer.score(test) > scorer.threshold).mean() < 0.09
    assert (scorer.score(clusters(200, 9, far=25.0)) > scorer.threshold).mean() > 0.95


@pytest.mark.parametrize(("n", "k"), [(6, 6), (300, 10), (1000, 20)])
def test_neighbours_are_those_of_a_full_sort(n, k):
    x, valid = clusters(n, 0), clusters(50, 1)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (valid, x)]
    expected = np.sort(cdist(*unit), axis=1)[:, k - 1]
    np.testing.assert_allclose(OODScorer.fit(x, valid).score(valid), expected, atol=3e-3)  # float16


def test_of_many_training_images_some_are_enough(monkeypatch):
    x, valid, test = (clusters(n, seed) for seed, n in enumerate((6000, 400, 500)))
    whole = OODScorer.fit(x, valid)
    monkeypatch.setattr("lesionfast.stats.ood.MOST", 2000)
    some = OODScorer.fit(x, valid)
    assert (len(whole.train), len(some.train)) == (6000, 2000)
    np.testing.assert_allclose(some.score(test), whole.score(test), rtol=0.2)
    assert np.corrcoef(some.score(test), whole.score(test))[0, 1] > 0.98
    assert some.threshold == pytest.approx(whole.threshold, rel=0.05)
    np.testing.assert_array_equal(OODScorer.fit(x, valid).train, some.train)


def test_what_does_not_fit_is_refused():
    x, valid = clusters(30, 0), clusters(10, 1)
    with pytest.raises(LesionfastError, match="1 validation image; found 30 and 0"):
        OODScorer.fit(x, valid[:0])
    with pytest.raises(LesionfastError, match="with 1 that are not finite"):
        OODScorer.fit(x, np.where(valid == valid[0, 0], np.nan, valid))
    with pytest.raises(LesionfastError, match="have 3 columns, those of the training images 12"):
        OODScorer.fit(x, valid).score(valid[:, :3])
    assert OODScorer.fit(x, valid).score(valid[:0]).shape == (0,)
