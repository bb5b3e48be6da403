"""Sub-classes: found on training lesions, trained as outputs, merged in all that is written."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import build_dls
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.models.fusion import FusionModel, load_model
from lesionfast.training.balancing import find_targets, output_codes, split_codes
from lesionfast.training.experiment import train
from lesionfast.training.learner import fusion_learner

CONFIG = TrainConfig(size=32, epochs=1, subclass="mel=3,nv=2", balance="weights", unfreeze="none")


@pytest.fixture(scope="module")
def df():
    return load_dataset(CONFIG)


@pytest.fixture(scope="module")
def learn(df):
    return fusion_learner(build_dls(df, CONFIG), CONFIG)


def test_outputs_are_parts_of_their_classes_and_whole_lesions(learn):
    dls, parents = learn.dls, np.array(learn.model.parents)
    assert len(parents) == 7 + 2 + 1
    outputs = output_codes(dls)
    np.testing.assert_array_equal(parents[outputs], split_codes(dls))
    train = dls.rows[dls.rows["split"] == "train"].assign(output=outputs)
    assert train.groupby("group")["output"].nunique().max() == 1
    assert train[train["target"] == "mel"]["output"].nunique() == 3
    rest = dls.rows[dls.rows["split"] != "train"]
    assert find_targets(dls)[rest["row"]].max() == 6  # validation and test keep their classes


def test_probabilities_of_the_parts_add_up():
    torch.manual_seed(0)
    parts = {"pool": "avg", "n_metadata": 3, "n_classes": 2, "dropout": 0.0}
    model = FusionModel(None, fusion="metadata", **parts, parents=[0, 1, 0])
    image, metadata = torch.rand(4, 3, 8, 8), torch.rand(4, 3)
    outputs = model.train()(image, metadata).softmax(1)
    merged = model.eval()(image, metadata).softmax(1)
    torch.testing.assert_close(merged[:, 0], outputs[:, 0] + outputs[:, 2])
    torch.testing.assert_close(merged[:, 1], outputs[:, 1])


def test_a_run_speaks_of_classes_only(df, tmp_path):
    run = train(df, CONFIG, tmp_path)
    assert len(run.classes) == 7 and len(run.model["parents"]) == 10
    probabilities = run.predictions[[f"p_{each}" for each in run.classes]].sum(axis=1)
    np.testing.assert_allclose(probabilities, 1, atol=1e-5)
    assert np.isfinite(run.history["valid_loss"]).all()
    model = load_model(run)
    assert model(torch.rand(2, 3, 32, 32), torch.rand(2, run.model["n_metadata"])).shape == (2, 7)


def test_pictures_of_a_batch_are_captioned_with_classes(learn):
    learn.dls.train.show_batch(max_n=4)


def test_random_weights_and_too_few_lesions_say_what_to_type(df):
    for changes, message in (
        ({"weights": "none"}, "pretrained backbone.*--weights auto"),
        ({"subclass": "df=50"}, "wants 50 parts of 'df'.*Type a smaller number"),
    ):
        config = replace(CONFIG, **changes)
        with pytest.raises(LesionfastError, match=message):
            fusion_learner(build_dls(df, config), config)
