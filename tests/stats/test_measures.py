"""Every metric against scikit-learn, with weights too; intervals on data where truth is known."""

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from lesionfast.errors import LesionfastError
from lesionfast.stats.bootstrap import wilson
from lesionfast.stats.measures import by_lesion, measure, weighted_metrics

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
CANCERS = [0, 1, 4]


def simulate(n=600, seed=0, images=1.4, digits=None):
    """Return truth, probabilities, decision and lesions of n images, of which some share one."""
    rng = np.random.default_rng(seed)
    lesions = rng.integers(0, int(n / images), n)
    labels = rng.choice(7, int(n / images) + 1, p=[0.05, 0.1, 0.15, 0.05, 0.15, 0.45, 0.05])
    truth = labels[lesions]
    logits = rng.normal(size=(n, 7)) + 1.5 * np.eye(7)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if digits:  # many equal scores
        probabilities = np.maximum(probabilities.round(digits), 1e-3)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return truth, probabilities, probabilities.argmax(axis=1), lesions


def reference(truth, probabilities, decision, w):
    """What scikit-learn says with sample weights."""
    onehot = np.eye(7)[truth]
    of = dict(sample_weight=w)
    labels = dict(labels=range(7), average=None, zero_division=np.nan, **of)
    found = {
        ("accuracy", "all"): sk.accuracy_score(truth, decision, **of),
        ("balanced_accuracy", "all"): sk.balanced_accuracy_score(truth, decision, **of),
        ("kappa", "all"): sk.cohen_kappa_score(truth, decision, **of),
        ("macro_f1", "all"): sk.f1_score(truth, decision, average="macro", **of),
        ("log_loss", "all"): sk.log_loss(truth, probabilities, **of),
        ("brier", "all"): np.average(((probabilities - onehot) ** 2).sum(axis=1), weights=w),
        ("macro_auc", "all"): np.mean(
            [sk.roc_auc_score(onehot[:, i], probabilities[:, i], **of) for i in range(7)]
        ),
        ("macro_average_precision", "all"): np.mean(
            [sk.average_precision_score(onehot[:, i], probabilities[:, i], **of) for i in range(7)]
        ),
    }
    recall = sk.recall_score(truth, decision, **labels)
    precision = sk.precision_score(truth, decision, **labels)
    f1 = sk.f1_score(truth, decision, **labels)
    for i, name in enumerate(CLASSES):
        found["sensitivity", name], found["precision", name] = recall[i], precision[i]
        found["f1", name] = f1[i]
        found["specificity", name] = sk.recall_score(truth != i, decision != i, **of)
        found["auc", name] = sk.roc_auc_score(onehot[:, i], probabilities[:, i], **of)
        score = sk.average_precision_score(onehot[:, i], probabilities[:, i], **of)
        found["average_precision", name] = score
    found["macro_precision", "all"] = np.nanmean(precision)
    found["macro_specificity", "all"] = np.mean([found["specificity", name] for name in CLASSES])
    is_cancer, called = np.isin(truth, CANCERS), np.isin(decision, CANCERS)
    score = probabilities[:, CANCERS].sum(axis=1)
    found["sensitivity", "malignant"] = sk.recall_score(is_cancer, called, **of)
    found["specificity", "malignant"] = sk.recall_score(~is_cancer, ~called, **of)
    found["precision", "malignant"] = sk.precision_score(is_cancer, called, **of)
    found["f1", "malignant"] = sk.f1_score(is_cancer, called, **of)
    found["auc", "malignant"] = sk.roc_auc_score(is_cancer, score, **of)
    found["average_precision", "malignant"] = sk.average_precision_score(is_cancer, score, **of)
    return found


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_metric_is_scikit_learns(weighted, digits):
    truth, probabilities, decision, _ = simulate(digits=digits)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, (3, len(truth))) if weighted else np.ones((1, len(truth)))
    found = weighted_metrics(truth, probabilities, decision, CLASSES)(weights.astype(float))
    for row, w in enumerate(weights):
        expected = reference(truth, probabilities, decision, w)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert found[key][row] == pytest.approx(value, abs=1e-12), key


def test_every_metric_has_an_interval_around_it():
    table = measure(*simulate(), CLASSES)
    assert not table.isna().any().any() and len(table) == 8 * 6 + 10
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["low"] < table["high"]).all()
    mel = table[(table["metric"] == "sensitivity") & (table["of"] == "mel")].iloc[0]
    assert mel["n"] == (simulate()[0] == 4).sum()


def test_the_same_seed_gives_the_same_intervals():
    one, two = (measure(*simulate(), CLASSES, seed=3) for _ in range(2))
    assert one.equals(two)
    assert not one.equals(measure(*simulate(), CLASSES, seed=4))


def test_images_of_a_lesion_are_drawn_together():
    truth, probabilities, decision, _ = simulate(300, images=1)
    alone = measure(truth, probabilities, decision, np.arange(300), CLASSES)
    thrice = [np.repeat(each, 3, axis=0) for each in (truth, probabilities, decision)]
    together = measure(*thrice, np.repeat(np.arange(300), 3), CLASSES)
    torn = measure(*thrice, np.arange(900), CLASSES)
    width = [each["high"] - each["low"] for each in (alone, together, torn)]
    np.testing.assert_allclose(together["value"], alone["value"], atol=1e-12)
    assert np.median(width[1] / width[0]) == pytest.approx(1, abs=0.1)
    assert np.median(width[2] / width[0]) == pytest.approx(3**-0.5, abs=0.1)


def test_the_intervals_cover_what_is_true_of_the_population():
    """300 samples of a population whose metrics are known from a sample of 400,000."""
    rng = np.random.default_rng(7)

    def sample(per_class):
        truth = np.repeat(np.arange(3), per_class)
        logits = rng.normal(size=(len(truth), 3)) + 1.2 * np.eye(3)[truth]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return truth, probabilities, probabilities.argmax(axis=1)

    classes = ["bkl", "mel", "nv"]
    true = weighted_metrics(*sample([100_000, 100_000, 200_000]), classes)(np.ones((1, 400_000)))
    watched = [("balanced_accuracy", "all"), ("sensitivity", "mel"), ("auc", "mel")]
    hits = dict.fromkeys(watched, 0)
    for number in range(300):
        truth, probabilities, decision = sample([120, 120, 240])
        drawn = measure(
            truth, probabilities, decision, np.arange(480), classes, resamples=1000, seed=number
        ).set_index(["metric", "of"])
        for key in watched:
            hits[key] += drawn.loc[key, "low"] <= true[key][0] <= drawn.loc[key, "high"]
    for key, count in hits.items():
        assert 0.93 * 300 <= count <= 0.97 * 300, (key, count)


def test_thirteen_of_thirteen_is_not_certain():
    truth = np.array([0] * 13 + [1] * 40)
    probabilities = np.eye(2)[truth] * 0.8 + 0.1
    table = measure(truth, probabilities, truth, np.arange(53), ["mel", "nv"])
    row = table[(table["metric"] == "sensitivity") & (table["of"] == "mel")].iloc[0]
    assert row["value"] == 1 and row["high"] == pytest.approx(1)
    assert row["low"] == pytest.approx(0.7719, abs=1e-4)


def test_wilson_is_statsmodels_formula():
    low, high = wilson(0.0, 10)
    assert low == 0 and high == pytest.approx(0.27753, abs=1e-5)
    assert np.isnan(wilson(0.5, 0)).all()


def test_a_class_without_images_is_undefined():
    truth, probabilities, decision, lesions = simulate()
    chosen = truth != 3
    table = measure(
        truth[chosen], probabilities[chosen], decision[chosen], lesions[chosen], CLASSES
    )
    of = table[table["of"] == "df"].set_index("metric")
    assert of["n"].eq(0).all() and of.loc[["sensitivity", "auc"], "value"].isna().all()
    assert table[table["metric"] == "balanced_accuracy"]["value"].notna().all()


def test_what_does_not_fit_is_refused():
    truth, probabilities, decision, lesions = simulate()
    with pytest.raises(LesionfastError, match="one entry per image"):
        measure(truth, probabilities, decision, lesions[:-1], CLASSES)
    with pytest.raises(LesionfastError, match="Type 1000 or more"):
        measure(truth, probabilities, decision, lesions, CLASSES, resamples=10)


def test_a_lesion_has_the_mean_of_its_images():
    probabilities = np.array([[0.8, 0.2], [0.1, 0.9], [0.4, 0.6]])
    truth, mean, names = by_lesion(np.array([0, 1, 0]), probabilities, ["a", "b", "a"])
    assert names.tolist() == ["a", "b"] and truth.tolist() == [0, 1]
    np.testing.assert_allclose(mean, [[0.6, 0.4], [0.1, 0.9]])


def three_classes():
    """The simulated images, their seven classes made three."""
    truth, probabilities, _, lesions = simulate()
    parts = np.arange(7) % 3
    merged = probabilities @ np.eye(3)[parts]
    return parts[truth], merged, merged.argmax(axis=1), lesions


def test_three_hundred_classes_take_little_memory():
    k, n = 300, 600
    rng = np.random.default_rng(0)
    truth = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    probabilities = rng.dirichlet(np.ones(k), n)
    names = [f"class {number}" for number in range(k)]
    find = weighted_metrics(truth, probabilities, probabilities.argmax(axis=1), names)
    tracemalloc.start()
    found = find(np.ones((20, n)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 6 * k + 10 and peak < 100 * 2**20


@pytest.mark.parametrize(
    ("names", "melanoma"),
    [(["MEL", "SCC", "nv"], "MEL"), (["Melanoma", "bcc", "wart"], "Melanoma")],
)
def test_malignant_classes_of_any_name_and_case_are_counted_together(names, melanoma):
    truth, probabilities, decision, lesions = three_classes()
    found = measure(truth, probabilities, decision, lesions, names).set_index(["metric", "of"])
    usual = measure(truth, probabilities, decision, lesions, ["mel", "bcc", "nv"])
    usual = usual.set_index(["metric", "of"])
    assert found.loc[("auc", "malignant"), "value"] == usual.loc[("auc", "malignant"), "value"]
    assert found.loc[("auc", "malignant"), "n"] == (truth < 2).sum()


def test_a_class_named_malignant_appears_once():
    truth, probabilities, decision, lesions = three_classes()
    found = measure(truth, probabilities, decision, lesions, ["benign", "malignant", "other"])
    assert not found.duplicated(["metric", "of"]).any()
    assert (found["of"] == "malignant").sum() == 6
    both = measure(truth, probabilities, decision, lesions, ["benign", "malignant", "mel"])
    counts = both[both["metric"] == "sensitivity"].set_index("of")["n"]
    assert (
        counts["malignant"] == (truth == 1).sum() and counts["any malignant"] == (truth > 0).sum()
    )
