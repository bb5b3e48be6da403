"""The map keeps neighbours together, and shows every image that has features."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.features import write_features
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report import explanations
from lesionfast.report.explanations import draw_feature_map, project


def clusters(n: int = 90, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    return rng.normal(size=(n, width)) + 6 * rng.normal(size=(3, width))[labels], labels


def test_what_is_alike_lies_together():
    features, labels = clusters()
    places = project(features)
    assert places.shape == (90, 2)
    assert silhouette_score(places, labels) > 0.5
    near = NearestNeighbors(n_neighbors=4).fit(places).kneighbors(return_distance=False)
    assert (labels[near] == labels[:, None]).mean() > 0.99
    noise = np.random.default_rng(1).normal(size=features.shape)
    assert silhouette_score(project(noise), labels) < 0.1


def test_a_seed_gives_the_same_map_and_few_images_do():
    features, _ = clusters(12, width=4)
    np.testing.assert_array_equal(project(features), project(features))
    with pytest.raises(LesionfastError, match="9 images are too few.*--split"):
        project(features[:9])


@pytest.fixture
def fast(monkeypatch):
    """The first two features in the place of t-SNE."""
    monkeypatch.setattr(explanations, "project", lambda features: features[:, :2])


def labels_of(figure) -> list[str]:
    return figure.axes[0].get_legend_handles_labels()[1]


def test_every_image_is_drawn_by_its_truth_and_missed_melanomas_ringed(
    make_run, tmp_path, fast, drawn
):
    run = make_run(n=200, rule="argmax")
    ids = run.predictions["image_id"].tolist()
    write_features(run, ids, np.random.default_rng(0).normal(size=(len(ids), 4)))
    interpretation = Interpretation.of(run)
    path = draw_feature_map(interpretation, tmp_path)
    with Image.open(path) as picture:
        assert min(picture.size) > 500
    axis = drawn["feature_map"].axes[0]
    shown = {each.get_label(): len(each.get_offsets()) for each in axis.collections}
    missed = len(interpretation.taken_for("mel", "nv"))
    assert missed and shown.pop(f"melanoma taken for a nevus, {missed}") == missed
    wrong = int((interpretation.truth != interpretation.decision).sum()) - missed
    assert shown.pop(f"other error (rule argmax), {wrong}") == wrong
    assert sum(shown.values()) == 200 and len(shown) == 7


def test_other_classes_and_missing_features_are_said(make_run, tmp_path, fast, drawn):
    run = make_run(classes=("wart", "scar"), n=40)
    ids = run.predictions["image_id"].tolist()[:-3]  # three of test have none
    write_features(run, ids, np.random.default_rng(0).normal(size=(len(ids), 4)))
    draw_feature_map(Interpretation.of(run), tmp_path)
    assert "3 images without features left out" in drawn["feature_map"].get_suptitle()
    assert not [each for each in labels_of(drawn["feature_map"]) if "melanoma" in each]


def test_a_run_without_features_says_what_to_do(make_run, tmp_path):
    with pytest.raises(LesionfastError, match="has no features.safetensors.*Train it again"):
        draw_feature_map(Interpretation.of(make_run(n=20)), tmp_path)
