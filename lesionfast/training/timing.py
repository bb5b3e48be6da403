"""How long something takes on a device, which is waited for."""

import time
from collections.abc import Callable
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException


def waiter(device: torch.device) -> Callable[[], None]:
    """Return the function that waits until a device has done what it was told."""
    waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return waits.get(device.type, lambda: None)


def timed(function: Callable[[], Any], device: torch.device, times: int) -> float:
    """Return the mean seconds of a function over so many calls."""
    wait = waiter(device)
    wait()
    started = time.perf_counter()
    for _ in range(times):
        function()
    wait()
    return (time.perf_counter() - started) / times


def time_one(
    step: Callable[[], Any], device: torch.device, most: int = 5, enough: float = 3.0
) -> float:
    """Return the mean seconds of a step, after one that is not counted.

    The steps are `most`, or as many as begin in `enough` seconds: of slow ones fewer say as much.
    """
    timed(step, device, 1)
    seconds = [timed(step, device, 1)]
    while len(seconds) < most and sum(seconds) < enough:
        seconds.append(timed(step, device, 1))
    return sum(seconds) / len(seconds)


class StepClock(Callback):
    """Measure so many training steps of a fit, reading of the batches included, then end it.

    The first step is not counted, nor is the validation between two epochs.
    """

    order = 100

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def before_fit(self) -> None:
        """Start anew."""
        self.seconds = []

    def before_train(self) -> None:
        """Start the clock of an epoch."""
        self.last = time.perf_counter()

    def after_batch(self) -> None:
        """Note the seconds of a training step; end the fit after enough of them."""
        if not self.training:
            return
        waiter(self.dls.device)()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        if len(self.seconds) > self.steps:
            raise CancelFitException

    @property
    def mean(self) -> float:
        """The mean seconds of the steps that count."""
        return sum(self.seconds[1:]) / len(self.seconds[1:])
