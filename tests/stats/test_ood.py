"""Outlier scores against SciPy and loops, and on pictures that are no skin."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from lesionfast.config import TrainConfig
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.outlier_features import features_of, fit_outliers, outlier_scores
from lesionfast.stats.ood import METHODS, OUTLIERS, OutlierScorer
from lesionfast.training.experiment import train

CONFIG = TrainConfig(arch="test_resnet", weights="none", size=32, head="prototype", fusion="none")


def clusters(n: int, seed: int, far: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, 12) of three classes, and the classes, `far` off in a new direction."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    features = rng.normal(size=(n, 12)) * np.linspace(0.5, 2, 12)
    features[np.arange(n), codes] += 8
    features[:, 5] += far
    return features.astype(np.float32), codes


@pytest.mark.parametrize("method", METHODS)
def test_what_is_far_scores_higher_and_the_threshold_flags_a_twentieth(method):
    (x, y), (valid, _), (test, _) = (clusters(n, seed) for seed, n in enumerate((600, 400, 2000)))
    scorer = OutlierScorer.fit(x, y, valid, method=method)
    scores = scorer.score(valid)
    assert scores.shape == (400,) and scorer.threshold == np.quantile(scores, 0.95)
    assert scorer.flag(valid).mean() == pytest.approx(0.05)
    assert 0.02 < scorer.flag(test).mean() < 0.09
    if method != "relative":  # takes off what is far from all classes alike
        assert scorer.flag(clusters(200, 9, far=25.0)[0]).mean() > 0.95
    strict = OutlierScorer.fit(x, y, valid, method=method, level=0.99)
    assert strict.flag(valid).mean() == pytest.approx(0.01)


def test_mahalanobis_is_scipys_under_scikit_learns_shrunk_covariance():
    (x, y), (valid, _) = clusters(300, 0), clusters(50, 1)
    means = np.stack([x[y == code].mean(axis=0) for code in range(3)])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(x - means[y]).covariance_)
    nearest = cdist(valid, means, "mahalanobis", VI=inverse).min(axis=1) ** 2
    found = OutlierScorer.fit(x, y, valid, method="mahalanobis").score(valid)
    np.testing.assert_allclose(found, nearest, rtol=1e-3)
    inverse = np.linalg.inv(LedoitWolf().fit(x).covariance_)
    of_all = cdist(valid, x.mean(axis=0, keepdims=True), "mahalanobis", VI=inverse)[:, 0] ** 2
    found = OutlierScorer.fit(x, y, valid, method="relative").score(valid)
    np.testing.assert_allclose(found, nearest - of_all, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("n", "k"), [(6, 6), (300, 10), (1000, 20)])
def test_neighbours_are_those_of_a_full_sort(n, k):
    (x, y), (valid, _) = clusters(n, 0), clusters(50, 1)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (valid, x)]
    expected = np.sort(cdist(*unit), axis=1)[:, k - 1]
    found = OutlierScorer.fit(x, y, valid, method="knn").score(valid)
    np.testing.assert_allclose(found, expected, atol=3e-3)  # kept as float16


@pytest.mark.parametrize("method", METHODS)
def test_it_is_kept_and_read_again(tmp_path, method):
    (x, y), (valid, _) = clusters(100, 0), clusters(50, 1)
    scorer = OutlierScorer.fit(np.asfortranarray(x), y, valid, method=method)
    again = OutlierScorer.load(scorer.save(tmp_path / OUTLIERS))
    assert (again.method, again.level, again.threshold) == (method, 0.95, scorer.threshold)
    np.testing.assert_array_equal(again.score(valid), scorer.score(valid))
    assert again.score(valid[:0]).shape == (0,)


def test_what_does_not_fit_is_refused(tmp_path):
    (x, y), (valid, _) = clusters(30, 0), clusters(10, 1)
    with pytest.raises(LesionfastError, match="no outlier score 'kmn'. Did you mean 'knn'"):
        OutlierScorer.fit(x, y, valid, method="kmn")
    with pytest.raises(LesionfastError, match="level is 1.5; type"):
        OutlierScorer.fit(x, y, valid, level=1.5)
    with pytest.raises(LesionfastError, match="30 training features do not fit 29 classes"):
        OutlierScorer.fit(x, y[:-1], valid)
    with pytest.raises(LesionfastError, match="30 training and 0 validation images are too few"):
        OutlierScorer.fit(x, y, valid[:0])
    with pytest.raises(LesionfastError, match="with 1 that are not finite"):
        OutlierScorer.fit(x, y, np.where(valid == valid[0, 0], np.nan, valid))
    with pytest.raises(LesionfastError, match="have 3 columns, those of the training images 12"):
        OutlierScorer.fit(x, y, valid).score(valid[:, :3])
    with pytest.raises(LesionfastError, match="there is no .*lesionfast interpret"):
        OutlierScorer.load(tmp_path / OUTLIERS)
    (tmp_path / OUTLIERS).write_bytes(b"nothing")
    with pytest.raises(LesionfastError, match="is damaged.*lesionfast interpret"):
        OutlierScorer.load(tmp_path / OUTLIERS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    return train(load_dataset(CONFIG), CONFIG, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def scorer(run):
    return fit_outliers(run)


@pytest.fixture(scope="module")
def pixels(run) -> np.ndarray:
    df = load_dataset(CONFIG, split=run.path / "split.csv")
    paths = df["path"][df["split"] == "valid"].tolist()
    return np.array(open_images(paths, 32, resize=CONFIG.resize, cache=False).pixels)


def drawn(rng: np.random.Generator) -> np.ndarray:
    """Return a picture of coloured boxes and discs."""
    picture = Image.new("RGB", (32, 32), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for draw in (pen.rectangle, pen.ellipse) * 3:
        (x, y), (w, h) = rng.integers(0, 25, (2, 2))
        draw([x, y, x + w, y + h], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(picture)


def pictures(kind: str, pixels: np.ndarray) -> np.ndarray:
    """Return uint8 (n, 32, 32, 3) of a kind that is no photograph of a lesion."""
    rng, side = np.random.default_rng(0), np.arange(32)
    squares = (side[:, None] // 4 + side[None] // 4) % 2 * 255
    made = {
        "inverted": lambda: 255 - pixels,
        "blurred": lambda: gaussian_filter(pixels, (0, 8, 8, 0)),
        "black": lambda: np.zeros_like(pixels[:1]),
        "noise": lambda: rng.integers(0, 256, (40, 32, 32, 3)),
        "checkerboard": lambda: np.repeat(squares[None, :, :, None], 3, axis=-1),
        "stripes": lambda: np.tile((side // 3 % 2 * 255)[None, None, :, None], (1, 32, 1, 3)),
        "drawn": lambda: np.stack([drawn(rng) for _ in range(40)]),
    }
    return np.ascontiguousarray(made[kind]()).astype(np.uint8)


@pytest.mark.parametrize("kind", ["inverted", "black", "noise", "checkerboard", "stripes", "drawn"])
def test_pictures_that_are_no_skin_are_flagged(run, scorer, pixels, kind):
    usual, odd = outlier_scores(run, pixels), outlier_scores(run, pictures(kind, pixels))
    labels = np.repeat([0, 1], [len(usual), len(odd)])
    assert roc_auc_score(labels, np.concatenate([usual, odd])) > 0.95
    assert (odd > scorer.threshold).mean() > 0.8


def test_blurred_pictures_score_higher(run, scorer, pixels):
    usual, odd = outlier_scores(run, pixels), outlier_scores(run, pictures("blurred", pixels))
    labels = np.repeat([0, 1], [len(usual), len(odd)])
    assert roc_auc_score(labels, np.concatenate([usual, odd])) > 0.7  # drawn lesions are smooth


def test_the_threshold_is_of_validation_images_and_kept_with_the_run(run, scorer, pixels):
    kept = OutlierScorer.load(run.path / OUTLIERS)
    assert kept.threshold == scorer.threshold
    scores = outlier_scores(run, pixels)
    assert np.quantile(scores, 0.95) == pytest.approx(scorer.threshold, abs=0.01)
    assert (scores > scorer.threshold).mean() == pytest.approx(0.05, abs=0.04)
    df = load_dataset(CONFIG, split=run.path / "split.csv")
    test = outlier_scores(run, df["path"][df["split"] == "test"].tolist())
    assert (test > scorer.threshold).mean() < 0.2


def test_files_and_their_pixels_score_alike(run, scorer):
    paths = run.predictions["path"].head(5).tolist()
    pixels = np.array(open_images(paths, 32, resize=CONFIG.resize, cache=False).pixels)
    np.testing.assert_allclose(outlier_scores(run, paths), outlier_scores(run, pixels), atol=1e-6)


def test_it_is_fitted_when_first_asked_for(run, scorer, pixels):
    expected = outlier_scores(run, pixels)
    run.remove(OUTLIERS)
    np.testing.assert_allclose(outlier_scores(run, pixels), expected)
    assert (run.path / OUTLIERS).is_file()


def test_what_are_no_pictures_and_models_without_a_backbone_are_refused(run, tmp_path):
    with pytest.raises(LesionfastError, match="must be uint8.*found float64"):
        features_of(run, np.zeros((2, 32, 32, 3)))
    with pytest.raises(LesionfastError, match="there are no images"):
        features_of(run, np.zeros((0, 32, 32, 3), np.uint8))
    config = TrainConfig(arch="test_resnet", weights="none", size=32, fusion="metadata", epochs=1)
    blind = train(load_dataset(config), config, tmp_path)
    with pytest.raises(LesionfastError, match="looks at no image.*Name a run with a backbone"):
        fit_outliers(blind)
