import csv
import json
import logging
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.isic import challenge_columns
from lesionfast.serving import predictor as predictor_module
from lesionfast.serving.inputs import Item, find_items
from lesionfast.serving.outputs import (
    describe_origin,
    note_path,
    predict_inputs,
    predict_to,
    to_isic,
)
from lesionfast.serving.predictor import Predictor


@pytest.fixture
def predictor(exported, monkeypatch):
    monkeypatch.setattr(predictor_module, "CHUNK", 4)
    return Predictor(exported)


@pytest.fixture
def items(photos):
    """Ten images, one of which is not there, under names that CSV has to quote."""
    found = [Item(f'photo "{i}",\nline', path) for i, path in enumerate(photos[:10])]
    found[5] = Item("gone, too", None)
    return found


def read(file):
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened))
    if file.suffix == ".parquet":
        return pd.read_parquet(file).to_dict("records")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_each_format_has_every_row_and_the_error(predictor, items, tmp_path, kind):
    file = tmp_path / "new" / f"out.{kind}"
    count = predict_to(predictor, items, file, kind)
    assert (count.images, count.failed) == (10, 1)
    rows = read(file)
    assert [row["image"] for row in rows] == [item.name for item in items]
    assert [bool(row["error"]) for row in rows] == [i == 5 for i in range(10)]
    assert rows[5]["error"] == "there is no image 'gone, too'"
    assert rows[5]["decision"] == "" or pd.isna(rows[5]["decision"])
    expected = predictor.predict(pd.DataFrame({"path": [item.path for item in items[:5]]}))
    assert [float(row["p_mel"]) for row in rows[:5]] == pytest.approx(list(expected["p_mel"]))
    flags = {str(row["mel_at_specificity_90"]).lower() for row in rows if not row["error"]}
    assert flags <= {"true", "false"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_names_of_several_words_can_be_read_back(wordy, items, tmp_path, kind):
    predictor = Predictor(wordy)
    predict_to(predictor, items, tmp_path / f"out.{kind}", kind)
    rows = read(tmp_path / f"out.{kind}")
    expected = predictor.predict(pd.DataFrame({"path": [items[0].path]})).iloc[0]
    assert shlex.split(rows[0]["prediction_set"]) == list(expected["prediction_set"])
    assert {"basal cell, carcinoma", "<b>bkl"} <= set(expected["prediction_set"])
    assert shlex.split(rows[0]["not_known"]) == ["age", "sex at birth"]


def test_names_of_one_word_stand_between_spaces(predictor, items, tmp_path):
    predict_to(predictor, items, tmp_path / "out.csv")
    row = read(tmp_path / "out.csv")[0]
    assert row["not_known"] == "age sex"
    assert set(row["prediction_set"].split(" ")) <= set(predictor.bundle.classes)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("cut", [0, 1, 40, 700, 2500, 1_000_000])
def test_a_run_that_was_cut_off_goes_on(predictor, items, tmp_path, kind, cut):
    whole, torn = tmp_path / f"whole.{kind}", tmp_path / f"torn.{kind}"
    predict_to(predictor, items, whole, kind)
    data = whole.read_bytes()
    torn.write_bytes(data[: -cut or None] or data[:3])
    note_path(torn).write_bytes(note_path(whole).read_bytes())
    count = predict_to(predictor, items, torn, kind, resume=True)
    assert (count.images, count.failed) == (10, 1)
    assert count.before == 10 if cut == 0 else count.before < 10
    assert torn.read_bytes() == whole.read_bytes()


def test_resuming_before_anything_was_written_begins(predictor, items, tmp_path):
    assert predict_to(predictor, items, tmp_path / "a.csv", resume=True).images == 10
    (tmp_path / "b.csv").touch()
    with pytest.raises(LesionfastError, match="exists already"):
        predict_to(predictor, items, tmp_path / "b.csv")
    assert predict_to(predictor, items, tmp_path / "b.csv", resume=True).images == 10
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize("text", ["image_id,age\n", 'image_id,age\n"open,50\n'])
def test_without_an_image_no_file_is_begun(predictor, tmp_path, text):
    table = tmp_path / "cases.csv"
    table.write_text(text, "utf-8")
    with pytest.raises(LesionfastError):
        predict_to(predictor, find_items([str(table)]), tmp_path / "new" / "out.csv")
    assert list(tmp_path.iterdir()) == [table]


def test_a_file_is_never_overwritten(predictor, items, tmp_path):
    file = tmp_path / "out.csv"
    predict_to(predictor, items, file)
    before = file.read_bytes()
    with pytest.raises(LesionfastError, match="exists already. Continue it with --resume"):
        predict_to(predictor, items, file)
    with pytest.raises(LesionfastError, match="holds other images: number 1 is"):
        predict_to(predictor, items[1:], file, resume=True)
    with pytest.raises(LesionfastError, match="there are no more"):
        predict_to(predictor, items[:3], file, resume=True)
    assert file.read_bytes() == before
    with pytest.raises(LesionfastError, match="continues CSV and JSON lines, not parquet"):
        predict_to(predictor, items, tmp_path / "x.parquet", "parquet", resume=True)


@pytest.mark.parametrize("text", ["image,age\na,1\n", "a text without an end of line", "{}\n"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_of_someone_else_is_not_touched_by_resume(predictor, items, tmp_path, text, kind):
    mine = tmp_path / "mine.csv"
    mine.write_text(text, "utf-8")
    with pytest.raises(LesionfastError, match="can't be resumed: .mine.csv.resume.json"):
        predict_to(predictor, items, mine, kind, resume=True)
    note_path(mine).write_text(json.dumps(describe_origin(predictor, kind, {})), "utf-8")
    with pytest.raises(LesionfastError, match="is damaged|has other columns|holds other images"):
        predict_to(predictor, items, mine, kind, resume=True)
    assert mine.read_text("utf-8") == text


def make_link(path):
    path.with_name("mine").write_text("mine")
    path.symlink_to(path.with_name("mine"))


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("make", [os.mkfifo, make_link, os.mkdir])
def test_predictions_replace_no_link_pipe_or_folder(predictor, items, tmp_path, make, resume):
    make(tmp_path / "out.csv")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LesionfastError, match=r"out.csv is a .* nothing is written there"):
        predict_to(predictor, items, tmp_path / "out.csv", resume=resume)
    assert sorted(tmp_path.iterdir()) == before


def with_other_weights(predictor, tmp_path):
    predictor.weights = tmp_path / "other.safetensors"
    predictor.weights.write_bytes(b"others")


def with_other_thresholds(predictor, tmp_path):
    predictor.bundle = replace(predictor.bundle, points=predictor.bundle.points[1:])


def with_one_view(predictor, tmp_path):
    predictor.views = 1


@pytest.mark.parametrize(
    "change, told",
    [
        (with_other_weights, r"other weights \(SHA-256 \w+, now \w+\)"),
        (with_other_thresholds, r"other decisions \(SHA-256"),
        (with_one_view, "--tta 2, now 1"),
    ],
)
def test_resuming_mixes_no_two_models(predictor, items, tmp_path, change, told):
    out = tmp_path / "out.csv"
    predict_to(predictor, items[:5], out)
    before = out.read_bytes()
    change(predictor, tmp_path)
    with pytest.raises(LesionfastError, match=f"out.csv was begun by another model.*: {told}"):
        predict_to(predictor, items, out, resume=True)
    assert out.read_bytes() == before


def test_resuming_mixes_no_two_ages(predictor, items, tmp_path):
    out = tmp_path / "out.csv"
    predict_to(predictor, items[:5], out, options={"--set": {"age": "55", "sex": "male"}})
    with pytest.raises(LesionfastError, match="--set age=55 sex=male, now age=60"):
        predict_to(predictor, items, out, resume=True, options={"--set": {"age": "60"}})
    with pytest.raises(LesionfastError, match="--set age=55 sex=male, now not given"):
        predict_to(predictor, items, out, resume=True)


def test_a_finished_file_may_be_resumed_with_more_images(predictor, items, tmp_path):
    predict_to(predictor, items[:5], tmp_path / "out.csv")
    predict_to(predictor, items, tmp_path / "out.csv", resume=True)
    count = predict_to(predictor, items, tmp_path / "out.csv", resume=True)
    assert (count.images, count.before) == (10, 10)
    assert len(read(tmp_path / "out.csv")) == 10


def test_two_calls_do_not_write_one_file(predictor, items, tmp_path):
    refused = []

    def write_it_too(images):
        with pytest.raises(LesionfastError, match="another process is writing") as error:
            predict_to(predictor, items, tmp_path / "out.csv", resume=True)
        refused.append(error)

    predict_to(predictor, items, tmp_path / "out.csv", progress=write_it_too)
    assert len(refused) == 3 and len(read(tmp_path / "out.csv")) == 10


@pytest.mark.parametrize("stop", [KeyboardInterrupt, LesionfastError])
@pytest.mark.parametrize("kind", ["parquet", "isic"])
def test_what_can_not_be_resumed_has_its_name_only_when_it_is_whole(
    predictor, items, tmp_path, kind, stop
):
    def stop_in_the_middle(images):
        assert not (tmp_path / "out").exists()
        if images > 4:
            raise stop("stopped")

    with pytest.raises(stop):
        predict_to(predictor, items, tmp_path / "out", kind, progress=stop_in_the_middle)
    assert list(tmp_path.iterdir()) == []
    predict_to(predictor, items, tmp_path / "out", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def fill(disk, left):
    """Fill a file system until `left` bytes are free."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free - left))


def test_a_full_disk_keeps_whole_rows_and_says_how_to_go_on(predictor, photos, small_disk):
    items = [Item(f"{i} {'long' * 400}", path) for i, path in enumerate(photos[:12])]
    predict_to(predictor, items, small_disk / "whole.csv")
    whole = (small_disk / "whole.csv").read_bytes()
    fill(small_disk, left=24_000)
    go_on = r"out.csv can't be written: the disk is full.* free. Free some space, then continue"
    with pytest.raises(LesionfastError, match=go_on):
        predict_to(predictor, items, small_disk / "out.csv")
    half = (small_disk / "out.csv").read_bytes()
    assert 0 < half.count(b"\n") < 12 and whole.startswith(half) and half.endswith(b"\n")
    (small_disk / "filler").unlink()
    assert predict_to(predictor, items, small_disk / "out.csv", resume=True).images == 12
    assert len(read(small_disk / "out.csv")) == 12


@pytest.mark.parametrize("kind", ["parquet", "isic"])
def test_a_full_disk_leaves_no_half_file(predictor, photos, small_disk, kind):
    items = [Item(f"{i} {'long' * 400}", path) for i, path in enumerate(photos[:12])]
    fill(small_disk, left=8192)
    with pytest.raises(LesionfastError, match="can't be written: the disk is full"):
        predict_to(predictor, items, small_disk / f"out.{kind}", kind)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "isic"])
def test_a_name_that_is_not_utf8_has_its_row(predictor, photos, tmp_path, kind):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"1.jpg", b"2\\m\xe9l.jpg", b"3.jpg", b"4\xff.jpg"):
        shutil.copy(photos[0], os.fsencode(folder) + b"/" + name)
    (folder / "4\udcff.jpg").write_bytes(b"broken")
    out = tmp_path / f"out.{kind}"
    assert predict_to(predictor, find_items([str(folder)]), out, kind).images == 4
    if kind == "isic":
        assert pd.read_csv(out, dtype={"image": str})["image"].tolist() == ["1", r"2\\m\xe9l", "3"]
        return
    rows = read(out)
    names = [Path(row["image"]).name for row in rows]
    assert names == ["1.jpg", r"2\\m\xe9l.jpg", "3.jpg", r"4\xff.jpg"]
    assert names[1].encode().decode("unicode_escape").encode("latin-1") == b"2\\m\xe9l.jpg"
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]


def test_a_submission_is_what_the_challenge_reads(predictor, photos, tmp_path):
    items = [Item(f"folder/ISIC_{i}.jpg", path) for i, path in enumerate(photos[:5])]
    count = predict_to(predictor, [*items, Item("gone.jpg", None)], tmp_path / "s.csv", "isic")
    found = pd.read_csv(tmp_path / "s.csv")
    assert found["image"].tolist() == [f"ISIC_{i}" for i in range(5)] and count.failed == 1
    assert found.columns.tolist() == ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    expected = predictor.predict(pd.DataFrame({"path": photos[:5]}))["p_mel"]
    assert found["MEL"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.fixture
def withholding(predictor):
    """A predictor to which every picture is unlike the training images."""
    predictor.bundle = replace(predictor.bundle, ood=replace(predictor.bundle.ood, threshold=-99.0))
    return predictor


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_picture_without_a_decision_has_no_probability(withholding, items, tmp_path, kind):
    file, classes = tmp_path / f"out.{kind}", withholding.bundle.classes
    predict_to(withholding, items[:2], file, kind)
    for row in read(file):
        assert all(row[f"p_{name}"] in ("", None) or pd.isna(row[f"p_{name}"]) for name in classes)
        assert sum(float(row[f"uncalibrated_{name}"]) for name in classes) == pytest.approx(1)
    if kind == "jsonl":
        assert '"p_mel": null' in file.read_text("utf-8")


def test_a_submission_has_the_models_own_probabilities_where_no_decision_is_given(
    withholding, items, tmp_path
):
    predict_to(withholding, items[:3], tmp_path / "s.csv", "isic")
    rows = pd.read_csv(tmp_path / "s.csv")
    own = withholding.predict(pd.DataFrame({"path": [item.path for item in items[:3]]}))
    assert rows["MEL"].tolist() == pytest.approx(own["uncalibrated_mel"].tolist(), abs=1e-6)
    few = own.drop(columns=own.filter(like="uncalibrated_").columns)
    with pytest.raises(LesionfastError, match="3 images without a decision, .* Predict .* --all"):
        to_isic(few, challenge_columns(few.columns))


def test_progress_and_what_was_not_known_are_told(predictor, items, tmp_path, caplog):
    seen = []
    predict_to(predictor, items, tmp_path / "out.csv", progress=seen.append)
    assert seen == [4, 8, 10]
    assert "Age is missing for 9 of 9 images" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_has_few_columns_unless_all_are_asked_for(exported, photos, tmp_path, kind):
    pytest.importorskip("pyarrow")
    few, every = tmp_path / f"few.{kind}", tmp_path / f"every.{kind}"
    predict_inputs(exported, photos[:3], few, kind, metadata={}, all_columns=False)
    predict_inputs(exported, photos[:3], every, kind, metadata={})
    few, every = read(few), read(every)
    assert len(few[0]) == 12 and {"decision", "uncalibrated_mel", "not_known"} <= set(every[0])
    assert [row["advice"] for row in few] == [row["advice"] for row in every]


def test_an_estimated_prior_is_the_one_that_is_printed(exported, photos, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lesionfast"):
        predict_inputs(exported, photos, tmp_path / "a.csv", "csv", metadata={}, prior="estimate")
    typed = re.search(r"to use them again: --prior (\S+)", caplog.text)[1]
    assert json.loads(note_path(tmp_path / "a.csv").read_text())["--prior"] == typed
    predict_inputs(exported, photos, tmp_path / "b.csv", "csv", metadata={}, prior=typed)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with pytest.raises(LesionfastError, match="a shard does not see all the images"):
        choices = {"metadata": {}, "prior": "estimate", "shard": "1/2"}
        predict_inputs(exported, photos, tmp_path / "c.csv", "csv", **choices)


def test_a_file_goes_on_with_the_same_costs_and_class_shares_alone(exported, photos, tmp_path):
    out, same = tmp_path / "out.csv", {"cost": "missed_cancer=5", "prior": "mel=0.05"}
    predict_inputs(exported, photos[:3], out, "csv", metadata={}, **same)
    for other in ({}, {**same, "prior": "mel=0.1"}, {**same, "cost": None}):
        with pytest.raises(LesionfastError, match="other options: .*--(cost|prior)"):
            predict_inputs(exported, photos[:5], out, "csv", metadata={}, resume=True, **other)
    done = predict_inputs(exported, photos[:5], out, "csv", metadata={}, resume=True, **same)
    assert done.images == 5 and len(read(out)) == 5
