"""Two towers: one trained and one frozen, blended by validation, alone and in folds."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_data, load_dataset
from lesionfast.diagnoses import move_prior, probability_columns
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import compare
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run, list_runs
from lesionfast.serving.bundle import own_columns
from lesionfast.serving.export import export
from lesionfast.serving.predictor import Predictor
from lesionfast.stats.metrics import losses
from lesionfast.training.ensembles.towers import fit_size, split_towers
from lesionfast.training.experiment import resume, train

TINY = TrainConfig(
    arch="test_resnet+test_vit",
    weights="none",
    size=40,
    epochs=1,
    batch_size=64,
    tta=2,
    precision="float32",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(load_dataset(TINY), TINY, tmp_path_factory.mktemp("runs"))


def test_the_first_is_trained_and_the_second_stays_frozen(run):
    first, second = run.members
    assert [one.config.arch for one in run.members] == ["test_resnet", "test_vit"]
    assert (first.config.head, second.config.head) == ("linear", "logistic")
    assert first.config.batch_size == 64 and second.config.batch_size == TrainConfig().batch_size
    assert (first.config.size, second.config.size) == (40, 32)  # patches of 16 pixels
    assert run.config.arch == run.model["arch"] == "test_resnet+test_vit"
    assert list_runs(run.path.parent)[0].path == run.path
    assert compare([run]).table["options"][0].startswith("towers 0.")


def test_the_blend_has_the_least_log_loss_on_validation(run):
    columns, prior = probability_columns(run.classes), run.model["prior"]
    read = [Interpretation.from_run(one, "valid") for one in (run, *run.members)]
    order = [one.rows["image_id"].argsort() for one in read]
    whole, *alone = (one.probabilities[rows] for one, rows in zip(read, order, strict=True))
    parts = [
        move_prior(p, member.model["prior"], prior)
        for p, member in zip(alone, run.members, strict=True)
    ]
    weights, truth = run.model["weights"], read[0].truth[order[0]]
    blended = weights[0] * parts[0] + weights[1] * parts[1]
    np.testing.assert_allclose(whole, blended, atol=1e-9)
    share = np.bincount(truth, minlength=len(columns)) / len(truth)
    importance = (np.array(prior) / share)[truth]

    def loss(weight):
        mixed = weight * parts[0] + (1 - weight) * parts[1]
        return importance @ losses(truth, mixed)

    assert loss(weights[0]) <= min(map(loss, np.linspace(0, 1, 41))) + 1e-6


def test_one_export_holds_both(run, tmp_path):
    folder = export(run, tmp_path / "model", onnx=True)
    rows = run.predictions_of("test").head(12)
    expected = rows[probability_columns(run.classes)].to_numpy()
    for source in (run, folder, folder / "model.onnx"):
        found = Predictor(source).predict(rows)[own_columns(run.classes)]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_interrupted_run_of_towers_goes_on(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    shutil.rmtree(copy.path / "tower-1")
    for name in ("metrics.json", "predictions.csv", "model.json"):
        copy.remove(name)
    ended = resume(Run(copy.path))
    assert (ended.path / "predictions.csv").read_text() == (
        run.path / "predictions.csv"
    ).read_text()
    with pytest.raises(LesionfastError, match="nothing is left to do"):
        resume(Run(copy.path))


def test_folds_of_towers(tmp_path):
    config = replace(TINY, folds=2, all=True, head="prototype", tta=1)
    run = train(load_dataset(config), config, tmp_path)
    assert [one.path.name for one in run.members[0].members] == ["tower-0", "tower-1"]
    assert run.members[1].members[1].config.head == "prototype"
    rows = run.predictions_of("test").head(8)
    columns, found = probability_columns(run.classes), Predictor(run).predict(rows)
    np.testing.assert_allclose(found[own_columns(run.classes)], rows[columns], atol=1e-5)
    shutil.rmtree(run.path / "fold-1" / "tower-1")
    assert "fold-1/tower-1" in Run(run.path).damaged()
    again = resume(Run(run.path))
    np.testing.assert_allclose(again.predictions[columns], run.predictions[columns], atol=1e-9)


def test_weights_of_each_tower_are_named():
    first, second = split_towers(replace(TINY, weights='auto,"a, b.safetensors"'))
    assert (first.weights, second.weights) == ("auto", "a, b.safetensors")
    with pytest.raises(LesionfastError, match="names 1, and the two towers"):
        split_towers(replace(TINY, weights="a.safetensors"))
    with pytest.raises(LesionfastError, match="joins 3 architectures; type two"):
        split_towers(replace(TINY, arch="a+b+c"))
    with pytest.raises(LesionfastError, match="--budget can't be kept"):
        split_towers(replace(TINY, budget="1m"))
    assert split_towers(TrainConfig()) == [TrainConfig()]


def test_a_frozen_tower_has_the_nearest_size_that_fits():
    vit = replace(TINY, arch="test_vit", head="logistic")
    assert [fit_size(replace(vit, size=n)).size for n in (64, 40, 41)] == [64, 32, 48]


def test_what_is_wrong_with_the_second_tower_is_said_before_the_first_is_trained(tmp_path):
    with pytest.raises(LesionfastError, match="test_vitt"):
        train(load_data(), arch="test_resnet+test_vitt", weights="none", size=32, out=tmp_path)
    with pytest.raises(LesionfastError, match="there is no head 'nearest'"):
        train(load_data(), arch="test_resnet+test_vit", head="nearest", out=tmp_path)
    assert not list(tmp_path.iterdir())
