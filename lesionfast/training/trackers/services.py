"""The trackers that come with lesionfast. Free of torch; each package is imported when needed.

fastai's own callbacks for TensorBoard and Weights & Biases write in the training's thread, batch by
batch, and know neither phases nor intervals; MLflow and Trackio have none. So each tracker uses the
API of its package.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lesionfast.console import escape_markdown, estimate
from lesionfast.errors import shell_quote
from lesionfast.files import write_atomically
from lesionfast.training.trackers.base import (
    PROJECT,
    About,
    Row,
    Tracker,
    curves,
    flat_config,
    flat_results,
    short_path,
    trackers,
)

DATABASE = "mlflow.db"
MOST_AT_ONCE = 500  # metrics or parameters in one request to MLflow, which takes up to 1,000
LONGEST = 500  # characters of a parameter that every version of MLflow takes
LOCK_SECONDS = 60.0  # to wait for another process that makes MLflow's database


@trackers.register("tensorboard")
class TensorBoard(Tracker):
    """Event files in the run's folder tensorboard; no server."""

    package = "tensorboard"

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(about)
        folder = str(Path(about.path) / "tensorboard")
        self.writer = SummaryWriter(folder, purge_step=about.epoch + 1)  # of a training cut short
        self.writer.add_text("options", markdown_table(flat_config(about)))
        self.writer.flush()
        self.last = about.epoch

    @classmethod
    def look(cls, about: About) -> str:
        folder = short_path(Path(about.path) / "tensorboard")
        all_runs = Path(short_path(about.root))
        return f"{folder}; look at it with: tensorboard --logdir {shell_quote(all_runs)}"

    def write_epoch(self, epoch: int, phase: str, values: dict[str, float]) -> None:
        for name, value in curves(phase, values).items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        self.last = epoch

    def write_results(self, rows: list[Row]) -> None:
        """Write a table with intervals, and what the page HPARAMS compares runs by."""
        self.writer.add_text("results", results_table(rows), self.last)
        overall = flat_results([row | {"low": None, "high": None} for row in overall_rows(rows)])
        plain = {k: v for k, v in flat_config(self.about).items() if k in self.about.config}
        self.writer.add_hparams(plain, overall, run_name=".", global_step=self.last)

    def write_figure(self, name: str, path: str) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.writer.add_image(name, pixels, self.last, dataformats="HWC")

    def close(self, status: str) -> None:
        self.writer.add_text("status", status, self.last)
        self.writer.close()


@trackers.register("mlflow")
class MLflow(Tracker):
    """A database in the folder mlflow beside the runs, or the server of MLFLOW_TRACKING_URI."""

    package, own_process = "mlflow", True
    seconds_to_open = 40.0  # a new database takes some

    def __init__(self, about: About) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves by itself
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # seconds
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        super().__init__(about)
        with self.only_one():
            from mlflow import MlflowClient

            uri = os.environ.get("MLFLOW_TRACKING_URI") or local_database(about)
            self.client = MlflowClient(tracking_uri=uri)
            experiment = self.experiment()
        if about.id is not None:
            self.client.update_run(about.id, status="RUNNING")
            self.id = about.id
            return
        tags = {"split_sha256": about.split_sha256, "folder": about.path}
        if about.parent is not None:
            tags["mlflow.parentRunId"] = about.parent
        self.id = self.client.create_run(experiment, run_name=about.name, tags=tags).info.run_id
        self.write_parameters(flat_config(about))

    @classmethod
    def look(cls, about: About) -> str:
        if server := os.environ.get("MLFLOW_TRACKING_URI"):
            return f"{server}, as MLFLOW_TRACKING_URI says"
        database = short_path(local_folder(about) / DATABASE)
        look = f"mlflow ui --backend-store-uri {shell_quote(f'sqlite:///{database}')}"
        return f"{database}; look at it with: {look}"

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Let one process at a time make the local database."""
        if os.environ.get("MLFLOW_TRACKING_URI"):
            yield
            return
        from filelock import FileLock

        folder = local_folder(self.about)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=LOCK_SECONDS):
            if not (folder / DATABASE).exists():
                make_database(folder / DATABASE)
            yield

    def experiment(self) -> str:
        """Return the id of MLFLOW_EXPERIMENT_NAME, or of lesionfast; it is made if it is new."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        if there := self.client.get_experiment_by_name(name):
            return there.experiment_id
        server = os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None if server else (local_folder(self.about) / "artifacts").as_uri()
        return self.client.create_experiment(name, artifact_location=artifacts)

    def write_parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        written = [Param(allowed_name(k), str(v)[:LONGEST]) for k, v in values.items()]
        for start in range(0, len(written), 100):  # as many as it takes at once
            self.client.log_batch(self.id, params=written[start : start + 100])

    def write_metrics(self, values: dict[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        written = [Metric(allowed_name(k), v, now, step) for k, v in values.items()]
        for start in range(0, len(written), MOST_AT_ONCE):
            self.client.log_batch(self.id, metrics=written[start : start + MOST_AT_ONCE])

    def write_epoch(self, epoch: int, phase: str, values: dict[str, float]) -> None:
        self.write_metrics(curves(phase, values), epoch)

    def write_results(self, rows: list[Row]) -> None:
        self.write_metrics(flat_results(rows))

    def write_figure(self, name: str, path: str) -> None:
        self.client.log_artifact(self.id, path, "figures")

    def close(self, status: str) -> None:
        words = {"finished": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED"}
        self.client.set_terminated(self.id, words.get(status, "FAILED"))


def local_folder(about: About) -> Path:
    """Return the folder of MLflow's local database, beside the runs."""
    return Path(about.root) / "mlflow"


def local_database(about: About) -> str:
    """Return the address of MLflow's local database."""
    return f"sqlite:///{local_folder(about) / DATABASE}"


def make_database(file: Path) -> None:
    """Make a database for MLflow, which changes it a hundred times, without waiting for the disk.

    It gets its name when it is whole.
    """
    from mlflow import MlflowClient
    from sqlalchemy import Engine, event

    def hurry(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    try:
        write_atomically(file, lambda aside: MlflowClient(f"sqlite:///{aside}").get_experiment("0"))
    finally:
        event.remove(Engine, "connect", hurry)


def allowed_name(name: str) -> str:
    """Return a name with only the characters that MLflow allows in one."""
    return re.sub(r"[^\w.\- :/]", "_", name.replace(" + ", " and "))


@trackers.register("wandb")
class WandB(Tracker):
    """Weights & Biases: offline files in the run's folder wandb, or as WANDB_MODE says.

    Those of a run inside another are in that one's folder.
    """

    package, own_process = "wandb", True

    def __init__(self, about: About) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing leaves by itself
        import wandb

        super().__init__(about)
        mode = os.environ.get("WANDB_MODE") or "offline"
        quiet = {name: True for name in ("silent", "disable_git", "x_disable_stats")}
        quiet |= {"console": "off", "save_code": False, "x_save_requirements": False}
        self.image = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=outer_folder(about),
            id=about.id,
            resume="allow" if about.id and mode == "online" else None,
            name=about.name,
            group=about.group,
            config=flat_config(about),
            mode=mode,
            settings=wandb.Settings(**quiet),
        )
        self.id = self.run.id

    @classmethod
    def look(cls, about: About) -> str:
        mode = os.environ.get("WANDB_MODE") or "offline"
        if mode != "offline":
            return f"Weights & Biases, {mode}, as WANDB_MODE says"
        folder = Path(short_path(outer_folder(about) / "wandb"))
        return f"{folder}; send it to a server with: wandb sync {shell_quote(folder)}/offline-run-*"

    def write_epoch(self, epoch: int, phase: str, values: dict[str, float]) -> None:
        self.run.log({"epoch": epoch, "phase": phase, **curves(phase, values)}, step=epoch)

    def write_results(self, rows: list[Row]) -> None:
        self.run.summary.update(flat_results(rows))

    def write_figure(self, name: str, path: str) -> None:
        self.run.log({name: self.image(path)})

    def close(self, status: str) -> None:
        self.run.summary.update({"status": status})
        self.run.finish(exit_code=0 if status == "finished" else 1)


def outer_folder(about: About) -> Path:
    """Return the folder of a run, or of the run around it."""
    return Path(about.root) / (about.group or about.name)


@trackers.register("trackio")
class Trackio(Tracker):
    """Trackio: a database in the folder trackio beside the runs, or as TRACKIO_SPACE_ID says."""

    package, own_process = "trackio", True

    def __init__(self, about: About) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(Path(about.root) / "trackio"))
        import trackio

        super().__init__(about)
        self.image = trackio.Image
        self.run = trackio.init(
            project=PROJECT,
            name=about.name,
            group=about.group,
            config=flat_config(about),
            resume="allow" if about.id else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.id = self.run.name

    @classmethod
    def look(cls, about: About) -> str:
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if os.environ.get(name):
                return f"Trackio, as {name} says"
        folder = short_path(os.environ.get("TRACKIO_DIR") or Path(about.root) / "trackio")
        look = f"TRACKIO_DIR={shell_quote(folder)} trackio show --project {PROJECT}"
        return f"{folder}; look at it with: {look}"

    def write_epoch(self, epoch: int, phase: str, values: dict[str, float]) -> None:
        self.run.log({"phase": phase, **curves(phase, values)}, step=epoch)

    def write_results(self, rows: list[Row]) -> None:
        self.run.log(flat_results(rows))

    def write_figure(self, name: str, path: str) -> None:
        self.run.log({name: self.image(path)})

    def close(self, status: str) -> None:
        self.run.log({"status": status})
        self.run.finish()


def overall_rows(rows: list[Row]) -> list[Row]:
    """Return the final metrics over all classes."""
    return [row for row in rows if row["of"] == "all"]


def markdown_table(values: dict[str, Any]) -> str:
    """Return names and values as a Markdown table."""
    rows = [map(escape_markdown, (name, str(value))) for name, value in values.items()]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| option | value |", "| --- | --- |", *lines])


def results_table(rows: list[Row]) -> str:
    """Return final metrics with their 95 % intervals as a Markdown table."""
    lines = [
        f"| {row['split']} | {row['metric']} | {escape_markdown(row['of'])} | {estimate(row)} "
        f"| {row['n']} |"
        for row in rows
    ]
    head = "| split | metric | of | value [95 % interval] | images |"
    return "\n".join([head, "| --- | --- | --- | --- | --- |", *lines])
