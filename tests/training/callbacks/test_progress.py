"""The speed that a run reports counts whole epochs only."""

import logging
from pathlib import Path

import pytest
from fastai.callback.core import Callback, CancelFitException

from lesionfast.training.callbacks import progress
from lesionfast.training.callbacks.progress import EpochLines, logging_to


class StopIn(Callback):
    """End the fit after the second step of an epoch, as Ctrl-C would."""

    def __init__(self, epoch: int) -> None:
        self.stop_epoch = epoch

    def after_batch(self) -> None:
        if self.training and self.epoch == self.stop_epoch and self.iter == 1:
            raise CancelFitException


def test_images_and_seconds_of_an_unfinished_epoch_do_not_count(plain_learner):
    lines = EpochLines()
    plain_learner.fit(3, cbs=[lines, StopIn(epoch=1)])
    assert lines.images == 96
    seconds = lines.train_seconds
    assert seconds > lines.image_seconds > 0  # validation counts, but not as speed
    assert lines.images_per_second == 96 / lines.image_seconds
    plain_learner.fit(1, cbs=[lines])
    assert lines.images == 192 and lines.train_seconds > seconds


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_that_a_full_disk_does_not_take_stops_the_work(monkeypatch):
    monkeypatch.setattr(progress, "check_target", lambda path: None)  # which takes no device
    with pytest.raises(OSError, match="No space left"), logging_to(Path("/dev/full")):
        logging.getLogger("lesionfast").info("epoch 1")


def test_a_name_that_is_not_utf8_is_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lesionfast"), "propagate", False)  # to pytest's report
    with logging_to(tmp_path / "log.txt"):
        logging.getLogger("lesionfast").info("m\udce9l.jpg")
    assert r"m\xe9l.jpg" in (tmp_path / "log.txt").read_text("utf-8")
