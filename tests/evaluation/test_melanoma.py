"""A weight on melanoma is fitted on validation, kept and priced; finding fewer is told of."""

import json
import re

import numpy as np
import pytest

from lesionfast.data.encoder import MetadataEncoder
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import Comparison
from lesionfast.evaluation.decisions import Decisions, choose_rule
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.melanoma import (
    decide_by,
    describe_fewer_melanomas,
    describe_price,
    describe_weight,
    fit_rule,
    price_of_weight,
    settle_rule,
)
from lesionfast.reporting.errors import interpretation_tables
from lesionfast.reporting.metrics import metrics_table
from lesionfast.reporting.overview import write_report
from lesionfast.run import Run
from lesionfast.serving.bundle import Bundle
from lesionfast.stats.metrics import sensitivity
from lesionfast.stats.rules import DecisionRule

TARGET = 0.9
EVEN = [0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1]  # as if melanoma had been shown four times as often


@pytest.fixture
def run(make_run) -> Run:
    return make_run(n=300)


@pytest.fixture
def shy(make_run) -> Run:
    """A run whose rule finds fewer melanomas than argmax: its prior of melanoma is high."""
    run = make_run(n=301)
    (run.path / "model.json").write_text(json.dumps(run.model | {"prior": EVEN}))
    return Run(run.path)


def melanoma_sensitivity(read: Interpretation) -> float:
    return sensitivity(read.truth, read.decision, read.classes.index("mel"))


def test_the_weight_is_kept_and_decides_everywhere(run):
    before = Interpretation.from_run(run, "valid")
    choose_rule(run, TARGET)
    again = Run(run.path)
    weight = again.model["melanoma_weight"]
    assert weight > 1 and again.model["melanoma_sensitivity"] == TARGET
    assert again.model["schema"] == 2 and again.model["rule"] == "balanced"
    valid, test = (Interpretation.from_run(again, split) for split in ("valid", "test"))
    assert melanoma_sensitivity(valid) >= TARGET > melanoma_sensitivity(before)
    assert test.rule == f"balanced (melanoma x {weight:g})" == again.decision_rule.name
    for read in (valid, test):
        kept = again.metrics[read.split]["rules"]
        assert kept == read.metrics["rules"] and set(kept) == {"argmax", "balanced", read.rule}
        assert kept[read.rule]["mel_sensitivity"] == melanoma_sensitivity(read)
    given = dict.fromkeys(("name", "image_column", "precision"))
    bundle = Bundle(**given, encoder=MetadataEncoder([]).fit(test.rows), model=again.model)
    row = bundle.assess(test.probabilities, np.empty((len(test.rows), 0)), [])
    assert row["decision"].tolist() == test.rows["decision"].tolist()
    assert set(row["rule"]) == {test.rule}
    compared = Comparison.from_runs([again])
    assert compared.table.loc[0, "rule"] == test.rule
    assert compared.interpretations[0].decision.tolist() == test.decision.tolist()


def test_what_is_fitted_does_not_depend_on_the_test_images(run):
    table = run.predictions
    fitted = fit_rule(Interpretation.from_run(run, "valid"), TARGET)
    table.loc[table["split"] == "test", "target"] = "nv"
    table.to_csv(run.path / "predictions.csv", index=False)
    assert fit_rule(Interpretation.from_run(Run(run.path), "valid"), TARGET) == fitted
    with pytest.raises(LesionfastError, match="on the split 'valid'; found 'test'"):
        fit_rule(Interpretation.from_run(run, "test"), TARGET)


def test_the_rule_can_be_asked_for_again_and_taken_back(run):
    plain = {name: (run.path / name).read_text() for name in ("metrics.json", "model.json")}
    choose_rule(run, 0)
    assert {name: (run.path / name).read_text() for name in plain} == plain
    choose_rule(run, TARGET)
    first = Run(run.path).model["melanoma_weight"]
    choose_rule(Run(run.path), 0.97)
    assert Run(run.path).model["melanoma_weight"] > first
    choose_rule(Run(run.path), TARGET)
    assert Run(run.path).model["melanoma_weight"] == first
    choose_rule(Run(run.path), 0)
    after = Run(run.path)
    assert after.decision_rule == DecisionRule.of_model(json.loads(plain["model.json"]))
    assert after.metrics == json.loads(plain["metrics.json"])


def test_a_kill_between_the_two_files_of_a_choice_is_made_good(run):
    before = (run.path / "metrics.json").read_text()
    choose_rule(run, TARGET)
    run.write_text("metrics.json", before)  # as if model.json had been the last to be written
    name = run.decision_rule.name
    assert metrics_table(Run(run.path)).columns[-1] == name
    choose_rule(Run(run.path), TARGET)
    again = Run(run.path)
    assert all(name in again.metrics[split]["rules"] for split in ("valid", "test"))


def test_taking_back_a_weight_that_could_not_be_fitted_is_kept(run):
    config = {**json.loads((run.path / "config.json").read_text()), "melanoma_sensitivity": TARGET}
    run.write_json("config.json", config)
    run = Run(run.path)
    assert run.melanoma_sensitivity == TARGET and run.decision_rule.weight == 1
    choose_rule(run, 0)
    again = Run(run.path)
    assert again.melanoma_sensitivity == 0
    settle_rule(again, again.predictions)
    assert again.decision_rule.weight == 1


def test_a_target_that_the_plain_rule_reaches_has_weight_1(run):
    choose_rule(run, 0.01)
    assert run.decision_rule.weight == 1 and Interpretation.from_run(run).rule == "balanced"
    assert Decisions(run).kept_choices() == [describe_weight(run)]
    assert describe_weight(run).startswith(
        "no weight on melanoma: the rule balanced already reaches"
    )


def test_the_report_takes_the_weight_and_another_rule_is_plain(run, blank_figures, images):
    images(run.predictions)
    findings = Findings.from_run(run, melanoma_sensitivity=TARGET, cost="mel:nv=10", refer=0.3)
    name = run.decision_rule.name
    assert findings.interpretation.rule == name and findings.referral.rule == "argmax"
    assert findings.mean_costs["rule"].tolist()[:3] == ["argmax", "balanced", name]
    page = write_report(findings).read_text()
    assert f"Weight {run.decision_rule.weight:g} on melanoma" in page and name in page
    titles = [table.title for table in interpretation_tables(findings)]
    assert any(title.startswith("Weight ") for title in titles)
    assert any("a weight of" in choice for choice in findings.decisions.kept_choices())
    other = Findings.from_run(Run(run.path), rule="balanced")
    assert other.interpretation.rule == "balanced" and not other.price_of_weight
    assert Decisions(Run(run.path)).referral == findings.referral


def test_the_price_is_that_of_the_same_predictions(run):
    choose_rule(run, TARGET)
    for split in ("valid", "test"):
        read = Interpretation.from_run(run, split)
        table = price_of_weight(read).set_index(["system", "metric"])
        for system, rule in (("whole", read.decision_rule.plain), ("weighted", read.decision_rule)):
            one = decide_by(read, rule)
            rows = one.measures[one.measures["of"].isin(["mel", "all"])].set_index("metric")
            for metric in ("sensitivity", "specificity", "balanced_accuracy"):
                for end in ("value", "low", "high"):
                    expected = rows.loc[metric, end]
                    assert table.loc[(system, metric), end] == pytest.approx(expected)
        changes = table.loc["weighted", "difference"]
        assert changes["sensitivity"] >= 0 >= changes["specificity"]
        assert describe_price(read).startswith(f"{split}: melanoma sensitivity 0.")


def test_a_rule_that_finds_fewer_melanomas_than_argmax_is_told_of(shy, run, caplog):
    assert describe_fewer_melanomas(Interpretation.from_run(run, "valid")) == ""
    read = Interpretation.from_run(shy, "valid")
    told = describe_fewer_melanomas(read)
    found, _, by_argmax = re.findall(r"(\d\.\d{3})|(\d+) validation", told)
    assert float(found[0]) == pytest.approx(melanoma_sensitivity(read), abs=6e-4)
    argmax = Interpretation.from_run(shy, "valid", "argmax")
    assert float(by_argmax[0]) == pytest.approx(melanoma_sensitivity(argmax), abs=6e-4)
    assert describe_fewer_melanomas(argmax) == ""
    choose_rule(shy, float(told.split()[-1]))  # as it says
    after = Interpretation.from_run(shy, "valid")
    assert melanoma_sensitivity(after) >= melanoma_sensitivity(argmax)
    assert describe_fewer_melanomas(after) == ""


def test_the_report_and_the_comparison_say_so_too(shy, blank_figures, images):
    shy.write_json(
        "metrics.json", shy.metrics | {"valid": Interpretation.from_run(shy, "valid").metrics}
    )
    images(shy.predictions)
    findings = Findings.from_run(Run(shy.path))
    assert "fewer than argmax" in findings.fewer_melanomas
    page = write_report(findings).read_text()
    assert "fewer than argmax" in page and "fewer of the validation melanomas than by arg" in page
    compared = Comparison.from_runs([Run(shy.path)])
    assert compared.table.loc[0, "below_argmax"] and "fewer melanomas than by argmax" in str(
        compared
    )


def test_few_melanomas_are_warned_of_and_none_are_refused(make_run, caplog):
    few = make_run(n=30)
    choose_rule(few, 0.5)
    assert "validation lesions of melanoma, fewer than 10" in caplog.text
    other = make_run(classes=("bcc", "nv"))
    with pytest.raises(LesionfastError, match="no class of melanoma"):
        choose_rule(other, 0.5)
    table = few.predictions
    table[table["split"] == "test"].to_csv(few.path / "predictions.csv", index=False)
    with pytest.raises(LesionfastError, match="no predictions of the split 'valid'"):
        choose_rule(Run(few.path), 0.5)


def test_a_run_that_can_not_be_written_to_uses_the_weight(run, read_only, caplog):
    read_only(run.path)
    findings = Findings.from_run(run, melanoma_sensitivity=TARGET)
    assert findings.interpretation.decision_rule.weight > 1 and "not kept" in caplog.text
    assert "other commands decide by balanced." in caplog.text
    assert Run(run.path).decision_rule.weight == 1
