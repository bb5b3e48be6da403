"""Sections of a report on decisions: operating points, costs, the ISIC challenge's score."""

import pandas as pd

from lesionfast.evaluation.challenge import COLUMNS, challenge_score
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.fitted import few_words
from lesionfast.evaluation.operating import points_table
from lesionfast.evaluation.operating_figures import draw_decision_curves, draw_operating
from lesionfast.evaluation.page import Section, Table, picture_of, table_of
from lesionfast.evaluation.utility import mean_costs


def operating(findings: Findings) -> Section | None:
    """Return what the thresholds that validation chose reach on these images."""
    read = findings.interpretation
    if not findings.on_test or not read.classes.targets:
        return None
    words = [
        "The thresholds are chosen on validation, to reach there the specificity or sensitivity "
        "that is named, and reported here; they are kept in the run's operating.json.",
    ]
    words += filter(None, [few_words(findings.validation)])
    tables = [operating_table(points_table(read))]
    if findings.cost:
        words.append(
            f"Costs: {findings.cost}; any other error costs 1, a right decision nothing. "
            "The least expected cost is that of the calibrated probabilities."
        )
        tables.append(costs_table(findings))
    points = findings.drawn(draw_operating)
    curves = findings.drawn(draw_decision_curves, findings.chances)
    shown = [
        picture_of(points, "The points on the curves of validation and of these images"),
        picture_of(curves, "Net benefit of flagging by the model, over the threshold"),
    ]
    return Section("Operating points", words, tables, shown)


def operating_table(found: pd.DataFrame) -> Table:
    """Return one row a point: its aim on validation, and what it reaches."""
    aims = [f"{row.goal} {row.level:.0%}" for row in found.itertuples()]
    names = {"of": "of", "aim": "aim on validation", "threshold": "threshold"}
    names |= {name: name for name in ("sensitivity", "specificity", "precision", "flagged")}
    return table_of(found.assign(aim=aims), "Flagged at or above the threshold", names)


def costs_table(findings: Findings) -> Table:
    """Return the mean cost an image of each rule as a table of the report."""
    return table_of(mean_costs(findings), "Mean cost an image", {"rule": "rule", "value": "cost"})


def challenge(findings: Findings) -> Section | None:
    """Return the score of ISIC 2018 Task 3, by the challenge's own rules."""
    read = findings.interpretation
    if {name.upper() for name in read.classes} != set(COLUMNS):
        return None
    score = challenge_score(read)
    row = {"score": "balanced multi-class accuracy", "value": score["balanced_accuracy"]}
    row |= {end: score[f"balanced_accuracy_{end}"] for end in ("low", "high")}
    words = ["The decision is the most probable class, ties count as wrong; not by the run's rule."]
    return Section("ISIC 2018 score", words, [table_of(pd.DataFrame([row]), "Task 3")])
