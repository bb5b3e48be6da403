"""Runs of the same images side by side: the table, its intervals, its order, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import (
    WITHHELD,
    Comparison,
    comparable_runs,
    contribution_metrics,
    contribution_table,
    describe_loss,
    describe_options,
)
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_text
from lesionfast.reporting.subgroups import contribution_table as terminal_table
from lesionfast.reporting.subgroups import metadata
from lesionfast.run import WITHOUT_METADATA, Run
from lesionfast.stats.bootstrap import RESAMPLES, drawn_lesions, interval, resampled
from lesionfast.stats.metrics import mean_defined, weighted_recall


@pytest.fixture
def runs(make_run, make_worse):
    """Three runs of the same images, the second and third worse and in another order of rows."""
    first = make_run()
    return [first, make_worse(first, "worse", 0.5), make_worse(first, "a" * 70, 1.5)]


def test_the_best_comes_first_with_the_numbers_of_its_own_rule(runs):
    comparison = Comparison.from_runs(runs[::-1])
    assert [run.path for run in comparison.runs] == [run.path for run in runs]
    table = comparison.table
    for row, run in zip(table.to_dict("records"), runs, strict=True):
        read = Interpretation.from_run(run)
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
    table = Comparison.from_runs(runs, resamples=1000, seed=5).table
    read = [Interpretation.from_run(run) for run in runs]
    rows = [
        each.rows.assign(n=each.decision, t=each.truth).sort_values("image_id") for each in read
    ]
    truth, lesions = rows[0]["t"].to_numpy(), rows[0]["group"]
    recalls = [weighted_recall(truth, each["n"].to_numpy(), 7) for each in rows]
    melanoma, nevus = truth == read[0].classes.index("mel"), read[0].classes.index("nv")

    def find(weights):
        found = {run: mean_defined(recall(weights)) for run, recall in enumerate(recalls)}
        return found | {
            "taken": weights
            @ (melanoma & (rows[1]["n"].to_numpy() == nevus))
            / (weights @ melanoma)
        }

    drawn = resampled(find, truth, lesions, resamples=1000, seed=5)[1]
    expected = interval(drawn[1] - drawn[0])
    np.testing.assert_allclose(table.loc[1, ["difference_low", "difference_high"]], expected)
    taken = table.loc[1, ["mel_to_nv_low", "mel_to_nv_high"]]
    np.testing.assert_allclose(taken, interval(drawn["taken"]))


def test_the_options_in_which_runs_differ_are_told(runs):
    for run, given in zip(runs, ({}, {"loss": "focal", "size": 64}, {"seed": 7}), strict=True):
        write_text(run.path / "config.json", replace(run.config, **given).to_json())
    assert describe_options([Run(each.path) for each in runs]) == [
        "",
        "size 64, loss focal",
        "seed 7",
    ]
    runs[2].model["members"] = ["../a", "../b"]
    assert describe_options(runs)[2] == "ensemble of 2"


def test_valid_is_another_table(runs):
    valid = Comparison.from_runs(runs, "valid").table
    assert (
        valid["balanced_accuracy"] != Comparison.from_runs(runs).table["balanced_accuracy"]
    ).all()


def test_it_is_json_and_csv(runs, tmp_path):
    comparison = Comparison.from_runs(runs)
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


def test_runs_of_folds_that_differ_in_seed_are_repetitions(make_run, make_worse):
    made = [make_run()]
    made.append(make_worse(made[0], "other", 0.5))
    for seed, run in enumerate(made):
        (run.path / "config.json").write_text(TrainConfig(arch="resnet18", seed=seed).to_json())
        about = run.model | {"members": ["fold-0", "fold-1"]}
        (run.path / "model.json").write_text(json.dumps(about | {"of": "folds"}))
    folds = Comparison.from_runs([Run(run.path) for run in made])
    assert folds.seeds["runs"].tolist() == [2]
    assert folds.table["options"].tolist() == ["mean of 2 folds"] * 2


def test_what_can_not_be_compared_is_refused(runs, make_run):
    other = json.loads((runs[1].path / "metrics.json").read_text()) | {"split_sha256": "e" * 64}
    (runs[2].path / "metrics.json").write_text(json.dumps(other))
    split = runs[2].path / "split.csv"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(LesionfastError, match=r"different splits.*0123456789ab.*a{70} \(eeeeee"):
        Comparison.from_runs(runs)
    with pytest.raises(LesionfastError, match="named twice"):
        Comparison.from_runs([runs[0], runs[0]])
    with pytest.raises(LesionfastError, match="no run to compare"):
        Comparison.from_runs([])
    with pytest.raises(LesionfastError, match="different classes"):
        Comparison.from_runs([runs[0], make_run(("mel", "nv"))])
    with pytest.raises(LesionfastError, match="different test images: 600 and 300"):
        Comparison.from_runs([runs[0], make_run(n=300)])
    with pytest.raises(LesionfastError, match="Choose one with --split"):
        Comparison.from_runs(runs[:2], "tset")
    swapped = rewrite(runs[1], target=runs[1].predictions["target"].replace("mel", "nv"))
    with pytest.raises(LesionfastError, match="different diagnoses"):
        Comparison.from_runs([runs[0], swapped])


def test_a_run_has_the_same_intervals_alone_and_beside_others(make_run):
    runs = [make_run(), make_run(rule="argmax")]
    comparison = Comparison.from_runs(runs)
    for read, row in zip(comparison.interpretations, comparison.table.itertuples(), strict=True):
        measures = read.measures.set_index(["metric", "of"])
        alone = measures.loc[("balanced_accuracy", "all")]
        assert (row.balanced_accuracy_low, row.balanced_accuracy_high) == (alone.low, alone.high)
        for name in read.classes:
            alone = measures.loc[("sensitivity", name)]
            beside = [getattr(row, f"sensitivity_{name}{end}") for end in ("", "_low", "_high")]
            assert beside == [alone.value, alone.low, alone.high]


@pytest.fixture
def pair(make_run, make_worse):
    run = make_run(n=300)
    return Interpretation.from_run(run), Interpretation.from_run(make_worse(run, "worse", 3.0))


def row_of(table: pd.DataFrame, system: str, metric: str) -> pd.Series:
    return table[(table["system"] == system) & (table["metric"] == metric)].iloc[0]


def test_a_run_does_not_differ_from_itself(pair):
    table = contribution_table(pair[0], {"same": pair[0]})
    same = table[table["system"] == "same"]
    assert (same[["difference", "difference_low", "difference_high"]] == 0).all(None)


def test_the_differences_are_those_of_a_loop_over_the_same_lesions(pair):
    whole, worse = pair
    table = contribution_table(whole, {"worse": worse})
    order = np.argsort(whole.rows["image_id"].to_numpy(str))
    other = np.argsort(worse.rows["image_id"].to_numpy(str))
    truth = whole.truth[order]
    codes = np.unique(whole.rows["group"].to_numpy(str)[order], return_inverse=True)[1]
    first, second = whole.decision[order], worse.decision[other]
    drawn = [
        balanced_accuracy_score(truth, second, sample_weight=weights)
        - balanced_accuracy_score(truth, first, sample_weight=weights)
        for block in drawn_lesions(truth, codes, RESAMPLES, 0)
        for weights in block
    ]
    found = row_of(table, "worse", "balanced_accuracy")
    expected = balanced_accuracy_score(truth, second) - balanced_accuracy_score(truth, first)
    assert found["difference"] == pytest.approx(expected)
    ends = found[["difference_low", "difference_high"]].to_list()
    assert ends == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())


def test_the_pairing_narrows_the_interval(pair):
    table = contribution_table(pair[0], {"worse": pair[1]})
    whole, worse = (row_of(table, name, "macro_auc") for name in ("whole", "worse"))
    unpaired = np.hypot(whole["high"] - whole["low"], worse["high"] - worse["low"])
    assert worse["difference_high"] - worse["difference_low"] < unpaired


@pytest.mark.parametrize(
    "ends, told",
    [
        ((-0.03, -0.05, -0.01), "taking it away costs: -3.0 points [-5.0, -1.0]"),
        ((0.003, -0.009, 0.015), "no measurable change: +0.3 points [-0.9, 1.5]"),
        ((0.02, 0.01, 0.03), "taking it away is a gain: +2.0 points [1.0, 3.0]"),
    ],
)
def test_it_is_said_in_words(ends, told):
    names = ("difference", "difference_low", "difference_high")
    row = {"system": "other", "metric": "balanced_accuracy", **dict(zip(names, ends, strict=True))}
    assert told in describe_loss(pd.DataFrame([row]), "other", "taking it away")


@pytest.mark.parametrize(
    "low, high, told",
    [
        (-0.5, -0.05, "accuracy; and -20.0 points [-50.0, -5.0] of melanoma"),
        (-0.5, 0.05, "of balanced accuracy"),
    ],
)
def test_a_change_of_melanoma_sensitivity_is_told_with_it(low, high, told):
    ends = {"difference": -0.2, "difference_low": low, "difference_high": high}
    rows = [
        {"system": "other", "metric": "balanced_accuracy", **ends, "difference_high": 0.1},
        {"system": "other", "metric": "sensitivity", **ends},
    ]
    words = describe_loss(pd.DataFrame(rows), "other", "taking it away")
    assert "no measurable change: -20.0 points" in words
    assert told in words and words.endswith(("accuracy", "sensitivity"))
    assert ("melanoma" in words) == (high < 0)


def test_runs_of_other_images_are_refused(pair, make_run):
    with pytest.raises(LesionfastError, match="different test images"):
        contribution_table(pair[0], {"other": Interpretation.from_run(make_run(n=200))})


def test_the_terminal_shows_every_difference(pair):
    table = contribution_table(pair[0], {"worse": pair[1]})
    metrics = [metric for metric, _ in contribution_metrics(pair[0].classes)]
    whole, worse, paired = terminal_table(table, pair[0].classes).rows
    for place, metric in enumerate(metrics, 1):
        first, second = (row_of(table, system, metric) for system in ("whole", "worse"))
        for cell, row in ((whole[place], first), (worse[place], second)):
            assert (cell.number, cell.low, cell.high) == (row["value"], row["low"], row["high"])
        ends = f"[{second['difference_low']:+.3f}, {second['difference_high']:+.3f}]"
        assert str(paired[place]) == f"{second['difference']:+.3f} {ends}"


@pytest.fixture
def withheld(pair):
    """A run that kept what it predicts without metadata: it takes melanomas for nevi then."""
    run = pair[0].run
    table = run.predictions.copy()
    gone = table.index[table["target"] == "mel"][::2]
    table.loc[gone, [f"p_{name}" for name in run.classes]] = 0.0
    table.loc[gone, "p_nv"] = 1.0
    table.to_csv(run.path / WITHOUT_METADATA, index=False)
    model = run.model | {"metadata": ["age", "sex"]}
    (run.path / "model.json").write_text(json.dumps(model))
    return Run(run.path)


def test_the_report_says_that_melanomas_are_missed_without_metadata(withheld):
    findings = Findings.from_run(withheld)
    section = metadata(findings)
    row = row_of(findings.contribution, WITHHELD, "sensitivity")
    assert section.title == "Without metadata" and row["difference_high"] < 0
    assert f"{100 * row['difference']:+.1f} points [" in section.words[1]
    assert "Warning: without age and sex the model misses melanomas" in section.words[1]
    cells = {cell.text: cell for line in section.tables[0].rows for cell in line}
    assert cells[f"{row['difference']:+.3f}"].interval.endswith(f"{row['difference_high']:.3f}]")


def test_no_warning_where_no_melanoma_is_missed(withheld):
    withheld.predictions.to_csv(withheld.path / WITHOUT_METADATA, index=False)
    words = metadata(Findings.from_run(Run(withheld.path))).words
    assert "+0.0 points [0.0, 0.0], paired." in words[1] and "Warning" not in " ".join(words)


def test_a_run_of_old_has_no_such_section(pair):
    assert metadata(Findings(pair[0])) is None


def test_a_deviation_is_over_runs_that_differ_in_their_seed_and_nothing_else(runs):
    def seeds(numbers, models):
        for run, number, model in zip(runs, numbers, models, strict=True):
            config = replace(run.config, seed=number)
            (run.path / "config.json").write_text(config.to_json())
            (run.path / "model.json").write_text(json.dumps(run.model | model))
        read = Comparison.from_runs([Run(run.path) for run in runs]).seeds
        return [] if read.empty else read["runs"].tolist()

    plain = [{}] * 3
    assert seeds((1, 2, 3), plain) == [3]
    assert seeds((1, 1, 1), plain) == seeds((1, 2, 2), plain) == []
    mine = [{"registered": {"loss": "parts"}, "registered_digest": {"loss": one}} for one in "aab"]
    assert seeds((1, 2, 3), mine) == [2]
