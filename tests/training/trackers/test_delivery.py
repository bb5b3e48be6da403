import os
import signal
import sys
import time
from dataclasses import replace
from importlib import import_module
from threading import Event

import pytest

from lesionfast.training.trackers import delivery
from lesionfast.training.trackers.base import Tracker, register_tracker
from lesionfast.training.trackers.child import Child
from lesionfast.training.trackers.delivery import Delivery, read_kept

EPOCH = ("write_epoch", 1, "head", {"valid_loss": 1.5})
LONG = 60  # seconds: nothing here takes as long, on a busy machine either


def end(way: Delivery) -> bool:
    way.finish("finished")
    return way.wait(time.monotonic())


def test_what_is_sent_arrives_in_order_and_the_file_says_how_far(about, kept, tmp_path):
    way = Delivery("list", about, tmp_path / "list.json")
    way.send(*EPOCH)
    way.send("write_epoch", 2, "all", {})
    assert end(way)
    assert [call[0] for call in kept] == ["open", "epoch", "epoch", "close"]
    assert kept[1] == ("epoch", 1, "head", {"valid_loss": 1.5})
    assert read_kept(tmp_path / "list.json") == ("id of one", 2)


def test_a_damaged_file_begins_a_new_record(tmp_path):
    for text in ("", "[1]", '{"id": "a"}', '{"id": "a", "epoch": null}'):
        (tmp_path / "list.json").write_text(text)
        assert read_kept(tmp_path / "list.json") == (None, 0)


def test_a_server_that_never_answers_is_left_behind(
    about, hanging, tmp_path, impatient, warnings, seconds
):
    way = Delivery("hanging", about, tmp_path / "a.json")
    for _ in range(10):
        way.send(*EPOCH)
    assert not end(way)
    assert way.delivered == 0 and seconds() < LONG
    (warning,) = warnings()
    assert "--log hanging: 11 of 11 entries were not delivered: no answer for " in warning


def test_a_tracker_that_hung_for_long_is_not_waited_for(
    about, hanging, tmp_path, monkeypatch, seconds
):
    monkeypatch.setattr(delivery, "MOST_FOR_ONE", 2 * LONG)
    way = Delivery("hanging", about, tmp_path / "a.json")
    way.send(*EPOCH)
    while not (way.opened.is_set() and way.queue.empty() and way.busy):
        time.sleep(0.01)
    way.busy -= 3 * LONG
    assert not end(way) and seconds() < LONG


def test_a_closed_server_loses_entries_and_one_warning_says_so(
    about, refused, tmp_path, warnings, seconds
):
    way = Delivery("refused", about, tmp_path / "a.json")
    for _ in range(10):
        way.send(*EPOCH)
    assert not end(way)
    (warning,) = warnings()
    assert "11 of 11 entries were not delivered: [Errno 111] Connection refused" in warning
    assert "have all numbers" in warning and seconds() < LONG


def test_one_entry_that_fails_does_not_lose_the_others(about, tmp_path, warnings):
    done = []

    @register_tracker("picky")
    class Picky(Tracker):
        def write_epoch(self, epoch, *given):
            if epoch == 2:
                raise SystemExit("no even ones")
            done.append(epoch)

    way = Delivery("picky", about, tmp_path / "a.json")
    for epoch in (1, 2, 3):
        way.send("write_epoch", epoch, "all", {})
    assert not end(way) and done == [1, 3]
    assert "1 of 4 entries were not delivered: no even ones" in warnings()[0]


def test_a_tracker_that_can_not_be_made_loses_everything(about, tmp_path, warnings):
    @register_tracker("broken")
    class Broken(Tracker):
        def __init__(self, about):
            raise ValueError("the settings are wrong")

    way = Delivery("broken", about, tmp_path / "a.json")
    assert not end(way) and "1 of 1 entries" in warnings()[0]
    assert "the settings are wrong" in warnings()[0]


def test_a_full_queue_loses_what_comes_then_and_still_ends_the_record(
    about, kept, tmp_path, monkeypatch, warnings
):
    monkeypatch.setattr(delivery, "MOST_WAITING", 3)
    first, opened = Event(), Delivery.open
    monkeypatch.setattr(Delivery, "open", lambda way: (first.wait(LONG), opened(way)))
    way = Delivery("list", about, tmp_path / "a.json")
    for _ in range(50):
        way.send(*EPOCH)
    assert way.sent == 50 and way.queue.qsize() == 3
    first.set()
    assert not end(way)
    assert [call[0] for call in kept] == ["open", "epoch", "epoch", "epoch", "close"]
    assert "47 of 51 entries were not delivered: there were too many at once" in warnings()[0]


def test_a_tracker_that_is_too_slow_is_left_behind(about, tmp_path, impatient, warnings):
    @register_tracker("slow")
    class Slow(Tracker):
        def write_epoch(self, *given):
            time.sleep(0.2)

    way = Delivery("slow", about, tmp_path / "a.json")
    for _ in range(50):
        way.send(*EPOCH)
    assert not end(way) and "not delivered: it is too slow" in warnings()[0]


MODULE = """
import os, socket, time
from lesionfast.training.trackers.base import Tracker, register_tracker

@register_tracker("apart")
class Apart(Tracker):
    own_process = True

    def __init__(self, about):
        print("what a service prints is no answer")
        super().__init__(about)
        self.id = str(os.getpid())

    def write_epoch(self, epoch, phase, values):
        if epoch == 2:
            raise ValueError("not this one")
        if epoch == 3:
            time.sleep(1000)

    def close(self, status):
        with open(os.path.join(self.about.path, "closed"), "w") as file:
            file.write(status)
"""


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """A tracker with a process of its own, in a module."""
    (tmp_path / "apart_tracker.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import_module("apart_tracker")
    yield
    sys.modules.pop("apart_tracker")


def test_a_tracker_with_a_process_of_its_own_answers_from_there(apart, about, tmp_path, warnings):
    way = Delivery("apart", about, tmp_path / "a.json")
    for epoch in (1, 2):
        way.send("write_epoch", epoch, "all", {})
    assert not end(way)
    assert int(way.id) == way.tracker.process.pid != os.getpid()
    assert way.tracker.process.returncode == 0
    assert (tmp_path / "one" / "closed").read_text() == "finished"
    assert "1 of 3 entries were not delivered: ValueError: not this one" in warnings()[0]


def test_a_process_that_hangs_is_killed(apart, about, tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "MOST_FOR_ONE", 0.5)
    way = Delivery("apart", about, tmp_path / "a.json")
    way.send("write_epoch", 3, "all", {})
    assert not end(way)
    assert way.tracker.process.returncode == -signal.SIGKILL


def test_a_process_whose_training_is_killed_ends_the_record(apart, about, tmp_path):
    child = Child("apart", about)
    child.open()
    child.process.stdin.close()
    child.process.wait(LONG)
    assert (tmp_path / "one" / "closed").read_text() == "interrupted"


def test_the_record_of_a_run_inside_another_knows_that_one(about, kept, tmp_path):
    outer = Delivery("list", about, tmp_path / "outer.json")
    inner = Delivery("list", replace(about, name="one/a"), tmp_path / "inner.json", outer)
    assert end(inner) and end(outer)
    opened = {call[1].name: call[1].parent for call in kept if call[0] == "open"}
    assert opened == {"one": None, "one/a": "id of one"}
