"""How a run reaches a tracker: through a queue and a thread, so that no training waits for it."""

import logging
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from lesionfast.files import load_json, write_json
from lesionfast.training.trackers.base import About, trackers
from lesionfast.training.trackers.child import Child

logger = logging.getLogger("lesionfast")

MOST_WAITING = 1000  # entries that a slow tracker may be behind
MOST_FOR_ONE = 10.0  # seconds that an ended training waits for one entry
MOST_SECONDS = 20.0  # that it waits for all of them


class Delivery:
    """The way of one run to one tracker: what is sent waits in a queue, a thread delivers it.

    Sending never waits and never raises. `file` keeps what the tracker calls the run, and the last
    epoch that was delivered.
    """

    def __init__(
        self, name: str, about: About, file: Path, parent: "Delivery | None" = None
    ) -> None:
        self.name, self.about, self.file, self.parent = name, about, file, parent
        self.queue: SimpleQueue = SimpleQueue()
        self.tracker: Any = None
        self.id = about.id
        self.opened = Event()  # or failed to
        self.sent, self.delivered, self.problem = 0, 0, ""
        self.seconds_to_open = getattr(trackers[name], "seconds_to_open", MOST_FOR_ONE)
        self.busy: float | None = time.monotonic()  # since when it works on one entry
        self.thread = Thread(target=self.work, name=f"log {name}", daemon=True)
        self.thread.start()

    def send(self, method: str, *given: Any) -> None:
        """Put a call of the tracker into the queue; if it is full, the call is lost."""
        self.sent += 1
        if self.queue.qsize() < MOST_WAITING:
            self.queue.put((method, given))

    def finish(self, status: str) -> None:
        """End the record as soon as all is delivered; see `wait`."""
        self.sent += 1
        self.queue.put(("close", (status,)))
        self.queue.put(None)

    def wait(self, start: float) -> bool:
        """Wait for the thread while it delivers; return whether all has been delivered.

        A tracker that does not answer is left behind, and one warning says what is lost.
        """
        left = ""
        while self.thread.is_alive():
            now, busy = time.monotonic(), self.busy
            silent = 0.0 if busy is None else now - busy
            opened = self.opened.is_set()
            most = MOST_FOR_ONE if opened else self.seconds_to_open
            if silent > most or (opened and now - start > MOST_SECONDS):
                left = f"no answer for {silent:.0f} seconds" if silent > most else "it is too slow"
                if isinstance(self.tracker, Child):
                    self.tracker.kill()
                break
            self.thread.join(0.05)
        if self.delivered < self.sent:
            logger.warning(
                "--log %s: %d of %d entries were not delivered: %s. The training is not affected; "
                "history.csv and metrics.json in %s have all numbers",
                *(self.name, self.sent - self.delivered, self.sent),
                *(left or self.problem or "there were too many at once", self.about.path),
            )
        return self.delivered == self.sent

    def work(self) -> None:
        """Open the tracker and deliver until the end of the queue; this is the thread."""
        try:
            self.open()
        except BaseException as error:
            self.problem = describe_error(error)
            return
        finally:
            self.opened.set()
        while (call := self.next()) is not None:
            method, given = call
            try:
                getattr(self.tracker, method)(*given)
            except BaseException as error:
                self.problem = describe_error(error)
                continue
            self.delivered += 1
            if method == "write_epoch":
                self.keep(given[0])

    def next(self) -> tuple[str, tuple] | None:
        """Return the next call, None at the end; while there is none the thread is not busy."""
        self.busy = None
        call = self.queue.get()
        self.busy = time.monotonic()
        return call

    def open(self) -> None:
        """Make the tracker, after that of the run around this one."""
        if self.parent is not None:
            self.parent.opened.wait()
            self.about = replace(self.about, parent=self.parent.id)
        build = trackers[self.name]
        importable = trackers.modules.get(self.name) != "__main__"  # a notebook or a script is not
        if getattr(build, "own_process", False) and importable:
            self.tracker = Child(self.name, self.about)
            self.tracker.open()
        else:
            self.tracker = build(self.about)
        self.id = getattr(self.tracker, "id", None)
        self.keep(None)

    def keep(self, epoch: int | None) -> None:
        """Write what a resumed training needs to go on with this record."""
        epoch = read_kept(self.file)[1] if epoch is None else epoch
        with suppress(OSError):
            self.file.parent.mkdir(exist_ok=True)
            write_json(self.file, {"id": self.id, "epoch": epoch})


def read_kept(file: Path) -> tuple[str | None, int]:
    """Return what a tracker called a run, and the last epoch that it has; None and 0 if none."""
    try:
        kept = load_json(file)
        return kept["id"], int(kept["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, 0


def describe_error(error: BaseException) -> str:
    """Return an error in one line of at most 300 characters."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
