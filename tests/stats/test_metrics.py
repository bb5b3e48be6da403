"""The metrics agree with scikit-learn, and undefined ones are None instead of a guess."""

import json
import warnings

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from lesionfast.errors import LesionfastError
from lesionfast.stats.metrics import (
    balanced_accuracy,
    confusion_counts,
    decision_metrics,
    macro_auc,
    sensitivity,
    summarize,
)

CLASSES = ["bkl", "mel", "nv", "vasc"]
PRIOR = [0.2, 0.1, 0.65, 0.05]


def random_case(seed: int, n: int = 150, present: int = 4, decimals: int | None = None):
    """Truth of the first `present` of four classes, and probabilities; few decimals make ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, present, n)
    probabilities = rng.dirichlet(np.ones(4), n)
    if decimals is not None:
        probabilities = probabilities.round(decimals)
    return truth, probabilities


CASES = [random_case(0), random_case(1, decimals=1), random_case(2, present=3), random_case(3, 12)]


@pytest.mark.parametrize(("truth", "probabilities"), CASES)
def test_decision_metrics_agree_with_scikit_learn(truth, probabilities):
    decision = probabilities.argmax(axis=1)
    found = decision_metrics(truth, decision, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are decided but absent
        expected = sklearn_metrics.balanced_accuracy_score(truth, decision)
        recall = sklearn_metrics.recall_score(
            truth, decision, labels=range(4), average=None, zero_division=np.nan
        )
        precision = sklearn_metrics.precision_score(
            truth, decision, labels=range(4), average=None, zero_division=np.nan
        )
    assert balanced_accuracy(truth, decision, 4) == pytest.approx(expected)
    assert found["balanced_accuracy"] == pytest.approx(expected)
    assert list(found["sensitivity"].values()) == pytest.approx(recall, nan_ok=True)
    assert list(found["precision"].values()) == pytest.approx(precision, nan_ok=True)
    assert found["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(truth, decision, average="macro")
    )
    assert found["accuracy"] == pytest.approx((truth == decision).mean())
    assert found["mel_sensitivity"] == pytest.approx(recall[1])
    for index, name in enumerate(CLASSES):
        others = decision[truth != index]
        assert found["specificity"][name] == pytest.approx((others != index).mean())
        assert sensitivity(truth, decision, index) == pytest.approx(recall[index], nan_ok=True)


@pytest.mark.parametrize(("truth", "probabilities"), CASES)
def test_ranking_metrics_agree_with_scikit_learn(truth, probabilities):
    found = summarize(truth, probabilities, CLASSES, PRIOR)
    present = sorted(set(truth))
    aucs = [sklearn_metrics.roc_auc_score(truth == i, probabilities[:, i]) for i in present]
    assert macro_auc(truth, probabilities) == pytest.approx(np.mean(aucs))
    assert found["macro_auc"] == pytest.approx(np.mean(aucs))
    for index, name in enumerate(CLASSES):
        if index not in present:
            assert found["auc"][name] is None
            assert found["average_precision"][name] is None
            continue
        expected = sklearn_metrics.average_precision_score(truth == index, probabilities[:, index])
        assert found["average_precision"][name] == pytest.approx(expected)
    normal = probabilities / probabilities.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn_metrics.log_loss(truth, normal, labels=range(4))
    assert summarize(truth, normal, CLASSES, PRIOR)["log_loss"] == pytest.approx(expected)


def test_confusion_counts_agree_with_scikit_learn():
    truth, probabilities = CASES[0]
    decision = probabilities.argmax(axis=1)
    expected = sklearn_metrics.confusion_matrix(truth, decision, labels=range(5))
    assert (confusion_counts(truth, decision, 5) == expected).all()


def test_one_class_only_leaves_the_ranking_undefined():
    found = summarize([1, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], ["mel", "nv"], [0.5, 0.5])
    assert found["macro_auc"] is None
    assert found["counts"] == {"mel": 0, "nv": 3}
    argmax = found["rules"]["argmax"]
    assert argmax["balanced_accuracy"] == pytest.approx(2 / 3)
    assert argmax["sensitivity"]["mel"] is None and argmax["mel_sensitivity"] is None
    assert argmax["specificity"]["nv"] is None
    assert argmax["precision"] == {"mel": 0, "nv": 1}


def test_precision_of_a_class_that_is_never_decided_is_undefined():
    found = decision_metrics([0, 1], [0, 0], ["benign", "malignant"])
    assert np.isnan(found["precision"]["malignant"])
    assert found["sensitivity"]["malignant"] == 0
    assert "mel_sensitivity" not in found


def test_the_summary_is_json_without_nan():
    found = summarize(*CASES[2], CLASSES, PRIOR)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert type(found["n"]) is int and type(found["counts"]["mel"]) is int
    assert set(found["rules"]) == {"argmax", "balanced"}


def test_float32_and_float64_rank_alike():
    truth, probabilities = CASES[0]
    single = probabilities.astype(np.float32)
    assert macro_auc(truth, single) == pytest.approx(macro_auc(truth, probabilities))


def test_an_absent_class_makes_single_metrics_nan():
    assert np.isnan(sensitivity([0, 0], [0, 1], 2))
    assert np.isnan(macro_auc([0, 0], [[0.5, 0.5], [0.1, 0.9]]))
    assert balanced_accuracy([0, 0, 1], [0, 1, 1], 5) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize([], np.empty((0, 2)), ["a", "b"], [1, 1]), "at least one"),
        (lambda: summarize([0, 2], [[0.5, 0.5]] * 2, ["a", "b"], [1, 1]), "from 0 to 1"),
        (lambda: summarize([0], [[0.5, 0.5]] * 2, ["a", "b"], [1, 1]), "1 images and 2 classes"),
        (lambda: balanced_accuracy([0.5], [0], 2), "whole"),
        (lambda: balanced_accuracy([0, 1], [0], 2), "differ in length: 2 and 1"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(LesionfastError, match=message):
        call()
