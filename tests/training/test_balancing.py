from collections import Counter
from random import Random

import numpy as np
import pytest

from lesionfast.training.balancing import balances

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


@pytest.mark.parametrize("name", ["sampler", "downsample"])
def test_the_same_seed_draws_the_same_rows(name, codes):
    balance = balances[name](codes, 3)
    assert balance.sampler(Random(3)) == balance.sampler(Random(3))


@pytest.mark.parametrize("name", list(balances))
def test_a_class_absent_from_training_is_no_problem(name):
    balance = balances[name](np.array([0, 0, 2, 2, 2]), 3)
    assert balance.prior[1] == 0 and balance.prior.sum() == pytest.approx(1)
    assert balance.weights is None or np.isfinite(balance.weights).all()
