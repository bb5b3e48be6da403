"""How often a cancer got each reassuring answer, and of which people few cancers were tested."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.stats.advice.advice import REASSURING, kinds_of_lesion
from lesionfast.stats.bootstrap import Found, resampled, share_interval
from lesionfast.stats.metrics import ALL, ratio
from lesionfast.stats.subgroups import BAND_NAMES, FEWEST, UNKNOWN, Labels, count_lesions

ANY = "any"  # of the reassuring answers
SITE = "localization"
MOST_OF_A_SITE = 1  # lesions up to which a site counts as hardly tested


@dataclass(frozen=True)
class Count:
    """How many of `images` got an answer, and between which shares that is, 95 %."""

    count: int
    images: int
    low: float
    high: float


def count_answers(
    truth: np.ndarray, key: np.ndarray, lesions: ArrayLike, classes: Sequence[str]
) -> dict[str, dict[str, Count]]:
    """Return how many images of melanoma, and of other cancers, got each reassuring answer.

    By kind of lesion, then by key of `Advice` and `ANY`; `truth` (n,) are class numbers, `key` (n,)
    those of `Advice`. Kinds without images are left out. Intervals are of a bootstrap of lesions.
    """
    lesions = np.asarray(lesions)
    kinds = {of: chosen[truth] for of, chosen in kinds_of_lesion(classes).items()}
    members = {of: m for of, m in kinds.items() if of != "benign" and m.any()}
    given = {name: key == name for name in REASSURING} | {ANY: np.isin(key, REASSURING)}

    def find(weights: np.ndarray) -> Found:
        return {
            (of, name): ratio(weights @ (m & got), weights @ m)
            for of, m in members.items()
            for name, got in given.items()
        }

    values, drawn = resampled(find, truth, lesions) if members else ({}, {})
    found: dict[str, dict[str, Count]] = {of: {} for of in members}
    for (of, name), value in values.items():
        n = len(np.unique(lesions[members[of]]))
        ends = share_interval(value, drawn[of, name], n)
        count, images = int((members[of] & given[name]).sum()), int(members[of].sum())
        found[of][name] = Count(count, images, *map(float, ends))
    return found


def count_few(positive: np.ndarray, lesions: np.ndarray, groups: Labels) -> dict[str, dict]:
    """Return the groups of which too few positive lesions were tested, by column: {group: lesions}.

    Of people (age, sex) these are groups with fewer than 20 such lesions, age bands without any
    image among them; of sites, which are many, those with at most one. Where that is every group of
    a column, the test itself is too small: the column is left out, and `ALL` has all such lesions.
    """
    few: dict[str, dict] = {}
    for column, labels in groups.items():
        names = sorted(set(labels) | set(BAND_NAMES if column == "age" else ()))
        counts = {n: count_lesions(lesions, positive & (labels == n)) for n in names}
        most = MOST_OF_A_SITE if column == SITE else FEWEST - 1
        if all(count <= most for count in counts.values()):
            few[ALL] = {ALL: count_lesions(lesions, positive)}
        else:
            few[column] = {n: c for n, c in counts.items() if c <= most and n != UNKNOWN}
    return {column: counts for column, counts in few.items() if counts}
