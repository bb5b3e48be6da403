"""What is timed is the steps of training: not the first one, and not the validation."""

import time

import pytest
import torch
from fastai.callback.core import Callback

from lesionfast.training.speed.bench import StepClock, time_one, timed

CPU = torch.device("cpu")


def test_the_first_call_is_not_counted():
    calls = []
    time_one(lambda: calls.append(1), CPU, most=4)
    assert len(calls) == 5


def test_slow_steps_are_few():
    calls = []
    time_one(lambda: calls.append(time.sleep(0.02)), CPU, most=100, enough=0.03)
    assert 2 <= len(calls) <= 3


def test_the_mean_is_that_of_the_calls():
    assert timed(lambda: time.sleep(0.01), CPU, 2) >= 0.01


@pytest.mark.parametrize(("steps", "epochs"), [(2, 1), (13, 3)])
def test_the_clock_ends_a_fit_and_leaves_validation_out(plain_learner, steps, epochs):
    """The learner has 6 batches an epoch; validation sleeps far longer than a step takes."""

    class SlowValidation(Callback):
        def before_validate(self):
            time.sleep(0.3)

    clock = StepClock(steps)
    began = time.perf_counter()
    with plain_learner.no_bar(), plain_learner.no_logging():
        plain_learner.fit(epochs, cbs=[clock, SlowValidation()])
    ended = time.perf_counter()
    assert len(clock.seconds) == steps + 1
    assert clock.mean > 0 and sum(clock.seconds[1:]) < ended - began - (epochs - 1) * 0.3
