"""A training with corrections beside one without: the same split, metrics by either labels."""

import hashlib
import json

import numpy as np
import pytest

import lesionfast as lf
from lesionfast.data.corrections.answers import Answer, append_answer
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import CORRECTED, ORIGINAL, Comparison, comparison_tables
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labelling.corrected import describe_corrections, relabelled
from lesionfast.evaluation.labels import suspicious_labels
from lesionfast.reporting.overview import data_card

TINY = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "unfreeze": "none"}
TINY |= {"tta": 1, "workers": 0}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """Answers about images of every part of the sample."""
    df = lf.load_data()
    nevi = df[df["target"] == "nv"].drop_duplicates("group")
    train, valid, test = (
        nevi.loc[nevi["split"] == part, "image_id"].tolist() for part in ("train", "valid", "test")
    )
    said = {train[0]: "is mel", train[1]: "unclear", test[0]: "is mel", test[1]: "unclear"}
    return said | {valid[0]: "unclear", test[2]: f"same lesion as {train[2]}", test[3]: "right"}


@pytest.fixture(scope="module")
def file(answers, tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "corrections.csv"
    for image, text in answers.items():
        append_answer(path, Answer.parse(image, text))
    return path


@pytest.fixture(scope="module")
def runs(file, tmp_path_factory):
    """A run without corrections, and one with them."""
    root = tmp_path_factory.mktemp("runs")
    df = lf.load_data()
    plain = lf.train(df, out=root, name="plain", **TINY)
    return plain, lf.train(df, out=root, name="corrected", corrections=file, **TINY)


def test_the_run_keeps_them_and_its_split_is_the_same(runs, file, answers):
    plain, corrected = runs
    assert (plain.path / "split.csv").read_bytes() == (corrected.path / "split.csv").read_bytes()
    assert (corrected.path / "corrections.csv").read_bytes() == file.read_bytes()
    told = corrected.metrics["corrections"]
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (told["changed"], told["confirmed"], told["unclear"], told["joined"]) == (2, 1, 3, 2)
    assert told["moved"] >= 1 and not corrected.damaged()
    assert f"corrections {file}" in (corrected.path / "log.txt").read_text()
    assert json.loads((corrected.path / "config.json").read_text())["corrections"] == str(file)
    assert lf.Run(corrected.path).config.corrections == str(file)


def test_metrics_are_given_by_either_labels(runs, answers):
    plain, corrected = runs
    n = {split: plain.metrics[split]["n"] for split in ("valid", "test")}
    before = corrected.metrics["before_corrections"]
    assert {split: before[split]["n"] for split in n} == n
    assert {s: corrected.metrics[s]["n"] for s in n} == {s: n[s] - 1 for s in n}
    assert before["test"]["counts"] == plain.metrics["test"]["counts"]
    relabelled_test = corrected.metrics["test"]["counts"]["mel"]
    assert relabelled_test == plain.metrics["test"]["counts"]["mel"] + 1
    whole = corrected.predictions_before_corrections.set_index("image_id")
    kept = corrected.predictions.set_index("image_id")
    assert whole.loc[kept.index, "p_mel"].tolist() == kept["p_mel"].tolist()
    unclear = {image for image, text in answers.items() if text == "unclear"}
    assert set(whole.index) - set(kept.index) == unclear & set(whole.index)


def test_the_same_predictions_by_either_labels_are_paired(runs):
    _, corrected = runs
    found = relabelled(corrected).set_index(["labels", "metric", "of"])
    former = Interpretation.before_corrections(corrected, "test").metrics
    rule = corrected.rule_name
    key = ("balanced_accuracy", "all")
    value = found.loc[(ORIGINAL, *key), "value"]
    assert value == pytest.approx(former["rules"][rule]["balanced_accuracy"])
    now = found.loc[(CORRECTED, *key)]
    expected = corrected.metrics["test"]["rules"][rule]["balanced_accuracy"]
    assert now["value"] == pytest.approx(expected)
    assert now["difference"] == pytest.approx(now["value"] - value)
    assert now["difference_low"] <= now["difference"] <= now["difference_high"]
    with pytest.raises(LesionfastError, match="without corrections.*--corrections FILE"):
        relabelled(runs[0])


def test_compare_says_what_they_change(runs):
    plain, corrected = runs
    comparison = Comparison.from_runs(runs)
    assert comparison.by_original_labels
    assert len(comparison.interpretations[0].rows) == plain.metrics["test"]["n"]
    gains = comparison.corrections
    assert set(gains["labels"]) == {ORIGINAL, CORRECTED} and set(gains["plain"]) == {"plain"}
    one = gains[(gains["metric"] == "macro_auc") & (gains["labels"] == ORIGINAL)]
    values = one.set_index("system")["value"]
    assert values["whole"] == pytest.approx(plain.metrics["test"]["macro_auc"])
    before = corrected.metrics["before_corrections"]["test"]["macro_auc"]
    assert values[CORRECTED] == pytest.approx(before)
    titles = [table.title for table in comparison_tables(comparison)]
    assert "by their original labels" in titles[0] and "what training with corrections" in titles[1]
    assert "corrections" in comparison.to_dict()
    assert not Comparison.from_runs([plain]).by_original_labels
    alone = Comparison.from_runs([corrected])
    assert not alone.by_original_labels and alone.corrections.empty


def test_the_data_card_names_them(runs, file):
    _, corrected = runs
    words, tables = data_card(Findings.from_run(corrected))
    sentence = describe_corrections(corrected)
    assert sentence in words and str(file) in sentence and "2 labels changed" in sentence
    assert tables[0].title.startswith("test: what the corrections change")


def test_labels_lists_no_answered_image_again(runs, file, answers, tmp_path):
    plain, corrected = runs
    from lesionfast.data.corrections.answers import read_answers

    doubted = suspicious_labels([plain])
    assert len(doubted)
    more = tmp_path / "more.csv"
    for image in doubted["image_id"].head(3):
        append_answer(more, Answer.parse(image, "right"))
    left = suspicious_labels([plain], read_answers(more))
    assert not set(left["image_id"]) & set(doubted["image_id"].head(3))
    again = suspicious_labels([corrected])
    labels = {image for image, text in answers.items() if not text.startswith("same")}
    assert not set(again["image_id"]) & labels
    append_answer(more, Answer.parse(doubted["image_id"].iloc[0], "is frog"))
    with pytest.raises(LesionfastError, match="'frog', which is not a class of the data"):
        suspicious_labels([plain], read_answers(more))


def test_a_run_is_resumed_with_the_answers_that_it_began_with(runs, file):
    from lesionfast.training.experiment import resume

    _, corrected = runs
    before = file.read_bytes()
    predictions = (corrected.path / "predictions.csv").read_text()
    append_answer(file, Answer.parse("SYNTH_00009", "unclear"))
    try:
        (corrected.path / "predictions.csv").unlink()
        run = resume(lf.Run(corrected.path))
        assert (run.path / "predictions.csv").read_text() == predictions
    finally:
        file.write_bytes(before)


def test_folds_predict_every_held_out_image(file, tmp_path):
    df = lf.load_data(corrections=file)
    options = {**TINY, "head_epochs": 0, "all": True, "folds": 3}
    run = lf.train(df, out=tmp_path, name="folds", **options)
    whole, kept = run.predictions_before_corrections, run.predictions
    assert set(whole["image_id"]) == set(df["image_id"])
    gone = set(whole["image_id"]) - set(kept["image_id"])
    assert {i for i in gone} >= set(df.loc[df["correction"] == "unclear", "image_id"])
    assert run.metrics["corrections"]["unclear"] == 3
    assert run.metrics["before_corrections"]["valid"]["n"] == (whole["split"] == "valid").sum()
    assert np.isfinite(relabelled(run, "valid")["value"]).any()
    assert (run.path / "fold-0" / "corrections.csv").read_bytes() == file.read_bytes()
