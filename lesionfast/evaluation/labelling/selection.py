"""Which unlabelled images tell most: uncertain ones, ones that models disagree on, and varied ones.

Three formulas of a few lines each, in NumPy. scikit-activeml has them too, but takes a classifier
that it fits itself, and newer NumPy and SciPy than this package asks for.
"""

import numpy as np

from lesionfast.stats.rules import DecisionRule

POOL = 3  # times as many doubtful images as are wanted; of HAM10000, 5 finds fewer errors
BLOCK = 1024  # rows of features compared at a time
TINY = 1e-12


def share_scores(probabilities: np.ndarray, rule: DecisionRule) -> np.ndarray:
    """Return the shares of the scores by which a rule decides, of probabilities (n, k).

    With the rule 'balanced' they are the probabilities if all classes were as frequent, so that
    doubt about a rare class counts as much as doubt about a common one.
    """
    scores = np.maximum(rule.scores(probabilities), 0)
    return scores / np.maximum(scores.sum(axis=1, keepdims=True), TINY)


def margins(shares: np.ndarray) -> np.ndarray:
    """Return how far the first class is ahead of the second, (n,), 0 to 1; 0 is undecided.

    Of shares (n, k) (margin sampling, Scheffer et al. 2001, doi:10.1007/3-540-44816-0_31).
    """
    if shares.shape[1] < 2:
        return np.ones(len(shares))
    second, first = np.sort(shares, axis=1)[:, -2:].T
    return first - second


def disagreements(votes: np.ndarray) -> np.ndarray:
    """Return how much models disagree, (n,) in nats, from their probabilities (models, n, k).

    The entropy of their mean less the mean of their entropies: what is left of the doubt that more
    data can lessen (BALD, Houlsby et al. 2011, arXiv:1112.5745). 0 for a single model.
    """
    return np.maximum(entropies(votes.mean(axis=0)) - entropies(votes).mean(axis=0), 0.0)


def entropies(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of distributions along the last axis, in nats."""
    return -(probabilities * np.log(np.maximum(probabilities, TINY))).sum(axis=-1)


def rank_doubt(margin: np.ndarray, disagreement: np.ndarray) -> np.ndarray:
    """Return the positions of images, the most doubtful first: by the mean of both ranks."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (margin, -disagreement)]
    doubt = ranks[0] + ranks[1] if disagreement.any() else ranks[0]
    return np.argsort(doubt, kind="stable")


def choose_varied(features: np.ndarray, known: np.ndarray, n: int) -> np.ndarray:
    """Return the positions of n of the features (m, F), each the farthest from all before it.

    The first is the farthest from the `known` ones, (t, F), which may be none (greedy k-centre,
    Sener and Savarese 2018, arXiv:1708.00489, algorithm 1). Distances are those of the centred
    features on the unit sphere, so lengths do not matter.
    """
    centre = (known if len(known) else features).mean(axis=0)
    own, others = unit_rows(features - centre), unit_rows(known - centre)
    nearest = np.full(len(own), -1.0)  # the largest cosine to what is known or chosen
    for start in range(0, len(others), BLOCK):
        nearest = np.maximum(nearest, (own @ others[start : start + BLOCK].T).max(axis=1))
    chosen: list[int] = []
    for _ in range(min(n, len(own))):
        place = int(np.argmin(nearest))
        chosen.append(place)
        nearest = np.maximum(nearest, own @ own[place])
        nearest[chosen] = np.inf
    return np.array(chosen, int)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)


def choose_images(
    margin: np.ndarray, disagreement: np.ndarray, features: np.ndarray, known: np.ndarray, n: int
) -> np.ndarray:
    """Return the positions of the n images to label next, in the order of labelling.

    Of the `POOL` times n most doubtful images those that differ most from each other and from the
    known ones. Without features (m, 0) they are the most doubtful.
    """
    pool = rank_doubt(margin, disagreement)[: POOL * n]
    if not features.shape[1]:
        return pool[:n]
    return pool[choose_varied(features[pool], known, n)]
