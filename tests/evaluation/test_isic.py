"""The challenge's score against scikit-learn; a submission is what was predicted."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.isic import COLUMNS, isic_score, write_submission

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def simulate(n=500):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 7, n)
    odds = np.exp(rng.normal(size=(n, 7)) + 1.5 * np.eye(7)[truth])
    return truth, odds / odds.sum(axis=1, keepdims=True)


LESIONS = np.arange(500)


def test_balanced_accuracy_is_scikit_learns_with_an_interval():
    truth, probabilities = simulate()
    score = isic_score(truth, probabilities, CLASSES, LESIONS)
    expected = sk.balanced_accuracy_score(truth, probabilities.argmax(axis=1))
    assert score["balanced_accuracy"] == pytest.approx(expected)
    assert score["balanced_accuracy_low"] < expected < score["balanced_accuracy_high"]


def test_a_tie_is_wrong():
    probabilities = np.eye(7)
    probabilities[4] = [0, 0, 0, 0, 0.5, 0.5, 0]
    score = isic_score(np.arange(7), probabilities, CLASSES, np.arange(7))
    assert score["balanced_accuracy"] == pytest.approx(6 / 7)


def test_a_class_without_images_is_left_out_of_the_mean():
    truth, probabilities = simulate()
    chosen = truth != 3
    score = isic_score(truth[chosen], probabilities[chosen], CLASSES, LESIONS[chosen])
    decision = probabilities[chosen].argmax(axis=1)
    recall = sk.recall_score(truth[chosen], decision, labels=[0, 1, 2, 4, 5, 6], average="macro")
    assert score["balanced_accuracy"] == pytest.approx(recall)


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
        isic_score(np.arange(k), np.eye(k), classes, np.arange(k))


def test_a_submission_comes_back_as_it_was(make_run, tmp_path):
    table = make_run().predictions
    path = write_submission(table, tmp_path / "submission.csv")
    assert path.read_text().splitlines()[0] == "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    back = pd.read_csv(path, dtype={"image": str}, float_precision="round_trip")
    assert back["image"].tolist() == table["image_id"].tolist()
    for name in COLUMNS:
        assert (back[name].to_numpy() == table[f"p_{name.lower()}"].to_numpy()).all()


def test_bad_tables_are_refused(make_run, tmp_path):
    table, path = make_run().predictions, tmp_path / "submission.csv"
    for bad, words in [
        (table.drop(columns="image_id"), "no column image_id"),
        (table.drop(columns="p_mel"), "missing: MEL"),
        (pd.concat([table, table.head(2)]), "2 images more than once"),
        (table.assign(p_mel=1.2), "1200 of 1200 rows have values that are not between 0 and 1"),
        (table.head(0), "has no rows"),
    ]:
        with pytest.raises(LesionfastError, match=words):
            write_submission(bad, path)
    assert not path.exists()
