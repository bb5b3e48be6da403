"""A melanoma sensitivity that was asked for holds wherever a run, an export or a page decides."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import lesionfast as lf
from lesionfast.cli.base import app
from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import choose_rule
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run
from lesionfast.serving.export import export
from lesionfast.serving.web.api import Service
from lesionfast.serving.web.app import answer_html
from lesionfast.stats.metrics import sensitivity
from lesionfast.training.callbacks.progress import StopOnInterrupt
from lesionfast.training.ensembles.combining import combine
from lesionfast.training.ensembles.specialists import add_specialists
from lesionfast.training.experiment import (
    check_melanomas,
    predict_again,
    resume,
    train,
    train_inside,
)
from lesionfast.training.learner import lesion_learner

TARGET = 0.9
TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    epochs=2,
    head_epochs=0,
    tta=1,
    batch_size=16,
    lr=5e-3,
    precision="float32",
    melanoma_sensitivity=TARGET,
)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture(scope="module")
def run(df, tmp_path_factory) -> Run:
    return train(df, TINY, tmp_path_factory.mktemp("runs"), "weighted")


@pytest.fixture(scope="module")
def predicted(run) -> Interpretation:
    """The test images, some of which the weight decides otherwise."""
    read = Interpretation.from_run(run)
    assert (read.decision != read.decision_rule.plain.decide(read.probabilities)).any()
    return read


def found_on_validation(run: Run) -> float:
    read = Interpretation.from_run(run, "valid")
    return sensitivity(read.truth, read.decision, read.classes.index("mel"))


def test_a_training_reaches_it_on_validation_and_says_what_it_costs(run):
    rule = Run(run.path).decision_rule
    assert rule.weight > 1 and found_on_validation(run) >= TARGET
    assert run.model["melanoma_sensitivity"] == TARGET and run.config.rule == rule.base
    for split in ("valid", "test"):
        read = Interpretation.from_run(run, split)
        assert run.metrics[split] == read.metrics and read.rule == rule.name
    told = (run.path / "log.txt").read_text()
    line = rf"without and with the weight {rule.weight:g}, {{}}: melanoma sensitivity .* to .*, mel"
    assert all(re.search(line.format(split), told) for split in ("valid", "test"))


def test_predict_export_page_and_learner_decide_as_interpret_does(run, predicted, df, tmp_path):
    test = df[df["split"] == "test"].set_index("image_id").loc[predicted.rows["image_id"]]
    expected = predicted.rows["decision"].tolist()
    test = test.reset_index()
    folder = export(run, tmp_path / "model")
    assert json.loads((folder / "model.json").read_text())["schema"] == 3
    for source in (run, folder):
        told = lf.Predictor(source).predict(test)
        decided = told["no_decision"] == ""
        assert decided.mean() > 0.7
        assert told["decision"].where(decided, expected).tolist() == expected
        assert set(told["rule"]) == {run.decision_rule.name}
    learn = lesion_learner(LesionDataLoaders.from_run(run, df), run)
    assert learn.decision_rule == run.decision_rule
    read = Interpretation.from_learner(learn, "test").rows.set_index("image_id")
    assert read.loc[predicted.rows["image_id"], "decision"].tolist() == expected
    plain = predicted.decision_rule.plain.decide(predicted.probabilities)
    place = int(np.flatnonzero((predicted.decision != plain) & decided)[0])
    row = test.iloc[place]
    assert learn.predict(row)[0] == expected[place] == "mel"
    service = Service(folder)
    known = {name: str(row[name]) for name in ("age", "sex") if row[name] == row[name]}
    page = answer_html(service, Path(row["path"]).read_bytes(), known)
    assert f"times {run.decision_rule.weight:g}) decides for melanoma;" in page


def test_onnx_decides_so_too(run, predicted, df, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = export(run, tmp_path / "model", onnx=True)
    test = df[df["split"] == "test"].set_index("image_id").loc[predicted.rows["image_id"]]
    told = lf.Predictor(folder / "model.onnx").predict(test.reset_index())
    expected = predicted.rows["decision"].tolist()
    assert told["decision"].where(told["no_decision"] == "", expected).tolist() == expected


def test_a_learner_that_trains_on_forgets_the_weight_and_a_new_run_fits_it(run, df, tmp_path):
    learn = lesion_learner(LesionDataLoaders.from_run(run, df), run)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-4)
    assert learn.decision_rule == run.decision_rule.plain
    again = Run.from_learner(learn, tmp_path / "again")
    assert found_on_validation(again) >= TARGET
    assert learn.decision_rule == again.decision_rule


def stop_after_one(self):
    self.interrupted = self.epoch > 0


@pytest.mark.parametrize("chosen", [None, 0.6, 0.0])
def test_a_resumed_run_keeps_what_was_asked_for(df, tmp_path, monkeypatch, chosen):
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "before_batch", stop_after_one, raising=False)
        stopped = train(df, TINY, tmp_path)
    assert stopped.metrics["status"] == "interrupted" and found_on_validation(stopped) >= TARGET
    if chosen is not None:
        choose_rule(Run(stopped.path), chosen)
    ended = resume(Run(stopped.path))
    target = TARGET if chosen is None else chosen
    assert ended.model.get("melanoma_sensitivity") == target
    assert found_on_validation(ended) >= target
    assert target or ended.decision_rule.weight == 1
    assert Run(ended.path).metrics["valid"] == Interpretation.from_run(ended, "valid").metrics


def test_predictions_that_are_made_again_have_the_same_weight(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / "predictions.csv").write_text("damaged")
    again = resume(copy)
    assert again.model == run.model and again.metrics == run.metrics


def test_predictions_of_other_rows_are_decided_by_the_same_rule(run, df, tmp_path):
    blank = df.assign(age=None, sex=None)
    config = replace(run.config, melanoma_sensitivity=0.0)
    again = predict_again(run, blank, config, tmp_path, "without")
    assert again.decision_rule == run.decision_rule
    assert again.metrics["valid"] == Interpretation.from_run(again, "valid").metrics
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    plain = {name: value for name, value in run.model.items() if not name.startswith("melanoma_")}
    copy.write_json("model.json", plain | {"schema": 1})  # as if the weight could not be fitted
    again = predict_again(Run(copy.path), blank, run.config, tmp_path, "plain")
    assert again.decision_rule.weight == 1 and again.metrics["valid"]["rules"].keys() == {
        "argmax",
        "balanced",
    }


def test_a_learner_and_a_specialist_are_asked_for_what_the_run_is_asked_for_now(run, df, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    choose_rule(copy, 0)
    learn = lesion_learner(LesionDataLoaders.from_run(copy, df), copy)
    made = Run.from_learner(learn, tmp_path / "made")
    assert made.melanoma_sensitivity == 0 and made.decision_rule.weight == 1
    copy.write_json("model.json", copy.model | {"pool": "max"})  # as if 'auto' had meant it
    special = add_specialists([Run(copy.path)], "bcc", tmp_path)[1]
    assert special.melanoma_sensitivity == 0 and special.decision_rule.weight == 1
    assert special.model["pool"] == special.config.pool == "max" and run.model["pool"] == "avg"


def test_a_run_without_it_is_as_before(df, tmp_path):
    plain = train(df, replace(TINY, melanoma_sensitivity=0.0, epochs=1), tmp_path)
    assert not any(name.startswith("melanoma_") for name in plain.model)
    assert plain.model["schema"] == 1 and set(plain.metrics["test"]["rules"]) == {
        "argmax",
        "balanced",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"melanoma": None, "drop": ["mel"]}, "needs a class of melanoma; the classes are"),
        ({"move": True}, "has none of the .* images of 'mel'. Type a larger --val"),
    ],
)
def test_a_training_that_can_not_fit_it_does_not_begin(df, tmp_path, change, message):
    table = df[~df["target"].isin(change.get("drop", []))].copy()
    if change.get("move"):
        rows = (table["split"] == "valid") & (table["target"] == "mel")
        table.loc[rows, "split"] = "train"
    with pytest.raises(LesionfastError, match=message):
        train(table, TINY, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_ensemble_is_asked_for_what_its_members_were(run, df, tmp_path, caplog):
    other = train(df, replace(TINY, seed=1, split_seed=42, epochs=1), tmp_path)
    pair = combine([run, other], tmp_path)
    assert pair.model["melanoma_sensitivity"] == TARGET and found_on_validation(pair) >= TARGET
    assert Run(pair.path).metrics["test"] == Interpretation.from_run(pair).metrics
    choose_rule(other, 0.5)
    assert combine([run, Run(other.path)], tmp_path).decision_rule.weight == 1
    assert "different melanoma sensitivities (0.5, 0.9" in caplog.text


def test_folds_are_checked_as_one_table(df, tmp_path, caplog):
    """A fold without a melanoma does not end a run whose other folds have some."""
    melanoma = df["target"] == "mel"
    moved = df.assign(split=df["split"].mask(melanoma & (df["split"] == "valid"), "train"))
    check_melanomas(moved, replace(TINY, folds=2, all=True))
    fold = train_inside(moved, replace(TINY, epochs=1), tmp_path, "fold-0")
    assert fold.finished and "The rule has no weight on melanoma" in caplog.text
    none = df.assign(split=df["split"].mask(melanoma, "test"))
    for table, options, message in (
        (none, {"folds": 2, "all": True}, r"of 'mel'\. Type another --seed, or leave"),
        (moved, {"folds": 2}, r"of 'mel'\. Type another --fold, another --seed, or leave"),
    ):
        with pytest.raises(LesionfastError, match=message):
            check_melanomas(table, replace(TINY, **options))


def test_folds_fit_it_out_of_fold(df, tmp_path):
    config = replace(TINY, folds=2, all=True, epochs=1)
    folds = train(df, config, tmp_path)
    assert folds.model["melanoma_sensitivity"] == TARGET and found_on_validation(folds) >= TARGET


def test_the_commands_take_it(run, tmp_path, blank_figures):
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))

    def invoke(*words: object) -> Result:
        return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)

    asked = invoke("interpret", copy, "--melanoma-sensitivity", "0.7")
    rule = Run(copy).decision_rule
    assert f"Weight {rule.weight:g} on melanoma" in asked.stdout and rule.name in asked.stdout
    assert "(--melanoma-sensitivity)" in asked.stderr
    told = invoke("predict", copy, run.predictions["path"].iloc[0], "--all")
    assert told.exit_code == 0 and rule.name in told.stdout
    with pytest.raises(LesionfastError, match="between 0 and 1; found 80"):
        invoke("interpret", copy, "--melanoma-sensitivity", "80")
