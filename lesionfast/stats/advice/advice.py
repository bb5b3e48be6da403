"""Advice: one recommendation a picture, from its probabilities, its set and stated costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.diagnoses import NAMES, Classes, plain
from lesionfast.stats.advice.costs import Costs
from lesionfast.stats.bootstrap import Found, resampled, share_interval
from lesionfast.stats.metrics import ALL, ratio
from lesionfast.stats.rules import as_probabilities

NO_DECISION = "no_decision"  # unlike the training images
EXAMINE = "examine"  # a cancer can't be ruled out, and examining it costs less
UNSURE = "unsure"  # among the least certain, of no plausible class, or of one that says nothing
UNLIKELY = "unlikely"  # a cancer can't be ruled out, but leaving it costs less
BENIGN = "benign"  # one benign class is left
SEVERAL = "benign_several"  # several benign classes are left
NO_CANCER = "no_cancer"  # the model knows no malignant class
EXAMINED = (EXAMINE, UNSURE)  # judged, and to be examined
REFERRED = (NO_DECISION, *EXAMINED)
REASSURING = (UNLIKELY, BENIGN, SEVERAL)  # no advice to examine, from a model that knows cancer
MASS = 0.9  # of the probability is in a set where none was chosen
TELLS_NOTHING = ("unknown", "miscellaneous")  # a class of these may be a cancer


@dataclass(frozen=True)
class Advice:
    """What a person is told of n pictures, without a contradiction.

    `key` (n,) is one of the constants of this module, `likely` (n,) the most probable class, and
    `open` (n, k) the classes that can't be ruled out, the most probable always among them.
    """

    key: np.ndarray
    likely: np.ndarray
    open: np.ndarray

    @property
    def refer(self) -> np.ndarray:
        """Whether a person should examine the lesion, bool (n,)."""
        return np.isin(self.key, REFERRED)


def advise(
    probabilities: ArrayLike,
    classes: Sequence[str],
    costs: Costs,
    sets: np.ndarray | None = None,
    unsure: np.ndarray | None = None,
    outlier: np.ndarray | None = None,
) -> Advice:
    """Return the advice on pictures from calibrated probabilities (n, k) and stated costs.

    To examine is advised where it has the lower expected cost, and where the most probable class is
    malignant. What can't be ruled out are the classes of the prediction set, `sets` bool (n, k), of
    which a set with more classes keeps the coverage: the most probable class is added, and each
    malignant one that would tip the costs alone, or else the one that does most to tip them.
    Without sets they are the most probable classes that have `MASS` together. `unsure` and
    `outlier` (n,) say which pictures are among the least certain, and which are unlike the training
    images; of the latter nothing is ruled out. Not sure either is it of a picture with an empty
    set, for which no class is plausible, and of one that may be of a class which tells nothing.
    """
    probabilities, classes = as_probabilities(probabilities), Classes.of(classes)
    n, none = len(probabilities), np.zeros(len(probabilities), bool)
    outlier = none if outlier is None else np.asarray(outlier, bool)
    unsure = none if unsure is None else np.asarray(unsure, bool)
    malignant = np.isin(classes, classes.malignant)
    likely, images = probabilities.argmax(axis=1), np.arange(n)
    leaving, examining = costs.expected(probabilities, classes).T
    examine = ((leaving >= examining) | malignant[likely]) & malignant.any()
    open_ = most_probable(probabilities) if sets is None else np.array(sets, bool)
    unsure = unsure | ~open_.any(axis=1)
    open_[images, likely] = True
    unsure |= open_[:, tell_nothing(classes)].any(axis=1)
    risks = probabilities * costs.misses(classes)
    alone = risks >= costs.needless_excision * (1 - probabilities)  # were all the rest benign
    open_ |= alone & malignant
    tips = examine & ~open_[:, malignant].any(axis=1)
    open_[images[tips], risks[tips].argmax(axis=1)] = True
    open_[outlier] = True
    left = open_[:, malignant].any(axis=1)
    benign = np.where(open_.sum(axis=1) > 1, SEVERAL, BENIGN)
    last = benign if malignant.any() else NO_CANCER
    keys = [NO_DECISION, EXAMINE, UNSURE, UNLIKELY]
    key = np.select([outlier, examine, unsure, left], keys, last)
    return Advice(key.astype(object), likely, open_)


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Return the fewest classes, bool (n, k), with `MASS` of the probabilities (n, k)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    before = ranked.cumsum(axis=1) - ranked
    chosen = np.zeros(probabilities.shape, bool)
    np.put_along_axis(chosen, order, before < MASS, axis=1)
    return chosen


def tell_nothing(classes: Classes) -> np.ndarray:
    """Return which classes, bool (k,), do not say whether they are benign."""
    unclear = [NAMES.get(plain(name), plain(name)) in TELLS_NOTHING for name in classes]
    return np.array(unclear) | np.isin(classes, classes.doubtful)


def kinds_of_lesion(classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return which classes, bool (k,), are melanoma, another cancer, and benign."""
    classes = Classes.of(classes)
    melanoma = np.isin(classes, [classes.melanoma, *classes.other_melanomas])
    malignant = np.isin(classes, classes.malignant)
    return {"melanoma": melanoma, "other cancer": malignant & ~melanoma, "benign": ~malignant}


def advice_table(
    truth: np.ndarray, key: np.ndarray, lesions: ArrayLike, classes: Sequence[str]
) -> pd.DataFrame:
    """Return what images of each kind of lesion get, and the share whose examination is advised.

    `truth` (n,) are class numbers, `key` (n,) those of `Advice`. Columns: of (melanoma, 'other
    cancer', 'benign', as far as there are images of them, and 'all'), images, lesions, examined,
    no_decision (which also are to be looked at, but were not judged), left (the rest), and value,
    low, high: the share examined, with the interval of a bootstrap of lesions.
    """
    lesions, kinds = np.asarray(lesions), kinds_of_lesion(classes)
    members = {of: chosen[truth] for of, chosen in kinds.items() if chosen[truth].any()}
    members[ALL] = np.ones(len(truth), bool)
    withheld, examined = key == NO_DECISION, np.isin(key, EXAMINED)

    def find(weights: np.ndarray) -> Found:
        return {of: ratio(weights @ (m & examined), weights @ m) for of, m in members.items()}

    values, drawn = resampled(find, truth, lesions)
    rows = []
    for of, value in values.items():
        chosen = members[of]
        count = len(np.unique(lesions[chosen]))
        told = [int((chosen & one).sum()) for one in (examined, withheld, ~examined & ~withheld)]
        ends = share_interval(value, drawn[of], count)
        rows.append((of, int(chosen.sum()), count, *told, value, *ends))
    columns = ["of", "images", "lesions", "examined", "no_decision", "left"]
    return pd.DataFrame(rows, columns=[*columns, "value", "low", "high"])
