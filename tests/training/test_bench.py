"""Every part is measured, and what is left behind is the Learner that was there before."""

import json
from functools import partial

import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import build_dls
from lesionfast.data.split import load_dataset
from lesionfast.training.learner import fusion_learner
from lesionfast.training.speed import bench as module
from lesionfast.training.speed.bench import PARTS_OF_A_TRAINING, bench, bench_table, compile_rates

TINY = TrainConfig(arch="test_resnet", weights="none", size=32, batch_size=16)


@pytest.fixture(scope="module")
def found():
    patch = pytest.MonkeyPatch()
    for name, value in {"ROUNDS": 2, "STEPS": 2, "ENOUGH": 0.02, "EPOCH": 600}.items():
        patch.setattr(module, name, value)
    yield bench(TINY, load_dataset(TINY))
    patch.undo()


def test_every_part_has_a_speed(found):
    assert set(found["parts"]) == set(PARTS_OF_A_TRAINING)
    assert all(speed > 0 for speed in found["parts"].values())
    assert found["feature_epoch_seconds"] > 0 and found["peak_memory"]["process"] > 10**8


def test_the_shares_are_shares(found):
    assert all(0 < found[f"{name}_share"] < 3 for name in ("step", "prediction", "file"))


def test_it_says_what_it_was_measured_on(found):
    assert found["machine"]["arch"] == "test_resnet" and found["machine"]["batch_size"] == 16
    assert json.loads(json.dumps(found)) == found


def test_the_table_has_a_row_for_each(found):
    assert bench_table(found).row_count == len(PARTS_OF_A_TRAINING) + 1 + len(found["peak_memory"])


def test_compiling_is_measured_where_it_is_asked_for(found, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no C++
    learn = fusion_learner(build_dls(load_dataset(TINY), TINY), TINY)
    gain = compile_rates(learn, TINY)
    assert 0 < gain["compile_gain"] < 10 and gain["compile_seconds"] > 0
    assert bench_table(found | gain).row_count == bench_table(found).row_count + 1
    assert "compile_gain" not in found
