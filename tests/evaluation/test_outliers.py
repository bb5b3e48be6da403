"""The OOD score of a run is kept and read again, and tells what is not skin."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from lesionfast.config import TrainConfig
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import OOD, Decisions
from lesionfast.evaluation.features import run_backbone
from lesionfast.evaluation.outliers import load_ood, save_ood, score_images
from lesionfast.run import Run
from lesionfast.stats.ood import NeighbourScorer, OODScorer, unit
from lesionfast.training.experiment import train

CONFIG = TrainConfig(arch="test_resnet", weights="none", size=32, head="prototype", fusion="none")


X, VALID = np.random.default_rng(0).normal(size=(2, 100, 12)).astype(np.float32)
SEEN = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3)).astype(np.uint8)
KINDS = {
    "as now": OODScorer.fit(np.asfortranarray(X), VALID, SEEN, SEEN[::-1]),
    "of an earlier version": NeighbourScorer(np.float32(np.float16(unit(X))), 1.25),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_ood_score_is_kept_and_read_again(tmp_path, kind):
    scorer = KINDS[kind]
    path = tmp_path / OOD.file
    with pytest.raises(LesionfastError, match="is missing.*lesionfast interpret"):
        load_ood(path)
    save_ood(scorer, path)
    again = load_ood(path)
    assert (again.level, again.threshold) == (0.95, scorer.threshold)
    assert type(again) is type(scorer)
    np.testing.assert_array_equal(again.score(VALID, SEEN), scorer.score(VALID, SEEN))
    path.write_bytes(b"nothing")
    with pytest.raises(LesionfastError, match="is damaged.*lesionfast interpret"):
        load_ood(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    return train(load_dataset(CONFIG), CONFIG, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def scorer(run):
    return Decisions(run).ood


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


def score(run, scorer, pixels: np.ndarray) -> np.ndarray:
    return scorer.score(run_backbone(run, pixels, np.arange(len(pixels))), pixels)


@pytest.mark.parametrize("kind", ["inverted", "black", "noise", "checkerboard", "stripes", "drawn"])
def test_pictures_that_are_not_skin_are_out_of_distribution(run, scorer, pixels, kind):
    usual, odd = score(run, scorer, pixels), score(run, scorer, pictures(kind, pixels))
    labels = np.repeat([0, 1], [len(usual), len(odd)])
    assert roc_auc_score(labels, np.concatenate([usual, odd])) > 0.95
    assert (odd > scorer.threshold).mean() > 0.8


def test_blurred_pictures_score_higher(run, scorer, pixels):
    usual, odd = score(run, scorer, pixels), score(run, scorer, pictures("blurred", pixels))
    labels = np.repeat([0, 1], [len(usual), len(odd)])
    assert roc_auc_score(labels, np.concatenate([usual, odd])) > 0.7  # drawn lesions are smooth


def test_the_ood_threshold_is_of_validation_images_and_kept_with_the_run(run, scorer, pixels):
    assert Decisions(Run(run.path)).ood.threshold == scorer.threshold
    scores = score(run, scorer, pixels)
    assert np.quantile(scores, 0.95) == pytest.approx(scorer.threshold, abs=0.01)
    assert (scores > scorer.threshold).mean() == pytest.approx(0.05, abs=0.04)
    rows = run.predictions[run.predictions["split"] == "test"]
    df = load_dataset(CONFIG, split=run.path / "split.csv")
    test = score_images(run, scorer, df, rows["image_id"])
    assert test.index.equals(rows.index)
    assert (test > scorer.threshold).mean() < 0.2


def test_an_ood_score_is_fitted_when_first_asked_for(run, scorer, pixels):
    expected = score(run, scorer, pixels)
    run.remove(OOD.file)
    np.testing.assert_allclose(score(run, Decisions(run).ood, pixels), expected)
    assert (run.path / OOD.file).is_file()


def test_a_score_of_an_earlier_version_is_used_and_said(run, tmp_path, caplog):
    old = Run(shutil.copytree(run.path, tmp_path / "old"))
    width = Decisions(run).ood.width
    OOD.write(old, NeighbourScorer(np.eye(20, width, dtype=np.float32), 1.25))
    read = Decisions(Run(old.path)).ood
    assert isinstance(read, NeighbourScorer) and read.threshold == 1.25
    assert f"interpret {old.path}" in caplog.text and "an earlier version" in caplog.text


def test_a_run_without_features_has_no_ood_score(make_run):
    with pytest.raises(LesionfastError, match="has no features.safetensors"):
        _ = Decisions(make_run(n=60)).ood
