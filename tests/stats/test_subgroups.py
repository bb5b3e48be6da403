"""Subgroups against scikit-learn, brute-force loops, and data where no group or one differs."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.subgroups import gaps_table
from lesionfast.stats.bootstrap import wilson
from lesionfast.stats.subgroups import group_labels, measure_gaps, measure_subgroups, permute_gaps

CLASSES = ["bcc", "mel", "nv"]


def simulate(n=600, seed=0, worse=0.0):
    """Return truth, probabilities, decision, lesions and a group; 'b' errs more by `worse`."""
    rng = np.random.default_rng(seed)
    lesions = np.sort(rng.integers(0, int(n * 0.8), n))
    of_lesion = rng.choice(3, lesions.max() + 1, p=[0.2, 0.3, 0.5])
    group_of = rng.choice(["a", "b"], lesions.max() + 1)
    truth, group = of_lesion[lesions], group_of[lesions].astype(object)
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), truth] += 1.5 - worse * (group == "b")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, probabilities, probabilities.argmax(axis=1), lesions, {"sex": group}


def cell(table, group, metric, of):
    chosen = (table["group"] == group) & (table["metric"] == metric) & (table["of"] == of)
    return table[chosen].iloc[0]


def test_values_are_scikit_learns_on_each_group():
    truth, probabilities, decision, lesions, groups = simulate()
    table, _ = measure_subgroups(
        truth, probabilities, decision, lesions, groups, CLASSES, resamples=1000
    )
    for group in ("a", "b"):
        own = groups["sex"] == group
        y, p, d = truth[own], probabilities[own], decision[own]
        expected = {
            ("sensitivity", "mel"): (d[y == 1] == 1).mean(),
            ("auc", "mel"): roc_auc_score(y == 1, p[:, 1]),
            ("sensitivity", "malignant"): (d[y < 2] < 2).mean(),
            ("auc", "malignant"): roc_auc_score(y < 2, p[:, 0] + p[:, 1]),
            ("balanced_accuracy", "all"): balanced_accuracy_score(y, d),
        }
        for (metric, of), value in expected.items():
            row = cell(table, group, metric, of)
            assert row["value"] == pytest.approx(value)
            assert row["low"] < value < row["high"]
            assert row["images"] == own.sum() and row["lesions"] == len(set(lesions[own]))
        row = cell(table, group, "auc", "mel")
        assert row["positives"] == len(set(lesions[own & (truth == 1)]))
        assert row["negatives"] == len(set(lesions[own & (truth != 1)]))
        rarest = min(len(set(lesions[own & (truth == code)])) for code in range(3))
        assert cell(table, group, "balanced_accuracy", "all")["positives"] == rarest


def test_intervals_are_those_of_a_loop_over_lesions():
    truth, probabilities, decision, lesions, groups = simulate(300)
    data = truth, probabilities, decision, lesions, groups, CLASSES
    row = cell(measure_subgroups(*data, resamples=4000)[0], "a", "sensitivity", "mel")
    rng = np.random.default_rng(1)
    own = (truth == 1) & (groups["sex"] == "a")
    hit = {each: (decision[own & (lesions == each)] == 1).tolist() for each in set(lesions[own])}
    melanomas = np.unique(lesions[truth == 1])
    found = []
    for _ in range(4000):
        drawn = [hit.get(each, []) for each in rng.choice(melanomas, len(melanomas))]
        found.append(np.mean([each for hits in drawn for each in hits]))
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.02)


def test_few_cases_are_flagged_and_not_ranked():
    truth, probabilities, decision, _, _ = simulate()
    lesions = np.arange(len(truth))
    labels = np.where(truth == 1, "a", "b").astype(object)
    labels[np.flatnonzero(truth == 1)[:19]] = "c"
    labels[np.flatnonzero(truth == 1)[19:39]] = "b"
    table, _ = measure_subgroups(
        truth, probabilities, decision, lesions, {"sex": labels}, CLASSES, resamples=1000
    )
    sensitivity = table[(table["metric"] == "sensitivity") & (table["of"] == "mel")]
    sensitivity = sensitivity.set_index("group")
    assert sensitivity["few"].to_dict() == {"a": False, "b": False, "c": True}
    assert sensitivity["positives"][["b", "c"]].tolist() == [20, 19]
    assert np.isnan(sensitivity["rank"]["c"])
    better = sensitivity["value"]["a"] > sensitivity["value"]["b"]
    assert sensitivity["rank"][["a", "b"]].tolist() == ([1, 2] if better else [2, 1])
    auc = cell(table, "a", "auc", "mel")  # only melanomas: nothing to tell them from
    assert auc["few"] and auc["negatives"] == 0 and np.isnan(auc["value"])


def test_all_found_has_wilsons_interval_and_a_perfect_order_none():
    truth = np.repeat([0, 1], 30)
    probabilities = np.eye(2)[truth] * 0.8 + 0.1
    labels = {"sex": np.tile(["a", "b"], 30).astype(object)}
    table, _ = measure_subgroups(
        truth, probabilities, truth, np.arange(60), labels, ["mel", "nv"], resamples=1000
    )
    row = cell(table, "a", "sensitivity", "mel")
    assert (row["low"], row["high"]) == wilson(1.0, 15)
    row = cell(table, "a", "auc", "mel")
    assert row["value"] == 1 and np.isnan(row["low"]) and np.isnan(row["high"])


def test_a_gap_is_the_difference_of_the_groups_it_names():
    truth, probabilities, decision, lesions, groups = simulate(worse=1.2)
    data = truth, probabilities, decision, lesions, groups, CLASSES
    table, drawn = measure_subgroups(*data)
    gap = measure_gaps(*data).set_index(["metric", "of"]).loc[("auc", "mel")]
    assert (gap["best"], gap["worst"], gap["groups"]) == ("a", "b", 2)
    better, worse = (cell(table, group, "auc", "mel")["value"] for group in "ab")
    assert gap["value"] == pytest.approx(better - worse)
    difference = drawn["sex", "a", "auc", "mel"] - drawn["sex", "b", "auc", "mel"]
    assert [gap["low"], gap["high"]] == pytest.approx(np.quantile(difference, [0.025, 0.975]))
    assert gap["low"] > 0 and gap["expected"] < 0.05 and gap["p"] == pytest.approx(1 / 1001)


def test_dealt_groups_keep_lesions_whole_and_the_gap_is_that_of_a_loop():
    truth, probabilities, decision, lesions, groups = simulate(400)
    name = ("sensitivity", "mel")
    found = permute_gaps(
        truth,
        probabilities,
        decision,
        lesions,
        groups["sex"],
        CLASSES,
        {name: ["a", "b"]},
        1000,
        0,
    )[name]
    assert len(found) == 1000
    rng, gaps = np.random.default_rng(5), []
    melanomas, first = np.unique(lesions[truth == 1], return_index=True)
    own = groups["sex"][truth == 1][first]
    right = (decision == 1)[truth == 1]
    for _ in range(1000):
        dealt = dict(zip(melanomas, rng.permutation(own), strict=True))
        side = np.array([dealt[each] for each in lesions[truth == 1]])
        gaps.append(abs(right[side == "a"].mean() - right[side == "b"].mean()))
    assert found.mean() == pytest.approx(np.mean(gaps), rel=0.1)
    assert np.quantile(found, 0.9) == pytest.approx(np.quantile(gaps, 0.9), rel=0.1)


def test_where_groups_do_not_differ_p_is_uniform():
    found = []
    for seed in range(40):
        truth, probabilities, decision, lesions, _ = simulate(300, seed)
        dealt = np.random.default_rng(seed + 99).choice(["a", "b"], lesions.max() + 1)
        gaps = measure_gaps(
            truth,
            probabilities,
            decision,
            lesions,
            {"sex": dealt[lesions].astype(object)},
            CLASSES,
            resamples=1000,
            permutations=100,
        ).set_index(["metric", "of"])
        found.append(gaps["p"][("auc", "malignant")])
    assert 0.3 < np.mean(found) < 0.7 and (np.array(found) < 0.05).sum() <= 7


def test_ages_are_cut_into_bands_and_what_is_not_known_is_a_group():
    ages = pd.Series([0, 39, 39.9, 40, 59, 60, 85, np.nan])
    expected = ["<40", "<40", "<40", "40-59", "40-59", "60+", "60+", "unknown"]
    assert group_labels(ages, "age").tolist() == expected
    sexes = pd.Series(["male", None, "unknown", "", np.nan])
    assert group_labels(sexes, "sex").tolist() == ["male"] + ["unknown"] * 4


def test_the_table_of_a_run_has_its_columns_and_says_what_is_missing(make_run, caplog):
    interpretation = Interpretation.from_run(make_run())
    with caplog.at_level("INFO", logger="lesionfast"):
        table = interpretation.subgroups()
    assert "No subgroups by localization" in caplog.text
    assert table["column"].unique().tolist() == ["sex", "age"]
    ages = table[table["column"] == "age"]["group"].unique().tolist()
    assert ages == ["<40", "40-59", "60+", "unknown"]
    images = table[table["metric"] == "balanced_accuracy"].groupby("column")["images"].sum()
    assert images.to_dict() == {"age": 600, "sex": 600}
    gaps = interpretation.gaps(["sex"])
    assert gaps["column"].unique().tolist() == ["sex"] and len(gaps) == 5


def test_other_classes_have_balanced_accuracy_alone(make_run):
    interpretation = Interpretation.from_run(make_run(classes=("rash", "scar"), n=200))
    table = interpretation.subgroups(["sex"])
    assert set(table["metric"]) == {"balanced_accuracy"} and not table["few"].any()
    assert interpretation.gaps(["sex"])["groups"].tolist() == [3]


def test_a_dataset_without_such_columns_has_empty_tables(make_run):
    run = make_run(n=50)
    run.predictions.drop(columns=["age", "sex"], inplace=True)
    interpretation = Interpretation.from_run(run)
    assert interpretation.subgroups().empty and interpretation.gaps().empty
    with pytest.raises(LesionfastError, match="column 'sex' is not in the predictions.*Name one"):
        interpretation.subgroups(["sex"])


def test_a_group_of_one_lesion_and_fewer_than_two_ranked_groups_have_no_gap():
    truth, probabilities, decision, lesions, _ = simulate(200)
    labels = np.where(lesions == lesions[0], "one", "rest").astype(object)
    data = truth, probabilities, decision, lesions, {"sex": labels}, CLASSES
    table, _ = measure_subgroups(*data, resamples=1000)
    assert table[table["group"] == "one"]["few"].all()
    gaps = measure_gaps(*data, resamples=1000)
    assert gaps["value"].isna().all() and (gaps["groups"] <= 1).all()


def test_the_table_of_gaps_names_the_groups_that_are_too_few(make_run):
    read = Interpretation.from_run(make_run(n=300))
    found, gaps = read.subgroups(), read.gaps()
    gaps = gaps[gaps["value"].notna()]
    shown = gaps_table(gaps, found)
    place = shown.columns.index("left out: too few lesions")
    named = [row[place].text for row in shown.rows]
    assert any(named) and len(named) == len(gaps)
    for text, gap in zip(named, gaps.to_dict("records"), strict=True):
        same = (found[["column", "of", "metric"]] == [gap["column"], gap["of"], gap["metric"]]).all(
            axis=1
        )
        few = found.loc[same & found["few"].astype(bool), "group"]
        assert text == ", ".join(few) and gap["worst"] not in list(few)
