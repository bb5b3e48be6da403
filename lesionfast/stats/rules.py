"""Decision rules: how probabilities become a class, with or without a weight on melanoma."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.diagnoses import Classes, name_rule
from lesionfast.errors import LesionfastError, did_you_mean

RULES = ("argmax", "balanced")
IN_WORDS = {
    "argmax": "the most probable class",
    "balanced": "the largest probability after division by the class shares of the training",
}
NEVER = -1.0  # the score of a class that was never learned
MOST = 1e4  # weight on melanoma; more would decide melanoma for next to everything
DIGITS = 4  # of a weight that was fitted


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities (n, k) become a class: everything that decides uses one of these.

    The class with the largest score is taken, of several the first. The score of a class is its
    probability for the `base` 'argmax', and for 'balanced' its probability / `prior` (k,), the
    class shares that the loss saw: the rule that maximises mean per-class recall if the
    probabilities are right (Menon et al. 2021, arXiv:2007.07314, post-hoc logit adjustment with
    tau = 1). A class with prior 0 was never learned, so 'balanced' never decides for it.
    `weight`, from 1, multiplies the score of class number `melanoma`. Raises `LesionfastError` for
    an unknown base, a prior that does not fit, and a weight below 1 or without melanoma.
    """

    base: str
    prior: Sequence[float] = ()
    melanoma: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior", tuple(np.asarray(self.prior, np.float64).tolist()))
        if self.base not in RULES:
            raise LesionfastError(
                f"there is no decision rule '{self.base}'.{did_you_mean(self.base, RULES)} "
                f"Choose one with --rule: {', '.join(RULES)}."
            )
        fits = np.isfinite(self.weight) and self.weight >= 1
        if not fits or (self.weight > 1 and self.melanoma is None):
            raise LesionfastError(
                f"the weight on melanoma is {self.weight}; it takes a class of melanoma, and a "
                "number from 1. Fit it with --melanoma-sensitivity, such as 0.8."
            )

    @classmethod
    def of_model(cls, model: Mapping[str, Any], base: str | None = None) -> "DecisionRule":
        """Return the rule of a model.json, or the plain rule `base` for its probabilities."""
        classes = Classes.of_model(dict(model))
        number = classes.index(classes.melanoma) if classes.melanoma in classes else None
        weight = model.get("melanoma_weight", 1.0) if base is None else 1.0
        return cls(base or model["rule"], model["prior"], number, weight)

    @property
    def name(self) -> str:
        """What tables, figures and predictions call it: "balanced (melanoma x 2.13)"."""
        return name_rule(self.base, self.weight)

    @property
    def in_words(self) -> str:
        """What it decides for, as half a sentence."""
        weighted = f", with the probability of melanoma times {self.weight:g}"
        return IN_WORDS[self.base] + (weighted if self.weight > 1 else "")

    @property
    def plain(self) -> "DecisionRule":
        """The same rule without a weight."""
        return replace(self, weight=1.0)

    def scores(self, probabilities: ArrayLike) -> np.ndarray:
        """Return the score of each class, (n, k), `NEVER` where a class was never learned."""
        probabilities = as_probabilities(probabilities)
        scores = probabilities.copy()
        if self.base == "balanced":
            prior = as_prior(self.prior, scores.shape[1])
            never = np.full_like(scores, NEVER)
            scores = np.divide(probabilities, prior, out=never, where=prior > 0)
        if self.weight > 1:
            scores[:, self.melanoma] *= self.weight
        return scores

    def decide(self, probabilities: ArrayLike) -> np.ndarray:
        """Return the class numbers (n,), int64, of probabilities (n, k)."""
        return self.scores(probabilities).argmax(axis=1)

    def confidence(self, probabilities: ArrayLike) -> np.ndarray:
        """Return how sure the rule is, (n,): the share of all scores that its class has.

        Of 'argmax' that is the largest probability, of 'balanced' the probability if all classes
        were as frequent.
        """
        scores = np.maximum(self.scores(probabilities), 0)
        sums = scores.sum(axis=1)
        unknown = np.full(len(scores), np.nan)  # where no class that was learned is possible
        return np.divide(scores.max(axis=1), sums, out=unknown, where=sums > 0)


def fit_weight(
    rule: DecisionRule, truth: ArrayLike, probabilities: ArrayLike, sensitivity: float
) -> DecisionRule:
    """Return `rule` with the smallest weight on melanoma that reaches a sensitivity on images.

    `truth` (n,) are the class numbers of `probabilities` (n, k), those of validation; the weight
    is rounded up to four digits, and 1 where the plain rule reaches the sensitivity. As it grows,
    sensitivity does not fall and specificity does not rise. Raises `LesionfastError` for a
    sensitivity outside 0 to 1, without melanoma, and if no weight up to 10,000 is enough.
    """
    check_sensitivity(sensitivity)
    plain = rule.plain
    if not sensitivity:
        return plain
    ratios = weights_needed(plain, truth, probabilities)
    wanted = max(1, ceil(sensitivity * len(ratios) - 1e-9))
    needed = float(np.sort(ratios)[wanted - 1])
    if needed > MOST:
        most = int((ratios <= MOST).sum())
        raise LesionfastError(
            f"no weight on melanoma up to {MOST:,.0f} finds {sensitivity:g} of the {len(ratios)} "
            f"validation melanomas: to {len(ratios) - most} of them the model gives next to no "
            f"probability. Type --melanoma-sensitivity {floor(100 * most / len(ratios)) / 100:g} "
            "or less."
        )
    return replace(plain, weight=round_up(needed)) if needed else plain


def weights_needed(rule: DecisionRule, truth: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Return the weight above which each melanoma is decided so, (m,); 0 of those that are."""
    scores = rule.scores(probabilities)
    if rule.melanoma is None:
        raise LesionfastError(
            "there is no class of melanoma to weight. Leave --melanoma-sensitivity out, or name "
            "the class in training with --melanoma."
        )
    scores = scores[np.asarray(truth) == rule.melanoma]
    if not len(scores):
        raise LesionfastError(
            "validation has no melanoma to fit a weight on. Leave --melanoma-sensitivity out, or "
            "train with a larger --val."
        )
    own, found = scores[:, rule.melanoma], scores.argmax(axis=1) == rule.melanoma
    others = np.delete(scores, rule.melanoma, axis=1).max(axis=1)
    needed = np.divide(others, own, out=np.full(len(own), np.inf), where=own > 0)
    return np.where(found, 0.0, needed)


def round_up(weight: float) -> float:
    """Return the next number of four digits above `weight`, so that it is more than a tie."""
    unit = 10.0 ** (floor(log10(weight)) + 1 - DIGITS)
    return float(f"{(floor(weight / unit + 1e-6) + 1) * unit:.{DIGITS}g}")


def check_sensitivity(sensitivity: float) -> None:
    """Raise `LesionfastError` unless a sensitivity lies between 0 and 1."""
    if not 0 <= sensitivity <= 1:
        raise LesionfastError(
            f"a sensitivity lies between 0 and 1; found {sensitivity}. Type for example "
            "--melanoma-sensitivity 0.8"
        )


def as_probabilities(values: ArrayLike) -> np.ndarray:
    """Return probabilities (n, k) as float64; raises `LesionfastError` if they are none."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise LesionfastError(
            f"probabilities must be a table of images by classes; found shape {values.shape}. "
            "Pass one row per image, and at least one row."
        )
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise LesionfastError(
            f"the model's probabilities are not numbers in {bad} of {len(values)} rows: the "
            "training diverged. Train again with a lower --lr."
        )
    if values.min() < 0 or values.max() > 1 + 1e-3:
        raise LesionfastError(
            f"probabilities lie between 0 and 1; found {values.min():.3g} to {values.max():.3g}. "
            "Pass the softmax of the logits."
        )
    return values


def as_prior(prior: ArrayLike, n_classes: int) -> np.ndarray:
    """Return class shares (k,) as float64; raises `LesionfastError` if they are none."""
    prior = np.asarray(prior, np.float64)
    fits = prior.shape == (n_classes,) and np.isfinite(prior).all()
    if not fits or prior.min() < 0 or prior.max() <= 0:
        raise LesionfastError(
            f"the prior must be {n_classes} shares, one per class; found {prior.tolist()}. "
            "Pass the class shares that the loss saw in training."
        )
    return prior
