"""The whole experiment on the built-in sample with a tiny model, fitted once for the module."""

import json
import shutil
import signal
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders, images_at_once
from lesionfast.data.sample import make_sample
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.features import read_features
from lesionfast.files import UNFINISHED, sha256
from lesionfast.models.fusion import load_model
from lesionfast.run import Run, list_runs
from lesionfast.training.balancing import balances
from lesionfast.training.callbacks.cached_features import BATCH as HEAD_BATCH
from lesionfast.training.callbacks.progress import StopOnInterrupt
from lesionfast.training.experiment import (
    only_trainer,
    prepare_learner,
    resume,
    train,
)
from lesionfast.training.fitting import highest_lr
from lesionfast.training.learner import lesion_learner
from lesionfast.training.losses import losses

TINY = TrainConfig(  # a model of half a million parameters
    arch="test_resnet",
    weights="none",
    size=48,
    epochs=3,
    head_epochs=1,
    tta=1,
    batch_size=16,
    unfreeze="two-step",
    lr=5e-3,
    precision="float32",  # else a step is not the same on every processor
)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture(scope="module")
def run(df, tmp_path_factory):
    return train(df, TINY, tmp_path_factory.mktemp("runs"))


def test_the_run_directory_is_complete_and_holds_no_pickle(run):
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        ".manifest.lock",
        "config.json",
        "encoder.json",
        "environment.json",
        "features.safetensors",
        "history.csv",
        "log.txt",
        "manifest.json",
        "metrics.json",
        "model.json",
        "predictions.csv",
        "predictions_without_metadata.csv",
        "split.csv",
        "weights.safetensors",
    }
    unlisted = {name for name in names if not run.manifest.lists(name)}
    assert unlisted == {".manifest.lock", "log.txt", "manifest.json"}
    assert not any(run.manifest.problem(name) for name in names - unlisted)
    for path in run.path.iterdir():
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"PK"), path


def test_the_model_says_how_many_parameters_it_has(run):
    assert run.model["parameters"] == sum(each.numel() for each in load_model(run).parameters())


def test_it_learns(run):
    assert run.history["train_loss"].iloc[-1] < run.history["train_loss"].iloc[0]
    assert run.metrics["valid"]["macro_auc"] > 0.7


def test_predictions_are_of_every_validation_and_test_row(run, df):
    table = run.predictions
    expected = df[df["split"] != "train"]
    assert sorted(table["image_id"]) == sorted(expected["image_id"])
    sums = table[[f"p_{each}" for each in run.classes]].sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    assert {"age", "sex", "localization", "path", "group"} <= set(table.columns)


def test_no_lesion_crosses_and_every_number_quotes_the_hash(run):
    assert run.split.groupby("group")["split"].nunique().max() == 1
    assert run.metrics["split_sha256"] == sha256(run.path / "split.csv")


def kept_is(run, epoch):
    """The epoch whose weights predicted validation is the one that the run says."""
    assert run.metrics["best_epoch"] == epoch
    row = run.history.set_index("epoch").loc[epoch]
    kept = run.metrics["valid"]
    told = kept["rules"][run.config.rule]["balanced_accuracy"], kept["macro_auc"]
    assert told == pytest.approx((row["balanced_accuracy"], row["macro_auc"]), abs=1e-5)
    return True


def test_a_melanoma_class_of_any_name_can_be_monitored(df, monkeypatch):
    named = df.assign(target=df["target"].replace({"mel": "dark"}))
    options = replace(TINY, melanoma="dark", monitor="mel_sensitivity")

    def stop(*given, progress):
        raise KeyboardInterrupt  # all options were accepted

    monkeypatch.setattr("lesionfast.training.experiment.LesionDataLoaders.from_df", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_learner(named, options)
    with pytest.raises(LesionfastError, match="--monitor is 'mel_sensitivity'"):
        prepare_learner(named, replace(options, melanoma=None))


def test_the_last_average_is_kept_unless_a_monitor_is_typed(run, df, tmp_path):
    assert run.config.monitor is None and kept_is(run, len(run.history))
    watching = train(df, replace(TINY, monitor="train_loss", size=32), tmp_path)
    assert kept_is(watching, watching.history["epoch"][watching.history["train_loss"].idxmin()])


def test_a_config_of_an_earlier_version_still_keeps_the_best_epoch():
    values = json.loads(TINY.to_json()) | {"monitor": "balanced_accuracy"}
    assert TrainConfig.from_json(json.dumps(values)).monitor == "balanced_accuracy"


def test_ctrl_c_keeps_the_average_of_the_last_finished_epoch(stopped):
    assert len(stopped.history) == 1 and kept_is(stopped, 1)


def test_the_loaded_model_predicts_what_the_run_says(run, df):
    from lesionfast.data.encoder import MetadataEncoder
    from lesionfast.data.images import open_images

    rows = run.predictions.head(16)
    config = run.config
    paths = rows["path"].tolist()
    pixels = open_images(paths, config.size, resize=config.resize, cache=False).pixels
    encoder = MetadataEncoder.from_run(run)
    image = torch.from_numpy(np.array(pixels)).movedim(-1, 1).float() / 255
    with torch.no_grad():
        logits = load_model(run)(image, torch.from_numpy(encoder.transform(rows)))
    saved = rows[[f"p_{each}" for each in run.classes]].to_numpy()
    np.testing.assert_allclose(logits.softmax(1).numpy(), saved, atol=1e-4)


def test_the_same_seed_gives_the_same_history_workers_included(run, df, tmp_path):
    again = train(df, TINY, tmp_path / "same")
    workers = train(df, replace(TINY, workers=2), tmp_path / "workers")
    other = train(df, replace(TINY, seed=1), tmp_path / "other")
    text = (run.path / "history.csv").read_text()
    assert (again.path / "history.csv").read_text() == text
    assert (workers.path / "history.csv").read_text() == text
    assert (other.path / "history.csv").read_text() != text
    assert sha256(again.path / "weights.safetensors") == sha256(run.path / "weights.safetensors")


KILLED = """
import os, signal, sys
from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.training.callbacks.tracking import Checkpoint
from lesionfast.training.experiment import train
import torch

torch.set_num_threads(1)
config = TrainConfig.from_json(open(sys.argv[1]).read())
after, seen = int(sys.argv[3]), []
write = Checkpoint.after_batch = lambda self: (
    seen.append(1), len(seen) >= after and os.kill(os.getpid(), signal.SIGKILL))
train(load_dataset(config), config, sys.argv[2])
"""


def batches_until(run, epochs_done):
    """The batches until the middle of the epoch that comes after so many."""
    split = run.split["split"].value_counts()
    steps = split["train"] // TINY.batch_size
    valid = ceil(split["valid"] / images_at_once(torch.device("cpu")))
    of_head = ceil(split["train"] / HEAD_BATCH) + ceil(split["valid"] / HEAD_BATCH)
    return of_head + (epochs_done - 1) * (steps + valid) + steps // 2


@pytest.mark.parametrize("epochs_done", [1, 3])
def test_a_killed_training_goes_on_as_if_it_had_not_been(run, run_apart, tmp_path, epochs_done):
    """SIGKILL in the middle of an epoch that trains the backbone."""
    config = tmp_path / "config.json"
    config.write_text(TINY.to_json())
    after = batches_until(run, epochs_done)
    done = run_apart(config, tmp_path / "runs", after, code=KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    killed = Run.open(next((tmp_path / "runs").iterdir()))
    assert not killed.finished
    assert len(pd.read_csv(killed.path / "history.csv")) == epochs_done
    ended = resume(killed)
    for name in ("history.csv", "predictions.csv"):
        assert (ended.path / name).read_text() == (run.path / name).read_text()
    assert sha256(ended.path / "weights.safetensors") == sha256(run.path / "weights.safetensors")


INTERRUPTED = """
import os, signal, sys
from lesionfast.cli import main
from lesionfast.training.callbacks.tracking import Checkpoint

after, seen = int(sys.argv.pop(1)), []
Checkpoint.after_batch = lambda self: (
    seen.append(1), len(seen) == after and os.kill(os.getpid(), signal.SIGINT))
main()
"""


def test_ctrl_c_keeps_the_best_weights_and_can_be_resumed(run, run_apart, tmp_path):
    command = [batches_until(run, 1), "train", "--out", tmp_path]
    given = {k: v for k, v in json.loads(TINY.to_json()).items()}
    given = {k: v for k, v in given.items() if v is not None and not isinstance(v, bool)}
    for name, value in given.items():
        command += [f"--{name.replace('_', '-')}", value]
    done = run_apart(*command, code=INTERRUPTED)
    assert done.returncode == 0, done.stderr
    interrupted = Run.open(done.stdout.strip())
    assert interrupted.metrics["status"] == "interrupted"
    assert len(interrupted.history) == 1
    assert f"lesionfast train --resume {interrupted.path}" in done.stderr
    ended = resume(interrupted)
    assert (ended.path / "history.csv").read_text() == (run.path / "history.csv").read_text()


@pytest.fixture
def troubled_data(tmp_path):
    """Some of the sample, a training image corrupt, a nevus photographed under another lesion."""
    folder = tmp_path / "data"
    shutil.copytree(make_sample(), folder)
    table = folder / "sample_metadata.csv"
    rows = pd.read_csv(table, dtype=str).groupby("dx").head(15)
    nevi = rows[rows["dx"] == "nv"].drop_duplicates("lesion_id")
    (folder / "images" / f"{nevi['image_id'].iloc[2]}.jpg").write_bytes(b"no picture")
    twice = nevi.iloc[:1].assign(image_id="SYNTH_TWICE", lesion_id=nevi["lesion_id"].iloc[1])
    name = nevi["image_id"].iloc[0]
    shutil.copy(folder / "images" / f"{name}.jpg", folder / "images" / "SYNTH_TWICE.jpg")
    pd.concat([rows, twice]).to_csv(table, index=False)
    return folder


def test_a_resumed_run_keeps_its_joined_lesions_and_skipped_images(
    troubled_data, tmp_path, monkeypatch
):
    config = replace(
        TINY, data=str(troubled_data), skip_bad=True, join_duplicates=True, epochs=1, size=32
    )
    joined = load_dataset(config)
    assert (
        joined["group"].nunique() < load_dataset(replace(TINY, data=config.data))["group"].nunique()
    )

    def power_cut(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lesionfast.training.record.predict_splits", power_cut)
        train(joined, config, tmp_path / "runs")
    stopped = Run.open(next((tmp_path / "runs").iterdir()))
    log = (stopped.path / "log.txt").read_text()
    assert "skipped image SYNTH_" in log and "Age is missing for" in log
    before = (stopped.path / "split.csv").read_text()
    moved = tmp_path / "moved"
    troubled_data.rename(moved)
    ended = resume(stopped, data=str(moved))
    assert ended.metrics["status"] == "finished"
    assert (ended.path / "split.csv").read_text() == before
    assert len(ended.split) == len(joined)
    group = joined.set_index("image_id")["group"]
    predictions = ended.predictions
    assert (predictions["group"] == predictions["image_id"].map(group)).all()


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run on a copy of the sample that ended by Ctrl-C after its first epoch."""
    folder = tmp_path / "data"
    shutil.copytree(make_sample(), folder)
    config = replace(TINY, data=str(folder), size=32)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "before_batch", stop_after_one, raising=False)
        run = train(load_dataset(config), config, tmp_path / "runs")
    assert run.metrics["status"] == "interrupted"
    return run


def test_weights_kept_before_deferred_ones_came_on_have_the_prior_without_them(
    df, tmp_path, monkeypatch
):
    config = replace(
        TINY, size=32, epochs=2, balance="weights", defer_weights=0.5, label_smoothing=0.1
    )
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "before_batch", stop_after_one, raising=False)
        run = train(df, config, tmp_path)
    shares = df.loc[df["split"] == "train", "target"].value_counts(normalize=True)
    assert kept_is(run, 1)
    for model in (run.model, Run(run.path).model):
        np.testing.assert_allclose(model["prior"], shares[run.classes], rtol=1e-6)
        np.testing.assert_allclose(model["undo"]["shift"], 0)
    ended = resume(Run(run.path))
    assert kept_is(ended, 3)
    np.testing.assert_allclose(ended.model["prior"], 1 / 7)
    assert np.ptp(Run(run.path).model["undo"]["shift"]) > 0.1


def test_a_run_that_says_of_nothing_to_undo_predicts_as_it_did(run, tmp_path):
    """A run of an earlier version: its config has smoothing that was not undone."""
    old = tmp_path / "old"
    shutil.copytree(run.path, old)
    Run(old).write_text("config.json", replace(run.config, label_smoothing=0.1).to_json())
    model = {k: v for k, v in run.model.items() if k not in ("undo", "not_undone")}
    Run(old).write_json("model.json", model | {"prior": [0.3, 0.2, *[0.1] * 5]})
    learn = lesion_learner(LesionDataLoaders.from_run(Run(old)), Run(old))
    with learn.no_bar():
        found = learn.get_preds(ds_idx=1)[0].numpy()
    valid = run.predictions.query("split == 'valid'")
    expected = valid[[f"p_{each}" for each in run.classes]].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert learn.prior[0] == 0.3


def stop_after_one(self):
    self.interrupted = self.epoch > 0


def test_a_resumed_run_does_not_show_metrics_of_other_weights(stopped, monkeypatch):
    def power_cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("lesionfast.training.record.predict_splits", power_cut)
    with pytest.raises(KeyboardInterrupt):
        resume(Run.open(stopped.path))
    assert not Run.open(stopped.path).finished
    assert not (stopped.path / "predictions.csv").exists()


@pytest.mark.parametrize("change", ["another age", "a row less"])
def test_a_run_is_not_resumed_on_changed_data(stopped, change):
    table = Path(stopped.config.data) / "sample_metadata.csv"
    rows = pd.read_csv(table, dtype=str)
    rows = rows.iloc[1:] if change == "a row less" else rows.assign(age="40")
    rows.to_csv(table, index=False)
    with pytest.raises(LesionfastError, match="the data has changed since.*start again"):
        resume(Run.open(stopped.path))
    assert Run.open(stopped.path).finished  # nothing is lost


def test_a_broken_checkpoint_says_how_to_start_again(stopped):
    (stopped.path / "checkpoints" / "last.safetensors").write_bytes(b"cut short")
    with pytest.raises(LesionfastError, match=r"is damaged.*train --config .*config\.json"):
        resume(Run.open(stopped.path))


def test_a_run_that_stopped_before_it_began_is_not_resumed(tmp_path):
    with pytest.raises(LesionfastError, match="stopped before its training began.*--config"):
        resume(Run.create(tmp_path, TINY))


def test_a_run_is_trained_by_one_process_at_a_time(stopped):
    with only_trainer(stopped), pytest.raises(LesionfastError, match="another process"):
        resume(Run.open(stopped.path))


def test_a_run_that_another_process_has_just_ended_keeps_its_results(stopped, monkeypatch):
    def end_first(run):
        run.write_json("metrics.json", run.metrics | {"status": "finished"})
        return only_trainer(run)

    monkeypatch.setattr("lesionfast.training.experiment.only_trainer", end_first)
    before = sorted(stopped.path.rglob("*")), (stopped.path / "predictions.csv").read_bytes()
    with pytest.raises(LesionfastError, match="is finished: nothing is left to do"):
        resume(Run.open(stopped.path))
    after = sorted(stopped.path.rglob("*")), (stopped.path / "predictions.csv").read_bytes()
    assert before == after


def test_a_full_disk_says_how_the_training_goes_on_and_leaves_no_half_file(df, small_disk):
    go_on = r"the disk is full; .* Free some space, then continue with: lesionfast train --resume "
    with pytest.raises(LesionfastError, match=go_on) as error:
        train(df, replace(TINY, size=32), small_disk)
    (run,) = list_runs(small_disk)
    assert str(error.value).endswith(str(run.path))
    assert not list(small_disk.rglob(f"{UNFINISHED}*"))
    assert not list(small_disk.rglob("*.safetensors"))


def test_a_rate_that_was_found_holds_for_a_resumed_run(df, tmp_path):
    learn = prepare_learner(df, replace(TINY, lr="auto"))
    run = Run.create(tmp_path, replace(TINY, lr="auto"))
    found = highest_lr(learn, run)
    assert 1e-7 < found < 10
    run.write_json("checkpoints/lr.json", 0.125)
    assert highest_lr(learn, run) == 0.125


def test_a_metric_that_is_undefined_says_what_to_watch(df, tmp_path):
    lone = df[(df["split"] != "valid") | (df["target"] != "mel")]
    with pytest.raises(LesionfastError, match="--monitor mel_sensitivity is undefined in epoch 1"):
        train(lone, replace(TINY, monitor="mel_sensitivity", size=32), tmp_path)


def test_a_run_that_ended_is_not_resumed(run):
    with pytest.raises(LesionfastError, match="is finished: nothing is left to do.*interpret"):
        resume(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "densnet121"}, "Did you mean 'densenet121'"),
        ({"loss": "cross"}, "there is no loss 'cross'"),
        ({"balance": "weight"}, "Did you mean 'weights'"),
        ({"fusion": "fillm"}, "Did you mean 'film'"),
        ({"augment": "rotat"}, "Did you mean 'rotate'"),
        ({"metadata": "none", "fusion": "film"}, "--fusion film needs metadata.*--fusion none"),
        ({"monitor": "acuracy"}, "--monitor is 'acuracy'.*Did you mean 'accuracy'"),
        ({"unfreeze": "last:99"}, "--unfreeze is 'last:99'"),
        ({"start_size": 48}, "--start-size is 48.*can't grow.*below 48, or leave it out"),
        ({"device": "cuda"}, "no cuda device"),
        ({"device": "cpu", "precision": "float16"}, "needs a CUDA GPU"),
    ],
)
def test_a_wrong_name_is_found_before_a_run_is_made(df, tmp_path, changes, message):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(LesionfastError, match=message):
        train(df, replace(TINY, **changes), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("balance", balances)
@pytest.mark.parametrize("loss", losses)
def test_every_loss_and_balance_take_a_step(dls, loss, balance):
    """Of one epoch of 32 rows a class at most, so that all pairs take seconds."""
    config = replace(TINY, balance=balance, loss=loss, size=32, batch_size=128)
    learn = lesion_learner(dls, config=config)
    before = learn.model.head[-1].weight.clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()
    assert not torch.equal(before, learn.model.head[-1].weight)


@pytest.fixture(scope="module")
def plain(df, tmp_path_factory):
    """A run whose objective has no option."""
    config = replace(TINY, epochs=2, size=32, batch_size=64)
    return train(df, config, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def dls(df):
    return LesionDataLoaders.from_df(df, replace(TINY, size=32, batch_size=128))


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": "mixup"},
        {"mix": "cutmix"},
        {"hardest": 0.5},
        {"loss": "ldam", "balance": "effective", "defer_weights": 0.5},
        {"augment_valid": 3},
        {"class_weight": "mel=3"},
    ],
    ids=str,
)
def test_options_of_the_objective_change_the_training_and_repeat(plain, df, tmp_path, changes):
    config = replace(plain.config, **changes)
    once, again = (
        (train(df, config, tmp_path / name).path / "history.csv").read_text() for name in "ab"
    )
    assert once == again != (plain.path / "history.csv").read_text()


def test_options_that_do_not_go_together_are_refused(df, tmp_path):
    for changes, message in (
        ({"cost": "mel:nv=4"}, "--cost needs --loss asymmetric"),
        ({"hardest": 0.5, "mix": "mixup"}, "--hardest and --mix can.t be combined"),
        ({"loss": "focal", "label_smoothing": 0.1}, "not defined for --loss focal.*cross_entropy"),
        ({"label_smoothing": 1.0}, "leaves too little of the labels.*--label-smoothing 0.1"),
        ({"class_weight": "mell=2"}, "Did you mean 'mel'"),
        ({"mix": "mixupp"}, "Did you mean 'mixup'"),
        ({"beta": 0.9}, "--beta needs --balance effective"),
        ({"tau": 0.5}, "--tau needs --loss logit_adjusted"),
        ({"mix_alpha": 1.0}, "--mix-alpha needs --mix"),
        ({"defer_weights": 0.5}, "needs class weights to defer.*--balance weights"),
        ({"defer_weights": 0.5, "monitor": "valid_loss"}, "can't compare epochs"),
        ({"augment_valid": 1, "augment": "none"}, "--augment-valid needs --augment other"),
    ):
        with pytest.raises(LesionfastError, match=message):
            train(df, replace(TINY, size=32, **changes), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_predictions_may_be_the_mean_over_turned_pictures(run, df, tmp_path):
    """--tta changes the predictions, and neither the weights nor the history."""
    turned = train(df, replace(TINY, tta=4), tmp_path)
    assert sha256(turned.path / "weights.safetensors") == sha256(run.path / "weights.safetensors")
    assert (turned.path / "history.csv").read_text() == (run.path / "history.csv").read_text()
    classes = [f"p_{each}" for each in run.model["classes"]]
    both = (turned.predictions[classes].to_numpy(), run.predictions[classes].to_numpy())
    assert np.allclose(both[0].sum(axis=1), 1, atol=1e-5) and not np.allclose(*both)
    assert turned.model["tta"] == 4


def test_out_of_memory_says_which_batch_size_to_try(df, tmp_path, monkeypatch):
    def fail(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("lesionfast.models.fusion.FusionModel.forward", fail)
    with pytest.raises(LesionfastError, match="--batch-size 8"):
        train(df, TINY, tmp_path)
    assert signal.getsignal(signal.SIGINT) == before  # Ctrl-C is Python's again


def test_the_features_of_every_image_are_kept(run, df):
    features = read_features(run)
    assert sorted(features.index) == sorted(df["image_id"]) and features.shape[1] > 8
    assert np.isfinite(features.to_numpy()).all() and features.std().max() > 0
