"""The bootstrap against a plain loop, against the truth of simulated data, and the clock."""

import time

import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.stats import bootstrap
from lesionfast.stats.bootstrap import interval, resampled
from lesionfast.stats.metrics import confusion_counts, mean_defined, weighted_recall

RIGHT = np.array([0.5, 0.8, 0.65])  # sensitivity of each class in the simulated world
SHARES = np.array([0.15, 0.65, 0.2])


def simulate(rng, n_lesions=150):
    """Return truth, decision and lesion of images; a lesion's images are mostly right together."""
    kinds = np.concatenate([[0, 1, 2], rng.choice(3, n_lesions - 3, p=SHARES)])
    sizes = rng.choice([1, 2, 6], n_lesions)
    lesion = np.repeat(np.arange(n_lesions), sizes)
    truth = kinds[lesion]
    together = rng.random(n_lesions)[lesion] < RIGHT[truth]
    alone = rng.random(len(truth)) < RIGHT[truth]
    right = np.where(rng.random(n_lesions)[lesion] < 0.8, together, alone)
    wrong = (truth + 1 + (rng.random(len(truth)) < 0.5)) % 3
    return truth, np.where(right, truth, wrong), lesion


def sensitivities(truth, decisions, lesions, n_classes, **how) -> np.ndarray:
    """Return the sensitivity of each class of each run in each resample, (runs, resamples, k)."""
    recalls = [weighted_recall(truth, each, n_classes) for each in np.atleast_2d(decisions)]

    def find(weights):
        return {
            (run, code): values
            for run, recall in enumerate(recalls)
            for code, values in enumerate(recall(weights).T)
        }

    drawn = resampled(find, truth, lesions, **how)[1]
    return np.stack(list(drawn.values()), -1).reshape(-1, len(recalls), n_classes).swapaxes(0, 1)


def accuracies(*data, **how) -> np.ndarray:
    """Return the balanced accuracy of each run in each resample, (runs, resamples)."""
    return mean_defined(sensitivities(*data, **how))


def test_it_says_what_a_plain_loop_says():
    rng = np.random.default_rng(0)
    truth, first, lesion = simulate(rng)
    lesion[-1] = lesion[0]  # a joined lesion of two classes
    second = np.where(rng.random(len(truth)) < 0.2, 1, first)
    found = sensitivities(truth, [first, second], lesion, 4, resamples=1000, seed=3)
    strata = bootstrap.strata(truth, np.unique(lesion, return_inverse=True)[1])
    drawn = [
        np.random.default_rng([3, number]).integers(0, len(each), (1000, len(each)))
        for number, each in enumerate(strata)
    ]
    for i in range(0, 1000, 50):
        lesions = np.concatenate([each[d[i]] for each, d in zip(strata, drawn, strict=True)])
        rows = np.concatenate([np.flatnonzero(lesion == one) for one in lesions])
        for run, decision in enumerate((first, second)):
            counts = confusion_counts(truth[rows], decision[rows], 4)
            recall = counts.diagonal()[:3] / counts.sum(axis=1)[:3]
            np.testing.assert_allclose(found[run, i, :3], recall)
            np.testing.assert_allclose(mean_defined(found[run, i]), recall.mean())
    assert np.isnan(found[..., 3]).all()  # no image has the fourth class


def test_small_blocks_draw_the_same_lesions(monkeypatch):
    truth, _, lesion = simulate(np.random.default_rng(0))
    whole = np.concatenate(list(bootstrap.drawn_lesions(truth, lesion, 50, 0)))
    monkeypatch.setattr(bootstrap, "BLOCK", 7 * len(truth))
    parts = np.concatenate(list(bootstrap.drawn_lesions(truth, lesion, 50, 0)))
    np.testing.assert_array_equal(parts, whole)
    assert (whole.sum(axis=1) == lesion.max() + 1).all()


@pytest.fixture(scope="module")
def covered():
    """How often the interval holds the true balanced accuracy: by lesions, and by rows."""
    rng, hits = np.random.default_rng(1), []
    for seed in range(250):
        truth, decision, lesion = simulate(rng)
        rows = np.arange(len(truth))
        for groups in (lesion, rows):
            values = accuracies(truth, decision, groups, 3, resamples=1000, seed=seed)
            low, high = interval(values[0])
            hits.append(low <= RIGHT.mean() <= high)
    return np.reshape(hits, (-1, 2)).mean(axis=0)


def test_the_interval_covers_the_truth_as_often_as_it_says(covered):
    assert 0.90 <= covered[0] <= 0.985


def test_resampling_rows_instead_would_promise_too_much(covered):
    assert covered[1] < 0.85


def test_paired_differences_are_narrower_than_those_of_strangers():
    rng = np.random.default_rng(2)
    truth, first, lesion = simulate(rng, 400)
    second = np.where(rng.random(len(truth)) < 0.03, truth, first)  # a little better
    values = accuracies(truth, [first, second], lesion, 3)
    other = accuracies(truth, second, lesion, 3, seed=9)[0]
    low, high = interval(values[1] - values[0])
    stranger = interval(other - values[0])
    assert low > 0 and high - low < 0.4 * (stranger[1] - stranger[0])


def test_the_seed_decides_and_the_order_of_rows_does_not():
    truth, decision, lesion = simulate(np.random.default_rng(3))
    order = np.random.default_rng(4).permutation(len(truth))
    same = accuracies(truth[order], decision[order], lesion[order], 3)
    values = accuracies(truth, decision, lesion, 3)
    np.testing.assert_array_equal(same, values)
    other = accuracies(truth, decision, lesion, 3, seed=1)
    assert (other != values).any()


def test_ten_runs_of_ten_thousand_images_take_seconds():
    rng = np.random.default_rng(5)
    lesion = np.sort(rng.integers(0, 7500, 10_000))
    truth = rng.choice(7, 7500, p=[0.03, 0.05, 0.11, 0.01, 0.11, 0.68, 0.01])[lesion]
    decisions = np.where(rng.random((10, 10_000)) < 0.7, truth, rng.integers(0, 7, 10_000))
    start = time.process_time()
    values = sensitivities(truth, decisions, lesion, 7)
    assert values.shape == (10, 2000, 7)
    assert time.process_time() - start < 5


def test_an_undefined_value_has_no_interval():
    assert np.isnan(interval(np.full(1000, np.nan))).all()


@pytest.mark.parametrize(
    ("lesions", "resamples", "message"),
    [
        (["a", "b"], 1000, "Pass those of the same images"),
        (["a", "b", "c"], 100, "Type 1000 or more"),
    ],
)
def test_what_does_not_fit_is_refused(lesions, resamples, message):
    with pytest.raises(LesionfastError, match=message):
        accuracies(np.array([0, 1, 0]), [0, 1, 1], lesions, 2, resamples=resamples)
