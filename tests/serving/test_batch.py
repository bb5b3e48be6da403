import csv
import json

import pandas as pd
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.challenge import read_submission
from lesionfast.serving import predictor as predictor_module
from lesionfast.serving.batch import predict_to
from lesionfast.serving.inputs import Item
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


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("cut", [0, 1, 40, 700, 2500])
def test_a_run_that_was_cut_off_goes_on(predictor, items, tmp_path, kind, cut):
    whole, torn = tmp_path / f"whole.{kind}", tmp_path / f"torn.{kind}"
    predict_to(predictor, items, whole, kind)
    torn.write_bytes(whole.read_bytes()[: -cut or None])
    count = predict_to(predictor, items, torn, kind, resume=True)
    assert (count.images, count.failed) == (10, 1)
    assert count.before == 10 if cut == 0 else count.before < 10
    ours, theirs = read(torn), read(whole)
    assert [row["image"] for row in ours] == [row["image"] for row in theirs]
    assert [float(r["p_nv"] or 0) for r in ours] == pytest.approx(
        [float(r["p_nv"] or 0) for r in theirs], abs=1e-6
    )


def test_resuming_before_anything_was_written_begins(predictor, items, tmp_path):
    assert predict_to(predictor, items, tmp_path / "a.csv", resume=True).images == 10
    (tmp_path / "b.csv").touch()
    with pytest.raises(LesionfastError, match="is there already"):
        predict_to(predictor, items, tmp_path / "b.csv")
    assert predict_to(predictor, items, tmp_path / "b.csv", resume=True).images == 10
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_a_file_is_never_overwritten(predictor, items, tmp_path):
    file = tmp_path / "out.csv"
    predict_to(predictor, items, file)
    before = file.read_bytes()
    with pytest.raises(LesionfastError, match="is there already. Go on with it by --resume"):
        predict_to(predictor, items, file)
    with pytest.raises(LesionfastError, match="is of other images: number 1 is"):
        predict_to(predictor, items[1:], file, resume=True)
    with pytest.raises(LesionfastError, match="there are no more"):
        predict_to(predictor, items[:3], file, resume=True)
    assert file.read_bytes() == before
    (tmp_path / "other.csv").write_text("image,age\na,1\n", "utf-8")
    with pytest.raises(LesionfastError, match="is of another model"):
        predict_to(predictor, items, tmp_path / "other.csv", resume=True)
    with pytest.raises(LesionfastError, match="goes on with CSV and JSON lines, not with parquet"):
        predict_to(predictor, items, tmp_path / "x.parquet", "parquet", resume=True)


def test_a_submission_is_what_the_challenge_reads(predictor, photos, tmp_path):
    items = [Item(f"folder/ISIC_{i}.jpg", path) for i, path in enumerate(photos[:5])]
    count = predict_to(predictor, [*items, Item("gone.jpg", None)], tmp_path / "s.csv", "isic")
    found = read_submission(tmp_path / "s.csv")
    assert found["image"].tolist() == [f"ISIC_{i}" for i in range(5)] and count.failed == 1
    assert found.columns.tolist() == ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    expected = predictor.predict(pd.DataFrame({"path": photos[:5]}))["p_mel"]
    assert found["MEL"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_progress_and_what_was_not_known_are_told(predictor, items, tmp_path, caplog):
    seen = []
    predict_to(predictor, items, tmp_path / "out.csv", progress=seen.append)
    assert seen == [4, 8, 10]
    assert "age is not known of 9 of 9 images" in caplog.text
