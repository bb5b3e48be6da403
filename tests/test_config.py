from dataclasses import fields

import pytest

from lesionfast.config import DataConfig, TrainConfig
from lesionfast.errors import LesionfastError


def test_json_repeats_the_configuration_exactly():
    config = TrainConfig(arch="densenet121", lr="auto", folds=5, skip_bad=True, data="here")
    assert TrainConfig.from_json(config.to_json()) == config


def test_a_number_as_text_is_a_learning_rate():
    assert TrainConfig(lr="0.01").lr == 0.01
    with pytest.raises(LesionfastError, match="--lr is 'fast'.*Type a number"):
        TrainConfig(lr="fast")


def test_a_closed_choice_names_its_values():
    with pytest.raises(LesionfastError, match="--missing is 'kep'.*Did you mean 'keep'.*drop"):
        TrainConfig(missing="kep")


def test_a_field_of_another_version_is_named():
    with pytest.raises(LesionfastError, match="'archs'.*Did you mean 'arch'"):
        TrainConfig.from_json('{"archs": "resnet18"}')


def test_every_field_has_a_help_text():
    assert all(each.metadata["help"].endswith((".", ")")) for each in fields(TrainConfig))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs is 0; type a number from 1"),
        ({"batch_size": -1}, "--batch-size is -1; type a number from 1"),
        ({"dropout": 5}, "--dropout is 5; type a number from 0 to 1"),
        ({"label_smoothing": float("nan")}, "--label-smoothing is nan; type a number from 0 to 1"),
        ({"lr": "-1"}, "--lr is -1.0; type a number from 1e-09"),
        ({"workers": -1}, "--workers is -1; type a number from 0"),
        ({"seed": -1}, "--seed is -1; type a number from 0"),
        ({"epochs": "3"}, "--epochs is '3'; it takes a whole number"),
        ({"epochs": True}, "--epochs is True; it takes a whole number"),
        ({"folds": 2.5}, "--folds is 2.5; it takes a whole number or nothing"),
        ({"lr": None}, "--lr is None; it takes a number or text"),
        ({"cache": "no"}, "--cache is 'no'; it takes true or false"),
    ],
)
def test_a_value_outside_its_limits_says_what_to_type(changes, message):
    with pytest.raises(LesionfastError, match=message):
        TrainConfig(**changes)


def test_a_whole_number_is_a_number():
    assert TrainConfig(dropout=0, lr=1).lr == 1.0


@pytest.mark.parametrize("text", ['{"epochs": 3,}', "[1]", "3", ""])
def test_a_broken_config_file_says_so(text):
    with pytest.raises(LesionfastError, match="not a JSON object of options"):
        TrainConfig.from_json(text)


def test_metadata_columns_with_commas_are_quoted():
    assert DataConfig(metadata='age, "site, side"').metadata_columns == ["age", "site, side"]
    assert DataConfig(metadata="none").metadata_columns == []
