"""Heads that are solved: against plain formulas and scikit-learn, and as whole runs."""

import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
import timm
from safetensors.torch import save_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.svm import LinearSVC

from lesionfast.config import SplitConfig, TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.models.features import Features
from lesionfast.models.fusion import load_model
from lesionfast.training.experiment import check_options, train
from lesionfast.training.heads import (
    STRENGTHS,
    best_scale,
    choose_strength,
    grouped_folds,
    heads,
    held_out_losses,
)

CONFIG = TrainConfig(arch="test_resnet", weights="none", size=32, tta=1)


@pytest.fixture
def clouds():
    """Three clouds of points in four dimensions, of 40, 20 and 10 points."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [40, 20, 10])
    return rng.normal(size=(70, 4)) + 3 * rng.normal(size=(3, 4))[codes], codes


def test_a_prototype_decides_for_the_nearest_class_mean(clouds):
    x, codes = clouds
    weight, bias = heads["prototype"](x, codes)
    centres = np.stack([x[codes == code].mean(axis=0) for code in range(3)])
    squared = ((x[:, None] - centres) ** 2).sum(axis=2)
    logits = x @ weight.T + bias
    np.testing.assert_allclose(softmax(logits, axis=1), softmax(-squared, axis=1), atol=1e-12)


def test_the_svm_is_scikit_learns_one_hyperplane_a_class(clouds):
    x, codes = clouds
    weight, bias = heads["svm"](x, codes)
    theirs = LinearSVC(C=1e-4, class_weight="balanced", dual="auto", random_state=0).fit(x, codes)
    np.testing.assert_allclose(x @ weight.T + bias, theirs.decision_function(x), rtol=1e-6)


def test_two_classes_share_a_hyperplane(clouds):
    x, codes = clouds
    two = codes < 2
    weight, bias = heads["svm"](x[two], codes[two])
    logits = x[two] @ weight.T + bias
    assert logits.shape == (60, 2)
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1])
    assert (logits.argmax(axis=1) == codes[two]).mean() > 0.9


def test_the_scale_is_the_one_of_least_balanced_log_loss(clouds):
    x, codes = clouds
    weight, bias = heads["prototype"](x, codes)
    logits = x @ weight.T + bias
    share = 1 / np.bincount(codes)[codes]

    def loss(scale):
        return log_loss(codes, softmax(scale * logits, axis=1), sample_weight=share)

    scale = best_scale(logits, codes)
    assert loss(scale) < min(loss(1.1 * scale), loss(scale / 1.1), loss(1.0)) + 1e-12


def draw_lesions(n_classes=3, seed=1):
    """Return features, classes and lesions of images that come in threes; the last class is rare.

    What tells a lesion apart is far stronger than what tells its class.
    """
    rng = np.random.default_rng(seed)
    lesions = np.repeat(np.arange(120), 3)
    of_lesion = rng.choice(n_classes, 120, p=[0.6, *[0.4 / (n_classes - 1)] * (n_classes - 1)])
    own = rng.normal(size=(120, 40))[lesions]
    signal = 0.15 * rng.normal(size=(n_classes, 40))[of_lesion[lesions]]
    return own + signal + 0.1 * rng.normal(size=own.shape), of_lesion[lesions], lesions


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_logistic_is_scikit_learns_and_its_probabilities_have_the_shares_of_the_classes(n_classes):
    x, codes, lesions = draw_lesions(n_classes)
    weight, bias = heads["logistic"](x, codes, lesions)
    found = softmax(x @ weight.T + bias, axis=1)
    strength = choose_strength(x, codes, lesions)
    theirs = LogisticRegression(C=strength, max_iter=2000, tol=1e-8).fit(x, codes)
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=1e-2)
    np.testing.assert_allclose(found.mean(axis=0), np.bincount(codes) / len(codes), atol=5e-3)
    again = heads["logistic"](x, codes, lesions)
    assert all(np.array_equal(a, b) for a, b in zip((weight, bias), again, strict=True))


def test_a_regression_that_does_not_settle_is_said_in_one_line(caplog, monkeypatch):
    x, codes, lesions = draw_lesions()
    monkeypatch.setattr("lesionfast.training.heads.MOST_STEPS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight, bias = heads["logistic"](x * np.geomspace(1, 1e4, x.shape[1]), codes, lesions)
    assert np.isfinite(weight).all() and np.isfinite(bias).all()
    assert caplog.text.count("was still moving after 2 steps") == 1
    with pytest.raises(ValueError, match="2 classes"):
        heads["logistic"](x, np.zeros_like(codes), lesions)


def test_the_penalty_is_chosen_on_lesions_and_not_on_their_images():
    """Among images of lesions that it has seen, a model without a penalty looks best."""
    x, codes, lesions = draw_lesions()
    of_lesions, of_images = (
        choose_strength(x, codes, groups) for groups in (lesions, np.arange(len(codes)))
    )
    assert of_lesions < of_images / 5
    x, codes, lesions = draw_lesions(seed=2)
    for learned, held_out in grouped_folds(codes, lesions):
        assert set(lesions[learned]).isdisjoint(lesions[held_out])


def test_the_penalty_is_the_best_of_all():
    x, codes, lesions = draw_lesions()
    folds = grouped_folds(codes, lesions)

    def loss(strength):
        models = [LogisticRegression(C=strength, max_iter=2000) for _ in folds]
        parts = [held_out_losses(m, x, codes, f) for m, f in zip(models, folds, strict=True)]
        return np.concatenate(parts).mean()

    best = min(STRENGTHS, key=loss)
    assert loss(choose_strength(x, codes, lesions)) == pytest.approx(loss(best), abs=1e-3)


def test_a_class_of_one_lesion_and_two_lesions_in_all_are_solved_too(caplog):
    x, codes, lesions = draw_lesions()
    codes = np.where(lesions == 0, 3, codes)
    weight, _ = heads["logistic"](x, codes, lesions)
    assert weight.shape == (4, 40)
    few = np.isin(lesions, [np.flatnonzero(codes == k)[0] // 3 for k in (0, 1)])
    weight, _ = heads["logistic"](x[few], codes[few], lesions[few])
    assert weight.shape == (2, 40) and "too few training lesions" in caplog.text


@pytest.mark.parametrize("head", ["prototype", "svm"])
def test_a_solved_run_is_like_any_other(head, tmp_path):
    config = replace(CONFIG, head=head)
    run = train(load_dataset(config), config, tmp_path)
    assert run.metrics["status"] == "finished"
    assert len(run.history) == 1 and run.history["phase"].tolist() == [head]
    rules = run.metrics["valid"]["rules"]
    assert rules["balanced"] == rules["argmax"]  # no class had a larger share in it
    assert rules["argmax"]["balanced_accuracy"] > 1.5 / 7  # random features are not nothing
    assert run.history["balanced_accuracy"][0] == pytest.approx(
        rules["argmax"]["balanced_accuracy"], abs=1e-5
    )
    assert not load_model(run).training
    assert len(Interpretation.from_run(run).rows) == run.metrics["test"]["n"]


def test_logistic_keeps_the_prior_by_which_the_rule_divides(tmp_path):
    config = replace(CONFIG, head="logistic")
    df = load_dataset(config)
    run = train(df, config, tmp_path)
    shares = df[df["split"] == "train"]["target"].value_counts(normalize=True)
    assert run.model["prior"] == pytest.approx([shares[name] for name in run.classes])
    rules = run.metrics["valid"]["rules"]
    assert rules["balanced"]["balanced_accuracy"] > rules["argmax"]["balanced_accuracy"]
    assert run.history["phase"].tolist() == ["logistic"]
    assert "logistic regression: C" in (run.path / "log.txt").read_text()


def test_a_second_idea_runs_no_image_through_the_backbone(tmp_path, monkeypatch):
    """Another head, fusion or metadata; of other classes, and so another split, the first view."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    config = replace(CONFIG, arch="test_vit", weights=str(weights), head="logistic", tta=2)
    first = train(load_dataset(config), config, tmp_path / "runs")
    counts, compute = [], Features.compute_blocks
    monkeypatch.setattr(
        Features,
        "compute_blocks",
        lambda self, rows, *rest: counts.append(len(rows)) or compute(self, rows, *rest),
    )
    options = [{"head": "svm"}, {"fusion": "film"}, {"metadata": "age"}]
    options += [{"map": "bkl=nv", "tta": 1}, {"drop_class": "df", "tta": 1}]
    for number, option in enumerate(options):
        other = replace(config, **option)
        run = train(load_dataset(other), other, tmp_path / "runs", str(number))
        assert run.finished and counts == [], option
    again = train(load_dataset(config), config, tmp_path / "runs", "again")
    assert again.predictions.equals(first.predictions)


@pytest.mark.parametrize("name", [each.name for each in fields(TrainConfig)])
def test_a_solved_head_refuses_every_option_of_gradient_descent(name):
    """Of each option a value other than the default: taken where it acts, else refused."""
    kept = {"arch", "weights", "size", "resize", "fusion", "pool", "head", "rule", "tta", "compile"}
    kept |= {"device", "precision", "workers", "metadata_dropout", "melanoma", "malignant", "all"}
    kept.add("log")
    kept |= {"melanoma_sensitivity", "distill"}  # the student of --distill refuses it itself
    kept |= {*(each.name for each in fields(SplitConfig))}
    other = replace(CONFIG, head="svm", **{name: another(name)} if name != "head" else {})
    if name in ("all", "distill"):
        other = replace(other, folds=5, all=True)  # which they need
    if name in kept:
        check_options(other)
        return
    with pytest.raises(LesionfastError, match=f"--head svm.*--{name.replace('_', '-')}.*no effect"):
        check_options(other)


def another(name):
    """Return a value that a field takes and that is not its default."""
    each = TrainConfig.__dataclass_fields__[name]
    for value in (*each.metadata["choices"], not each.default, 0.5, 1, 2, 64, "1", "another"):
        try:
            if getattr(replace(CONFIG, **{name: value}), name) != each.default:
                return value
        except LesionfastError:
            continue
    raise AssertionError(name)


def test_a_solved_head_refuses_what_it_cannot_heed(tmp_path):
    config = replace(CONFIG, head="svm", balance="weights", loss="focal")
    with pytest.raises(
        LesionfastError, match="--balance, --loss would have no effect.*--head linear"
    ):
        train(load_dataset(config), config, tmp_path)
    with pytest.raises(LesionfastError, match="Did you mean 'prototype'"):
        train(load_dataset(config), replace(CONFIG, head="prototipe"), tmp_path)
