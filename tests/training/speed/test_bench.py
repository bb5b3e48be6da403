"""Every part is measured, and what is left behind is the Learner that was there before."""

import json
import time
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.training.learner import lesion_learner
from lesionfast.training.speed import bench as module
from lesionfast.training.speed.bench import (
    PARTS,
    StepClock,
    bench,
    bench_table,
    compile_rates,
    time_calls,
    time_step,
)

CPU = torch.device("cpu")
TINY = TrainConfig(arch="test_resnet", weights="none", size=32, batch_size=16)


@pytest.fixture(scope="module")
def found():
    patch = pytest.MonkeyPatch()
    for name, value in {"ROUNDS": 2, "STEPS": 2, "ENOUGH": 0.02, "EPOCH": 600}.items():
        patch.setattr(module, name, value)
    yield bench(TINY, load_dataset(TINY))
    patch.undo()


def test_every_part_has_a_speed(found):
    assert set(found["parts"]) == set(PARTS)
    assert all(speed > 0 for speed in found["parts"].values())
    assert found["feature_epoch_seconds"] > 0 and found["peak_memory"]["process"] > 10**8


def test_the_shares_are_shares(found):
    assert all(0 < found[f"{name}_share"] < 3 for name in ("step", "prediction", "file"))


def test_it_says_what_it_was_measured_on(found):
    assert found["machine"]["arch"] == "test_resnet" and found["machine"]["batch_size"] == 16
    assert json.loads(json.dumps(found)) == found


def test_the_table_has_a_row_for_each(found):
    assert len(bench_table(found).rows) == len(PARTS) + 1 + len(found["peak_memory"])


def test_compiling_is_measured_where_it_is_asked_for(found, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no C++
    learn = lesion_learner(LesionDataLoaders.from_df(load_dataset(TINY), TINY), config=TINY)
    gain = compile_rates(learn, TINY)
    assert 0 < gain["compile_gain"] < 10 and gain["compile_seconds"] > 0
    assert len(bench_table(found | gain).rows) == len(bench_table(found).rows) + 1
    assert "compile_gain" not in found


def test_the_first_call_is_not_counted():
    calls = []
    time_step(lambda: calls.append(1), CPU, most=4)
    assert len(calls) == 5


def test_slow_steps_are_few():
    calls = []
    time_step(lambda: calls.append(time.sleep(0.02)), CPU, most=100, enough=0.03)
    assert 2 <= len(calls) <= 3


def test_the_mean_is_that_of_the_calls():
    assert time_calls(lambda: time.sleep(0.01), CPU, 2) >= 0.01


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
