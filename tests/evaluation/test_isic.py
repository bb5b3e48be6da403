"""The challenge's score against scikit-learn and a hand count; submissions there and back."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.isic import (
    COLUMNS,
    area_above,
    challenge_score,
    isic_score,
    read_submission,
    write_submission,
)

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def simulate(n=500):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 7, n)
    odds = np.exp(rng.normal(size=(n, 7)) + 1.5 * np.eye(7)[truth])
    return truth, odds / odds.sum(axis=1, keepdims=True)


def test_the_metrics_are_scikit_learns():
    truth, probabilities = simulate()
    score = isic_score(truth, probabilities, CLASSES)
    decision = probabilities.argmax(axis=1)
    assert score["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, decision))
    assert list(score["per_class"]) == list(COLUMNS)
    for name, found in score["per_class"].items():
        number = CLASSES.index(name.lower())
        positive, p = truth == number, probabilities[:, number]
        expected = {
            "accuracy": sk.accuracy_score(positive, p > 0.5),
            "sensitivity": sk.recall_score(positive, p > 0.5),
            "specificity": sk.recall_score(~positive, p <= 0.5),
            "f1": sk.f1_score(positive, p > 0.5),
            "ppv": sk.precision_score(positive, p > 0.5),
            "npv": sk.precision_score(~positive, p <= 0.5),
            "auc": sk.roc_auc_score(positive, p),
            "average_precision": sk.average_precision_score(positive, p),
        }
        assert {key: found[key] for key in expected} == pytest.approx(expected)
        alarms, hits, _ = sk.roc_curve(positive, p, drop_intermediate=False)
        fine = np.linspace(0, 1, 200_001)
        height = np.interp(fine, alarms, hits)
        area = np.where(height >= 0.8, height, 0).mean()
        assert found["auc_above_80"] == pytest.approx(area, abs=1e-4)
    mean = np.mean([each["auc"] for each in score["per_class"].values()])
    assert score["macro_average"]["auc"] == pytest.approx(mean)


def test_a_tie_is_wrong_and_half_is_not_flagged():
    probabilities = np.eye(7)
    probabilities[4] = [0, 0, 0, 0, 0.5, 0.5, 0]
    score = isic_score(np.arange(7), probabilities, CLASSES)
    assert score["balanced_accuracy"] == pytest.approx(6 / 7)
    mel = score["per_class"]["MEL"]
    assert (mel["sensitivity"], mel["ppv"], mel["auc"]) == (0, 1, 1)


def test_a_class_without_images_is_left_out_of_the_mean():
    truth, probabilities = simulate()
    chosen = truth != 3
    score = isic_score(truth[chosen], probabilities[chosen], CLASSES)
    decision = probabilities[chosen].argmax(axis=1)
    recall = sk.recall_score(truth[chosen], decision, labels=[0, 1, 2, 4, 5, 6], average="macro")
    assert score["balanced_accuracy"] == pytest.approx(recall)
    empty = score["per_class"]["DF"]
    assert empty["auc"] is None and empty["auc_above_80"] is None and empty["sensitivity"] == 1


def test_area_above_80_of_perfection_and_chance():
    positive = np.array([True, False] * 50)
    assert area_above(positive, positive * 1.0) == pytest.approx(1)
    assert area_above(positive, np.zeros(100)) == pytest.approx(0.18)


def test_a_run_has_an_interval(make_run):
    score = challenge_score(Interpretation.of(make_run()))
    low, high = score["balanced_accuracy_low"], score["balanced_accuracy_high"]
    assert low < score["balanced_accuracy"] < high


@pytest.mark.parametrize(
    "classes, words",
    [
        (["mel", "nv"], "missing: BCC, AKIEC, BKL, DF, VASC; unknown: none"),
        ([*CLASSES[:6], "scc"], "missing: VASC; unknown: scc"),
        ([*CLASSES, "MEL"], "each once"),
    ],
)
def test_other_classes_are_refused(classes, words):
    k = len(classes)
    with pytest.raises(LesionfastError, match=words):
        isic_score(np.arange(k), np.eye(k), classes)


def test_a_submission_comes_back_as_it_was(make_run, tmp_path):
    table = make_run().predictions
    path = write_submission(table, tmp_path / "submission.csv")
    assert path.read_text().splitlines()[0] == "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    back = read_submission(path)
    assert back["image"].tolist() == table["image_id"].tolist()
    for name in COLUMNS:
        assert (back[name].to_numpy() == table[f"p_{name.lower()}"].to_numpy()).all()


def test_bad_tables_are_refused(make_run, tmp_path):
    table, path = make_run().predictions, tmp_path / "submission.csv"
    for bad, words in [
        (table.drop(columns="image_id"), "no column image_id"),
        (table.drop(columns="p_mel"), "missing: MEL"),
        (pd.concat([table, table.head(2)]), "2 images more than once"),
        (table.assign(p_mel=1.2), "no probabilities in 1200 of 1200 rows"),
        (table.head(0), "no row at all"),
    ]:
        with pytest.raises(LesionfastError, match=words):
            write_submission(bad, path)
    assert not path.exists()


def test_bad_files_are_refused(tmp_path):
    path, head = tmp_path / "a.csv", "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    with pytest.raises(LesionfastError, match="there is no file"):
        read_submission(path)
    for text, words in [
        ("", "is empty or starts with a blank line"),
        ("image,MEL\na,1\n", "has the columns image, MEL"),
        (head + "a,0,0,0,0,0,0,1\na,0,0,0,0,0,0,1\n", "more than once, such as a"),
        (head + "a,0,0,0,0,0,0,\n", "no probabilities in 1 of 1 rows, such as a"),
        (head + "a,x,0,0,0,0,0,1\n", "no probabilities in 1 of 1"),
        (head, "a header but no rows"),
        (head.replace(",", ";"), "separated by ';', not by ','. Save it with commas"),
        (head + "\udce4,0,0,0,0,0,0,1\n", "Save it as 'CSV UTF-8'"),
    ]:
        path.write_text(text, errors="surrogateescape")
        with pytest.raises(LesionfastError, match=words):
            read_submission(path)
