"""Risk, AURC and referral, each against a loop and where the answer is known."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import REFERRAL, Decisions
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.decisions import run_referral
from lesionfast.run import Run
from lesionfast.stats.rules import DecisionRule
from lesionfast.stats.selective import (
    aurc_table,
    fit_referral,
    referral_table,
    risk_coverage,
    weighted_aurc,
)

CLASSES = ("mel", "nv", "bkl")


def draw(n=400, seed=0, digits=9):
    """Truth, decisions, confidence and lesions of n images; the confident are right more often."""
    rng = np.random.default_rng(seed)
    truth, confidence = rng.choice(3, n, p=[0.3, 0.5, 0.2]), rng.random(n).round(digits)
    wrong = rng.random(n) > 0.4 + 0.55 * confidence
    decision = np.where(wrong, (truth + 1) % 3, truth)
    return truth, decision, confidence, rng.integers(0, n // 2, n) * 3 + truth


def loop_aurc(wrong, confidence):
    """Mean over the rows of the error among those at least as confident."""
    return np.mean([wrong[confidence >= c].mean() for c in confidence])


@pytest.mark.parametrize("digits", [9, 1])
def test_aurc_against_a_loop(digits):
    truth, decision, confidence, lesions = draw(digits=digits)
    wrong = decision != truth
    table = aurc_table(truth, decision, confidence, lesions).set_index("metric")
    area = loop_aurc(wrong, confidence)
    best = loop_aurc(np.sort(wrong), -np.arange(len(wrong)))
    assert table.loc["aurc", "value"] == pytest.approx(area)
    assert table.loc["excess_aurc", "value"] == pytest.approx(area - best)
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()


def test_aurc_of_weights_is_that_of_repeated_rows():
    truth, decision, confidence, _ = draw(100, digits=2)
    weights = np.random.default_rng(1).integers(0, 4, 100)
    rows = np.repeat(np.arange(100), weights)
    wrong = decision != truth
    found = weighted_aurc(wrong, confidence)(weights[None].astype(float))
    assert found["aurc"][0] == pytest.approx(loop_aurc(wrong[rows], confidence[rows]))


def test_aurc_of_known_orders():
    wrong, everything = np.r_[np.zeros(70), np.ones(30)], np.ones((1, 100))
    perfect = weighted_aurc(wrong, -np.arange(100.0))(everything)
    assert perfect["excess_aurc"][0] == pytest.approx(0)
    same = weighted_aurc(wrong, np.ones(100))(everything)
    assert same["aurc"][0] == pytest.approx(0.3)  # a confidence that says nothing
    for every in (np.zeros(100), np.ones(100)):
        found = weighted_aurc(every, np.arange(100.0))(everything)
        assert found["aurc"][0] == every[0] and found["excess_aurc"][0] == pytest.approx(0)
    n = 100_000
    r, many = 0.3, np.r_[np.zeros(70_000), np.ones(30_000)]
    area = weighted_aurc(many, -np.arange(float(n)))(np.ones((1, n)))["aurc"][0]
    assert area == pytest.approx(r + (1 - r) * np.log(1 - r), abs=1e-4)  # Geifman et al. 2019


def test_risk_coverage_against_scikit_learn():
    truth, decision, confidence, lesions = draw(digits=2)
    table = risk_coverage(truth, decision, confidence, lesions, CLASSES)
    for (share, metric), row in table.set_index(["kept", "metric"]).iterrows():
        least = sorted(confidence, reverse=True)[round(share * 400) - 1]
        mask = confidence >= least
        expected = {
            "error": 1 - accuracy_score(truth[mask], decision[mask]),
            "balanced_error": 1 - balanced_accuracy_score(truth[mask], decision[mask]),
            "mel_missed": (decision[mask & (truth == 0)] != 0).mean(),
        }[metric]
        assert row["value"] == pytest.approx(expected) and row["images"] == mask.sum()
        of = mask & (truth == 0) if metric == "mel_missed" else mask
        assert row["lesions"] == len(set(lesions[of]))
        assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9
    assert len(table) == 60


def test_confidence_is_that_of_the_decided_class():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    prior = np.array([0.8, 0.1, 0.1])
    assert DecisionRule("argmax", prior).confidence(p) == pytest.approx([0.6, 0.6])
    scores = p / prior / (p / prior).sum(axis=1, keepdims=True)
    assert DecisionRule("balanced", prior).confidence(p) == pytest.approx(
        scores[[0, 1], DecisionRule("balanced", prior).decide(p)]
    )
    unseen = np.array([0.5, 0.5, 0.0])
    assert DecisionRule("balanced", unseen).confidence(p) == pytest.approx([0.6 / 0.9, 0.5])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.3, 0.5, 0.99])
def test_the_threshold_refers_the_share(share):
    confidence = np.random.default_rng(0).permutation(1000) / 1000
    assert (confidence < fit_referral(confidence, share)).mean() == pytest.approx(share)
    assert (np.ones(50) < fit_referral(np.ones(50), share)).sum() == 0  # all alike: none stands out


def test_referral_table_against_a_loop():
    truth, decision, confidence, lesions = draw()
    referred = confidence < 0.3
    table = referral_table(truth, decision, referred, lesions, CLASSES)
    value = table.set_index(["metric", "of", "among"])["value"]
    kept, mel = ~referred, truth == 0
    missed = mel & (decision != 0)
    expected = {
        ("referred", "all", "all"): referred.mean(),
        ("referred", "mel", "all"): referred[mel].mean(),
        ("referred", "mel", "missed"): referred[missed].mean(),
        ("accuracy", "all", "all"): accuracy_score(truth, decision),
        ("accuracy", "all", "kept"): accuracy_score(truth[kept], decision[kept]),
        ("balanced_accuracy", "all", "all"): balanced_accuracy_score(truth, decision),
        ("balanced_accuracy", "all", "kept"): balanced_accuracy_score(truth[kept], decision[kept]),
        ("sensitivity", "mel", "all"): (decision[mel] == 0).mean(),
        ("sensitivity", "mel", "kept"): (decision[mel & kept] == 0).mean(),
    }
    assert value.to_dict() == pytest.approx(expected)
    count = table.set_index(["metric", "of", "among"])["lesions"]
    assert count["referred", "mel", "missed"] == len(set(lesions[missed]))
    assert count["sensitivity", "mel", "kept"] == len(set(lesions[mel & kept]))
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_a_share_that_is_certain_has_width_and_none_missed_is_nan():
    truth = np.repeat([0, 1], 20)
    referred = np.arange(40) % 2 == 0
    table = referral_table(truth, truth, referred, np.arange(40), CLASSES)
    rows = table.set_index(["metric", "of", "among"])
    assert np.isnan(rows.loc["referred", "mel", "missed"].to_numpy(float)[1:]).all()
    row = rows.loc["sensitivity", "mel", "kept"]
    assert row["value"] == row["high"] == 1 and 0.6 < row["low"] < 0.8


def test_a_run_keeps_its_threshold_and_test_does_not_move_it(make_run):
    run = make_run()
    assert REFERRAL.read(run) is None and Decisions(run, refer=0.25).referral
    path = run.path / "referral.json"
    decisions = Decisions(run)
    valid, test = decisions.shown, decisions.show(Interpretation.from_run(run))
    kept = REFERRAL.read(run)
    assert kept == REFERRAL.fit(valid, share=0.25) and kept.rule == "argmax"
    assert kept.referred(valid.confidence).mean() == pytest.approx(0.25, abs=1 / 600)
    table = run_referral(test, kept)
    assert table["value"][0] == kept.referred(test.confidence).mean()
    before = path.read_text()
    changed = run.predictions
    changed.loc[changed["split"] == "test", "p_nv"] = 0.5
    changed.to_csv(run.path / "predictions.csv", index=False)
    path.unlink()
    assert Decisions(Run(run.path), refer=0.25).referral and path.read_text() == before
    path.write_text(json.dumps(json.loads(before) | {"fitted_on": "test"}))
    with pytest.raises(LesionfastError, match="was fitted on the split 'test'"):
        REFERRAL.read(run)


def test_errors_say_what_to_type(make_run):
    run = make_run(n=100)
    test, valid = Interpretation.from_run(run), Interpretation.from_run(run, "valid")
    with pytest.raises(LesionfastError, match="referral on the split 'valid'"):
        REFERRAL.fit(test)
    for wrong in (0, 1, 20):
        with pytest.raises(LesionfastError, match=f"found {wrong}. Type for example --refer 0.2"):
            REFERRAL.fit(valid, share=wrong)
    with pytest.raises(
        LesionfastError, match="for the rule 'balanced'; found decisions by 'argmax'"
    ):
        run_referral(Interpretation.from_run(run, "test", "argmax"), REFERRAL.fit(valid))


def test_without_melanomas_what_is_about_them_is_left_out(make_run):
    run = make_run(classes=("benign", "malignant"), n=100)
    test, valid = Interpretation.from_run(run), Interpretation.from_run(run, "valid")
    table = run_referral(test, REFERRAL.fit(valid))
    assert set(table["metric"]) == {"referred", "accuracy", "balanced_accuracy"}
    confidence = test.confidence
    names = np.arange(100)
    curve = risk_coverage(test.truth, test.decision, confidence, names, test.classes)
    assert set(curve["metric"]) == {"error", "balanced_error"}
