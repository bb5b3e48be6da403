"""The melanomas that a rule finds: a weight to find more, its price, and a warning of fewer."""

import logging
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.split import PARTS
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.evaluation.comparison import contribution_table
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run
from lesionfast.stats.metrics import ALL, METRIC_NAMES, decision_metrics
from lesionfast.stats.rules import DecisionRule, fit_weight

logger = logging.getLogger("lesionfast")

FEWEST = 10  # validation lesions of a class
ARGMAX = "argmax"
OF_A_WEIGHT = ("schema", "melanoma_sensitivity", "melanoma_weight")  # in model.json


def fit_rule(valid: Interpretation, sensitivity: float) -> DecisionRule:
    """Return the rule with the weight on melanoma that reaches a sensitivity on validation images.

    See `fit_weight`. A validation with few melanomas is warned of. Raises `LesionfastError` for
    another split than validation, and as `fit_weight` does.
    """
    if valid.split != "valid":
        raise LesionfastError(
            f"fit the weight on melanoma on the split 'valid'; found '{valid.split}'. "
            "Pass Interpretation.from_run(run, 'valid')."
        )
    rule = fit_weight(valid.decision_rule, valid.truth, valid.probabilities, sensitivity)
    lesions = len(np.unique(valid.lesions[valid.truth == rule.melanoma]))
    if sensitivity and lesions < FEWEST:
        logger.warning(
            "The weight on melanoma is fitted on %d validation lesions of melanoma, fewer than %d: "
            "the sensitivity on other images may be far from %g.",
            *(lesions, FEWEST, sensitivity),
        )
    return rule


def describe_rule(rule: DecisionRule, sensitivity: float) -> dict[str, Any]:
    """Return what model.json says of a weight on melanoma that was asked for.

    Versions without weights refuse the second schema, for they would decide otherwise.
    """
    schema = 2 if rule.weight > 1 else 1
    return dict(zip(OF_A_WEIGHT, (schema, sensitivity, rule.weight), strict=True))


def settle_rule(run: Run, predictions: pd.DataFrame) -> dict[str, Interpretation]:
    """Return new predictions of a run by split, decided as it decides from now on.

    If a melanoma sensitivity was asked for and model.json has no weight yet, it is fitted on
    validation and kept there; if it can't be, a warning says why.
    """
    tables = {name: rows.reset_index(drop=True) for name, rows in predictions.groupby("split")}
    sensitivity = run.melanoma_sensitivity
    if sensitivity and "melanoma_weight" not in run.model and "valid" in tables:
        try:
            rule = fit_rule(Interpretation.from_table(run, tables["valid"], "valid"), sensitivity)
        except LesionfastError as error:
            logger.warning(
                "The rule has no weight on melanoma: %s To fit a weight without training again, "
                "type: lesionfast interpret %s --melanoma-sensitivity 0.7",
                *(error, shell_quote(run.path)),
            )
        else:
            run.model = run.model | describe_rule(rule, sensitivity)
            run.write_json("model.json", run.model)
    return {name: Interpretation.from_table(run, rows, name) for name, rows in tables.items()}


def describe_weight(run: Run) -> str:
    """Return what the run's rule was asked for and got, in words; '' if for nothing."""
    sensitivity, rule = run.model.get("melanoma_sensitivity", 0.0), run.decision_rule
    if not sensitivity or "melanoma_weight" not in run.model:
        return ""
    what = f"a weight of {rule.weight:g} on melanoma, for"
    if rule.weight == 1:
        what = f"no weight on melanoma: the rule {rule.name} already reaches"
    return f"{what} a validation sensitivity of {sensitivity:g} (--melanoma-sensitivity)"


def announce_melanomas(read: dict[str, Interpretation]) -> None:
    """Log what a weight on melanoma costs; warn if the rule finds fewer melanomas than argmax."""
    for one in (read[name] for name in PARTS if name in read):
        if one.split == "valid" and one.run is not None and (words := describe_weight(one.run)):
            logger.info("%s", words)
        if one.decision_rule.weight > 1:
            weight = f"{one.decision_rule.weight:g}"
            logger.info("without and with the weight %s, %s", weight, describe_price(one))
    if "valid" in read and (warning := describe_fewer_melanomas(read["valid"])):
        logger.warning("%s", warning)


def decide_plainly(read: Interpretation) -> Interpretation:
    """Return the same predictions, decided without the weight on melanoma."""
    return decide_by(read, read.decision_rule.plain)


def decide_by(read: Interpretation, rule: DecisionRule) -> Interpretation:
    """Return the same predictions, decided by another rule."""
    about = (read.run, read.split, rule, read.classes)
    return Interpretation.build(about, read.truth, read.probabilities, read.table)


def price_of_weight(read: Interpretation) -> pd.DataFrame:
    """Return what the weight changes on the images of one split, with paired intervals.

    `contribution_table` of the plain rule, 'whole', and of the weighted one, 'weighted', in
    melanoma sensitivity and specificity and in balanced accuracy.
    """
    melanoma = read.classes.melanoma
    wanted = ("sensitivity", melanoma), ("specificity", melanoma), ("balanced_accuracy", ALL)
    return contribution_table(decide_plainly(read), {"weighted": read}, wanted)


def prices_of_weight(run: Run) -> dict[str, pd.DataFrame]:
    """Return the price on validation and test images, by split; empty without a weight."""
    splits = [split for split in PARTS if split in run.metrics and run.decision_rule.weight > 1]
    return {split: price_of_weight(Interpretation.from_run(run, split)) for split in splits}


def describe_price(read: Interpretation) -> str:
    """Return "test: melanoma sensitivity 0.663 to 0.759, …": without the weight to with it."""
    before, after = (
        decision_metrics(read.truth, rule.decide(read.probabilities), read.classes)
        for rule in (read.decision_rule.plain, read.decision_rule)
    )
    melanoma = read.classes.melanoma
    shares = {
        "melanoma sensitivity": [one["sensitivity"][melanoma] for one in (before, after)],
        "melanoma specificity": [one["specificity"][melanoma] for one in (before, after)],
        METRIC_NAMES["balanced_accuracy"]: [one["balanced_accuracy"] for one in (before, after)],
    }
    changes = [f"{name} {old:.3f} to {new:.3f}" for name, (old, new) in shares.items()]
    return f"{read.split}: {', '.join(changes)}"


def describe_fewer_melanomas(valid: Interpretation) -> str:
    """Return a sentence if the rule finds fewer of the melanomas than argmax does, or ''."""
    number = valid.decision_rule.melanoma
    melanomas = valid.truth == number
    if number is None or not melanomas.any():
        return ""
    argmax = replace(valid.decision_rule.plain, base=ARGMAX)
    by_argmax = float((argmax.decide(valid.probabilities)[melanomas] == number).mean())
    found = float((valid.decision[melanomas] == number).mean())
    if found >= by_argmax:
        return ""
    advice = "Train with --rule argmax, or with a --melanoma-sensitivity."
    if valid.run is not None:
        target = ceil(100 * by_argmax - 1e-9) / 100
        advice = (
            f"To find as many, type: lesionfast interpret {shell_quote(valid.run.path)} "
            f"--melanoma-sensitivity {target:g}"
        )
    return (
        f"The rule {valid.rule} finds {found:.3f} of the {int(melanomas.sum())} validation "
        f"melanomas, fewer than argmax with {by_argmax:.3f}. {advice}"
    )
