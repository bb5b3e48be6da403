import math

import pytest

import lesionfast.training.trackers.services  # noqa: F401 - registers them
from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.training.trackers.base import (
    check_tracker,
    curves,
    flat_config,
    flat_results,
    is_installed,
    read_names,
    trackers,
)


def test_trackers_are_named_with_commas_or_several_times():
    assert read_names("tensorboard,mlflow") == ["tensorboard", "mlflow"]
    assert read_names('"tensorboard,mlflow",wandb,wandb') == ["tensorboard", "mlflow", "wandb"]
    assert read_names(None) == read_names("none") == []


def test_a_config_from_before_there_were_trackers_names_none():
    assert TrainConfig.from_json('{"arch": "resnet18"}', of_run=True).log is None


def test_an_unknown_tracker_and_a_missing_package_say_what_to_type(monkeypatch):
    with pytest.raises(
        LesionfastError, match="no tracker 'tensorbord'. Did you mean 'tensorboard'"
    ):
        check_tracker("tensorbord")
    monkeypatch.setattr(trackers["mlflow"], "package", "absent_package")
    with pytest.raises(
        LesionfastError, match=r"--log mlflow: absent-package is not installed.*\[a"
    ):
        check_tracker("mlflow")


def test_a_folder_of_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "folder_of_files").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("json") and not is_installed("folder_of_files")
    assert not is_installed("absent_package")


def test_each_curve_is_whole_and_by_phase_and_has_no_undefined_points():
    found = curves("head", {"valid_loss": 1.5, "macro_auc": math.nan})
    assert found == {"valid_loss": 1.5, "head/valid_loss": 1.5}


def test_final_metrics_have_their_intervals():
    row = {"split": "test", "metric": "auc", "of": "mel", "n": 9, "value": 0.8, "low": 0.7}
    overall = row | {"metric": "macro_auc", "of": "all", "high": None}
    assert flat_results([row | {"high": 0.9}, overall]) == {
        "test/mel/auc": 0.8,
        "test/mel/auc_low": 0.7,
        "test/mel/auc_high": 0.9,
        "test/macro_auc": 0.8,
        "test/macro_auc_low": 0.7,
    }


def test_the_configuration_has_the_hash_of_the_split_and_nothing_unset(about):
    assert flat_config(about)["split_sha256"] == about.split_sha256
    assert "cost" not in flat_config(about) and flat_config(about)["compile"] is False


def test_every_tracker_is_described_in_a_sentence():
    assert {"tensorboard", "mlflow", "wandb", "trackio"} <= set(trackers)
    assert all(text.endswith(".") for text in trackers.describe().values())
