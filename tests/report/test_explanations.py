"""The figures of attributions say what they show, of a run on the sample trained once."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from PIL import Image

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.evaluation.attribution import explain_images
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report import explanations
from lesionfast.report.explanations import (
    GAP,
    describe_maps,
    draw_attribution,
    draw_maps,
    draw_pair,
    overlay,
)
from lesionfast.report.page import new_figure
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
    interpretation = Interpretation.of(run)
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
    assert "1 × 1 cells" in first.get_suptitle() and "age and sex: what is" in first.get_suptitle()


def test_without_melanomas_taken_for_nevi_the_figure_says_so(run, tmp_path, drawn, monkeypatch):
    empty = pd.DataFrame(columns=["image_id", "decision"])
    monkeypatch.setattr(Interpretation, "taken_for", lambda *_: empty)
    draw_attribution(Interpretation.of(run), tmp_path, losses=1)
    figure = drawn["attribution_melanomas_taken_for_nevi"]
    assert figure.axes[0].texts[0].get_text() == "no melanoma was taken for a nevus"


def test_a_run_without_metadata_is_told_of_the_map_alone(run):
    explanation = explain_images(run, run.predictions["image_id"].tolist()[:2])
    assert "log-odds" in describe_maps(explanation)
    explanation.metadata.loc[:] = 0.0
    assert "log-odds" not in describe_maps(explanation)
    rows = Interpretation.of(run, run.predictions["split"].iloc[0]).rows
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
