"""Which images tell most: against loops over the definitions, and on made-up clusters."""

import numpy as np
import pytest

from lesionfast.evaluation.labelling.selection import (
    choose_images,
    choose_varied,
    disagreements,
    entropies,
    margins,
    rank_doubt,
    share_scores,
)
from lesionfast.stats.rules import DecisionRule


def test_the_margin_is_that_of_the_scores_of_the_rule():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    assert margins(probabilities) == pytest.approx([0.5, 0.0])
    assert share_scores(probabilities, DecisionRule("argmax")) == pytest.approx(probabilities)
    shares = share_scores(probabilities, DecisionRule("balanced", (0.7, 0.2, 0.1)))
    assert shares[0] == pytest.approx([1 / 3] * 3)
    assert margins(shares) == pytest.approx([0.0, (2.5 - 5 / 7) / (2.5 + 5 / 7)])
    assert margins(np.ones((2, 1))).tolist() == [1.0, 1.0]


def test_models_disagree_where_their_mean_is_less_sure_than_they_are():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])[:, None]  # two models, one image
    unsure = np.full((2, 1, 2), 0.5)
    assert disagreements(sure) == pytest.approx([np.log(2)])
    assert disagreements(unsure) == pytest.approx([0.0])
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.ones(4), (5, 20))
    mean = votes.mean(axis=0)
    by_definition = [(votes[:, i] * np.log(votes[:, i] / mean[i])).sum() / 5 for i in range(20)]
    assert disagreements(votes) == pytest.approx(by_definition)
    assert entropies(np.array([0.25] * 4)) == pytest.approx(np.log(4))


def test_both_kinds_of_doubt_count():
    margin = np.array([0.9, 0.1, 0.5, 0.2])
    assert rank_doubt(margin, np.zeros(4)).tolist() == [1, 3, 2, 0]
    assert rank_doubt(margin, np.array([0.0, 0.1, 0.0, 0.9]))[0] in (1, 3)


def test_varied_images_are_of_different_clusters_and_far_from_what_is_known():
    rng = np.random.default_rng(0)
    centres = np.eye(6)[:5] * 10
    features = np.concatenate([c + rng.normal(0, 0.1, (20, 6)) for c in centres])
    known = centres[0] + rng.normal(0, 0.1, (50, 6))
    known = np.concatenate([known, rng.normal(0, 0.1, (50, 6)) + 10 * np.eye(6)[5]])
    chosen = choose_varied(features, known, 4)
    assert sorted(chosen // 20) == [1, 2, 3, 4]
    assert choose_varied(features, features[:0], 3).size == 3
    assert sorted(choose_varied(features[:5], known, 9)) == [0, 1, 2, 3, 4]


def test_the_greedy_choice_is_that_of_a_loop():
    rng = np.random.default_rng(1)
    features, known = rng.normal(size=(40, 8)), rng.normal(size=(30, 8))
    centred = [x - known.mean(axis=0) for x in (features, known)]
    own, others = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in centred)
    chosen = []
    for _ in range(6):
        seen = np.concatenate([others, own[chosen]])
        distances = [np.linalg.norm(seen - one, axis=1).min() for one in own]
        chosen.append(int(np.argmax(distances)))
    assert choose_varied(features, known, 6).tolist() == chosen


def test_only_doubtful_images_are_chosen():
    rng = np.random.default_rng(2)
    margin = np.concatenate([np.full(50, 0.1), np.full(950, 0.9)])
    features = rng.normal(size=(1000, 4))
    chosen = choose_images(margin, np.zeros(1000), features, features[:0], 10)
    assert len(set(chosen)) == 10 and (chosen < 50).all()
    assert choose_images(margin, np.zeros(1000), features[:, :0], features[:0], 3).tolist() == [
        0,
        1,
        2,
    ]
