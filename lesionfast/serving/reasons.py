"""What the advice on a picture is derived from, and the statistics behind it, in sentences."""

from typing import Any

import numpy as np

from lesionfast.diagnoses import probability_columns
from lesionfast.reporting.advice.limits import Limits, list_limits, list_misses
from lesionfast.reporting.advice.sentences import (
    list_classes,
    name_class,
    read_messages,
    say,
    translate,
    word,
)
from lesionfast.reporting.images import rounded_percent
from lesionfast.serving.bundle import KEY, Bundle, flag_column
from lesionfast.stats.advice.advice import kinds_of_lesion


def list_reasons(bundle: Bundle, row: dict[str, Any]) -> list[str]:
    """Return what the advice of a row of `Predictor` is derived from, a sentence each."""
    if row["likely"] is None:
        return [say("reason.all")]
    words = [say("reason.shares", shares=describe_shares(bundle, read_chances(bundle, row)))]
    names, key = row["prediction_set"], "reason.set" if bundle.conformal else "reason.set_by_costs"
    if bundle.conformal and not set(names) & set(bundle.classes.malignant):
        key = "reason.set_benign"
    words.append(say(key, left=list_classes(names)))
    if len(names) > 1:
        words += list_rest(bundle)
    return [*words, *explain_referral(bundle, row), *list_cautions(bundle, row)]


def list_rest(bundle: Bundle) -> list[str]:
    """Return how often a prediction set lacks the right class."""
    if not bundle.conformal:
        return []
    return [say("reason.rest", rest=f"{100 * (1 - bundle.conformal.coverage):.0f}")]


def list_row_limits(limits: Limits | None, bundle: Bundle, row: dict[str, Any]) -> list[str]:
    """Return when not to rely on the answer of a row, a short sentence each.

    First how often cancers of the test got the same answer, if it reassures, and if all of the
    metadata is known: without some the model answers otherwise than in the test.
    """
    misses = [] if row["not_known"] else list_misses(limits, bundle.classes, row[KEY])
    return [*misses, *list_limits(limits, bundle.classes)]


def read_chances(bundle: Bundle, row: dict[str, Any]) -> np.ndarray:
    """Return the calibrated probabilities (k,) of a row."""
    return np.array([row[column] for column in probability_columns(bundle.classes)])


def expected_costs(bundle: Bundle, row: dict[str, Any]) -> np.ndarray:
    """Return what leaving and examining a lesion is expected to cost, in needless excisions."""
    costs = bundle.costs.relative()
    return costs.expected(read_chances(bundle, row)[None], bundle.classes)[0]


def explain_referral(bundle: Bundle, row: dict[str, Any]) -> list[str]:
    """Return why a lesion is examined against the costs, if it is."""
    if not (bundle.classes.malignant and row["refer"]):
        return []
    leave, examine = expected_costs(bundle, row)
    cancer = row["likely"] in bundle.classes.malignant
    return [say("reason.likely_cancer" if cancer else "reason.unsure")] if leave < examine else []


def list_costs(bundle: Bundle, row: dict[str, Any]) -> list[str]:
    """Return what the stated costs come to."""
    if not bundle.classes.malignant:
        return []
    costs, (leave, examine) = bundle.costs.relative(), expected_costs(bundle, row)
    prices = {"melanoma": f"{costs.missed_melanoma:g}", "cancer": f"{costs.missed_cancer:g}"}
    return [say("reason.costs", **prices, leave=f"{leave:.2g}", examine=f"{examine:.2g}")]


def list_cautions(bundle: Bundle, row: dict[str, Any]) -> list[str]:
    """Return what else there is to know about the probabilities of a row."""
    words = [] if bundle.calibrator else [say("reason.uncalibrated")]
    if bundle.clinic:
        words.append(say("reason.moved", prior=bundle.clinic_in_words))
    if row["not_known"]:
        words.append(say("reason.missing", columns=", ".join(map(translate, row["not_known"]))))
    return words


def describe_shares(bundle: Bundle, chances: np.ndarray) -> str:
    """Return "melanoma 12%, other cancers 3%, benign 85%" of probabilities (k,)."""
    groups = kinds_of_lesion(bundle.classes)
    cancer = "cancer" if groups["melanoma"].any() else "any_cancer"
    keys = {"melanoma": "melanoma", "other cancer": cancer, "benign": "benign"}
    present = {keys[name]: members for name, members in groups.items() if members.any()}
    return ", ".join(
        f"{word(f'share.{name}')} {rounded_percent(float(chances[members].sum()))}"
        for name, members in present.items()
    )


def describe_rule(bundle: Bundle) -> str:
    """Return what the rule of the metrics decides for, as half a sentence."""
    rule, messages = bundle.decision_rule, read_messages().get("rule", {})
    if rule.base not in messages:
        return rule.in_words
    weighted = messages["weighted"] if rule.weight > 1 else "{rule}"
    return weighted.format(rule=messages[rule.base], weight=f"{rule.weight:g}")


def list_details(bundle: Bundle, row: dict[str, Any]) -> list[str]:
    """Return the statistics behind the advice on a row, a sentence each."""
    is_judged = row["likely"] is not None
    words = [say("reason.calibrated")] if bundle.calibrator and is_judged else []
    if is_judged:
        few = len(row["prediction_set"]) == 1
        words += [*(list_rest(bundle) if few else []), *list_costs(bundle, row)]
    for point in bundle.points if is_judged else ():
        what = name_class(point.of) if point.of in bundle.classes else word("share.any_cancer")
        side = word("detail.above" if row[flag_column(point)] else "detail.below")
        values = {"what": what, "side": side, "level": f"{point.level:.0%}"}
        words.append(say(f"detail.point_{point.goal}", **values))
    if is_judged:
        values = {"rule": bundle.decision_rule.name, "words": describe_rule(bundle)}
        words.append(say("detail.rule", decision=name_class(row["decision"]), **values))
    if bundle.ood:
        score, threshold = f"{row['outlier_score']:.2f}", f"{bundle.ood.threshold:.2f}"
        words.append(say("detail.outlier", score=score, threshold=threshold))
    return words
