"""What fits into a time: chosen by costs that are given here, then measured on a tiny model."""

from dataclasses import replace

import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.training.experiment import train
from lesionfast.training.speed import budget as module
from lesionfast.training.speed.budget import fit_to_budget, plans, read_duration, sizes
from lesionfast.training.study import read_study


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_a_time_is_read(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("10", "10s or 10m"),
        *((each, "one such as 10m") for each in ("ten", "", "10m!", "0s", "m", "0")),
    ],
)
def test_what_is_no_time_says_what_to_type(text, typed):
    with pytest.raises(LesionfastError, match=f"Type {typed}"):
        read_duration(text)


@pytest.fixture
def costs(monkeypatch):
    """Each size takes 10 s and, an epoch, its side in seconds."""

    def given(config, df):
        sizes = (64, 128, 192) if config.size == TrainConfig.size else (config.size,)
        for size in sizes:
            yield replace(config, size=size), 10.0, float(size)

    monkeypatch.setattr(module, "plans", given)


@pytest.mark.parametrize(
    ("options", "size", "epochs"),
    [
        ({"budget": "90s"}, 64, 1),  # 81 s without the spare time
        ({"budget": "5m"}, 64, 4),
        ({"budget": "10m"}, 128, 4),
        ({"budget": "1h"}, 192, 12),
        ({"budget": "10m", "size": 64}, 64, 8),
        ({"budget": "10m", "epochs": 2}, 192, 2),
    ],
)
def test_the_largest_size_with_enough_epochs_is_chosen(costs, options, size, epochs):
    plan = fit_to_budget(TrainConfig(**options), None)
    assert (plan.size, plan.epochs, plan.budget) == (size, epochs, None)


def test_only_sizes_to_which_pictures_can_grow_are_tried():
    assert sizes(TrainConfig(start_size=96)) == (128, 160, 192, 224)
    assert sizes(TrainConfig(start_size=96, size=80)) == (80,)


def test_too_short_a_time_says_how_long_it_takes(costs):
    with pytest.raises(LesionfastError, match=r"about 82 s here\. Type --budget 83s"):
        fit_to_budget(TrainConfig(budget="1m"), None)


def test_a_measured_budget_gives_a_run_that_can_be_repeated(tmp_path):
    config = TrainConfig(arch="test_resnet", weights="none", epochs=1, budget="10m")
    df = load_dataset(config)
    sizes = [plan.size for plan, fixed, epoch in plans(config, df) if fixed > 0 and epoch > 0]
    assert sizes == sorted(sizes) and len(sizes) >= 4
    run = train(df, replace(config, size=32), tmp_path)
    assert run.config.budget is None and (run.config.size, run.config.epochs) == (32, 1)


def test_a_study_has_no_budget(tmp_path):
    file = tmp_path / "two.toml"
    file.write_text("[[run]]\nname = 'a'\nbudget = '10m'\n")
    with pytest.raises(LesionfastError, match="Write epochs and size"):
        read_study(file)
