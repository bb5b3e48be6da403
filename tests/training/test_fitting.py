import pandas as pd

from lesionfast.training.fitting import announce_kept


def test_a_far_better_epoch_that_was_not_kept_is_named(caplog):
    history = pd.DataFrame(
        {"phase": ["head", "head", "all"], "balanced_accuracy": [0.6, 0.7, 0.2]}, index=[1, 2, 3]
    )
    caplog.set_level("WARNING", "lesionfast")
    announce_kept(history, 2)
    assert not caplog.records
    announce_kept(history, 3)
    assert "epoch 2 had a validation balanced accuracy of 0.700" in caplog.text
    assert "the kept epoch 3 has 0.200" in caplog.text
    assert "--monitor balanced_accuracy" in caplog.text
