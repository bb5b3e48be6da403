"""Prediction sets: their promise over simulated splits, and MAPIE's sets beside ours."""

import json
import logging
from math import ceil

import numpy as np
import pytest
from scipy.special import softmax

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import SETS, Decisions
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.decisions import run_coverage
from lesionfast.run import Run
from lesionfast.stats.conformal import (
    BY_CLASS,
    KINDS,
    MARGINAL,
    conformal_quantile,
    coverage_table,
    fit_conformal,
)

CLASSES = ("mel", "nv", "bkl")


def draw(lesions, seed, most=6):
    """Lesions of one to `most` images: the hard have more, and images of one are alike."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, lesions, p=[0.25, 0.5, 0.25])
    ease = rng.normal([0.6, 2.5, 1.2], 1.2, (lesions, 3))[np.arange(lesions), truth]
    images = np.where(ease < np.median(ease), most, 1)
    rows = np.repeat(np.arange(lesions), images)
    logits = rng.normal(0, 0.3, (len(rows), 3)) + rng.normal(0, 0.7, (lesions, 3))[rows]
    logits[np.arange(len(rows)), truth[rows]] += ease[rows]
    return truth[rows], softmax(logits, axis=1), rows


def covered(conformal, truth, p, lesions, kind):
    """Whether the set of a random image of each lesion holds the truth, and the lesion's class."""
    held = conformal.sets(p, kind)[np.arange(len(truth)), truth]
    first = np.unique(lesions, return_index=True)[1]
    mean = np.bincount(lesions, held) / np.bincount(lesions)
    return mean, truth[first]


@pytest.fixture(scope="module")
def splits():
    """Coverage of 200 splits: of each class by class-conditional sets, and of all by marginal."""
    found = []
    for seed in range(200):
        fitted = fit_conformal(*draw(240, seed), CLASSES)
        truth, p, lesions = draw(600, 10_000 + seed)
        by_class, of = covered(fitted, truth, p, lesions, BY_CLASS)
        plain = covered(fitted, truth, p, lesions, MARGINAL)[0]
        row = [by_class[of == number].mean() for number in range(3)]
        row += [plain[of == number].mean() for number in range(3)]
        found.append([*row, plain.mean()])
    return np.array(found)


def test_each_class_is_covered_as_promised_over_200_splits(splits):
    mean, error = splits.mean(axis=0), splits.std(axis=0) / np.sqrt(200)
    for number, lesions in enumerate((60, 120, 60)):
        assert 0.9 - 3 * error[number] <= mean[number] <= 0.9 + 2 / lesions + 3 * error[number]
    assert (error < 0.005).all()


def test_marginal_sets_cover_all_but_not_the_hard_class(splits):
    mean, error = splits.mean(axis=0), splits.std(axis=0) / np.sqrt(200)
    assert 0.9 - 3 * error[6] <= mean[6] <= 0.9 + 1 / 240 + 3 * error[6]
    assert mean[3] < 0.85 and mean[4] > 0.93


def test_images_taken_for_lesions_would_miss_the_promise():
    gaps = []
    for seed in range(60):
        truth, p, _ = draw(240, seed)
        rows = fit_conformal(truth, p, np.arange(len(truth)), CLASSES)
        gaps.append(covered(rows, *draw(600, 5000 + seed), MARGINAL)[0].mean())
    mean, error = np.mean(gaps), np.std(gaps) / np.sqrt(60)
    assert abs(mean - 0.9) > 4 * error  # here the hard lesions have more images: too large sets
    assert mean > 0.92


@pytest.mark.parametrize("n", [5, 8, 9, 19, 100, 237])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_quantile_of_one_image_a_lesion_is_the_usual_one(n, coverage):
    scores = np.random.default_rng(n).random(n)
    rank = ceil(round((n + 1) * coverage, 9))
    expected = np.sort(scores)[rank - 1] if rank <= n else np.inf
    assert conformal_quantile(scores, np.arange(n), coverage) == expected


def test_quantile_of_several_images_against_copies_of_each():
    rng = np.random.default_rng(2)
    lesions = np.repeat(np.arange(30), rng.integers(1, 4, 30))
    scores = rng.random(len(lesions))
    copied = np.repeat(scores, 6 // np.bincount(lesions)[lesions])
    ordered = np.sort(np.r_[copied, [np.inf] * 6])
    assert conformal_quantile(scores, lesions, 0.9) == ordered[ceil(round(31 * 6 * 0.9, 9)) - 1]
    assert conformal_quantile(np.array([]), [], 0.9) == np.inf


def test_marginal_sets_are_those_of_mapie():
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Known(ClassifierMixin, BaseEstimator):
        """A model whose features are its probabilities."""

        def fit(self, x, y):
            self.classes_, self.n_features_in_, self.is_fitted_ = np.arange(3), 3, True
            return self

        def predict_proba(self, x):
            return np.asarray(x)

        def predict(self, x):
            return np.asarray(x).argmax(axis=1)

    truth, p, _ = draw(400, 1, most=1)
    _, new, _ = draw(300, 2, most=1)
    theirs = mapie.SplitConformalClassifier(
        Known().fit(None, None), confidence_level=0.9, conformity_score="lac", prefit=True
    )
    sets = theirs.conformalize(p, truth).predict_set(new)[1][:, :, 0]
    ours = fit_conformal(truth, p, np.arange(400), CLASSES).sets(new, MARGINAL)
    assert (sets == ours).all() and 0 < ours.mean() < 1


def test_a_class_of_few_lesions_is_always_in_the_set_and_said(make_run, caplog):
    run = make_run(n=300)
    with caplog.at_level(logging.WARNING, logger="lesionfast"):
        assert Decisions(run).conformal
    path = run.path / "conformal.json"
    kept, valid = SETS.read(run), Interpretation.from_run(run, "valid")
    counts = np.bincount(valid.truth, minlength=7)
    few = [name for name, n in zip(run.classes, counts, strict=True) if n < 9]
    assert few and kept.unbounded == few and json.loads(path.read_text())["unbounded"] == few
    assert all(f"{name} ({counts[run.classes.index(name)]})" in caplog.text for name in few)
    sets = kept.sets(Interpretation.from_run(run).probabilities)
    assert sets[:, [run.classes.index(name) for name in few]].all()
    assert kept == SETS.fit(Decisions(run).shown)


def test_nothing_of_test_reaches_the_sets(make_run):
    run = make_run()
    assert Decisions(run).conformal
    path = run.path / "conformal.json"
    before = path.read_text()
    table = run.predictions
    table.loc[table["split"] == "test", "target"] = "nv"
    table.to_csv(run.path / "predictions.csv", index=False)
    path.unlink()
    assert Decisions(Run(run.path)).conformal and path.read_text() == before
    with pytest.raises(LesionfastError, match="prediction set on the split 'valid'"):
        SETS.fit(Interpretation.from_run(run))


def test_errors_say_what_to_type():
    truth, p, lesions = draw(50, 0)
    for wrong in (0, 1, 90):
        with pytest.raises(LesionfastError, match=f"found {wrong}. Type for example --coverage"):
            fit_conformal(truth, p, lesions, CLASSES, wrong)
    with pytest.raises(LesionfastError, match="no prediction sets 'lac'. Choose: marginal"):
        fit_conformal(truth, p, lesions, CLASSES).sets(p, "lac")


def test_coverage_table_against_a_loop():
    truth, p, lesions = draw(120, 3)
    rng = np.random.default_rng(0)
    age = rng.integers(20, 90, 120).astype(float)[lesions]
    age[lesions < 8] = np.nan
    fitted = fit_conformal(*draw(200, 4), CLASSES)
    table = coverage_table(truth, p, lesions, CLASSES, fitted, age)
    rows = table.set_index(["kind", "of", "metric"])
    mel = truth == 0
    groups = {
        "all": mel | True,
        "nv": truth == 1,
        "malignant": mel,
        "malignant, under 40": mel & (age < 40),
        "malignant, 40-59": mel & (age >= 40) & (age < 60),
        "malignant, 60+": mel & (age >= 60),
        "malignant, age unknown": mel & np.isnan(age),
    }
    for kind in KINDS:
        sets = fitted.sets(p, kind)
        for of, member in groups.items():
            sums = {"coverage": [], "set_size": [], "singletons": [], "empty": []}
            for lesion in np.unique(lesions[member]):
                own = member & (lesions == lesion)
                sums["coverage"].append(sets[own, truth[own][0]].mean())
                sums["set_size"].append(sets[own].sum(axis=1).mean())
                sums["singletons"].append((sets[own].sum(axis=1) == 1).mean())
                sums["empty"].append((~sets[own].any(axis=1)).mean())
            for metric, values in sums.items():
                row = rows.loc[kind, of, metric]
                assert row["value"] == pytest.approx(np.mean(values))
                assert (row["images"], row["lesions"]) == (member.sum(), len(values))
                assert row["low"] - 1e-12 <= row["value"] <= row["high"] + 1e-12


def test_certain_shares_have_an_interval_with_width_and_no_group_is_nan():
    truth, p, lesions = np.repeat([0, 1], 10), np.tile([0.5, 0.4, 0.1], (20, 1)), np.arange(20)
    fitted = fit_conformal(truth, p, lesions, CLASSES)
    rows = coverage_table(truth, p, lesions, CLASSES, fitted)
    rows = rows.set_index(["kind", "of", "metric"])
    row = rows.loc[BY_CLASS, "mel", "coverage"]
    assert row["value"] == 1 and 0.6 < row["low"] < 0.8
    assert np.isnan(
        rows.loc[MARGINAL, "bkl", "coverage"][["value", "low", "high"]].astype(float)
    ).all()


def test_other_classes_and_no_ages(make_run):
    run = make_run(classes=("benign", "other"), n=100)
    table = run_coverage(
        Interpretation.from_run(run), SETS.fit(Interpretation.from_run(run, "valid"))
    )
    assert list(dict.fromkeys(table["of"])) == ["all", "benign", "other"]
    run = make_run(n=200)
    run.predictions.drop(columns="age").to_csv(run.path / "predictions.csv", index=False)
    test, valid = (Interpretation.from_run(Run(run.path), split) for split in ("test", "valid"))
    groups = list(dict.fromkeys(run_coverage(test, SETS.fit(valid))["of"]))
    assert groups == ["all", *run.classes, "malignant"]
