"""All that is said of a run is worked out once, and chosen on validation alone."""

import json
import shutil

import numpy as np
import pytest

from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.decisions import (
    CALIBRATION,
    REFERRAL,
    SETS,
    Decisions,
    points_table,
)
from lesionfast.evaluation.features import write_features
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.manifest import Manifest
from lesionfast.reporting.calibration import calibration
from lesionfast.reporting.decisions import operating, prediction_sets
from lesionfast.reporting.overview import write_report
from lesionfast.run import OF_THE_WEIGHTS, Run
from lesionfast.stats.advice.costs import Costs
from lesionfast.stats.measures import measure

pytestmark = pytest.mark.usefixtures("blank_figures")
CHOSEN = ("operating.json", "calibration.json", "conformal.json", "referral.json")


@pytest.fixture
def run(make_run, images):
    run = make_run(n=150)
    images(run.predictions)
    return run


def with_another_test(run: Run) -> Run:
    """The same run with other diagnoses and probabilities of its test images, nothing chosen."""
    table, rng = run.predictions.copy(), np.random.default_rng(9)
    rows = np.flatnonzero(table["split"] == "test")
    for name in ["target", *(each for each in table if each.startswith("p_"))]:
        table.loc[rows, name] = table[name].to_numpy()[rng.permutation(rows)]
    table.to_csv(run.path / "predictions.csv", index=False)
    for name in CHOSEN:
        (run.path / name).unlink()
    return Run(run.path)


def test_what_is_chosen_does_not_depend_on_the_test_images(run):
    write_report(Findings.from_run(run))
    before = {name: (run.path / name).read_bytes() for name in CHOSEN}
    other = with_another_test(run)
    write_report(Findings.from_run(other))
    assert {name: (run.path / name).read_bytes() for name in CHOSEN} == before


@pytest.mark.parametrize("kept", [CALIBRATION, SETS, REFERRAL], ids=lambda kept: kept.name)
def test_choosing_on_test_is_refused(run, kept):
    with pytest.raises(LesionfastError, match="'valid'; found 'test'"):
        kept.fit(Interpretation.from_run(run, "test"))


def test_reporting_on_what_was_chosen_on_is_refused(run):
    with pytest.raises(LesionfastError, match="nothing was fitted on; found 'valid'"):
        points_table(Interpretation.from_run(run, "valid"))


def test_the_report_of_validation_leaves_out_what_was_chosen_on_it(run):
    text = write_report(Findings.from_run(run, "valid")).read_text()
    for part in ("operating-points", "calibration", "prediction-sets", "referral"):
        assert f'id="{part}"' not in text
    assert (run.path / "report-valid.html").is_file() and not (run.path / CHOSEN[0]).exists()


def test_a_run_without_validation_chooses_nothing(run):
    table = run.predictions
    table[table["split"] == "test"].to_csv(run.path / "predictions.csv", index=False)
    text = write_report(Findings.from_run(Run(run.path))).read_text()
    assert 'id="metrics"' in text and 'id="calibration"' not in text


def test_another_coverage_or_share_is_chosen_anew_and_kept(run):
    assert Findings.from_run(run).decisions.conformal.coverage == 0.9
    assert Findings.from_run(run, coverage=0.8).decisions.conformal.coverage == 0.8
    assert json.loads((run.path / "conformal.json").read_text())["coverage"] == 0.8
    assert Findings.from_run(run, refer=0.3).referral.share == 0.3
    assert json.loads((run.path / "referral.json").read_text())["share"] == 0.3


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_coverage_and_share_that_were_chosen_hold_until_others_are(run, split):
    Findings.from_run(run, split, coverage=0.7, refer=0.4)
    kept = [(run.path / name).read_bytes() for name in ("conformal.json", "referral.json")]
    findings = Findings.from_run(Run(run.path))
    write_report(findings)
    assert findings.decisions.conformal.coverage == 0.7 and findings.referral.share == 0.4
    assert [(run.path / name).read_bytes() for name in ("conformal.json", "referral.json")] == kept
    told = findings.decisions.kept_choices()
    assert len(told) == 2 and "coverage of 0.7" in told[0] and "share of 0.4" in told[1]
    assert not Findings.from_run(run, coverage=0.9, refer=0.2).decisions.kept_choices()
    assert (
        Findings.from_run(run).decisions.conformal.coverage == 0.9
        and Findings.from_run(run).referral.share == 0.2
    )


def test_a_look_by_another_rule_changes_nothing_that_the_run_keeps(run):
    Findings.from_run(run, refer=0.4)
    kept = (run.path / "referral.json").read_bytes()
    other = Findings.from_run(Run(run.path), rule="argmax")
    write_report(other)
    assert (other.referral.rule, other.referral.share) == ("argmax", 0.4)
    assert (run.path / "referral.json").read_bytes() == kept


def test_what_a_run_of_an_earlier_version_chose_is_not_lost(run):
    valid = Interpretation.from_run(run, "valid")
    for kept, chosen in ((REFERRAL, {"share": 0.4}), (SETS, {"coverage": 0.7})):
        path = kept.write(run, kept.fit(valid, **chosen))
        told = json.loads(path.read_text())
        assert told.pop("of") == "shown probabilities"  # not the model's own, as at that time
        path.write_text(json.dumps(told))
    found = Decisions(Run(run.path))
    assert "coverage of 0.7" in found.kept_choices()[0]
    assert (found.referral.rule, found.referral.share) == ("argmax", 0.4)
    assert found.conformal == SETS.fit(found.shown, coverage=0.7)
    for name in ("referral.json", "conformal.json"):
        assert "of" in json.loads((run.path / name).read_text())


def test_stated_costs_are_kept_until_others_are(run):
    assert Findings.from_run(run).decisions.costs == Costs()
    findings = Findings.from_run(run, cost="missed_melanoma=50")
    assert findings.cost is None and findings.decisions.costs == Costs(50)
    again = Decisions(Run(run.path), cost="missed_cancer=5")
    assert again.costs == Costs(50, 5)
    told = Decisions(Run(run.path)).kept_choices()
    assert told == [
        "costs of errors: missed_melanoma=50,missed_cancer=10,needless_excision=1 (--cost)"
    ]
    (run.path / "costs.json").write_text("{")
    with pytest.raises(DamageError, match="State them again: lesionfast interpret"):
        Decisions(Run(run.path))
    assert Decisions(Run(run.path), cost="missed_cancer=5").costs == Costs(30, 5)


def test_more_is_advised_to_be_examined_where_a_miss_costs_more(run):
    few, many = (
        Findings.from_run(Run(run.path), cost=f"missed_melanoma={price}").advice
        for price in (1, 99)
    )
    assert (many.refer >= few.refer).all() and many.refer.sum() > few.refer.sum()


def test_a_calibration_that_was_chosen_by_hand_holds(run):
    fitted = CALIBRATION.fit(Interpretation.from_run(run, "valid"), method="dirichlet")
    kept = CALIBRATION.write(run, fitted).read_bytes()
    write_report(Findings.from_run(run))
    assert Decisions(Run(run.path)).calibrator.method == "dirichlet"
    assert (run.path / "calibration.json").read_bytes() == kept


def test_a_choice_without_validation_says_what_is_missing(run):
    table = run.predictions
    table[table["split"] == "test"].to_csv(run.path / "predictions.csv", index=False)
    with pytest.raises(LesionfastError, match="no predictions of the split 'valid'"):
        Findings.from_run(Run(run.path), coverage=0.7)


@pytest.mark.parametrize("manifest", [True, False])
def test_what_a_read_only_run_chooses_is_used_and_said_once(run, read_only, caplog, manifest):
    expected = Decisions(Run(shutil.copytree(run.path, run.path.with_name("other"))))
    if manifest:
        Manifest.start(run.path)
    read_only(run.path)
    for _ in range(2):
        decisions = Decisions(Run(run.path))
        for name in ("points", "calibrator", "conformal", "referral"):
            assert getattr(decisions, name) == getattr(expected, name)
    assert not (run.path / "calibration.json").exists()
    said = [each for each in caplog.messages if "not kept" in each]
    assert len(said) == 1 and str(run.path) in said[0]


def test_the_measures_are_those_of_the_rows(run):
    findings = Findings.from_run(run)
    read = findings.interpretation
    again = measure(read.truth, read.probabilities, read.decision, read.lesions, read.classes)
    assert findings.interpretation.measures.equals(again)
    assert findings.measure("no such", "all") is None


def test_costs_are_in_the_report(run):
    text = write_report(Findings.from_run(run, cost="mel:nv=10")).read_text()
    assert "mel:nv=10" in text and "least expected cost" in text


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"cost": "mel:nevus=10"}, "'nevus', which is not a class"),
        ({"coverage": 90}, "found 90. Type for example --coverage 0.9"),
        ({"refer": 1.0}, "found 1.0. Type for example --refer 0.2"),
    ],
)
def test_what_can_not_be_chosen_is_said_before_anything_is_written(run, chosen, message):
    before = sorted(run.path.rglob("*"))
    with pytest.raises(LesionfastError, match=message):
        Findings.from_run(run, **chosen)
    assert sorted(run.path.rglob("*")) == before


def test_features_that_are_kept_give_the_feature_map(run):
    rng = np.random.default_rng(0)
    ids = run.predictions["image_id"].tolist()
    write_features(run, ids, rng.normal(size=(len(ids), 12)))
    findings = Findings.from_run(run)
    text = write_report(findings).read_text()
    assert "feature_map" in findings.files and "t-SNE of the image features" in text


def test_figures_are_drawn_once(run):
    findings = Findings.from_run(run)
    write_report(findings)
    stamps = {file: file.stat().st_mtime_ns for file in findings.files.values()}
    write_report(findings)
    assert {file: file.stat().st_mtime_ns for file in findings.files.values()} == stamps


def test_what_is_chosen_is_of_the_weights_and_goes_with_them():
    assert set(CHOSEN) < set(OF_THE_WEIGHTS)


def test_classes_of_few_validation_lesions_are_named_beside_what_is_fitted_on_them(
    make_run, caplog
):
    few = Findings.from_run(make_run(n=120))
    sections = [operating(few), calibration(few), prediction_sets(few)]
    counts = few.validation.rows.groupby("truth")["group"].nunique()
    named = [name for name in few.run.classes if counts[name] < 10]
    assert named and "nv" not in named
    for section in sections:
        (told,) = [words for words in section.words if words.startswith("Warning")]
        assert all(f"{name} ({counts[name]})" in told for name in named) and "nv (" not in told
    assert "fewer than 10 lesions of" in caplog.text
    many = Findings.from_run(make_run(n=3000))
    assert not [words for words in operating(many).words if words.startswith("Warning")]
