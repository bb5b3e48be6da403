"""Confident learning on labels that were flipped on purpose, and on duplicates that disagree."""

import logging

import numpy as np
import pandas as pd
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.corrections.answers import Answer, Answers
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import Decisions
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labelling.exports import find_class, list_cases
from lesionfast.evaluation.labels import (
    apply_answers,
    calibrated_chances,
    contradictions,
    describe_coverage,
    disagreeing_duplicates,
    doubtful_labels,
    out_of_sample,
    suspicious_labels,
)
from lesionfast.reporting.errors import draw_suspicious_labels
from lesionfast.run import Run


def write_predictions(run: Run, table: pd.DataFrame) -> Run:
    table.to_csv(run.path / "predictions.csv", index=False)
    return Run(run.path)


def flip(run: Run, n: int = 12) -> tuple[Run, list[str]]:
    """Make every image's truth likely, and n nevi out of them melanomas by their label alone."""
    table = run.predictions
    columns = [f"p_{name}" for name in run.classes]
    table[columns] = 0.02
    for name in run.classes:
        table.loc[table["target"] == name, f"p_{name}"] = 0.88
    flipped = table.index[table["target"] == "nv"][:n]
    table.loc[flipped, "target"] = "mel"
    return write_predictions(run, table), table.loc[flipped, "image_id"].tolist()


def confident_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Which labels a loop over the definition takes for wrong (Northcutt et al. 2021, eq. 1, 2)."""
    thresholds = [probabilities[labels == j, j].mean() for j in range(probabilities.shape[1])]
    wrong = []
    for label, p in zip(labels, probabilities, strict=True):
        likely = [j for j in range(len(p)) if p[j] >= thresholds[j]]
        wrong.append(bool(likely) and max(likely, key=lambda j: p[j]) != label)
    return np.array(wrong)


def folds_of(make_run, n=4, **changes) -> list[Run]:
    """Runs that are the folds of one cross-validation, their test images the same."""
    made = []
    for fold in range(n):
        run = make_run(n=100 + fold)
        table = run.predictions
        valid = table["split"] == "valid"
        table.loc[valid, "image_id"] += f"_{fold}"
        table.loc[~valid, "image_id"] = [f"test_{i}" for i in range((~valid).sum())]
        table = table.head(valid.sum() + 100)
        config = TrainConfig(**{"arch": "resnet18", "folds": n, "fold": fold, **changes})
        (run.path / "config.json").write_text(config.to_json())
        made.append(write_predictions(run, table))
    split = pd.concat([run.predictions for run in made]).drop_duplicates("image_id")
    for run in made:
        split[["image_id", "group", "split"]].to_csv(run.path / "split.csv", index=False)
    return [Run(run.path) for run in made]


def test_flipped_labels_are_found_and_nothing_else(make_run, caplog):
    run, flipped = flip(make_run())
    with caplog.at_level(logging.INFO, logger="lesionfast"):
        table = suspicious_labels([run])
    assert sorted(table["image_id"]) == sorted(flipped)
    assert set(table["target"]) == {"mel"} and set(table["suggested"]) == {"nv"}
    assert table["self_confidence"].to_numpy() == pytest.approx(0.02 / (0.88 + 6 * 0.02))
    assert {"age", "sex", "path", "group"} <= set(table)
    assert "1,200 of 1,200 images, validation and test of one run" in caplog.text


def test_what_is_found_is_the_definition_in_a_loop(make_run):
    run = make_run()
    table = run.predictions
    rng = np.random.default_rng(0)
    table["target"] = table["target"].where(rng.random(len(table)) > 0.1, "nv")
    run = write_predictions(run, table)
    columns = [f"p_{name}" for name in run.classes]
    probabilities = run.predictions[columns].to_numpy()
    labels = run.predictions["target"].map(run.classes.index).to_numpy()
    wrong = confident_joint(labels, probabilities)
    wrong &= probabilities.argmax(axis=1) != labels  # cleanlab never doubts what is predicted
    found = suspicious_labels([run])
    assert set(found["image_id"]) == set(table["image_id"][wrong]) and 20 < wrong.sum() < 400
    assert found["self_confidence"].is_monotonic_increasing
    own = dict(zip(table["image_id"], probabilities[np.arange(len(labels)), labels], strict=True))
    assert found["self_confidence"].tolist() == pytest.approx([own[i] for i in found["image_id"]])


def test_the_page_asks_by_calibrated_probabilities_that_have_not_seen_the_label(make_run):
    run = make_run()
    chances, read = calibrated_chances([run]), Interpretation.from_run(run, "valid")
    assert set(chances.index) == set(run.predictions["image_id"]) and len(chances) == 1200
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    whole = Decisions(run).calibrator.apply(read.probabilities)
    held_out = chances.loc[read.rows["image_id"]].to_numpy()
    assert 1e-5 < np.abs(held_out - whole).max() < 0.2  # by a fit without their lesions
    table = doubtful_labels([run])
    of_label = [chances.at[r.image_id, f"p_{r.target}"] for r in table.itertuples()]
    assert table["calibrated"].all() and table["self_confidence"].tolist() == pytest.approx(
        of_label
    )
    assert (table["probability"] > table["self_confidence"]).all()  # no suggestion below the label
    assert not suspicious_labels([run])["calibrated"].any()


def test_a_class_without_images_is_left_out(make_run):
    run = make_run()
    run, flipped = flip(run)
    run = write_predictions(run, run.predictions[run.predictions["target"] != "df"])
    assert sorted(suspicious_labels([run])["image_id"]) == sorted(flipped)


def test_a_single_class_has_nothing_to_doubt(make_run):
    run = make_run()
    run = write_predictions(run, run.predictions[run.predictions["target"] == "nv"])
    assert suspicious_labels([run]).empty


def test_folds_are_put_together_from_their_validation_parts_and_the_mean_of_their_tests(make_run):
    runs = folds_of(make_run)
    table = out_of_sample(runs)
    assert table["image_id"].is_unique
    assert table["split"].value_counts().to_dict() == {"valid": 100 + 101 + 102 + 103, "test": 100}
    for name in table.loc[table["split"] == "test", "image_id"][:5]:
        given = [run.predictions.set_index("image_id").loc[name, "p_mel"] for run in runs]
        found = table.loc[table["image_id"] == name, "p_mel"].item()
        assert found == pytest.approx(sum(given) / 4) and found != pytest.approx(given[0])
    assert describe_coverage(runs).endswith("the validation parts of 4 of 4 folds and the test")
    assert describe_coverage(runs[:2]).startswith("301 of ")
    untested = [
        write_predictions(run, run.predictions[run.predictions["split"] == "valid"]) for run in runs
    ]
    assert describe_coverage(untested).endswith("the validation parts of 4 of 4 folds")
    assert set(suspicious_labels(runs)["image_id"]) <= set(table["image_id"])


def test_folds_of_other_test_images_or_shares_are_refused(make_run):
    runs = folds_of(make_run)
    other = write_predictions(runs[2], runs[2].predictions.iloc[:-1])
    with pytest.raises(LesionfastError, match="predictions of different test images.*--fold alone"):
        suspicious_labels([runs[0], runs[1], other])
    runs[1].model["prior"] = [1 / 7] * 7
    with pytest.raises(LesionfastError, match="different class shares.*--fold alone"):
        suspicious_labels(runs[:2])


def test_runs_that_are_no_folds_of_one_data_set_are_refused(make_run):
    runs = folds_of(make_run)
    with pytest.raises(LesionfastError, match="validation part of several runs.*once"):
        suspicious_labels([runs[0], runs[0]])
    with pytest.raises(LesionfastError, match="there are no runs"):
        suspicious_labels([])
    with pytest.raises(LesionfastError, match="is not a fold of a cross-validation.*--folds 5"):
        suspicious_labels([runs[0], make_run(n=50)])
    config = TrainConfig(arch="resnet18", folds=4, fold=1, seed=7)
    (runs[1].path / "config.json").write_text(config.to_json())
    with pytest.raises(LesionfastError, match="--seed 7, and .* 42"):
        suspicious_labels([runs[0], Run(runs[1].path)])
    runs[2].split.iloc[:50].to_csv(runs[2].path / "split.csv", index=False)
    with pytest.raises(LesionfastError, match="split different images"):
        suspicious_labels([runs[0], Run(runs[2].path)])
    runs[3].model["classes"] = ["mel", "nv"]
    with pytest.raises(LesionfastError, match="has the classes mel, nv"):
        suspicious_labels([runs[0], runs[3]])


def test_pairs_of_one_lesion_and_near_duplicates_that_disagree(make_run, caplog):
    run = make_run(n=40)
    table = run.predictions
    test = table.index[table["split"] == "test"]
    columns = [f"p_{name}" for name in run.classes]
    table.loc[test, columns] = 0.0
    table.loc[test, "p_nv"] = 1.0
    a, b, c, d = test[:4]
    table.loc[[a, b], "group"] = "one"
    table.loc[b, ["p_nv", "p_mel"]] = [0.0, 1.0]
    table.loc[d, ["p_nv", "p_mel"]] = [0.4, 0.6]
    interpretation = Interpretation.from_run(write_predictions(run, table), rule="argmax")
    ids = table["image_id"]
    alone = disagreeing_duplicates(interpretation)
    assert alone[["kind", "image_a", "image_b"]].to_numpy().tolist() == [
        ["same lesion", ids[a], ids[b]]
    ]
    pairs = pd.DataFrame(
        {"image_a": [ids[d], ids[a], ids[a], "gone"], "image_b": [ids[c], ids[c], ids[b], ids[a]]}
    )
    with caplog.at_level(logging.INFO, logger="lesionfast"):
        found = disagreeing_duplicates(interpretation, pairs)
    assert "3 of 4 pairs are predicted" in caplog.text
    assert found["kind"].tolist() == ["same lesion", "near-duplicate"]
    assert found["difference"].tolist() == pytest.approx([1.0, 0.6])
    row = found.iloc[1]
    assert (row["image_a"], row["image_b"]) == (ids[c], ids[d])
    assert (row["decision_a"], row["decision_b"]) == ("nv", "mel")
    both = contradictions([run], pairs).query("image_a in @ids[@test]")
    assert both[["image_a", "image_b"]].to_numpy().tolist() == [[ids[a], ids[b]], [ids[c], ids[d]]]
    with pytest.raises(LesionfastError, match="the pairs have no column image_b; they have"):
        disagreeing_duplicates(interpretation, pairs[["image_a"]])


def test_images_of_a_patient_with_hundreds_are_not_compared(make_run, monkeypatch, caplog):
    interpretation = Interpretation.from_run(make_run(), rule="argmax")
    interpretation.rows["group"] = "patient"
    most, n = "lesionfast.evaluation.labels.MOST_OF_A_LESION", len(interpretation.rows)
    monkeypatch.setattr(most, n)
    assert len(disagreeing_duplicates(interpretation))
    monkeypatch.setattr(most, n - 1)
    with caplog.at_level(logging.INFO, logger="lesionfast"):
        assert disagreeing_duplicates(interpretation).empty
    assert "as those of one lesion would be: 1" in caplog.text


def test_answers_may_name_a_class_as_the_data_do(make_run):
    run, _ = flip(make_run())
    config = TrainConfig(arch="resnet18", map="naevus=nv", drop_class="frog")
    (run.path / "config.json").write_text(config.to_json())
    run = Run(run.path)
    images = run.predictions.loc[run.predictions["target"] == "mel", "image_id"].tolist()
    said = {images[0]: "is Naevus", images[1]: "is frog", images[2]: "is bcc"}
    answers = Answers(tuple(Answer.parse(image, text) for image, text in said.items()))
    table = apply_answers(run.predictions, answers, run).set_index("image_id")
    assert table.at[images[0], "target"] == "nv" and table.at[images[2], "target"] == "bcc"
    assert images[1] not in table.index and len(table) == len(run.predictions) - 1
    assert not set(images[:3]) & set(suspicious_labels([run], answers)["image_id"])
    contradictions([run], None, answers)
    cases = {case["image_id"]: find_class(case) for case in list_cases([run], answers)}
    assert [cases[image] for image in images[:3]] == ["nv", None, "bcc"]


def test_the_grid_shows_label_and_suggestion(make_run, images, tmp_path, drawn):
    run, _ = flip(make_run())
    table = suspicious_labels([run]).assign(dx_type="histo")
    images(table.head(5))
    path = draw_suspicious_labels([run], tmp_path, table, k=5)
    assert path.name == "suspicious_labels.png" and path.with_suffix(".svg").is_file()
    assert "12 doubted, the 5 least likely" in drawn["suspicious_labels"].get_suptitle()
    assert len([axis for axis in drawn["suspicious_labels"].axes if axis.images]) == 5
    text = drawn["suspicious_labels"].axes[0].get_xlabel()
    assert text.startswith("label: mel (melanoma), 2%\nsuggested: nv (nevus), 88%\n")
    assert text.endswith("diagnosed by: histo")
    draw_suspicious_labels([run], tmp_path, table.head(0))
    assert drawn["suspicious_labels"].axes[0].texts[0].get_text() == "no label is in doubt"
