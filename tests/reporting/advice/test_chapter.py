"""The report begins with what a person would be told, from the numbers that stand beside it."""

import re

import numpy as np
import pytest

from lesionfast.evaluation.findings import Findings
from lesionfast.reporting.advice.chapter import advice, describe_costs, predictive, run_advice
from lesionfast.stats.advice.costs import Costs


@pytest.fixture
def findings(make_run, tmp_path):
    return Findings.from_run(make_run(n=300))


def test_the_first_sentence_is_of_the_table_below(findings):
    sentence, based, costs, one_answer, clear = run_advice(findings)
    rows = {row[0].text: row[-1] for row in advice(findings).tables[0].rows}
    found, needless = (round(100 * rows[of].number) for of in ("melanoma", "benign"))
    assert sentence == (
        f"Of 100 pictures of melanomas like those tested, this model has about {found} examined "
        f"and overlooks {100 - found}; of 100 pictures of benign lesions it has about {needless} "
        "examined needlessly."
    )
    assert rows["melanoma"].interval in based and "300 test images" in based
    assert "a chance of melanoma of 3.2% or more, or of another cancer of 9.1% or more" in costs
    assert "as its one answer" in one_answer and "not cleared" in clear


def test_each_image_is_told_one_thing(findings):
    told = advice(findings).tables[1]
    assert sum(cell.number for row in told.rows for cell in row[1:]) == 300


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
