"""Pictures with plain words below; the atlas shows cases beside their nearest lesions."""

import logging
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.features import nearest_lesions, nearest_to_each
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting import images
from lesionfast.reporting import images as module
from lesionfast.reporting.images import (
    ATLAS_TITLES,
    NEAREST,
    decision_caption,
    draw_atlas,
    draw_grid,
    rounded_percent,
)
from lesionfast.run import Run
from lesionfast.training.experiment import train

CONFIG = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    head="prototype",
    fusion="none",
    precision="float32",
)


def test_grid_shows_the_pictures_and_says_how_many_of_how_many(make_run, images, tmp_path, drawn):
    interpretation = Interpretation.from_run(make_run(rule="argmax"))
    taken = interpretation.taken_for()
    images(taken)
    module.draw_melanomas_taken_for_nevi(interpretation, tmp_path, most=6)
    figure = drawn["melanomas_taken_for_nevi"]
    melanomas = interpretation.confusion().loc["mel"].sum()
    assert f"{len(taken)} of {melanomas} melanomas, the 6 most confident" in figure.get_suptitle()
    assert "test, 600 images, rule argmax" in figure.get_suptitle()
    pictures = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title(loc="left") for axis in pictures] == taken["image_id"][:6].tolist()
    for axis, (_, row) in zip(pictures, taken.iterrows(), strict=False):
        expected = Image.open(row["path"]).convert("RGB")
        assert (axis.images[0].get_array() == np.asarray(expected)).all()
        assert axis.get_xlabel() == decision_caption(row)


def test_no_rows_become_a_figure_that_says_so(make_run, tmp_path, drawn, words):
    run = make_run()
    table = run.predictions
    table.loc[table["target"] == "mel", [f"p_{c}" for c in run.classes]] = 0.0
    table.loc[table["target"] == "mel", "p_mel"] = 1.0
    table.to_csv(run.path / "predictions.csv", index=False)
    path = module.draw_melanomas_taken_for_nevi(Interpretation.from_run(Run(run.path)), tmp_path)
    assert path.is_file()
    assert "no melanoma was taken for a nevus" in words(drawn["melanomas_taken_for_nevi"])


def test_a_missing_image_is_a_grey_box_and_is_counted_in_the_log(make_run, images, caplog, words):
    rows = Interpretation.from_run(make_run()).top_losses(5)
    images(rows.iloc[:3])
    Path(rows["path"][2]).write_bytes(b"")
    rows.loc[4, "path"] = None
    with caplog.at_level(logging.WARNING, logger="lesionfast"):
        figure = draw_grid(rows, "title", "subtitle", "nothing")
    assert "3 of 5 images not drawn" in caplog.text
    text = words(figure)
    assert "predictions.csv has no path" in text.replace("\n", " ")
    boxes = [axis for axis in figure.axes if axis.images and axis.texts]
    assert [axis.get_title(loc="left") for axis in boxes] == rows["image_id"][2:].tolist()


def test_a_zip_member_is_drawn(tmp_path):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "part/a.png")
    pixels = module.read_pixels(f"{tmp_path}/images.zip/part/a.png")
    assert pixels.shape == (30, 40, 3) and (pixels[0, 0] == [200, 10, 10]).all()
    with pytest.raises(LesionfastError):
        module.read_pixels(float("nan"))


def test_captions_are_plain_words(make_run):
    row = Interpretation.from_run(make_run()).top_losses(1).iloc[0].copy()
    row["truth"], row["decision"], row["age"], row["sex"] = "mel", "nv", 65.0, None
    row["probability"], row["probability_of_truth"] = 0.934, 0.0004
    assert (
        decision_caption(row)
        == "truth: mel (melanoma), <1%\ndecision: nv (nevus), 93%\n65 years, sex unknown"
    )
    assert "years" not in decision_caption(row.drop(["age", "sex"]))


def test_a_percentage_never_rounds_to_none_or_all():
    values = (0, 0.004, 0.005, 0.5, 0.995, 0.996, 1)
    texts = ["0%", "<1%", "<1%", "50%", ">99%", ">99%", "100%"]
    assert [*map(rounded_percent, values)] == texts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(load_dataset(CONFIG), CONFIG, tmp_path_factory.mktemp("runs"))


def test_many_at_once_find_what_one_at_a_time_does(run):
    rows = Interpretation.from_run(run).rows.head(3)
    for (_, row), table in zip(rows.iterrows(), nearest_to_each(run, rows, k=4), strict=True):
        one = nearest_lesions(run, row["image_id"], k=4).iloc[1:].reset_index(drop=True)
        assert one["image_id"].tolist() == table["image_id"].tolist()
        np.testing.assert_allclose(one["similarity"].astype(float), table["similarity"])


def test_images_whose_features_are_not_kept_are_computed(run, tmp_path):
    rows = Interpretation.from_run(run).rows.head(2)
    strangers = rows.assign(image_id=["x", "y"])
    for known, computed in zip(
        nearest_to_each(run, rows), nearest_to_each(run, strangers), strict=True
    ):
        assert known["image_id"].tolist() == computed["image_id"].tolist()
        np.testing.assert_allclose(known["similarity"], computed["similarity"], atol=2e-3)


def test_of_no_image_nothing_is_near(run):
    assert nearest_to_each(run, Interpretation.from_run(run).rows.head(0)) == []
    with pytest.raises(LesionfastError, match="--k is 0"):
        nearest_to_each(run, Interpretation.from_run(run).rows, k=0)


def test_each_kind_of_case_is_a_figure_in_the_order_of_confidence(run, tmp_path, drawn):
    interpretation = Interpretation.from_run(run)
    paths = draw_atlas(interpretation, tmp_path, most=2)
    assert [path.stem for path in paths] == list(ATLAS_TITLES)
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    pairs = [("mel", "nv"), ("nv", "mel"), ("mel", "mel")]
    for pair, (name, (_, nothing)) in zip(pairs, ATLAS_TITLES.items(), strict=True):
        cases = interpretation.taken_for(*pair).head(2)
        axes = drawn[name].axes
        if cases.empty:
            assert axes[0].texts[0].get_text() == nothing
            continue
        firsts = axes[:: NEAREST + 1]
        assert [axis.get_title(loc="left") for axis in firsts] == cases["image_id"].tolist()
        one = nearest_lesions(run, cases["image_id"].iloc[0], NEAREST).iloc[1]
        told = axes[1].get_title(loc="left")
        assert told == f"{one['target']}  {one['similarity']:.2f}"


def test_no_case_of_a_kind_is_said(run, tmp_path, drawn, monkeypatch):
    empty = Interpretation.from_run(run).rows.head(0)
    monkeypatch.setattr(Interpretation, "taken_for", lambda *_: empty)
    draw_atlas(Interpretation.from_run(run), tmp_path)
    said = [figure.axes[0].texts[0].get_text() for figure in drawn.values()]
    assert said == [nothing for _, nothing in ATLAS_TITLES.values()]


def test_a_training_lesion_that_is_gone_is_a_grey_box():
    figure = images.new_figure(3, 3, "")
    axis = figure.subplots()
    gone = {"target": "mel", "similarity": 0.5, "path": "gone.jpg", "age": np.nan}
    images.draw_neighbour(axis, pd.Series(gone), Classes(["mel"]))
    assert "gone.jpg" in axis.texts[0].get_text().replace("\n", "")
    assert axis.get_title(loc="left") == "mel  0.50" and axis.get_xlabel() == "age unknown"


def test_a_melanoma_under_another_name_is_bold_and_classes_differ_in_colour():
    classes = Classes(["first", "second"], melanoma="second")
    axes = images.new_figure(3, 3, "").subplots(1, 2)
    for axis, name in zip(axes, classes, strict=True):
        row = {"target": name, "similarity": 0.5, "path": "gone.jpg", "age": np.nan}
        images.draw_neighbour(axis, pd.Series(row), classes)
    assert [axis._left_title.get_fontweight() for axis in axes] == ["normal", "bold"]
    colours = {axis.spines["left"].get_edgecolor() for axis in axes}
    assert len(colours) == 2


def test_a_dataset_without_melanomas_has_no_atlas(tmp_path):
    run = SimpleNamespace(path=tmp_path)
    interpretation = SimpleNamespace(classes=Classes(["wart", "nv"]), run=run)
    with pytest.raises(LesionfastError, match="needs classes of melanoma and nevus.*has: wart, nv"):
        draw_atlas(interpretation, tmp_path)
