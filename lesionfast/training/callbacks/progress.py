"""What a person sees and may do while a model trains: a bar, a line per epoch, a log, Ctrl-C."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fastai.callback.core import CancelFitException

from lesionfast.console import PrintableLines, echo, progress_bar
from lesionfast.files import check_target
from lesionfast.training.callbacks.cached_features import FeatureLoader
from lesionfast.training.callbacks.inference import Borrowing
from lesionfast.training.callbacks.tracking import Resumable, history_columns
from lesionfast.training.processes import process

logger = logging.getLogger("lesionfast")


class EpochBar(Borrowing):
    """A progress bar over the steps of each epoch, with the time left and the training loss."""

    order, part = 70, "epoch"

    def __init__(self) -> None:
        self.bar = None

    def before_epoch(self) -> None:
        self.bar = progress_bar()
        self.bar.start()
        total = len(self.dls.train) + len(self.dls.valid)
        title = f"epoch {self.epoch + 1}/{self.n_epoch}"
        self.task = self.bar.add_task(title, total=total, note="")

    def after_batch(self) -> None:
        note = f"loss {self.smooth_loss.item():.3f}" if self.training else "validating"
        self.bar.update(self.task, advance=1, note=note)

    def clean_up(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class EpochLines(Resumable):
    """Log one line of metrics per epoch, and measure the speed of the training steps."""

    order = 71
    resumed = ("train_seconds", "image_seconds", "images")

    def __init__(self) -> None:
        self.train_seconds, self.image_seconds, self.images = 0.0, 0.0, 0

    @property
    def images_per_second(self) -> float:
        """Training images per second, over the epochs whose training ended; 0 if there are none."""
        return self.images / self.image_seconds if self.image_seconds else 0.0

    def before_fit(self) -> None:
        self.last = time.perf_counter()
        names = [name.replace("_", " ") for name in history_columns(self.learn)]
        self.widths = [max(len(name), 8) for name in names]
        logger.info("epoch  %s   seconds", "  ".join(map(str.rjust, names, self.widths)))

    def before_epoch(self) -> None:
        self.epoch_started = time.perf_counter()

    def before_train(self) -> None:
        self.train_started, self.seen = time.perf_counter(), 0

    def after_batch(self) -> None:
        """Count the images of a training step, but not their features."""
        if self.training and not isinstance(self.dl, FeatureLoader):
            self.seen += len(self.yb[0]) * process.size

    def after_train(self) -> None:
        """Add up images and seconds; an epoch that was cut short counts in neither."""
        seconds = time.perf_counter() - self.train_started
        self.images += self.seen
        self.image_seconds += seconds if self.seen else 0.0

    def after_validate(self) -> None:
        """Add up the time of training: all that has passed, the computing of features included."""
        now = time.perf_counter()
        self.train_seconds += now - self.last
        self.last = now

    def after_epoch(self) -> None:
        values = [f"{value:.4f}" for value in self.recorder.values[-1]]
        line = "  ".join(map(str.rjust, values, self.widths))
        seconds = time.perf_counter() - self.epoch_started
        logger.info("%2d/%-2d  %s  %8.1f", self.epoch + 1, self.n_epoch, line, seconds)


class StopOnInterrupt(Borrowing):
    """End the fit properly at the first Ctrl-C; the second one stops at once.

    Does nothing outside the main thread, where Python delivers no signals.
    """

    order = -40

    def __init__(self) -> None:
        self.interrupted, self.main = False, False
        self.agreed = False  # with the other processes, which have to stop at the same step

    def before_fit(self) -> None:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGINT, self.note)

    def note(self, signal_number: int, frame: FrameType | None) -> Any:
        """Remember the Ctrl-C, and give SIGINT back."""
        self.interrupted = True
        signal.signal(signal.SIGINT, self.before)
        echo("\nCtrl-C: stopping; the run keeps the weights saved so far", stderr=True)

    def after_batch(self) -> None:
        if self.agreed or (self.interrupted and process.size == 1):
            raise CancelFitException

    def clean_up(self) -> None:
        if self.main:
            signal.signal(signal.SIGINT, self.before)
            self.main = False


class LogFile(logging.FileHandler):
    """The log of a run: a disk that cannot take it stops the work, as with any other file."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise an error of the disk again; leave a bug to logging."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append what lesionfast logs to a file, never through a link, whatever the console shows."""
    check_target(path)
    handler = LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(PrintableLines("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
