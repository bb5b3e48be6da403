"""All that is said of a run is worked out once, chosen on validation alone, and without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.calibration import calibrator_of
from lesionfast.evaluation.conformal import conformal_of
from lesionfast.evaluation.features import write_features
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.fitted import OF_THE_WEIGHTS
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.measures import measure
from lesionfast.evaluation.operating import points_table
from lesionfast.evaluation.report import write_report
from lesionfast.evaluation.selective import referral_of
from lesionfast.runs import Run

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
    write_report(Findings.of(run))
    before = {name: (run.path / name).read_bytes() for name in CHOSEN}
    other = with_another_test(run)
    write_report(Findings.of(other))
    assert {name: (run.path / name).read_bytes() for name in CHOSEN} == before


@pytest.mark.parametrize("choose", [calibrator_of, conformal_of, referral_of])
def test_choosing_on_test_is_refused(run, choose):
    with pytest.raises(LesionfastError, match="'valid'; found 'test'"):
        choose(Interpretation.of(run, "test"))


def test_reporting_on_what_was_chosen_on_is_refused(run):
    with pytest.raises(LesionfastError, match="not chosen on; found 'valid'"):
        points_table(Interpretation.of(run, "valid"))


def test_the_report_of_validation_leaves_out_what_was_chosen_on_it(run):
    text = write_report(Findings.of(run, "valid")).read_text()
    for part in ("operating-points", "calibration", "prediction-sets", "referral"):
        assert f'id="{part}"' not in text
    assert (run.path / "report-valid.html").is_file() and not (run.path / CHOSEN[0]).exists()


def test_a_run_without_validation_chooses_nothing(run):
    table = run.predictions
    table[table["split"] == "test"].to_csv(run.path / "predictions.csv", index=False)
    text = write_report(Findings.of(Run(run.path))).read_text()
    assert 'id="metrics"' in text and 'id="calibration"' not in text


def test_another_coverage_or_share_is_chosen_anew_and_kept(run):
    assert Findings.of(run).conformal.coverage == 0.9
    assert Findings.of(run, coverage=0.8).conformal.coverage == 0.8
    assert json.loads((run.path / "conformal.json").read_text())["coverage"] == 0.8
    assert Findings.of(run, refer=0.3).referral.share == 0.3
    assert Findings.of(run, rule="argmax").referral.rule == "argmax"


def test_the_measures_are_those_of_the_rows(run):
    findings = Findings.of(run)
    read = findings.interpretation
    again = measure(read.truth, read.probabilities, read.decision, findings.lesions, read.classes)
    assert findings.measures.equals(again)
    assert findings.measure("no such", "all") is None


def test_costs_are_in_the_report(run):
    text = write_report(Findings.of(run, cost="mel:nv=10")).read_text()
    assert "mel:nv=10" in text and "least expected cost" in text


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"cost": "mel:nevus=10"}, "'nevus', which is no class"),
        ({"coverage": 90}, "found 90. Type for example --coverage 0.9"),
        ({"refer": 1.0}, "found 1.0. Type for example --refer 0.2"),
    ],
)
def test_what_can_not_be_chosen_is_said_before_anything_is_written(run, chosen, message):
    before = sorted(run.path.rglob("*"))
    with pytest.raises(LesionfastError, match=message):
        Findings.of(run, **chosen)
    assert sorted(run.path.rglob("*")) == before


def test_features_that_are_kept_give_the_feature_map(run):
    rng = np.random.default_rng(0)
    ids = run.predictions["image_id"].tolist()
    write_features(run, ids, rng.normal(size=(len(ids), 12)))
    findings = Findings.of(run)
    text = write_report(findings).read_text()
    assert "feature_map" in findings.files and "by their features" in text


def test_figures_are_drawn_once(run):
    findings = Findings.of(run)
    write_report(findings)
    stamps = {file: file.stat().st_mtime_ns for file in findings.files.values()}
    write_report(findings)
    assert {file: file.stat().st_mtime_ns for file in findings.files.values()} == stamps


def test_all_of_it_is_written_without_torch(run):
    code = (
        "import sys\nfrom lesionfast.cli import main\n"
        f"sys.argv = ['lesionfast', 'interpret', {str(run.path)!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', *{'torch', 'fastai', 'captum'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "report.html" in done.stdout and done.stdout.strip().endswith("LOADED")


def test_what_is_chosen_is_of_the_weights_and_goes_with_them():
    assert set(CHOSEN) < set(OF_THE_WEIGHTS)
