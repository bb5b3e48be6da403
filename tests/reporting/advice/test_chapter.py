"""The report begins with what a person would be told, from the numbers that stand beside it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lesionfast.evaluation.findings import Findings
from lesionfast.reporting.advice.chapter import (
    advice,
    describe_costs,
    list_keys,
    per_hundred,
    predictive,
    run_advice,
)
from lesionfast.reporting.advice.sentences import describe_advice, describe_key
from lesionfast.stats.advice.advice import EXAMINE, NO_DECISION
from lesionfast.stats.advice.costs import Costs


@pytest.fixture
def findings(make_run, tmp_path):
    return Findings.from_run(make_run(n=300))


def test_the_first_sentence_is_of_the_table_below(findings):
    sentence, based, withheld, costs, one_answer, clear = run_advice(findings)
    rows = {row[0].text: row[-1] for row in advice(findings).tables[0].rows}
    found, needless = (round(100 * rows[of].number) for of in ("melanoma", "benign"))
    assert sentence == (
        f"Of 100 pictures of melanomas like those tested, this model advises to have about {found} "
        f"examined, overlooks {100 - found}, and gives no decision on 0; of 100 pictures of "
        f"benign lesions it advises to have about {needless} examined needlessly."
    )
    assert "neither as examined nor as overlooked" in withheld
    assert rows["melanoma"].interval in based and "300 test images" in based
    assert "a chance of melanoma of 3.2% or more, or of another cancer of 9.1% or more" in costs
    assert "as its one answer" in one_answer and "not cleared" in clear


def test_each_image_is_told_one_thing(findings):
    told = advice(findings).tables[1]
    assert sum(cell.number for row in told.rows for cell in row[1:]) == 300


def test_no_decision_is_neither_examined_nor_overlooked(findings):
    melanoma = findings.interpretation.truth == findings.interpretation.classes.index("mel")
    key = findings.advice.key.copy()
    key[melanoma] = [NO_DECISION, *[EXAMINE] * (melanoma.sum() - 1)]
    findings.advice = replace(findings.advice, key=key)
    row = next(r for r in advice(findings).tables[0].rows if r[0].text == "melanoma")
    n = int(melanoma.sum())
    assert [cell.number for cell in row[1:5]] == [n, n - 1, 1, 0]
    share = round(100 / n)
    words = f"about {100 - share} examined, overlooks 0, and gives no decision on {share};"
    assert words in run_advice(findings)[0]


def test_who_overlooks_some_never_says_none():
    row = {"images": 1000, "left": 1, "no_decision": 4}
    assert per_hundred(row) == {"missed": 1, "withheld": 0, "found": 99}


def test_each_sentence_of_the_page_has_its_line(findings):
    """So that a reader of the page finds what he read in the table of the report."""
    told, classes = findings.advice, findings.interpretation.classes
    likely, keys = told.likely, list_keys(told, classes)
    for number, (key, name) in enumerate(zip(told.key, np.asarray(classes)[likely], strict=True)):
        left = [classes[place] for place in np.flatnonzero(told.open[number])]
        said = describe_advice(key, name, left, classes)
        line = describe_key(keys[number])
        assert said.startswith("Most likely a melanoma") == (line == describe_key("melanoma"))
        soon = said.startswith("Most likely") and said.endswith("have it examined soon.")
        assert soon == line.endswith("have it examined soon.")
    lines = {row[0].text for row in advice(findings).tables[1].rows}
    assert {describe_key("melanoma"), describe_key("other_cancer")} <= lines


def test_other_datasets_have_their_sentence(make_run):
    two = Findings.from_run(make_run(classes=("benign", "malignant"), n=200))
    assert run_advice(two)[0].startswith("Of 100 pictures of cancers like those tested")
    assert "melanoma" not in " ".join(run_advice(two)).lower() and predictive(two) is None
    pad = Findings.from_run(make_run(classes=("ACK", "BCC", "MEL", "NEV", "SCC", "SEK"), n=200))
    assert run_advice(pad)[0].startswith("Of 100 pictures of melanomas") and predictive(pad)
    none = Findings.from_run(make_run(classes=("acne", "eczema"), n=100))
    assert run_advice(none) == [
        "The model was not trained to find cancer: it names the most probable of acne or eczema."
    ]
    assert advice(none)


def test_validation_has_no_advice_as_it_was_chosen_there(make_run):
    valid = Findings.from_run(make_run(n=100), "valid")
    assert run_advice(valid) == [] and advice(valid) is None and predictive(valid) is None


def test_costs_say_from_which_chance_on(findings):
    classes = findings.interpretation.classes
    words = describe_costs(Costs(18, 2, 2), classes)
    assert "as much as 9 needless excisions, another missed cancer as 1." in words
    assert "melanoma of 10.0% or more" in words


def test_predictive_values_rise_and_fall_with_the_prevalence(findings, drawn):
    section = predictive(findings)
    rows = np.array([[cell.number for cell in row[1:]] for row in section.tables[0].rows])
    ppv, npv = rows[:, [0, 2]], rows[:, [1, 3]]
    assert (np.diff(ppv, axis=0) > 0).all() and (np.diff(npv, axis=0) < 0).all()
    numbers = re.findall(r"(\S+): (\S+)% and (\S+)%", section.pictures[0].alternative)
    assert len(numbers) == 2 * len(rows)
    assert float(numbers[0][1]) == pytest.approx(100 * rows[0, 0], abs=0.06)
    axes = drawn["predictive_values"].axes
    assert len(axes) == 2 and all(len(axis.lines) == 3 for axis in axes)
