"""Maps of attention lie beside their pictures; the map of the images keeps neighbours together."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from PIL import Image
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.explain import explain_images
from lesionfast.evaluation.features import write_features
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting import explanations
from lesionfast.reporting.explanations import (
    GAP,
    describe_maps,
    draw_attribution,
    draw_feature_map,
    draw_maps,
    draw_pair,
    overlay,
    project,
)
from lesionfast.reporting.page import new_figure
from lesionfast.training.experiment import train

CONFIG = TrainConfig(
    arch="test_resnet", weights="none", size=32, epochs=1, metadata="age,sex", tta=1
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(load_dataset(CONFIG), CONFIG, tmp_path_factory.mktemp("runs"))


def captions(figure) -> list[str]:
    return [axis.get_xlabel() for axis in figure.axes if "truth:" in axis.get_xlabel()]


def test_top_losses_and_missed_melanomas_are_drawn_beside_their_maps(run, tmp_path, drawn):
    interpretation = Interpretation.from_run(run)
    paths = draw_attribution(interpretation, tmp_path, losses=4, most=2)
    names = ["attribution_top_losses", "attribution_melanomas_taken_for_nevi"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    first, second = (drawn[name] for name in names)
    missed = min(2, len(interpretation.taken_for()))
    assert len(captions(first)) == 4 and len(captions(second)) == missed
    worst = interpretation.top_losses(1).iloc[0]
    assert first.axes[0].get_title(loc="left") == worst["image_id"]
    text = captions(first)[0]
    assert f"decision: {worst['decision']}" in text
    assert (
        text.count(f"towards {worst['decision']}")
        + text.count(f"against {worst['decision']}")
        + text.count(f"no effect on {worst['decision']}")
        == 2
    )  # age and sex
    assert "train at a larger --size" in first.get_suptitle()
    assert (
        "1 × 1 cells" in first.get_suptitle()
        and "age and sex: contribution" in first.get_suptitle()
    )


def test_without_melanomas_taken_for_nevi_the_figure_says_so(run, tmp_path, drawn, monkeypatch):
    empty = pd.DataFrame(columns=["image_id", "decision"])
    monkeypatch.setattr(Interpretation, "taken_for", lambda *_: empty)
    draw_attribution(Interpretation.from_run(run), tmp_path, losses=1)
    figure = drawn["attribution_melanomas_taken_for_nevi"]
    assert figure.axes[0].texts[0].get_text() == "no melanoma was taken for a nevus"


def test_a_run_without_metadata_is_told_of_the_map_alone(run):
    explanation = explain_images(run, run.predictions["image_id"].tolist()[:2])
    assert "log-odds" in describe_maps(explanation)
    explanation.metadata.loc[:] = 0.0
    assert "log-odds" not in describe_maps(explanation)
    rows = Interpretation.from_run(run, run.predictions["split"].iloc[0]).rows
    figure = draw_maps(explanation, rows, "title", "")
    assert not any("towards" in each for each in captions(figure))


def test_the_map_lies_right_of_the_picture_at_the_same_place():
    picture = np.full((60, 60, 3), 200, np.uint8)
    heat = np.zeros((30, 30), np.float32)
    heat[5:10, 20:25] = 1
    axis = new_figure(3, 2, "").subplots()
    draw_pair(axis, picture, heat)
    drawn = axis.images[0].get_array()
    np.testing.assert_array_equal(drawn[:, :60], picture)
    brightness = drawn[:, 60 + GAP :].astype(int).sum(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert 10 <= row < 20 and 40 <= column < 50
    contour = axis.collections[0].get_paths()[0].vertices
    assert contour[:, 0].min() > 60 + GAP + 35 and contour[:, 1].max() < 25


def test_an_overlay_blends_grey_and_colour():
    picture = np.full((2, 2, 3), 100, np.uint8)
    heat = np.float32([[0, 1], [0.5, 0.25]])
    cover = explanations.COVER
    colours = np.array(colormaps["inferno"](heat))[..., :3]
    expected = cover * 255 * colours + (1 - cover) * 100
    np.testing.assert_allclose(overlay(picture, heat), expected, atol=0.51)


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
    interpretation = Interpretation.from_run(run)
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
    draw_feature_map(Interpretation.from_run(run), tmp_path)
    assert "3 images without features left out" in drawn["feature_map"].get_suptitle()
    assert not [each for each in labels_of(drawn["feature_map"]) if "melanoma" in each]


def test_a_run_without_features_says_what_to_do(make_run, tmp_path):
    with pytest.raises(LesionfastError, match="has no features.safetensors.*Train it again"):
        draw_feature_map(Interpretation.from_run(make_run(n=20)), tmp_path)
