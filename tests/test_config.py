from dataclasses import fields

import pytest

from lesionfast.config import TrainConfig
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
