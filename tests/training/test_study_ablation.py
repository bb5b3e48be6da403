"""The same run with less to go by: same split and seed, trained once, metadata withheld truly."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import WITHHELD
from lesionfast.models.fusion import load_model
from lesionfast.run import WITHOUT_METADATA, Run
from lesionfast.serving.predictor import Predictor, find_caution
from lesionfast.training.experiment import train
from lesionfast.training.study import IMAGE, METADATA, ablate

TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    epochs=2,
    batch_size=16,
    tta=1,
    lr=5e-3,
    precision="float32",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(load_dataset(TINY), TINY, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def found(run):
    return ablate(run)


def test_the_others_share_split_seed_and_options(run, found):
    assert list(found.others) == [IMAGE, METADATA, WITHHELD]
    for other in found.others.values():
        assert other.metrics["split_sha256"] == run.metrics["split_sha256"]
        assert (other.config.seed, other.config.lr) == (run.config.seed, run.config.lr)
        assert other.path.parent == run.path / "ablation"
    assert found.others[IMAGE].model["fusion"] == "none"
    assert found.others[METADATA].model["fusion"] == "metadata"


def test_withheld_are_the_run_s_own_weights_that_know_no_age_and_sex(run, found):
    withheld = found.others[WITHHELD].predictions
    rows = run.predictions[run.predictions["split"] == "test"].head(8)
    encoder = MetadataEncoder.from_run(run)
    unknown = encoder.transform(rows.assign(age=np.nan, sex=None))
    pixels = open_images(rows["path"].tolist(), 32, resize=run.config.resize).pixels
    image = torch.from_numpy(np.array(pixels)).movedim(-1, 1).float() / 255
    with torch.inference_mode():
        expected = load_model(run)(image, torch.from_numpy(unknown)).softmax(dim=1).numpy()
    columns = [f"p_{name}" for name in run.classes]
    known = withheld.set_index("image_id").loc[rows["image_id"], columns].to_numpy()
    np.testing.assert_allclose(known, expected, atol=1e-4)
    assert not np.allclose(known, rows[columns].to_numpy(), atol=1e-4)


def test_what_is_there_is_not_trained_again(run, found):
    stamps = {o.path: (o.path / "metrics.json").stat().st_mtime_ns for o in found.others.values()}
    again = ablate(Run(run.path))
    assert {
        o.path: (o.path / "metrics.json").stat().st_mtime_ns for o in again.others.values()
    } == stamps
    assert again.table.equals(found.table)


def test_what_an_earlier_version_trained_with_another_auto_is_there_too(run, found, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    split = str(copy.path / "split.csv")
    for name in (IMAGE, METADATA):
        there = Run(copy.path / "ablation" / found.others[name].path.name)
        there.write_text("config.json", replace(there.config, split=split, pool="auto").to_json())
        there.write_json("model.json", there.model | {"pool": "max"})
    copy.write_json("model.json", copy.model | {"pool": "max"})
    again = ablate(Run(copy.path))
    assert again.others[IMAGE].config.pool == "auto"
    shutil.rmtree(again.others[IMAGE].path)
    assert ablate(Run(copy.path)).others[IMAGE].model["pool"] == "max" != run.model["pool"]


def test_the_table_and_the_words_tell_of_all_three(found):
    assert set(found.table["system"]) == {"whole", IMAGE, METADATA, WITHHELD}
    words = found.words()
    assert "training without age and sex" in words[0] and "points [" in words[2]


def test_a_run_that_fuses_nothing_is_refused(found):
    with pytest.raises(LesionfastError, match="fusion 'none', so there is nothing to ablate"):
        ablate(found.others[IMAGE])


def test_a_run_that_did_not_end_is_refused(run, tmp_path):
    half = Run.create(tmp_path, replace(TINY, epochs=1))
    with pytest.raises(LesionfastError, match="is not finished. Continue with"):
        ablate(half)


def test_an_ensemble_is_refused(run, tmp_path):
    made = Run.create(tmp_path, TINY, "ensemble")
    told = {"split_sha256": "", "train_seconds": 0, "status": "finished"}
    made.write_json("metrics.json", told)
    model = {"members": ["a", "b"], "classes": ["mel"], "prior": [1], "rule": "argmax"}
    made.write_json("model.json", model)
    with pytest.raises(LesionfastError, match="is an ensemble"):
        ablate(made)


def test_the_run_keeps_what_it_predicts_without_metadata_from_the_same_views(run, found):
    """As predicting again with every age and sex unknown gives it."""
    kept, again = run.predictions_without_metadata, found.others[WITHHELD].predictions
    assert kept["image_id"].tolist() == run.predictions["image_id"].tolist()
    columns = ["image_id", "split", *(f"p_{name}" for name in run.classes)]
    again = again.set_index("image_id").loc[kept["image_id"]].reset_index()
    pd.testing.assert_frame_equal(kept[columns], again[columns], atol=1e-5)
    assert not (run.path / "ablation" / "image-alone" / WITHOUT_METADATA).exists()


def test_ablate_says_what_becomes_of_the_melanomas(found):
    rows = found.table[found.table["metric"] == "sensitivity"].set_index("system")
    words = found.words()[-1]
    assert words.startswith(f"Melanoma sensitivity is {rows.loc['whole', 'value']:.3f} [")
    assert f"{100 * rows.loc[WITHHELD, 'difference']:+.1f} points [" in words
    assert ("Warning" in words) == (rows.loc[WITHHELD, "difference_high"] < 0)


@pytest.fixture
def old(run, tmp_path):
    """The run as an earlier version left it: without the option and without these predictions."""
    shutil.copytree(run.path, tmp_path / "old", ignore=shutil.ignore_patterns("ablation"))
    old = Run(tmp_path / "old")
    old.remove(WITHOUT_METADATA)
    model = {k: v for k, v in run.model.items() if k != "metadata_dropout"}
    old.write_json("model.json", model)
    return Run(old.path)


def test_a_model_of_old_says_what_unknown_age_and_sex_do(run, old):
    assert find_caution(run.model, run) == ""
    words = find_caution(old.model, old)
    assert (
        "trained without --metadata-dropout, so a missing age or sex may favour one class" in words
    )
    kept = run.predictions_without_metadata
    valid = kept[kept["split"] == "valid"][[f"p_{name}" for name in run.classes]].mean()
    told = re.search(r"on validation the mean probability of (\w+) is ([\d.]+) without", words)
    assert float(told[2]) == pytest.approx(valid[f"p_{told[1]}"], abs=0.01)


def test_predicting_without_metadata_says_so_once(old, caplog):
    photo = old.predictions["path"].iloc[0]
    predictor = Predictor(old)
    predictor(photo, age=50, sex="male")
    assert "--metadata-dropout" not in caplog.text
    for _ in range(2):
        predictor(photo)
    assert caplog.text.count("trained without --metadata-dropout") == 1


def test_an_exported_model_of_old_says_so_too(old):
    assert find_caution(old.model).endswith(
        "may favour one class. Give the metadata, or train again with --metadata-dropout 0.25."
    )
    assert (
        find_caution(old.model | {"fusion": "none"})
        == find_caution(old.model | {"metadata": []})
        == ""
    )
