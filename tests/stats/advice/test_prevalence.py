import logging

import numpy as np
import pytest

from lesionfast.diagnoses import move_prior
from lesionfast.errors import LesionfastError
from lesionfast.stats.advice.prevalence import (
    estimate_prior,
    predictive_values,
    read_prior,
    write_prior,
)

CLASSES = ["mel", "nv", "df"]


def test_what_is_not_named_shares_the_rest_as_before():
    found = read_prior("mel=0.02", CLASSES, [0.2, 0.6, 0.2])
    assert found == pytest.approx([0.02, 0.735, 0.245])
    assert read_prior("mel=0.02,nv=0.9,df=0.08", CLASSES, [1 / 3] * 3).sum() == pytest.approx(1)
    assert write_prior(found, CLASSES) == "mel=0.02,nv=0.735,df=0.245"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mole=0.1", "--prior names 'mole', which is not a class"),
        ("mel=0.5,nv=0.6", "the shares have the sum 1.1; it must be below 1"),
        ("mel=0.5,nv=0.1,df=0.1", "sum 0.7; it must be 1 for all classes"),
        ("mel=much", "needs a class and a number above 0, such as mel=0.02"),
        ("mel=0", "needs a class and a number above 0"),
        ("", "the shares have the sum 0"),
    ],
)
def test_shares_that_are_no_whole_are_an_error(text, message):
    with pytest.raises(LesionfastError, match=message):
        read_prior(text, CLASSES, [0.2, 0.6, 0.2])


def simulate(prior, n=4000, seed=0):
    """Class numbers and the exact posterior, for the shares `prior`, of one normal number."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=prior)
    x = truth * 1.5 + rng.normal(size=n)
    likelihood = np.exp(-0.5 * (x[:, None] - 1.5 * np.arange(3)) ** 2)
    joint = likelihood * prior
    return truth, joint / joint.sum(axis=1, keepdims=True)


def test_moved_probabilities_are_those_of_the_other_clinic():
    here, there = np.array([0.5, 0.3, 0.2]), np.array([0.05, 0.9, 0.05])
    truth, exact = simulate(there)
    as_here = move_prior(exact, there, here)
    np.testing.assert_allclose(move_prior(as_here, here, there), exact, atol=1e-12)
    chance = move_prior(as_here, here, there)[:, 0].mean()
    assert chance == pytest.approx((truth == 0).mean(), abs=0.01)


def test_the_estimate_finds_the_shares_of_unlabelled_pictures(caplog):
    here, there = np.array([0.5, 0.3, 0.2]), np.array([0.05, 0.9, 0.05])
    truth, exact = simulate(there)
    found = estimate_prior(move_prior(exact, there, here), here)
    np.testing.assert_allclose(found, np.bincount(truth) / len(truth), atol=0.03)
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        estimate_prior(exact[:20], here)
    assert "estimated from 20 pictures, fewer than 100" in caplog.text


def test_predictive_values_follow_from_bayes():
    truth = np.repeat([0, 1], [100, 900])
    flagged = np.r_[np.arange(100) < 80, np.arange(900) < 90]
    table = predictive_values(truth == 0, flagged, truth, np.arange(1000), [0.1, 0.01])
    assert table["ppv"].tolist() == pytest.approx([0.08 / 0.17, 0.008 / (0.008 + 0.099)])
    assert table["npv"].tolist() == pytest.approx([0.81 / 0.83, 0.891 / 0.893])
    for name in ("ppv", "npv"):
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()


def test_a_flag_that_misses_nothing_here_may_miss_some_elsewhere():
    truth = np.repeat([0, 1], [20, 80])
    row = predictive_values(truth == 0, truth == 0, truth, np.arange(100), [0.1]).iloc[0]
    assert row["ppv"] == row["npv"] == 1 and row["ppv_low"] < 1 and row["npv_low"] < 1
