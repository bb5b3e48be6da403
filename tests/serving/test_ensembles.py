"""Several models served as one: predicted with, exported, explained, in ONNX and over HTTP."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.explain import explain_images
from lesionfast.evaluation.features import nearest_lesions, read_features
from lesionfast.models.ensemble import load_any, read_lineages
from lesionfast.run import Run, list_runs_of
from lesionfast.serving.bundle import Bundle, own_columns
from lesionfast.serving.export import export
from lesionfast.serving.predictor import Predictor
from lesionfast.serving.web.api import Service
from lesionfast.training.ensembles.combining import combine
from lesionfast.training.experiment import train

TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    epochs=1,
    batch_size=64,
    tta=2,
    precision="float32",
)


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A run of three folds."""
    config = replace(TINY, folds=3, all=True)
    return train(load_dataset(config), config, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A geometric mean of runs with other sizes, views, metadata, priors and weights."""
    root = tmp_path_factory.mktemp("runs")
    first = train(load_dataset(TINY), TINY, root, "first")
    split = str(first.path / "split.csv")
    others = {
        "large": {"size": 48, "resize": "squish", "balance": "weights"},
        "sited": {"metadata": "age,localization", "tta": 1, "label_smoothing": 0.1},
        "plain": {"metadata": "none", "fusion": "none", "metadata_dropout": 0.25},
    }
    runs = [first]
    for name, options in others.items():
        config = replace(TINY, split=split, seed=len(runs), **options)
        runs.append(train(load_dataset(config), config, root, name))
    return combine(runs, root, mean="geometric", fit_weights=True)


@pytest.fixture(scope="module", params=["folds", "mixed"])
def run(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("exported") / "model", onnx=True)


def expected(run, n=40):
    rows = run.predictions_of("test").head(n)
    return rows, rows[probability_columns(run.classes)].to_numpy()


def test_a_run_predicts_what_it_predicted(run):
    rows, probabilities = expected(run)
    found = Predictor(run).predict(rows)
    np.testing.assert_allclose(found[own_columns(run.classes)], probabilities, atol=1e-5)
    kept = {"uncalibrated_mel", "prediction_set", "refer", "outlier_score", "decision"}
    assert kept <= set(found) and found["outlier_score"].notna().all()


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_an_export_is_one_folder_that_predicts_alike(run, exported, file):
    rows, probabilities = expected(run)
    found, own = Predictor(exported / file).predict(rows), Predictor(run).predict(rows)
    np.testing.assert_allclose(found[own_columns(run.classes)], probabilities, atol=1e-4)
    assert list(found) == list(own)
    for name in ("decision", "prediction_set", "refer", "outlier"):
        assert found[name].tolist() == own[name].tolist()
    np.testing.assert_allclose(found["p_mel"], own["p_mel"], atol=1e-4)
    np.testing.assert_allclose(found["outlier_score"], own["outlier_score"], atol=1e-3)


def test_one_image_with_what_is_known_of_the_person(run, exported):
    path = expected(run)[0]["path"].iloc[0]
    of_run, of_export = (Predictor(source)(path, age=70) for source in (run, exported))
    assert of_run["decision"] == of_export["decision"] and "sex" in of_run["not_known"]
    with pytest.raises(LesionfastError, match="does not take hair"):
        Predictor(exported)(path, hair="red")
    with pytest.raises(LesionfastError, match="Type one of: female, male, unknown"):
        Predictor(exported)(path, sex="fmale")


def test_an_export_holds_all_weights_under_one_schema_and_their_lineage(run, exported):
    about = json.loads((exported / "model.json").read_text())
    leaves = list_runs_of(run)
    assert about["schema"] == 3 and len(about["model"]["members"]) == len(leaves)
    assert {path.name for path in exported.iterdir()} == {
        *("model.json", "README.md", "model.safetensors", "outliers.safetensors", "model.onnx")
    }
    with safe_open(exported / "model.safetensors", framework="np") as file:
        names = list(file.keys())
        lineage = json.loads(file.metadata()["header"])["lineage"]
    assert {name.split(".")[1] for name in names} == {str(i) for i in range(len(leaves))}
    assert lineage == read_lineages(run).to_dict()
    trained = run.split[run.split["split"] == "train"]
    assert read_lineages(run).contains(trained, "train").all()
    assert "ensemble" in (exported / "README.md").read_text() or run.is_out_of_fold


def test_a_changed_description_of_members_is_refused(run, exported, tmp_path, change_description):
    copy = shutil.copytree(exported, tmp_path / "copy")
    change_description(copy, lambda told: told["model"]["members"].pop())
    with pytest.raises(LesionfastError, match="members and .* weights"):
        Predictor(copy)
    change_description(copy, lambda told: told["model"].update(members=[]))
    with pytest.raises(LesionfastError, match="members and"):
        Predictor(copy)


@pytest.mark.parametrize("name", ["arch", "pool", "fusion", "dropout", "n_metadata"])
def test_a_description_that_builds_no_model_is_refused(
    folds, exported, tmp_path, change_description, name
):
    alone = export(folds.members[0], tmp_path / "alone")
    change_description(alone, lambda told: told["model"].pop(name))
    with pytest.raises(LesionfastError, match=f"the model has no '{name}'"):
        Predictor(alone)
    copy = shutil.copytree(exported, tmp_path / "copy")
    change_description(copy, lambda told: told["model"]["members"][-1].pop(name))
    with pytest.raises(LesionfastError, match=f"a member has no '{name}'"):
        Predictor(copy)


def test_as_many_priors_as_classes_and_encoders_as_models(exported, tmp_path, change_description):
    copy = shutil.copytree(exported, tmp_path / "copy")
    change_description(copy, lambda told: told["encoder"].pop())
    with pytest.raises(LesionfastError, match=r"models and \d encoders"):
        Predictor(copy)
    change_description(copy, lambda told: told["model"]["members"][0]["prior"].pop())
    with pytest.raises(LesionfastError, match="7 classes and 6 priors"):
        Predictor(copy)


def test_it_is_explained_by_the_mean_of_its_models(run):
    names = run.predictions_of("test")["image_id"].tolist()[:4]
    explanation = explain_images(run, names, "mel")
    size = Bundle.from_run(run).looks[0][0]
    assert explanation.maps.shape == (4, size, size)
    assert explanation.maps.min() >= 0 and explanation.maps.max() <= 1 + 1e-6
    assert list(explanation.metadata) == run.model["metadata"] == list(explanation.words)
    first = explain_images(list_runs_of(run)[0], names, "mel")
    assert explanation.words["age"].tolist() == first.words["age"].tolist()


def test_maps_and_what_metadata_add_are_weighted_means(folds):
    names = folds.predictions_of("test")["image_id"].tolist()[:3]
    targets = ["mel", "akiec", "nv"]
    alone = [explain_images(member, names, targets) for member in folds.members]
    whole = explain_images(folds, names, targets)
    maps = sum(one.maps for one in alone)
    largest = np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(whole.maps, maps / largest, atol=1e-5)
    # the mean of the training images, from which the amounts count, is that of all folds here
    mean = sum(one.metadata["age"] for one in alone) / 3
    assert np.corrcoef(whole.metadata["age"], mean)[0, 1] > 0.9


def test_similar_lesions_and_features_are_those_of_the_first_model(run):
    first = list_runs_of(run)[0]
    pd.testing.assert_frame_equal(read_features(run), read_features(first))
    image = run.predictions_of("test")["image_id"].iloc[0]
    table = nearest_lesions(run, image, 3)
    trained = set(run.split.loc[run.split["split"] == "train", "image_id"])
    assert len(table) == 4 and set(table["image_id"][1:]) <= trained


def test_the_app_answers_with_a_map_and_similar_lesions(run, exported):
    data = Path(expected(run)[0]["path"].iloc[0]).read_bytes()
    answer = Service(run.path).answer(data, {"age": "60"})
    assert (
        answer.heat.shape == answer.seen.shape[:2] and len(answer.similar) and not answer.left_out
    )
    away = Service(exported).answer(data, {"age": "60"})
    assert away.row["decision"] == answer.row["decision"] and away.heat is not None


def test_an_ensemble_of_ensembles_is_one_too(folds, tmp_path):
    twin = Run(shutil.copytree(folds.path, tmp_path / "twin"))
    nested = combine([folds, twin], tmp_path)
    assert nested.is_out_of_fold and len(load_any(nested).members) == 6
    rows, probabilities = expected(folds, 10)
    found = Predictor(nested).predict(rows)[own_columns(folds.classes)]
    np.testing.assert_allclose(found, probabilities, atol=1e-5)


def test_an_ensemble_of_an_earlier_version_is_served_too(mixed):
    old = Run(shutil.copytree(mixed.path, mixed.path.with_name("old")))
    new = ("metadata", "metadata_dropout", "size", "tta", "of", "out_of_fold", "member_weights")
    old.write_json("model.json", {k: v for k, v in mixed.model.items() if k not in new})
    rows, probabilities = expected(mixed, 10)
    found = Predictor(old.path).predict(rows)[own_columns(mixed.classes)]
    np.testing.assert_allclose(found, probabilities, atol=1e-5)


@pytest.mark.parametrize("name", ["folds", "mixed"])
def test_members_with_other_weights_than_averaged_are_refused(request, tmp_path, name):
    made = request.getfixturevalue(name)
    copy = Run(shutil.copytree(made.path.parent, tmp_path / "copy") / made.path.name)
    one = copy.members[0]
    with (one.path / "weights.safetensors").open("ab") as file:
        file.write(b" ")
    one.seal()
    again = "train --resume" if name == "folds" else "ensemble .*first .*large"
    for use in (Predictor, load_any):
        with pytest.raises(DamageError, match=f"weights have changed since.*lesionfast {again}"):
            use(Run(copy.path))


def test_members_that_are_gone_are_named(mixed, tmp_path):
    alone = Run(shutil.copytree(mixed.path, tmp_path / "alone"))
    with pytest.raises(LesionfastError, match=r"averages 4 runs, and .*first is missing"):
        Predictor(alone)


def test_without_test_images_the_weights_are_not_compared(tmp_path, caplog):
    config = replace(TINY, folds=2, all=True, test=0.0)
    run = train(load_dataset(config), config, tmp_path)
    folder = export(run, tmp_path / "model")
    assert "the run has no test images" in caplog.text
    path = run.predictions["path"].iloc[0]
    assert Predictor(folder)(path)["decision"] in (*run.classes, None)
