"""Trackers that keep what they are told, fail or hang, and servers that do not answer."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace

import pytest

from lesionfast.files import write_text
from lesionfast.run import Run
from lesionfast.training.trackers import base, delivery
from lesionfast.training.trackers.base import About, Tracker, register_tracker


@pytest.fixture(autouse=True)
def own_trackers() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = {name: copy(value) for name, value in vars(base.trackers).items()}
    yield
    vars(base.trackers).update(before)


@pytest.fixture
def kept() -> list[tuple]:
    """What the tracker 'list' was told, in order."""
    told: list[tuple] = []

    @register_tracker("list")
    class List(Tracker):
        def __init__(self, about: About) -> None:
            super().__init__(about)
            self.id = f"id of {about.name}"
            told.append(("open", about))

        def write_epoch(self, *given):
            told.append(("epoch", *given))

        def write_results(self, rows):
            told.append(("results", rows))

        def write_figure(self, *given):
            told.append(("figure", *given))

        def close(self, status):
            told.append(("close", status))

    return told


@pytest.fixture
def hanging() -> Iterator[None]:
    """The tracker 'hanging' waits for a server that accepts and never answers."""
    server = socket.create_server(("127.0.0.1", 0))

    @register_tracker("hanging")
    class Hanging(Tracker):
        def write_epoch(self, *given):
            with socket.create_connection(server.getsockname()) as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
                connection.recv(1)

    yield
    server.close()


@pytest.fixture
def refused() -> Iterator[None]:
    """The tracker 'refused' calls a port where nothing listens, whatever it is told."""

    @register_tracker("refused")
    class Refused(Tracker):
        def call(self, *given):
            socket.create_connection(taken.getsockname()).close()

        write_epoch = write_results = write_figure = close = call

    with socket.socket() as taken:  # nothing listens at its port, and nobody else is given it
        taken.bind(("127.0.0.1", 0))
        yield


@pytest.fixture
def impatient(monkeypatch) -> None:
    """An ended training waits for a tenth of the time."""
    monkeypatch.setattr(delivery, "MOST_FOR_ONE", 0.5)
    monkeypatch.setattr(delivery, "MOST_SECONDS", 2.0)


@pytest.fixture
def about(tmp_path) -> About:
    """What a tracker is told of a run."""
    config = {"arch": "test_resnet", "size": 32, "lr": 0.001, "cost": None, "compile": False}
    (tmp_path / "one").mkdir()
    return About("one", str(tmp_path / "one"), str(tmp_path), config, "0123456789abcdef" * 4)


@pytest.fixture
def make_logged(make_run) -> Callable[..., Run]:
    """A function that writes a finished run whose options name trackers."""

    def make(log: str) -> Run:
        run = make_run(n=60)
        write_text(run.path / "config.json", replace(run.config, log=log).to_json())
        return Run(run.path)

    return make


@pytest.fixture
def threads() -> Iterator[Callable[[], list[threading.Thread]]]:
    """A function that returns the threads of trackers which have not ended."""
    yield lambda: [t for t in threading.enumerate() if t.name.startswith("log ")]


@pytest.fixture
def warnings(caplog) -> Callable[[], list[str]]:
    """A function that returns the warnings logged so far."""
    caplog.set_level(logging.WARNING, "lesionfast")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.fixture
def seconds() -> Callable[[], float]:
    """A function that returns the seconds since the test began."""
    start = time.monotonic()
    return lambda: time.monotonic() - start
