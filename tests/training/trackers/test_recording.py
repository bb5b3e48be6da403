"""What a training tells its trackers, whatever they and the user do."""

import shutil
from dataclasses import replace

import pytest

import lesionfast as lf
from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.files import sha256
from lesionfast.run import Run
from lesionfast.training.experiment import resume, train
from lesionfast.training.trackers.base import Tracker, register_tracker, trackers
from lesionfast.training.trackers.recording import OPEN, recording

TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    epochs=2,
    head_epochs=1,
    tta=1,
    batch_size=64,
    unfreeze="two-step",
    precision="float32",
)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture(scope="module")
def plain(df, tmp_path_factory):
    """A training without a tracker."""
    return train(df, TINY, tmp_path_factory.mktemp("plain"))


def told(kept, what):
    return [call[1:] for call in kept if call[0] == what]


def test_a_training_tells_its_options_each_epoch_and_the_results(
    df, kept, tmp_path, blank_figures, plain
):
    run = train(df, TINY, tmp_path, "one", log="list")
    ((about,),) = told(kept, "open")
    assert (about.name, about.group, about.root) == ("one", None, str(tmp_path))
    assert about.config["arch"] == "test_resnet" and about.environment["device"] == "cpu"
    assert about.split_sha256 == sha256(run.path / "split.csv")
    epochs = told(kept, "epoch")
    assert [(epoch, phase) for epoch, phase, _ in epochs] == [(1, "head"), (2, "all"), (3, "all")]
    for (_, _, values), (_, row) in zip(epochs, run.history.iterrows(), strict=True):
        assert values == row.drop(["epoch", "phase"]).to_dict()
    ((rows,),) = told(kept, "results")
    value = run.metrics["test"]["rules"]["balanced"]["balanced_accuracy"]
    (found,) = [
        row
        for row in rows
        if (row["split"], row["metric"], row["of"]) == ("test", "balanced_accuracy", "all")
    ]
    assert found["value"] == pytest.approx(value) and found["low"] <= value <= found["high"]
    figures = {name: run.path / "figures" / f"{name}.png" for name in ("confusion", "roc")}
    assert dict(told(kept, "figure")) == {name: str(path) for name, path in figures.items()}
    assert all(path.is_file() for path in figures.values())
    assert told(kept, "close") == [("finished",)]
    assert run.condition() == ("whole", {}) and OPEN == []
    assert (run.path / "history.csv").read_bytes() == (plain.path / "history.csv").read_bytes()


def test_dead_servers_neither_stop_nor_change_nor_slow_a_training(
    df, hanging, refused, kept, tmp_path, impatient, warnings, blank_figures, plain, seconds
):
    run = train(df, TINY, tmp_path, "one", log=["hanging", "refused", "list"])
    for name in ("history.csv", "predictions.csv", "split.csv"):
        assert (run.path / name).read_bytes() == (plain.path / name).read_bytes()
    assert run.condition() == ("whole", {})
    assert seconds() < plain.metrics["train_seconds"] + 120
    assert len(told(kept, "epoch")) == 3
    lost = [text for text in warnings() if "not delivered" in text]
    assert len(lost) == 2 and all("The training is not affected" in text for text in lost)
    assert "not delivered" in (run.path / "log.txt").read_text()


def test_a_resumed_training_goes_on_with_the_same_record(
    df, kept, tmp_path, blank_figures, monkeypatch, plain
):
    def power_cut(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lesionfast.training.callbacks.progress.EpochLines.after_epoch", power_cut)
        train(df, TINY, tmp_path, "one", log="list")
    assert told(kept, "close") == [("interrupted",)] and told(kept, "results") == []
    done = len(told(kept, "epoch"))
    assert done == 1
    ended = resume(Run.open(tmp_path / "one"))
    assert [about.id for (about,) in told(kept, "open")] == [None, "id of one"]
    assert [epoch for epoch, *_ in told(kept, "epoch")] == [1, 2, 3]
    assert told(kept, "close")[-1] == ("finished",) and len(told(kept, "results")) == 1
    assert (ended.path / "history.csv").read_bytes() == (plain.path / "history.csv").read_bytes()


def test_a_training_that_begins_again_is_a_new_record(df, kept, tmp_path, blank_figures):
    run = train(df, TINY, tmp_path, "one", log="list")
    (run.path / "weights.safetensors").write_bytes(b"damaged")
    resume(Run(run.path))
    assert [(about.id, about.epoch) for (about,) in told(kept, "open")] == [(None, 0)] * 2
    assert [epoch for epoch, *_ in told(kept, "epoch")] == [1, 2, 3] * 2


def test_predictions_that_are_made_again_are_told_without_the_epochs(
    df, kept, tmp_path, blank_figures
):
    run = train(df, TINY, tmp_path, "one", log="list")
    (run.path / "predictions.csv").unlink()
    resume(Run(run.path))
    assert [about.epoch for (about,) in told(kept, "open")] == [0, 3]
    assert len(told(kept, "epoch")) == 3 and len(told(kept, "results")) == 2


def test_runs_inside_a_run_are_records_that_know_the_run_around_them(
    df, kept, tmp_path, blank_figures
):
    solved = TrainConfig(
        **{name: getattr(TINY, name) for name in ("arch", "size", "tta", "precision", "weights")},
        head="prototype",
        folds=3,
        all=True,
        log="list",
    )
    run = train(df, solved, tmp_path, "five")
    opened = [about for (about,) in told(kept, "open")]
    names = ["five", *(f"five/fold-{number}" for number in range(3))]
    assert [about.name for about in opened] == names
    assert [about.group for about in opened] == [None, *["five"] * 3]
    assert [about.parent for about in opened] == [None, *["id of five"] * 3]
    assert {about.root for about in opened} == {str(tmp_path)}
    assert [epoch for epoch, *_ in told(kept, "epoch")] == [1, 1, 1]  # of the heads that are solved
    assert len(told(kept, "results")) == 4 and told(kept, "close") == [("finished",)] * 4
    assert run.condition() == ("whole", {})


def test_a_tracker_that_hangs_in_one_run_is_left_out_of_the_next_ones(
    make_logged, hanging, impatient, warnings, blank_figures
):
    outer = make_logged("hanging")
    first, second = (outer.path / name for name in ("fold-0", "fold-1"))
    for path in (first, second):
        shutil.copytree(outer.path, path, ignore=shutil.ignore_patterns("fold-*", "trackers"))
    with recording(outer):
        for path in (first, second):
            with recording(Run(path)):
                pass
    assert len([text for text in warnings() if str(first) in text]) == 1
    assert not [text for text in warnings() if str(second) in text]


def test_a_missing_package_is_said_before_a_training_and_only_noted_when_it_resumes(
    df, make_logged, tmp_path, monkeypatch, warnings, blank_figures
):
    monkeypatch.setattr(trackers["wandb"], "package", "absent_package")
    with pytest.raises(LesionfastError, match=r"Type: pip install 'lesionfast\[absent_package\]'"):
        train(df, TINY, tmp_path / "none", log="wandb")
    assert not (tmp_path / "none").exists()
    with recording(make_logged("wandb"), goes_on=True):
        pass
    assert "The run goes on without it" in warnings()[0]


def test_a_problem_with_the_results_is_no_problem_of_the_training(
    make_logged, kept, warnings, monkeypatch
):
    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr("lesionfast.training.trackers.recording.draw_confusion", full)
    with recording(make_logged("list")):
        pass
    assert "the final metrics" in warnings()[0] and "no space left" in warnings()[0]
    assert len(told(kept, "results")) == 1 and told(kept, "close") == [("finished",)]


def test_an_error_of_the_training_closes_the_record_as_failed(make_logged, kept):
    run = make_logged("list")
    with pytest.raises(LesionfastError), recording(run):
        raise LesionfastError("the training loss became nan")
    assert told(kept, "close") == [("failed",)] and OPEN == []
    optuna = pytest.importorskip("optuna")
    with pytest.raises(optuna.TrialPruned), recording(run):
        raise optuna.TrialPruned
    assert told(kept, "close")[1:] == [("pruned",)]


def test_a_class_is_a_tracker_and_other_things_are_refused(df, tmp_path, blank_figures):
    epochs = []

    class Mine(lf.Tracker):
        def write_epoch(self, epoch, phase, values):
            epochs.append(epoch)

    run = lf.train(df, replace(TINY, epochs=1, unfreeze="none"), tmp_path, log=Mine)
    assert epochs == [1] and run.config.log == "Mine"
    with pytest.raises(LesionfastError, match="log is 3; it takes names of trackers"):
        lf.train(df, TINY, tmp_path, log=3)


def test_a_second_registration_replaces_the_first(make_logged, kept, blank_figures):
    register_tracker("list")(Tracker)
    with recording(make_logged("list")):
        pass
    assert kept == []
