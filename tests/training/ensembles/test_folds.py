"""A run of folds: what is out of fold, how it goes on after any interruption, and what it says."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import format_split, load_data, load_dataset
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.comparison import compare
from lesionfast.evaluation.decisions import Decisions, choose_rule
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labels import contradictions, describe_coverage, suspicious_labels
from lesionfast.files import sha256
from lesionfast.reporting.metrics import metrics_table
from lesionfast.run import Run, list_runs, newest_run
from lesionfast.training.callbacks.progress import StopOnInterrupt
from lesionfast.training.experiment import resume, train
from lesionfast.training.study import ablate

TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    epochs=2,
    batch_size=64,
    tta=1,
    folds=3,
    all=True,
    precision="float32",
)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture(scope="module")
def run(df, tmp_path_factory):
    return train(df, TINY, tmp_path_factory.mktemp("runs"))


def results(run):
    """What two runs of the same options have in common, byte by byte."""
    names = ["split.csv", "model.json", "predictions.csv", "predictions_without_metadata.csv"]
    found = {name: (run.path / name).read_text() for name in names}
    for member in run.members:
        found[member.path.name] = sha256(member.path / "weights.safetensors")
    return found


def test_the_folds_are_ordinary_runs_of_the_folds_of_one_split(run):
    assert [member.path.parent for member in run.members] == [run.path] * 3
    for fold, member in enumerate(run.members):
        one = replace(TINY, fold=fold, all=False, metadata="age,sex")
        assert member.config == one and member.metrics["status"] == "finished"
        assert (member.path / "split.csv").read_text() == format_split(load_dataset(one))


def test_validation_is_out_of_fold_and_test_the_mean(run):
    predictions, columns = run.predictions, probability_columns(run.classes)
    valid = predictions[predictions["split"] == "valid"]
    split = run.split.set_index("image_id")
    assert sorted(valid["image_id"]) == sorted(split.index[split["split"] == "train"])
    for fold, member in enumerate(run.members):
        own = member.split
        trained = set(own.loc[own["split"] == "train", "group"])
        rows = valid[valid["image_id"].map(split["fold"]) == fold]
        assert len(rows) and not trained & set(rows["group"])
        assert not trained & set(predictions.loc[predictions["split"] == "test", "group"])
        alone = member.predictions_of("valid")
        np.testing.assert_array_equal(rows["image_id"], alone["image_id"])
        prior = np.array(run.model["prior"]) / member.model["prior"]
        odds = alone[columns].to_numpy() * prior
        np.testing.assert_allclose(rows[columns], odds / odds.sum(1, keepdims=True), atol=1e-9)
    tests = [m.predictions_of("test").set_index("image_id")[columns] for m in run.members]
    mean = run.predictions_of("test").set_index("image_id")[columns]
    np.testing.assert_allclose(mean, sum(tests).loc[mean.index] / 3, atol=0.02)
    np.testing.assert_allclose(mean.sum(axis=1), 1)


def test_everything_is_decided_on_the_out_of_fold_predictions(run):
    valid = Interpretation.from_run(run, "valid")
    assert valid.metrics == run.metrics["valid"] and len(valid.rows) == 358
    assert "out of fold" in valid.caption and "out of fold" in metrics_table(run, "valid").title
    copy = Run(shutil.copytree(run.path, run.path.parent.parent / "decided"))
    decisions = Decisions(copy)
    assert sum(decisions.conformal.lesions) == len(set(valid.lesions))
    assert json.loads((copy.path / "conformal.json").read_text())["images"] == 358
    assert decisions.points and decisions.calibrator and decisions.referral


def test_runs_inside_a_run_are_not_listed_with_the_others(run):
    assert [one.path for one in list_runs(run.path.parent)] == [run.path]
    assert newest_run(run.path.parent).path == run.path


def test_labels_of_all_images_are_judged(run, df):
    table = suspicious_labels([run])
    assert describe_coverage([run]) == (
        "420 of 420 images, out of fold by 3 models, and the test by their mean"
    )
    assert set(table["image_id"]) <= set(df["image_id"]) and len(table)
    assert len(contradictions([run])) <= len(df)


def test_folds_are_one_line_in_a_comparison_and_are_not_ablated(run):
    table = compare([run]).table
    assert table["options"].tolist() == ["mean of 3 folds"]
    assert table["arch"].tolist() == ["test_resnet"]
    both = compare([run, run.members[0]])  # of other splits, with the same test part
    assert len(both.table) == 2 and both.table["difference_low"].notna().all()
    with pytest.raises(LesionfastError, match="the runs have different splits"):
        compare([run, run.members[0]], "valid")
    with pytest.raises(LesionfastError, match="is an ensemble. Name one of its members: .*fold-0"):
        ablate(run)


def test_folds_typed_after_loading_keep_the_test_part(tmp_path):
    table = load_data(test=0.2, seed=7)
    short = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "tta": 1}
    run = train(table, out=tmp_path, folds=2, all=True, batch_size=64, **short)
    tested = table.loc[table["split"] == "test", "image_id"]
    assert sorted(run.predictions_of("test")["image_id"]) == sorted(tested)
    assert run.split.groupby("group")["fold"].nunique().max() == 1
    assert run.config.folds == 2 and run.config.seed == 7


def test_a_table_from_python_is_dealt_into_folds(df, tmp_path):
    table = df.drop(columns="split").head(300)
    loaded = load_data(table.set_axis(range(300, 600)), target="target", group="group")
    plain = replace(TINY, folds=None, all=False, epochs=1)
    run = train(loaded, plain, tmp_path, folds=2, all=True)
    assert len(run.split) == 300 and run.config.data == "(DataFrame)"


def test_without_a_test_part_there_is_only_what_is_out_of_fold(tmp_path):
    config = replace(TINY, folds=2, test=0.0, epochs=1)
    run = train(load_dataset(config), config, tmp_path)
    assert set(run.predictions["split"]) == {"valid"} and "test" not in run.metrics
    assert len(run.predictions) == 420


KILLED = """
import os, signal, sys, torch
from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.training.callbacks.tracking import Checkpoint
from lesionfast.training.experiment import train

torch.set_num_threads(1)
config, seen = TrainConfig.from_json(open(sys.argv[1]).read()), []
Checkpoint.after_batch = lambda self: (
    seen.append(1), len(seen) >= int(sys.argv[3]) and os.kill(os.getpid(), signal.SIGKILL))
train(load_dataset(config), config, sys.argv[2], "killed")
"""


def test_a_killed_run_of_folds_goes_on_with_the_fold_that_was_killed(run, run_apart, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(TINY.to_json())
    rows = run.members[0].split["split"].value_counts()
    batches = 2 * (rows["train"] // 64 + -(-rows["valid"] // 8))  # of one fold
    done = run_apart(config, tmp_path, int(1.6 * batches), code=KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    killed = Run.open(tmp_path / "killed")
    assert not killed.finished and Run(killed.path / "fold-0").finished
    before = (killed.path / "fold-0" / "weights.safetensors").stat().st_mtime_ns
    assert len(pd.read_csv(killed.path / "fold-1" / "history.csv")) == 1
    assert not (killed.path / "fold-2").exists()
    ended = resume(killed)
    assert results(ended) == results(run)
    assert (killed.path / "fold-0" / "weights.safetensors").stat().st_mtime_ns == before
    assert not ended.damaged() and ended.condition()[0] == "whole"
    with pytest.raises(LesionfastError, match="nothing is left to do"):
        resume(ended)


def test_ctrl_c_leaves_a_run_of_what_was_trained_and_can_be_resumed(run, df, tmp_path, monkeypatch):
    def stop_in_fold_two(self):
        trained = self.learn.dls.config.fold == 1 and self.epoch > 0
        self.interrupted = self.interrupted or trained

    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "before_batch", stop_in_fold_two, raising=False)
        stopped = train(df, TINY, tmp_path)
    assert stopped.metrics["status"] == "interrupted" and len(stopped.members) == 2
    assert Decisions(stopped).calibrator and (stopped.path / "calibration.json").exists()
    ended = resume(Run(stopped.path))
    assert results(ended) == results(run)
    assert not (ended.path / "calibration.json").exists()  # it was of other predictions


def test_a_missing_or_damaged_fold_is_found_and_trained_again(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    shutil.rmtree(copy.path / "fold-2")
    (copy.path / "fold-1" / "predictions.csv").write_text("image_id\n")
    state, wrong = Run(copy.path).condition()
    assert state == "damaged" and set(wrong) == {"fold-2", "fold-1/predictions.csv"}
    with pytest.raises(LesionfastError, match=r"averages 3 runs, and .*fold-2 is missing"):
        _ = copy.members
    assert results(resume(Run(copy.path))) == results(run)


@pytest.mark.parametrize("name", ["environment.json", "fold-2/environment.json"])
def test_damage_that_no_training_mends_is_said_before_results_are_removed(run, tmp_path, name):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / name).write_text("{}")
    with pytest.raises(DamageError, match=rf"{name} is damaged: .*Copy"):
        resume(Run(copy.path))
    assert Run(copy.path).metrics == run.metrics and set(Run(copy.path).damaged()) == {name}
    if "/" in name:  # as the error says
        shutil.rmtree((copy.path / name).parent)
        assert results(resume(Run(copy.path))) == results(run)


def test_results_outlive_a_resuming_without_the_data(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / "fold-1" / "predictions.csv").write_text("image_id\n")
    with pytest.raises(LesionfastError, match="nowhere"):
        resume(Run(copy.path), data=str(tmp_path / "nowhere"))
    assert Run(copy.path).metrics == run.metrics


def test_a_melanoma_sensitivity_is_fitted_out_of_fold_and_outlives_new_predictions(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    choose_rule(copy, 0.9)
    weight = Run(copy.path).decision_rule.weight
    valid = Interpretation.from_run(Run(copy.path), "valid")
    found = valid.metrics["rules"][valid.rule]["mel_sensitivity"]
    assert weight > 1 and found >= 0.9
    (copy.path / "predictions.csv").write_text("image_id\n")
    again = resume(Run(copy.path))
    assert again.decision_rule.weight == weight and again.model["melanoma_sensitivity"] == 0.9


def test_a_fold_of_another_run_is_noticed(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    shutil.rmtree(copy.path / "fold-0")
    shutil.copytree(run.path / "fold-1", copy.path / "fold-0")
    assert "not the one that was averaged" in copy.damaged()["fold-0/weights.safetensors"]


def test_options_that_do_not_fit_are_refused_before_any_training(df, tmp_path):
    with pytest.raises(LesionfastError, match="--all needs --folds"):
        train(load_data(), all=True, out=tmp_path)
    one = load_dataset(replace(TINY, fold=1))
    with pytest.raises(LesionfastError, match="--fold 1 trains one fold, and --all all"):
        train(one, replace(TINY, fold=1), tmp_path)
    with pytest.raises(LesionfastError, match="--folds is 1; type 2 or more"):
        train(load_data(), all=True, folds=1, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_stopped_before_it_began_is_not_resumed(tmp_path):
    with pytest.raises(LesionfastError, match="stopped before its training began.*--config"):
        resume(Run.create(tmp_path, TINY))
