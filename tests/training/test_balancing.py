"""Which rows an epoch draws, and subclasses: found on training lesions, merged in all results."""

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from lesionfast.config import SplitConfig, TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.models.fusion import FusionModel, load_model
from lesionfast.training.balancing import balances, class_codes, find_targets, output_codes
from lesionfast.training.experiment import train
from lesionfast.training.learner import lesion_learner

COUNTS = [5, 100, 30]


@pytest.fixture
def codes():
    return np.repeat([0, 1, 2], COUNTS)


def drawn(balance, codes, seed=0):
    return Counter(codes[balance.sampler(Random(seed))].tolist())


def test_none_keeps_the_prior(codes):
    balance = balances["none"](codes, 3)
    assert balance.weights is None and balance.sampler is None
    np.testing.assert_allclose(balance.prior, np.array(COUNTS) / 135)


def test_weights_give_every_class_the_same_total(codes):
    balance = balances["weights"](codes, 3)
    totals = balance.weights * COUNTS
    np.testing.assert_allclose(totals, totals[0])
    assert np.average(balance.weights, weights=COUNTS) == pytest.approx(1)
    np.testing.assert_allclose(balance.prior, 1 / 3)


def test_sampler_draws_every_class_as_often(codes):
    balance = balances["sampler"](codes, 3)
    assert drawn(balance, codes) == {0: 45, 1: 45, 2: 45}
    np.testing.assert_allclose(balance.prior, 1 / 3)


def test_downsample_cuts_the_largest_class_to_the_second_anew_each_epoch(codes):
    balance = balances["downsample"](codes, 3)
    assert drawn(balance, codes) == {0: 5, 1: 30, 2: 30}
    assert set(balance.sampler(Random(0))) != set(balance.sampler(Random(1)))
    np.testing.assert_allclose(balance.prior, np.array([5, 30, 30]) / 65)


def test_upsample_repeats_every_class_to_the_largest(codes):
    balance = balances["upsample"](codes, 3)
    assert drawn(balance, codes) == {0: 100, 1: 100, 2: 100}
    rows = Counter(balance.sampler(Random(0)))
    assert all(rows[i] == 20 for i in range(5))  # evenly: 5 rows, 20 times each
    assert {rows[i] for i in range(105, 135)} == {3, 4}
    np.testing.assert_allclose(balance.prior, 1 / 3)


def test_author_cuts_the_nevi_doubles_the_others_and_weighs_what_results(codes):
    balance = balances["author"](codes, 3)
    assert drawn(balance, codes) == {0: 10, 1: 30, 2: 30}
    totals = balance.weights * [10, 30, 30]
    np.testing.assert_allclose(totals, 70 / 3)
    np.testing.assert_allclose(balance.prior, 1 / 3)


def test_author_on_ham10000(ham10000):
    df = load_dataset(SplitConfig(data=str(ham10000)))
    train = df.loc[df["split"] == "train", "target"]
    names = sorted(train.unique())
    codes = train.map(names.index).to_numpy()
    counts, got = Counter(train), drawn(balances["author"](codes, 7), codes)
    second = counts["mel"] if counts["mel"] > counts["bkl"] else counts["bkl"]
    for number, name in enumerate(names):
        assert got[number] == (second if name == "nv" else min(2 * counts[name], second))


def test_effective_numbers_weigh_as_in_the_paper(codes):
    balance = balances["effective"](codes, 3)
    expected = np.array([(1 - 0.999) / (1 - 0.999**n) for n in COUNTS])
    np.testing.assert_allclose(balance.weights / balance.weights[0], expected / expected[0])
    assert np.average(balance.weights, weights=COUNTS) == pytest.approx(1)
    np.testing.assert_allclose(balance.prior, expected * COUNTS / (expected * COUNTS).sum())


def test_beta_1_weighs_by_one_over_the_rows_and_beta_0_all_alike(codes):
    expected = balances["weights"](codes, 3)
    for beta in (1.0, 1 - 1e-12):
        balance = balances["effective"](codes, 3, beta)
        np.testing.assert_allclose(balance.weights, expected.weights, rtol=1e-6)
        np.testing.assert_allclose(balance.prior, expected.prior, rtol=1e-6)
    np.testing.assert_allclose(balances["effective"](codes, 3, 0.0).weights, 1)


@pytest.mark.parametrize("name", ["sampler", "downsample", "upsample", "author"])
def test_the_same_seed_draws_the_same_rows(name, codes):
    balance = balances[name](codes, 3)
    assert balance.sampler(Random(3)) == balance.sampler(Random(3))


@pytest.mark.parametrize("name", list(balances))
def test_a_class_absent_from_training_is_no_problem(name):
    balance = balances[name](np.array([0, 0, 2, 2, 2]), 3)
    assert balance.prior[1] == 0 and balance.prior.sum() == pytest.approx(1)
    assert balance.weights is None or np.isfinite(balance.weights).all()


CONFIG = TrainConfig(size=32, epochs=1, subclass="mel=3,nv=2", balance="weights", unfreeze="none")


@pytest.fixture(scope="module")
def df():
    return load_dataset(CONFIG)


@pytest.fixture(scope="module")
def learn(df):
    return lesion_learner(LesionDataLoaders.from_df(df, CONFIG), config=CONFIG)


def test_outputs_are_parts_of_their_classes_and_whole_lesions(learn):
    dls, parents = learn.dls, np.array(learn.model.parents)
    assert len(parents) == 7 + 2 + 1
    outputs = output_codes(dls)
    np.testing.assert_array_equal(parents[outputs], class_codes(dls))
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
        ({"subclass": "df=50"}, "asks for 50 subclasses of 'df'.*Type a smaller number"),
    ):
        config = replace(CONFIG, **changes)
        with pytest.raises(LesionfastError, match=message):
            lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
