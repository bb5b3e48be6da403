"""A student of a run of folds: its targets, its price, and how it goes on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_data, load_dataset
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.distilled import describe_student
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import sha256
from lesionfast.models.lineage import read_lineage
from lesionfast.reporting.overview import data_card
from lesionfast.run import Run, list_runs
from lesionfast.serving.bundle import own_columns
from lesionfast.serving.predictor import Predictor
from lesionfast.training.balancing import find_targets
from lesionfast.training.callbacks.progress import StopOnInterrupt
from lesionfast.training.ensembles.distilling import SOFT, Distil, student_config
from lesionfast.training.experiment import prepare_learner, resume, train

TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    epochs=2,
    head_epochs=1,
    unfreeze="two-step",
    batch_size=64,
    tta=1,
    folds=2,
    all=True,
    distill=True,
    loss="logit_adjusted",
    label_smoothing=0.05,
    precision="float32",
)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture(scope="module")
def run(df, tmp_path_factory):
    return train(df, TINY, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def student(run):
    return Run(run.path / "student")


def test_the_student_is_a_run_in_the_run_with_plain_options_and_a_teacher(run, student):
    assert student.config == replace(student_config(run.config, run), metadata="age,sex")
    assert student.config.loss == "cross_entropy" and not student.config.label_smoothing
    assert student.metrics["status"] == run.metrics["status"] == "finished"
    first = run.members[0]
    assert (student.path / "split.csv").read_text() == (first.path / "split.csv").read_text()
    assert [one.path for one in list_runs(run.path.parent)] == [run.path]
    rows = student.predictions_of("test").head(5)
    found = Predictor(student).predict(rows)[own_columns(run.classes)]
    np.testing.assert_allclose(found, rows[probability_columns(run.classes)], atol=1e-5)


def test_what_it_loses_is_said_with_paired_intervals(run, student):
    told = run.metrics["student"]["against"]
    assert [(row["metric"], row["of"]) for row in told] == [
        *[("balanced_accuracy", "all"), ("macro_auc", "all")],
        *[("sensitivity", "mel"), ("auc", "mel")],
    ]
    both = [Interpretation.from_run(one, "test").metrics for one in (run, student)]
    assert told[1]["value"] == pytest.approx(both[1]["macro_auc"])
    assert told[1]["difference"] == pytest.approx(both[1]["macro_auc"] - both[0]["macro_auc"])
    assert told[1]["difference_low"] <= told[1]["difference"] <= told[1]["difference_high"]
    words = describe_student(run, run.metrics["student"])
    assert "mean of its 2 teachers" in words and f"{told[1]['value']:.3f}" in words
    cards = [" ".join(data_card(Findings.from_run(one))[0]) for one in (run, student)]
    assert "mean of its 2 teachers" in cards[0] and "Validation is out of fold" in cards[0]
    assert "a little too easy" in cards[1] and "out of fold." in cards[1]


def test_its_targets_are_what_the_teacher_says_out_of_fold(run, df):
    config = student_config(run.config, run)
    learn = prepare_learner(run_table(df, run), config)
    rows = learn.dls.rows[learn.dls.rows["split"] == "train"]
    codes = find_targets(learn.dls)[rows["row"].to_numpy()]
    k = len(run.classes)
    assert (codes % k == rows["target"].map(run.classes.index)).all()
    callback = next(cb for cb in learn.cbs if isinstance(cb, Distil))
    said = run.predictions_of("valid").set_index("image_id").loc[rows["image_id"]]
    said = said[probability_columns(run.classes)].to_numpy()
    odds = said * learn.prior / run.model["prior"]
    expected = odds / odds.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(callback.soft[codes // k], expected, atol=1e-6)
    assert not set(rows["image_id"]) & set(run.members[1].split.query("split == 'train'").image_id)


def run_table(df, run):
    """The table of the student: the first fold."""
    split = run.members[0].path / "split.csv"
    return load_dataset(run.members[0].config, split=split)


def test_the_loss_is_the_cross_entropy_of_soft_targets():
    soft = np.random.default_rng(0).dirichlet([1, 1, 1], 4)
    callback, labels = Distil(soft), torch.tensor([0, 2, 1])
    rows = torch.tensor([3, 0, 1])

    class Learn:
        yb, pred = (rows * 3 + labels,), torch.randn(3, 3)

    callback.learn = Learn
    callback.before_batch()
    assert Learn.yb[0].tolist() == labels.tolist()
    callback.after_loss()
    targets = SOFT * torch.tensor(soft)[rows] + (1 - SOFT) * torch.eye(3)[labels]
    expected = torch.nn.functional.cross_entropy(Learn.pred.double(), targets)
    assert Learn.loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_an_interrupted_student_goes_on(run, df, tmp_path, monkeypatch):
    def stop_the_student(self):
        self.interrupted = self.interrupted or (
            self.learn.config.teacher is not None and self.epoch > 0
        )

    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    shutil.rmtree(copy.path / "student")
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "before_batch", stop_the_student, raising=False)
        stopped = resume(copy)
    assert Run(stopped.path).metrics["status"] == "interrupted"
    ended = resume(Run(stopped.path))
    assert Run(ended.path).metrics["status"] == "finished"
    own = [(one.path / "student" / "predictions.csv").read_text() for one in (run, ended)]
    assert own[0] == own[1]
    with pytest.raises(LesionfastError, match="nothing is left to do"):
        resume(Run(ended.path))


@pytest.mark.parametrize("retrained", [False, True])
def test_a_student_is_kept_as_long_as_its_teacher_predicts_the_same(run, tmp_path, retrained):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    student = Run(copy.path / "student")
    told = student.environment
    assert told["teacher_sha256"] == sha256(copy.path / "predictions.csv")
    if retrained:
        student.write_json("environment.json", told | {"teacher_sha256": "0" * 64})
    begun = (student.path / "config.json").stat().st_mtime_ns
    copy.remove("metrics.json")
    ended = resume(Run(copy.path))
    assert Run(ended.path).metrics["student"] == run.metrics["student"]
    assert ((student.path / "config.json").stat().st_mtime_ns != begun) is retrained
    assert Run(student.path).environment["teacher_sha256"] == told["teacher_sha256"]


def test_a_student_was_trained_on_what_its_teacher_was(run, student, df, tmp_path):
    split = run.split
    alone = Path(shutil.copy(student.path / "weights.safetensors", tmp_path))
    for place in (student.path, alone):
        lineage = read_lineage(place)
        assert lineage.contains(split[split["split"] == "train"], "train").all()
        assert not lineage.contains(split[split["split"] == "test"], "train").any()


def test_weights_of_a_student_are_of_use_where_no_image_was_taught(run, student, df, tmp_path):
    plain = {"arch": "test_resnet", "size": 32, "epochs": 1, "out": tmp_path}
    with pytest.raises(LesionfastError, match=r"too optimistic\. Type other --weights\.$"):
        train(run_table(df, run), weights=str(student.path), **plain)


def test_a_teacher_whose_first_weights_saw_the_test_part_is_refused(run, df, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    plain = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "out": tmp_path}
    other = train(load_data(seed=3), **plain)
    one = Run(copy.path / "fold-0")
    one.write_text("config.json", replace(one.config, weights=str(other.path)).to_json())
    with pytest.raises(LesionfastError, match=r"was trained on \d+ images? of the test part"):
        prepare_learner(run_table(df, run), student_config(run.config, copy))


def test_a_teacher_that_does_not_fit_is_refused(run, df, tmp_path):
    plain = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "out": tmp_path}
    with pytest.raises(LesionfastError, match=r"was trained on \d+ images? of the test part"):
        train(load_data(seed=3), teacher=str(run.path), **plain)
    with pytest.raises(LesionfastError, match="has no out-of-fold prediction of"):
        train(df, teacher=str(run.members[0].path), loss="cross_entropy", **plain)
    with pytest.raises(
        LesionfastError, match="--label-smoothing has no effect with --teacher. Leave"
    ):
        train(df, teacher=str(run.path), label_smoothing=0.1, **plain)
    folds = {"teacher": str(run.path), "folds": 2, "all": True}
    with pytest.raises(LesionfastError, match="nothing would be out of fold. Type --fold 0"):
        train(load_data(), **folds, **plain)
    with pytest.raises(LesionfastError, match="--distill needs --all"):
        train(load_data(), distill=True, **plain)
    with pytest.raises(LesionfastError, match="--head svm is solved"):
        train(load_data(), distill=True, all=True, folds=2, head="svm", **plain)
    assert not list(tmp_path.iterdir())
