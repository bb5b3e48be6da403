"""Runs of the same images side by side: the table, its intervals, its order, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import Comparison, comparable_runs, describe_options
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_text
from lesionfast.runs import Run
from lesionfast.stats.bootstrap import interval, resample


@pytest.fixture
def runs(make_run, make_worse):
    """Three runs of the same images, the second and third worse and in another order of rows."""
    first = make_run()
    return [first, make_worse(first, "worse", 0.5), make_worse(first, "a" * 70, 1.5)]


def test_the_best_comes_first_with_the_numbers_of_its_own_rule(runs):
    comparison = Comparison.of(runs[::-1])
    assert [run.path for run in comparison.runs] == [run.path for run in runs]
    table = comparison.table
    for row, run in zip(table.to_dict("records"), runs, strict=True):
        read = Interpretation.of(run)
        metrics = read.metrics["rules"]["balanced"]
        assert row["balanced_accuracy"] == metrics["balanced_accuracy"]
        assert row["sensitivity_mel"] == metrics["mel_sensitivity"]
        assert row["macro_f1"] == metrics["macro_f1"]
        assert row["mel_to_nv"] == read.confusion(normalize=True).loc["mel", "nv"]
        for name in ("balanced_accuracy", "sensitivity_mel", "mel_to_nv", "difference"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert (table.loc[0, ["difference", "difference_low", "difference_high"]] == 0).all()
    assert table["difference"].is_monotonic_decreasing and table["difference_high"][2] < 0


def test_the_intervals_are_those_of_the_same_lesions_for_all(runs):
    table = Comparison.of(runs, resamples=1000, seed=5).table
    read = [Interpretation.of(run) for run in runs]
    rows = [
        each.rows.assign(n=each.decision, t=each.truth).sort_values("image_id") for each in read
    ]
    drawn = resample(
        rows[0]["t"], [each["n"] for each in rows], rows[0]["group"], 7, resamples=1000, seed=5
    )
    expected = interval(drawn.balanced_accuracy[1] - drawn.balanced_accuracy[0])
    np.testing.assert_allclose(table.loc[1, ["difference_low", "difference_high"]], expected)


def test_the_options_in_which_runs_differ_are_told(runs):
    for run, given in zip(runs, ({}, {"loss": "focal", "size": 64}, {"seed": 7}), strict=True):
        write_text(run.path / "config.json", replace(run.config, **given).to_json())
    assert describe_options([Run(each.path) for each in runs]) == ["", "size 64, loss focal", ""]
    runs[2].model["members"] = ["../a", "../b"]
    assert describe_options(runs)[2] == "ensemble of 2"


def test_valid_is_another_table(runs):
    valid = Comparison.of(runs, "valid").table
    assert (valid["balanced_accuracy"] != Comparison.of(runs).table["balanced_accuracy"]).all()


def test_it_is_json_and_csv(runs, tmp_path):
    comparison = Comparison.of(runs)
    told = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert told["images"] == 600 and told["runs"][0]["parameters"] is None
    assert told["runs"][1]["parameters"] == 3_400_000
    written = pd.read_csv(comparison.write_csv(tmp_path / "table.csv"))
    written["options"] = written["options"].fillna("")
    pd.testing.assert_frame_equal(
        written, comparison.table, check_dtype=False, check_column_type=False
    )


def test_without_names_all_with_the_split_of_the_newest_are_taken(runs, caplog):
    metrics = json.loads((runs[0].path / "metrics.json").read_text())
    (runs[0].path / "metrics.json").write_text(json.dumps(metrics | {"split_sha256": "f" * 64}))
    (runs[1].path / "metrics.json").unlink()
    newest = comparable_runs(runs[0].path.parent)
    assert [run.path for run in newest] == [runs[2].path]
    assert "1 of 3 runs" in caplog.text and "another split" in caplog.text
    assert "did not finish" in caplog.text


def rewrite(run, **changes):
    """Change columns of a run's predictions."""
    table = run.predictions.copy()
    table.assign(**changes).to_csv(run.path / "predictions.csv", index=False)
    return type(run)(run.path)


def test_what_can_not_be_compared_is_refused(runs, make_run):
    other = json.loads((runs[1].path / "metrics.json").read_text()) | {"split_sha256": "e" * 64}
    (runs[2].path / "metrics.json").write_text(json.dumps(other))
    with pytest.raises(LesionfastError, match=r"different splits.*0123456789ab.*a{70} \(eeeeee"):
        Comparison.of(runs)
    with pytest.raises(LesionfastError, match="named twice"):
        Comparison.of([runs[0], runs[0]])
    with pytest.raises(LesionfastError, match="no run to compare"):
        Comparison.of([])
    with pytest.raises(LesionfastError, match="different classes"):
        Comparison.of([runs[0], make_run(("mel", "nv"))])
    with pytest.raises(LesionfastError, match="different test images: 600 and 300"):
        Comparison.of([runs[0], make_run(n=300)])
    with pytest.raises(LesionfastError, match="Choose one with --split"):
        Comparison.of(runs[:2], "tset")
    swapped = rewrite(runs[1], target=runs[1].predictions["target"].replace("mel", "nv"))
    with pytest.raises(LesionfastError, match="different diagnoses"):
        Comparison.of([runs[0], swapped])


def test_a_run_has_the_same_intervals_alone_and_beside_others(make_run):
    runs = [make_run(), make_run(rule="argmax")]
    comparison = Comparison.of(runs)
    for read, row in zip(comparison.interpretations, comparison.table.itertuples(), strict=True):
        measures = Findings(read).measures.set_index(["metric", "of"])
        alone = measures.loc[("balanced_accuracy", "all")]
        assert (row.balanced_accuracy_low, row.balanced_accuracy_high) == (alone.low, alone.high)
        for name in read.classes:
            alone = measures.loc[("sensitivity", name)]
            beside = [getattr(row, f"sensitivity_{name}{end}") for end in ("", "_low", "_high")]
            assert beside == [alone.value, alone.low, alone.high]
