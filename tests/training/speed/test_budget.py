"""What fits into a time: chosen by given costs, measured on a tiny model, and estimated."""

from dataclasses import replace

import pandas as pd
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.models.fusion import build_model
from lesionfast.training.experiment import train
from lesionfast.training.speed import budget as module
from lesionfast.training.speed.budget import (
    count_drawn,
    estimate,
    fit_to_budget,
    plan_sizes,
    read_duration,
    sizes_to_try,
    unfreeze_by_phase,
)
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
        *((each, "a time such as 10m") for each in ("ten", "", "10m!", "0s", "m", "0")),
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

    monkeypatch.setattr(module, "plan_sizes", given)


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
    assert sizes_to_try(TrainConfig(start_size=96)) == (112, 128, 160, 192, 224)
    assert sizes_to_try(TrainConfig(start_size=96, size=80)) == (80,)


def test_too_short_a_time_says_how_long_it_takes(costs):
    with pytest.raises(LesionfastError, match=r"about 82 s here\. Type --budget 83s"):
        fit_to_budget(TrainConfig(budget="1m"), None)


def test_a_measured_budget_gives_a_run_that_can_be_repeated(tmp_path):
    config = TrainConfig(arch="test_resnet", weights="none", epochs=1, budget="10m")
    df = load_dataset(config)
    sizes = [plan.size for plan, fixed, epoch in plan_sizes(config, df) if fixed > 0 and epoch > 0]
    assert sizes == sorted(sizes) and len(sizes) >= 4
    run = train(df, replace(config, size=32), tmp_path)
    assert run.config.budget is None and (run.config.size, run.config.epochs) == (32, 1)


def test_a_study_has_no_budget(tmp_path):
    file = tmp_path / "two.toml"
    file.write_text("[[run]]\nname = 'a'\nbudget = '10m'\n")
    with pytest.raises(LesionfastError, match="Write epochs and size"):
        read_study(file)


TINY = TrainConfig(
    arch="test_resnet", weights="none", fusion="none", size=32, epochs=4, unfreeze="two-step"
)


def test_each_phase_trains_what_it_will_train():
    model = build_model(TINY, n_metadata=4, n_classes=7)
    seen = []
    for phase in unfreeze_by_phase(model, TINY):
        learning = sum(p.requires_grad for p in model.backbone.parameters())
        seen.append((phase.epochs, learning, all(p.requires_grad for p in model.head.parameters())))
    whole = len(list(model.backbone.parameters()))
    assert seen == [(12, 0, True), (4, whole, True)]


@pytest.mark.parametrize(("balance", "rows"), [("none", 9), ("weights", 9), ("downsample", 7)])
def test_balancing_changes_the_rows_of_an_epoch(balance, rows):
    assert count_drawn(pd.Series([*"aaaaabbb", "c"]), balance) == rows


def test_the_time_is_that_of_all_steps(monkeypatch):
    df = load_dataset(TINY)
    monkeypatch.setattr(module, "time_training", lambda *args: 1.0)
    monkeypatch.setattr(module, "time_validation", lambda *args: 0.1)  # an image
    train, valid, test = (df["split"].value_counts()[each] for each in ("train", "valid", "test"))
    found = estimate(TINY, df)
    assert found.head == pytest.approx((TINY.views * train + valid) * 0.1)
    assert found.backbone == pytest.approx(4 * (train // 32 + valid * 0.1))
    images = TINY.tta * (valid + test) + train  # the features of all are kept
    assert found.predicting == pytest.approx(images * 0.1)
    assert found.seconds == found.head + found.backbone + found.predicting
    assert found.parameters == sum(p.numel() for p in build_model(TINY, 0, 7).parameters())
    longer = estimate(replace(TINY, epochs=8), df)
    assert longer.backbone == pytest.approx(2 * found.backbone) and longer.head == found.head


def test_a_model_without_backbone_is_measured_too():
    config = replace(TINY, fusion="metadata", unfreeze="auto", epochs=1)
    found = estimate(config, load_dataset(config))
    assert found.parameters < 10_000 and 0 < found.seconds < 600
