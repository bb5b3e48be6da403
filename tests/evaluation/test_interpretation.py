"""Interpretation is bookkeeping over predictions.csv: every number can be counted by hand."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run
from lesionfast.stats.rules import DecisionRule


@pytest.fixture
def run(make_run):
    return make_run()


@pytest.fixture
def interpretation(run):
    return Interpretation.from_run(run)


def edit_predictions(run: Run, change) -> Run:
    """Rewrite predictions.csv with `change` applied; return the run, read anew."""
    change(run.predictions.copy()).to_csv(run.path / "predictions.csv", index=False)
    return Run(run.path)


def test_rows_are_those_of_the_split_decided_by_the_rule(run, interpretation):
    table = run.predictions[run.predictions["split"] == "test"]
    probabilities = table[[f"p_{name}" for name in run.classes]].to_numpy()
    expected = DecisionRule("balanced", run.model["prior"]).decide(probabilities)
    assert interpretation.rule == "balanced"
    assert interpretation.rows["image_id"].tolist() == table["image_id"].tolist()
    assert interpretation.rows["truth"].tolist() == table["target"].tolist()
    assert interpretation.rows["decision"].tolist() == [run.classes[i] for i in expected]
    assert np.allclose(
        interpretation.rows["probability"], probabilities[range(len(table)), expected]
    )


def test_the_rule_can_be_chosen_and_is_the_runs_own_otherwise(make_run):
    run = make_run(rule="argmax")
    assert Interpretation.from_run(run).rule == "argmax"
    other = Interpretation.from_run(run, split="valid", rule="balanced")
    assert (other.split, other.rule) == ("valid", "balanced")
    assert other.metrics["rules"]["balanced"] == run.metrics["valid"]["rules"]["balanced"]


def test_it_reads_predictions_and_model_only(run):
    for name in ("history.csv", "metrics.json", "config.json"):
        (run.path / name).unlink()
    assert len(Interpretation.from_run(Run(run.path)).to_dict()["top_losses"]) == 12


def test_unknown_split_and_rule_are_named(run):
    with pytest.raises(LesionfastError, match="'train'; it has: test, valid.*--split"):
        Interpretation.from_run(run, split="train")
    with pytest.raises(LesionfastError, match="Did you mean 'argmax'"):
        Interpretation.from_run(run, rule="argmx")


def test_predictions_that_do_not_fit_the_model_are_refused(run):
    renamed = edit_predictions(run, lambda df: df.rename(columns={"p_nv": "p_nevus"}))
    with pytest.raises(LesionfastError, match=r"missing columns \['p_nv'\]"):
        Interpretation.from_run(renamed)


def test_confusion_counts_truth_by_decision_in_class_order(run, interpretation):
    confusion = interpretation.confusion()
    assert confusion.index.tolist() == confusion.columns.tolist() == run.classes
    assert (confusion.index.name, confusion.columns.name) == ("truth", "decision")
    rows = interpretation.rows
    for truth, decision in (("mel", "nv"), ("nv", "mel"), ("df", "df")):
        both = (rows["truth"] == truth) & (rows["decision"] == decision)
        assert confusion.loc[truth, decision] == both.sum()
    assert confusion.to_numpy().sum() == 600
    assert np.allclose(interpretation.confusion(normalize=True).sum(axis=1), 1)


def test_a_class_without_images_has_no_shares(run):
    absent = edit_predictions(run, lambda df: df[df["target"] != "df"])
    shares = Interpretation.from_run(absent).confusion(normalize=True)
    assert shares.loc["df"].isna().all()
    assert shares.drop("df").notna().all(axis=None)


def test_most_confused_starts_with_melanoma_then_the_malignant(interpretation):
    pairs = interpretation.most_confused()
    rank = pairs["truth"].map(lambda c: 0 if c == "mel" else 1 if c in ("bcc", "akiec") else 2)
    assert rank.is_monotonic_increasing and set(rank) == {0, 1, 2}
    for _, block in pairs.groupby(rank):
        assert block["share"].is_monotonic_decreasing
    counts = interpretation.confusion()
    assert pairs["count"].sum() == counts.to_numpy().sum() - np.trace(counts.to_numpy())
    first = pairs.iloc[0]
    assert first["share"] == pytest.approx(
        counts.loc["mel", first["decision"]] / counts.loc["mel"].sum()
    )


def test_top_losses_are_the_largest_of_minus_log_probability(run, interpretation):
    top = interpretation.top_losses(7)
    test = run.predictions[run.predictions["split"] == "test"]
    of_truth = np.array([row[f"p_{row['target']}"] for _, row in test.iterrows()])
    assert np.allclose(top["loss"], np.sort(-np.log(of_truth))[::-1][:7])
    assert np.allclose(top["probability_of_truth"], np.exp(-top["loss"]))
    assert {"image_id", "truth", "decision", "probability", "age", "sex", "path"} <= set(top)
    assert len(interpretation.top_losses(10_000)) == 600


def test_taken_for_lists_every_such_row_by_confidence(interpretation):
    taken = interpretation.taken_for("nv", "bkl")
    assert len(taken) == interpretation.confusion().loc["nv", "bkl"] > 3
    assert set(taken["truth"]) == {"nv"} and set(taken["decision"]) == {"bkl"}
    assert taken["probability"].is_monotonic_decreasing
    assert len(interpretation.taken_for()) == interpretation.confusion().loc["mel", "nv"] > 0


def test_taken_for_names_unknown_classes(interpretation):
    with pytest.raises(LesionfastError, match="no class 'mle'.*Did you mean 'mel'"):
        interpretation.taken_for("mle", "nv")


def test_sensitivity_table_repeats_the_metrics(run, interpretation):
    table, told = interpretation.sensitivity_table(), run.metrics["test"]
    assert table.index.tolist() == run.classes
    assert table["images"].to_dict() == told["counts"]
    assert table["precision"].to_dict() == pytest.approx(told["rules"]["balanced"]["precision"])
    assert table["auc"].to_dict() == pytest.approx(told["auc"])


def test_to_dict_is_json_without_nan(interpretation):
    text = json.dumps(interpretation.to_dict(), allow_nan=False)
    told = json.loads(text)
    assert told["confusion"] == interpretation.confusion().to_numpy().tolist()
    assert told["melanomas_taken_for_nevi"][0]["truth"] == "mel"
    assert len(told["most_confused"]) == len(interpretation.most_confused())
    ages = [row["age"] for row in told["melanomas_taken_for_nevi"] + told["top_losses"]]
    assert all(age is None or 0 < age < 100 for age in ages)


def test_missing_values_are_none_in_json(run):
    unknown = edit_predictions(run, lambda df: df.assign(age=np.nan, sex=np.nan))
    worst = Interpretation.from_run(unknown).to_dict()["top_losses"][0]
    assert worst["age"] is None and worst["sex"] is None


def test_other_classes_without_age_and_sex(make_run):
    run = edit_predictions(
        make_run(classes=("benign", "malignant"), n=50), lambda df: df.drop(columns=["age", "sex"])
    )
    interpretation = Interpretation.from_run(run)
    assert interpretation.to_dict()["melanomas_taken_for_nevi"] is None
    assert set(interpretation.most_confused()["truth"]) == {"benign", "malignant"}
    assert "age" not in interpretation.top_losses()
    with pytest.raises(LesionfastError, match="no class for melanoma; it has: benign, malignant"):
        interpretation.taken_for()


def test_class_names_that_are_numbers_stay_names(make_run):
    interpretation = Interpretation.from_run(make_run(classes=("0", "1", "2"), n=40))
    assert interpretation.confusion().to_numpy().sum() == 40
    assert set(interpretation.rows["truth"]) == {"0", "1", "2"}


def test_no_errors_give_empty_tables(run):
    def perfect(df: pd.DataFrame) -> pd.DataFrame:
        return df.assign(**{f"p_{c}": (df["target"] == c).astype(float) for c in run.classes})

    interpretation = Interpretation.from_run(edit_predictions(run, perfect))
    assert interpretation.most_confused().empty
    assert interpretation.taken_for().empty
    assert list(interpretation.most_confused()) == ["truth", "decision", "count", "share"]


@pytest.mark.parametrize(
    "module", ["evaluation.interpretation", "reporting.overview", "reporting.comparison"]
)
def test_importing_it_imports_no_matplotlib_no_rich_and_no_scikit_learn(module):
    code = (
        f"import sys, lesionfast.{module}\n"
        "print(*{'matplotlib', 'rich', 'sklearn', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
