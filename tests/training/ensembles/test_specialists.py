"""Specialists of a tiny base, and what trained members and their ensemble share."""

from dataclasses import fields, replace

import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import read_weights
from lesionfast.errors import LesionfastError
from lesionfast.files import sha256
from lesionfast.models.fusion import load_model
from lesionfast.run import Run
from lesionfast.training.ensembles.combining import combine
from lesionfast.training.ensembles.specialists import TIMES, add_specialists
from lesionfast.training.experiment import resume, train

TINY = TrainConfig(
    arch="test_resnet", weights="none", size=32, epochs=1, batch_size=64, unfreeze="none"
)
needs_class_weight = pytest.mark.skipif(
    "class_weight" not in {each.name for each in fields(TrainConfig)},
    reason="TrainConfig has no class_weight",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(load_dataset(TINY), TINY, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def ensemble(base):
    other = replace(TINY, seed=1, split=str(base.path / "split.csv"))
    return combine([base, train(load_dataset(other), other, base.path.parent)], base.path.parent)


def test_an_ensemble_of_trained_runs_counts_their_parameters_and_seconds(base, ensemble):
    assert ensemble.model["parameters"] == 2 * base.model["parameters"]
    assert ensemble.metrics["train_seconds"] > base.metrics["train_seconds"]
    assert ensemble.config.seed == TrainConfig.seed and ensemble.config.size == 32


def test_an_ensemble_is_neither_loaded_nor_resumed(base, ensemble):
    with pytest.raises(LesionfastError, match=f"is an ensemble.*{base.path.name}"):
        load_model(ensemble)
    with pytest.raises(LesionfastError, match="nothing is left to do"):
        resume(ensemble)
    whole = (ensemble.path / "predictions.csv").read_text()
    (ensemble.path / "predictions.csv").write_text("")
    with pytest.raises(LesionfastError, match=f"Make it again: lesionfast ensemble .*{base.path}"):
        resume(Run(ensemble.path))
    (ensemble.path / "predictions.csv").write_text(whole)


@needs_class_weight
def test_each_specialist_weighs_its_class_thrice_on_the_split_of_the_base(base, tmp_path):
    members = add_specialists([base], "mel, bcc", tmp_path)
    assert [run.config.class_weight for run in members] == [None, "mel=3", "bcc=3"]
    for run in members[1:]:
        assert sha256(run.path / "split.csv") == sha256(base.path / "split.csv")
        same = {"split": base.config.split, "pool": base.config.pool}
        kept = replace(run.config, class_weight=None, **same)
        assert kept == base.config
    assert combine(members, tmp_path).metrics["status"] == "finished"


@needs_class_weight
def test_an_interrupted_specialist_says_how_to_go_on(base, tmp_path, monkeypatch):
    def stopped(df, config, root):
        run = Run.create(root, config)
        told = {"split_sha256": "", "train_seconds": 0, "status": "interrupted"}
        run.write_json("metrics.json", told)
        return run

    monkeypatch.setattr("lesionfast.training.ensembles.specialists.train", stopped)
    with pytest.raises(LesionfastError, match=r"--resume .*lesionfast ensemble"):
        add_specialists([base], "mel", tmp_path)


def test_weights_of_the_base_are_kept():
    assert read_weights(None) == {}
    assert read_weights("mel=3, bcc=1.5") == {"mel": 3.0, "bcc": 1.5}
    assert read_weights('"a, b"=2,mel=3') == {"a, b": 2.0, "mel": 3.0}
    assert TIMES == 3


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("mle", "Did you mean 'mel'"),
        ("mel,naevus", "'naevus', which is not a class"),
        ("", "not a class"),
    ],
)
def test_unknown_classes_are_refused_before_any_training(base, classes, message, tmp_path):
    with pytest.raises(LesionfastError, match=message):
        add_specialists([base], classes, tmp_path)


def test_the_base_is_one_trained_run(base, ensemble, tmp_path):
    with pytest.raises(LesionfastError, match="takes one RUN"):
        add_specialists([base, base], "mel", tmp_path)
    with pytest.raises(LesionfastError, match="is an ensemble"):
        add_specialists([ensemble], "mel", tmp_path)
