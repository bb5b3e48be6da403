"""Each service for real, as far as its package is installed: into local files, read back."""

import math
import os
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from lesionfast.training.trackers.base import trackers
from lesionfast.training.trackers.delivery import Delivery
from lesionfast.training.trackers.recording import recording


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """Whatever server is configured on this machine is not asked."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_", "TRACKIO_")):
            monkeypatch.delenv(name)


def need(*packages):
    for name in packages:
        pytest.importorskip(name, reason=f"{name} is not installed")


def record(run):
    with recording(run):
        pass


def test_tensorboard_has_curves_by_phase_options_results_and_the_figure(
    make_logged, warnings, blank_figures
):
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_logged("tensorboard")
    record(run)
    assert warnings() == []
    read = EventAccumulator(str(run.path / "tensorboard")).Reload()
    history = run.history
    points = {(point.step, round(point.value, 6)) for point in read.Scalars("valid_loss")}
    assert points == set(zip(history["epoch"], history["valid_loss"], strict=True))
    assert [point.step for point in read.Scalars("all/valid_loss")] == [4, 5, 6]
    texts = {
        name: read.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("options", "results", "status")
    }
    assert "| arch | resnet18 |" in texts["options"] and "| split_sha256 | " in texts["options"]
    assert "| test | balanced_accuracy | all | 0." in texts["results"] and "]" in texts["results"]
    assert texts["status"] == "finished"
    value = run.metrics["test"]["rules"]["balanced"]["balanced_accuracy"]
    assert math.isclose(read.Scalars("test/balanced_accuracy")[0].value, value, abs_tol=1e-6)
    assert read.Tags()["images"] == ["confusion", "roc"]


def test_a_tensorboard_that_goes_on_hides_what_was_after_the_last_epoch(about):
    need("tensorboard")
    from dataclasses import replace

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs, has in (((1, 2, 3), 0), ((2, 3), 1)):
        time.sleep(1.1 * has)  # the files are named by the second
        tracker = trackers["tensorboard"](replace(about, epoch=has))
        for epoch in epochs:
            tracker.write_epoch(epoch, "all", {"valid_loss": 1 / epoch + has})
        tracker.close("interrupted")
    read = EventAccumulator(str(Path(about.path) / "tensorboard")).Reload()
    assert [(p.step, round(p.value, 3)) for p in read.Scalars("valid_loss")] == [
        (1, 1.0),
        (2, 1.5),
        (3, 1.333),
    ]


def test_mlflow_has_all_of_it_in_a_database_beside_the_runs(make_logged, warnings, blank_figures):
    need("mlflow", "sqlalchemy")
    from mlflow import MlflowClient

    run = make_logged("mlflow")
    record(run)
    assert warnings() == []
    client = MlflowClient(f"sqlite:///{run.path.parent / 'mlflow' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("lesionfast").experiment_id])
    assert found.info.run_name == run.path.name and found.info.status == "FINISHED"
    assert found.data.params["arch"] == "resnet18"
    assert len(found.data.params["split_sha256"]) == 64
    assert {"test/balanced_accuracy_low", "valid/mel/auc_high"} <= set(found.data.metrics)
    points = client.get_metric_history(found.info.run_id, "head and last 1 stage/valid_loss")
    assert [(point.step, point.value) for point in points] == [(2, 1.02)]
    assert [f.path for f in client.list_artifacts(found.info.run_id, "figures")]


def test_wandb_writes_offline_files_into_the_run(make_logged, warnings, blank_figures):
    need("wandb")
    run = make_logged("wandb")
    record(run)
    assert warnings() == []
    (file,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()
    assert b"valid_loss" in written and b"test/mel/auc_low" in written and b"resnet18" in written
    assert list(run.path.glob("wandb/offline-run-*/files/media/images/confusion*.png"))


def test_trackio_has_all_of_it_in_a_database_beside_the_runs(make_logged, warnings, blank_figures):
    need("trackio")
    run = make_logged("trackio")
    record(run)
    assert warnings() == []
    with sqlite3.connect(run.path.parent / "trackio" / "lesionfast.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step")
        found = [(name, step, bytes(metrics)) for name, step, metrics in rows]
    assert {name for name, *_ in found} == {run.path.name}
    assert [step for _, step, metrics in found if b"valid_loss" in metrics] == [1, 2, 3, 4, 5, 6]
    assert any(b"test/mel/auc_low" in metrics for *_, metrics in found)


def test_several_processes_make_the_database_of_mlflow_once(about, tmp_path, warnings):
    need("mlflow", "sqlalchemy")
    ways = [Delivery("mlflow", about, tmp_path / f"{name}.json") for name in "ab"]
    for way in ways:
        way.finish("finished")
    assert all(way.wait(time.monotonic()) for way in ways) and warnings() == []
    assert ways[0].id != ways[1].id


@pytest.mark.parametrize("answers", [False, True])
def test_a_dead_server_of_mlflow_costs_seconds(
    answers, about, tmp_path, monkeypatch, warnings, impatient, seconds
):
    need("mlflow")
    monkeypatch.setattr(trackers["mlflow"], "seconds_to_open", 3.0)

    with socket.create_server(("127.0.0.1", 0)) as server:
        if not answers:
            server.close()
        host, port = server.getsockname() if answers else ("127.0.0.1", 9)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:{port}")
        way = Delivery("mlflow", about, tmp_path / "a.json")
        way.send("write_epoch", 1, "head", {"valid_loss": 1.0})
        way.finish("finished")
        assert not way.wait(time.monotonic())
    assert "2 of 2 entries were not delivered" in warnings()[0]
    assert seconds() < 60


def test_each_service_says_what_to_type(about, monkeypatch):
    for name, words in {
        "tensorboard": "tensorboard --logdir ",
        "mlflow": "mlflow ui --backend-store-uri sqlite:///",
        "wandb": "wandb sync ",
        "trackio": "trackio show --project lesionfast",
    }.items():
        assert words in trackers[name].look(about)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert trackers["mlflow"].look(about).startswith("http://tracking:5000")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "as WANDB_MODE says" in trackers["wandb"].look(about)
