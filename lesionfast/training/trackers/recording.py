"""What is recorded of a run, beside its training: each epoch, final metrics, figures."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Learner

import lesionfast.training.trackers.services  # noqa: F401 - registers them
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation, records
from lesionfast.files import sha256
from lesionfast.reporting.errors import draw_confusion
from lesionfast.reporting.metrics import draw_roc
from lesionfast.run import Run, outermost
from lesionfast.training.processes import process
from lesionfast.training.trackers.base import About, check_tracker, read_names, trackers
from lesionfast.training.trackers.delivery import Delivery, read_kept

logger = logging.getLogger("lesionfast")

KEPT = "trackers"  # the folder of a run with what its trackers call it
ENDS = {  # an exception that ends a training -> the status of its record, else failed
    **dict.fromkeys(("KeyboardInterrupt", "TrainingInterrupted"), "interrupted"),
    "TrialPruned": "pruned",  # of Optuna
}
OPEN: list["Record"] = []  # that are under way: of a run, and of runs around it


def check_trackers(log: str | None) -> None:
    """Raise `LesionfastError` unless all that --log names is registered and installed."""
    for name in read_names(log):
        check_tracker(name)


class Record:
    """A run on its way to its trackers. Nothing here waits for them, but `close`, for seconds."""

    def __init__(self, run: Run, goes_on: bool = False) -> None:
        self.run, self.given_up = run, set[str]()
        self.outer = OPEN[-1] if OPEN else None
        self.deliveries = {
            name: self.deliver(name, goes_on) for name in usable_trackers(run, self.given_up_by_all)
        }
        self.last = {name: way.about.epoch for name, way in self.deliveries.items()}

    @property
    def given_up_by_all(self) -> set[str]:
        """The trackers that have not answered in this run, nor in one inside it before."""
        return OPEN[0].given_up if OPEN else self.given_up

    def deliver(self, name: str, goes_on: bool) -> Delivery:
        """Return the way to a tracker, and say where to look."""
        file = self.run.path / KEPT / f"{name}.json"
        if not goes_on:
            file.unlink(missing_ok=True)
        about = describe(self.run, *read_kept(file))
        if self.outer is None and (look := trackers[name].look(about)):
            logger.info("--log %s: %s", name, look)
        return Delivery(name, about, file, self.outer and self.outer.deliveries.get(name))

    def send_epoch(self, columns: list[str], line: list[str]) -> None:
        """Send a line of history.csv to the trackers that do not have it."""
        row = dict(zip(columns, line, strict=True))
        epoch, phase = int(row.pop("epoch")), row.pop("phase")
        values = {name: float(text) for name, text in row.items() if text}
        for name, delivery in self.deliveries.items():
            if epoch > self.last[name]:
                delivery.send("write_epoch", epoch, phase, values)
                self.last[name] = epoch

    def send_history(self) -> None:
        """Send the lines of history.csv that no callback has sent, as of a head that is solved."""
        if self.run.holds("history.csv"):
            header, *lines = self.run.file("history.csv").read_text("utf-8").splitlines()
            for line in lines:
                self.send_epoch(header.split(","), line.split(","))

    def send_results(self) -> None:
        """Send the final metrics with their intervals, the confusion matrix and the ROC curves."""
        run, rows = Run(self.run.path), []
        splits = [split for split in ("valid", "test") if split in run.metrics]
        for split in splits:
            interpretation = Interpretation.from_run(run, split)
            rows += [{"split": split, **row} for row in records(interpretation.measures)]
        self.send("write_results", rows)
        folder = Findings(interpretation).folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.send("write_figure", "confusion", str(draw_confusion(interpretation, folder)))
        roc = draw_roc(interpretation, interpretation.measures, folder)
        self.send("write_figure", "roc", str(roc))

    def send(self, method: str, *given: Any) -> None:
        for delivery in self.deliveries.values():
            delivery.send(method, *given)

    def close(self, status: str) -> None:
        """End the records; wait as long as `Delivery.wait` does, for all of them at once."""
        start = time.monotonic()
        for delivery in self.deliveries.values():
            delivery.finish(status)
        for name, delivery in self.deliveries.items():
            if not delivery.wait(start):
                self.given_up_by_all.add(name)


def usable_trackers(run: Run, given_up: set[str]) -> list[str]:
    """Return the trackers of a run, without those that did not answer; warn of one not there."""
    usable = []
    for name in read_names(run.config.log):
        try:
            check_tracker(name)
        except LesionfastError as error:  # of a resumed run: it was there when the run began
            logger.warning("%s The run goes on without it", error)
            continue
        if name not in given_up:
            usable.append(name)
    return usable


def describe(run: Run, tracker_id: str | None, epoch: int) -> About:
    """Return what a tracker is told of a run, which it calls so, and has up to an epoch."""
    path = run.path.absolute()
    root = outermost(path)
    name = path.relative_to(root)
    return About(
        name=name.as_posix(),
        path=str(path),
        root=str(root),
        config=asdict(run.config),
        split_sha256=sha256(run.path / "split.csv"),
        environment=run.environment if run.holds("environment.json") else {},
        group=name.parts[0] if len(name.parts) > 1 else None,
        id=tracker_id,
        epoch=epoch,
    )


class RecordEpochs(Callback):
    """Send each line of history.csv to the trackers of a run, as it is written."""

    order = 65  # after WriteHistory

    def __init__(self, record: Record) -> None:
        self.record = record

    def after_epoch(self) -> None:
        if hasattr(self.learn, "write_history"):  # not while the learning rate is searched
            header, *_, line = self.write_history.lines
            self.record.send_epoch(header.split(","), line.split(","))


@contextmanager
def recording(run: Run, learn: Learner | None = None, *, goes_on: bool = False) -> Iterator[None]:
    """Record a run with the trackers that --log names, while it trains; do nothing without one.

    `learn` trains it, None if runs inside it do. With `goes_on` the trackers continue what they
    have of it. No tracker stops or slows the training: one that fails or does not answer loses
    entries, and a warning says so. Of several processes that train together the first records.
    """
    if not read_names(run.config.log) or process.rank:
        yield
        return
    record, status = Record(run, goes_on), ""
    callback = RecordEpochs(record)
    OPEN.append(record)
    if learn is not None:
        learn.add_cb(callback)
    try:
        yield
        status = Run(run.path).metrics["status"]
        send_rest(record)
    except BaseException as error:
        status = ENDS.get(type(error).__name__, "failed")
        raise
    finally:
        if learn is not None:
            learn.remove_cb(callback)
        record.close(status)
        OPEN.remove(record)


def send_rest(record: Record) -> None:
    """Send what is known only at the end; a problem with it is no problem of the training."""
    try:
        record.send_history()
        record.send_results()
    except Exception as error:
        logger.warning(
            "--log: the final metrics of %s were not recorded: %s. The training is not affected",
            *(record.run.path, error),
        )
