"""What a training will cost: its phases, its rows, and about how long it takes."""

from dataclasses import replace

import pandas as pd
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.models.fusion import build_model
from lesionfast.training.speed import budget as module
from lesionfast.training.speed.budget import estimate, rows_an_epoch, unfreeze_by_phase

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
    assert rows_an_epoch(pd.Series([*"aaaaabbb", "c"]), balance) == rows


def test_the_time_is_that_of_all_steps(monkeypatch):
    df = load_dataset(TINY)
    monkeypatch.setattr(module, "time_training", lambda *args: 1.0)
    monkeypatch.setattr(module, "time_validation", lambda *args: 0.1)  # an image
    train, valid, test = (df["split"].value_counts()[each] for each in ("train", "valid", "test"))
    found = estimate(TINY, df)
    assert found.head == pytest.approx((TINY.views * train + valid) * 0.1)
    assert found.backbone == pytest.approx(4 * (train // 32 + valid * 0.1))
    images = TINY.tta * (valid + test) + len(df)  # the features of all are kept
    assert found.predicting == pytest.approx(images * 0.1)
    assert found.seconds == found.head + found.backbone + found.predicting
    assert found.parameters == sum(p.numel() for p in build_model(TINY, 0, 7).parameters())
    longer = estimate(replace(TINY, epochs=8), df)
    assert longer.backbone == pytest.approx(2 * found.backbone) and longer.head == found.head


def test_a_model_without_backbone_is_measured_too():
    config = replace(TINY, fusion="metadata", unfreeze="auto", epochs=1)
    found = estimate(config, load_dataset(config))
    assert found.parameters < 10_000 and 0 < found.seconds < 30
