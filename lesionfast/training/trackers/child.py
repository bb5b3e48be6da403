"""A tracker in a process of its own: it can be stopped, and whatever it does stays in there.

Calls go in as lines of JSON; each is answered by one line. Free of torch.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from typing import Any

from lesionfast.training.trackers.base import About, trackers

SERVICES = "lesionfast.training.trackers.services"
SECONDS_TO_END = 20.0  # of a tracker whose training was killed


class Child:
    """A tracker of another process, with the methods of `Tracker`; `kill` ends it at once."""

    def __init__(self, name: str, about: About) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        module = trackers.modules.get(name, SERVICES)
        self.process = subprocess.Popen(  # noqa: S603 - this Python, a list without a shell
            [sys.executable, "-P", "-m", "lesionfast.training.trackers.child", module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the training alone
        )
        self.about = about
        self.id: str | None = None

    def open(self) -> None:
        """Make the tracker; raises `RuntimeError` with what it raised."""
        self.id = self.ask("open", asdict(self.about))

    def ask(self, method: str, *given: Any) -> Any:
        """Call a method there and return its answer; raises `RuntimeError` with what it raised."""
        try:
            self.process.stdin.write(json.dumps([method, *given]) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or "null")
        except (OSError, ValueError):
            answer = None
        if answer is None:
            raise RuntimeError("its process has ended")
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def write_epoch(self, *given: Any) -> None:
        self.ask("write_epoch", *given)

    def write_results(self, *given: Any) -> None:
        self.ask("write_results", *given)

    def write_figure(self, *given: Any) -> None:
        self.ask("write_figure", *given)

    def close(self, status: str) -> None:
        self.ask("close", status)
        self.process.stdin.close()
        self.process.wait()

    def kill(self) -> None:
        """End the process and all that it started."""
        with suppress(OSError, AttributeError):  # there are no groups on Windows
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def serve(module: str, name: str) -> None:
    """Be the other process: answer the lines of stdin, until it ends, through a tracker."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the tracker prints is no answer
    if hasattr(os, "nice"):
        os.nice(5)  # the training comes first
    import_module(module)
    tracker: Any = None
    ended = False
    for line in sys.stdin:
        method, *given = json.loads(line)
        try:
            if method == "open":
                tracker = trackers[name](About(**given[0]))
                value = tracker.id
            else:
                value = getattr(tracker, method)(*given)
                ended = ended or method == "close"
            answer = {"value": value}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    end = threading.Timer(SECONDS_TO_END, os._exit, [1])  # also if its package waits at the exit
    end.daemon = True
    end.start()
    if tracker is not None and not ended:
        tracker.close("interrupted")


if __name__ == "__main__":
    serve(*sys.argv[1:])
