"""What to label next of a folder, the page that takes the list, and the training that follows."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

import lesionfast as lf
from lesionfast.cli import app
from lesionfast.cli.labelling import HOW_READ, OF_THE_SPLIT
from lesionfast.config import DataConfig, flag_name
from lesionfast.data.corrections.answers import Answer, Answers, append_answer
from lesionfast.data.layouts.convert import convert
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.labelling.selection import margins, share_scores
from lesionfast.serving.labelling.candidates import choose_next, write_labelled, write_list
from lesionfast.serving.labelling.page import item_html
from lesionfast.serving.labelling.queue import Item, Queue, read_list
from lesionfast.serving.predictor import Predictor

TINY = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "unfreeze": "none"}
TINY |= {"tta": 1, "precision": "float32"}
NEW = 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The sample without some of its lesions, and a folder of their images under other names."""
    root = tmp_path_factory.mktemp("data")
    whole = convert(DataConfig(), root / "labelled")
    table = pd.read_csv(whole / "metadata.csv", dtype=str)
    (root / "photos").mkdir()
    lesions = table["lesion_id"].drop_duplicates().tail(NEW)
    new = table[table["lesion_id"].isin(lesions)]
    for name in new["image_id"]:
        (file,) = (whole / "images").glob(f"{name}.*")
        shutil.move(file, root / "photos" / f"new_{file.name}")
    table[~table["image_id"].isin(new["image_id"])].to_csv(whole / "metadata.csv", index=False)
    return whole, root / "photos"


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory) -> lf.Run:
    """Three folds."""
    df = lf.load_data(folders[0])
    out = tmp_path_factory.mktemp("runs")
    return lf.train(df, out=out, name="folds", folds=3, all=True, **TINY)


@pytest.fixture(scope="module")
def listed(run, folders) -> pd.DataFrame:
    return choose_next(run, [str(folders[1])], n=8)


def test_the_list_has_the_doubt_of_the_folds(run, folders, listed):
    assert len(listed) == 8 and listed["image"].is_unique
    assert listed["image"].str.startswith("new_").all()
    assert all(Path(path).is_file() for path in listed["path"])
    assert (listed["disagreement"] > 0).all() and listed["margin"].between(0, 1).all()
    predicted = Predictor(run).predict(listed[["path"]])
    probabilities = predicted[[f"uncalibrated_{name}" for name in run.classes]].to_numpy(float)
    expected = margins(share_scores(probabilities, run.decision_rule))
    assert listed["margin"].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert predicted["likely"].tolist() == listed["suggested"].tolist()
    shown = predicted[[f"p_{name}" for name in run.classes]].max(axis=1).to_numpy(float)
    assert listed["probability"].to_numpy() == pytest.approx(shown, abs=1e-5)  # calibrated


def test_answered_and_known_images_are_not_listed(run, folders, listed, caplog):
    answers = Answers(tuple(Answer.parse(image, "is nv") for image in listed["image"]))
    again = choose_next(run, [str(folders[1]), str(folders[0] / "images")], 5, answers)
    assert not set(again["image"]) & set(listed["image"])
    assert again["image"].str.startswith("new_").all()
    assert "8 images with an answer" in caplog.text and "that the run knows" in caplog.text
    with pytest.raises(LesionfastError, match="known or answered, so there is nothing"):
        choose_next(run, [str(folders[0] / "images")])
    with pytest.raises(LesionfastError, match="--n is 0; type 1 or more"):
        choose_next(run, [str(folders[1])], 0)


def test_two_images_of_one_name_are_refused(run, folders, tmp_path):
    photo = next(folders[1].iterdir())
    shutil.copy(photo, tmp_path / photo.name)
    with pytest.raises(LesionfastError, match="two images are named 'new_.*Rename one"):
        choose_next(run, [str(folders[1]), str(tmp_path)])


def test_the_page_takes_the_list(run, listed, tmp_path):
    file = write_list(listed, tmp_path / "next.csv")
    queue = Queue(run, read_list(file), tmp_path / "c.csv", "A")
    first = queue.pending[0]
    assert first.image == listed["image"].iloc[0] and first.label == ""
    view = queue.view(first)
    assert view.left_out == () and view.heat is not None and len(view.similar) == 4
    html = item_html(queue)
    assert "What is it?" in html and 'data-answer="right"' not in html
    assert 'data-answer="is mel"' in html and "0 of 8 answered" in html
    with pytest.raises(LesionfastError, match="has no label to confirm"):
        queue.answer(first.image, "right")
    queue.answer(first.image, "is mel")
    assert queue.done == 1 and queue.pending[0].image == listed["image"].iloc[1]
    queue.postpone(queue.pending[0].image)
    assert queue.pending[0].image == listed["image"].iloc[2]
    assert queue.pending[-1].image == listed["image"].iloc[1]
    assert queue.undo().text == "is mel" and queue.pending[0].image == first.image
    with pytest.raises(LesionfastError, match="no answer to take back"):
        queue.undo()


def test_an_image_that_cannot_be_read_is_asked_for_with_the_reason(run, listed, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = {"gone": tmp_path / "gone.jpg", "broken": tmp_path / "broken.jpg"}
    items = [Item(name, str(path), "", "mel", {}) for name, path in paths.items()]
    queue = Queue(run, items, tmp_path / "c.csv")
    for item in items:
        view = queue.view(item)
        assert view.photo is None and view.seen is None and view.left_out
    assert "0 of 2 answered" in item_html(queue)


def test_nothing_in_a_list_becomes_html(run, listed, tmp_path):
    name = '"><script>alert(1)</script>'
    row = {"suggested": "<b>mel", "probability": 0.5, "sex": "<i>male"}
    item = Item(name, listed["path"].iloc[0], "<u>nv", "mel", row)
    html = item_html(Queue(run, [item], tmp_path / "c.csv"), "<script>")
    assert not any(mark in html for mark in ("<script", "<b>", "<i>", "<u>"))


def test_labelled_images_join_the_training_and_the_held_out_ones_stay(
    run, folders, listed, tmp_path
):
    file = tmp_path / "new.csv"
    for image in listed["image"].head(3):
        append_answer(file, Answer.parse(image, "is nv"))
    append_answer(file, Answer.parse(listed["image"].iloc[3], "unclear"))
    from lesionfast.data.corrections.answers import read_answers

    table, split = write_labelled(run, [str(folders[1])], read_answers(file), tmp_path / "more")
    assert len(pd.read_csv(table / "metadata.csv")) == len(list((table / "images").iterdir())) == 3
    df = lf.load_data([folders[0], table], split=split, corrections=file)
    parts = df.set_index("image_id")["split"]
    assert set(parts[listed["image"].head(3)]) == {"train"} and len(df) == len(run.split) + 3
    tested = run.split.loc[run.split["split"] == "test", "image_id"]
    assert set(parts[parts == "test"].index) == set(tested)
    assert (df.groupby("group")["split"].nunique() == 1).all()
    with pytest.raises(LesionfastError, match="more exists already. Name another folder"):
        write_labelled(run, [str(folders[1])], read_answers(file), table)
    with pytest.raises(LesionfastError, match="was given a class"):
        write_labelled(run, [str(folders[1])], Answers(), tmp_path / "none")


def test_labelled_images_that_the_run_knows_are_left_out(run, folders, listed, tmp_path, caplog):
    known, new = run.split["image_id"].iloc[0], listed["image"].iloc[0]
    answers = Answers(tuple(Answer.parse(image, "is nv") for image in (known, new)))
    photos = [str(folders[1]), str(folders[0] / "images")]
    table, split = write_labelled(run, photos, answers, tmp_path / "more")
    assert pd.read_csv(table / "metadata.csv")["image_id"].tolist() == [new]
    assert pd.read_csv(split)["image_id"].is_unique
    assert "Left out 1 image that the run knows" in caplog.text
    with pytest.raises(LesionfastError, match="no new image of"):
        write_labelled(run, photos[1:], answers, tmp_path / "none")


def test_the_commands_write_what_they_print(run, folders, listed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call(["next", str(run.path), str(folders[1]), "--n", "3"])
    shown = capsys.readouterr()
    assert shown.out.strip() == "next.csv" and "--page --list next.csv" in shown.err
    assert pd.read_csv("next.csv")["image"].nunique() == 3
    append_answer("c.csv", Answer.parse(listed["image"].iloc[0], "is nv"))
    more = ["--corrections", "c.csv", "--labelled", "more"]
    call(["next", str(run.path), str(folders[1]), *more])
    shown = capsys.readouterr()
    assert shown.out.strip() == "more" and Path("more-split.csv").is_file()
    assert f"--data {folders[0]} --data more --split more-split.csv" in shown.err
    image = run.predictions["image_id"].iloc[0]
    append_answer("d.csv", Answer.parse(image, "unclear"))
    files = ["--fiftyone", "fo", "--label-studio", "tasks.json", "--corrections", "d.csv"]
    call(["labels", str(run.path), *files])
    assert capsys.readouterr().out.split()[-3:] == ["fo", "tasks.json", "tasks.xml"]
    assert json.loads(Path("tasks.json").read_text()) and Path("fo/samples.json").is_file()
    for wrong, message in (
        (["labels", str(run.path), "--list", "next.csv"], "--list next.csv is for the page"),
        (["labels", str(run.path), "--page", "--csv", "x.csv"], "--page writes answers alone"),
        (["next", str(run.path), str(folders[1]), "--labelled", "y"], "--labelled needs answers"),
    ):
        with pytest.raises(LesionfastError, match=message):
            call(wrong)


def test_the_lines_that_next_prints_train_with_the_options_of_the_run(
    folders, listed, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    table = pd.read_csv(folders[0] / "metadata.csv", dtype=str)
    names = {"image_id": "picture", "dx": "finding", "lesion_id": "spot"}
    table.rename(columns=names).to_csv("cases.csv", index=False)
    call([
        *("train", "--csv", "cases.csv", "--images", str(folders[0] / "images"), "--out", "runs"),
        *("--image", "picture", "--target", "finding", "--group", "spot", "--name", "first"),
        *("--map", "akiec=bcc", "--map", "vasc=drop", "--drop-class", "df", "--no-cache"),
        *(word for name, value in TINY.items() for word in (flag_name(name), str(value))),
    ])  # fmt: skip
    append_answer("c.csv", Answer.parse(listed["image"].iloc[0], "is bcc"))
    capsys.readouterr()
    more = ["--corrections", "c.csv", "--labelled", "more"]
    call(["next", "runs/first", str(folders[1]), *more])
    lines = re.findall("^type: lesionfast (.+)$", capsys.readouterr().err, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        call([*shlex.split(line), *(["--name", "second"] if line.startswith("train") else [])])
    first, second = lf.Run("runs/first"), lf.Run("runs/second")
    assert second.classes == first.classes == ["bcc", "bkl", "mel", "nv"]
    assert len(second.split) == len(first.split) + 1
    assert (second.split["split"] == "test").sum() == (first.split["split"] == "test").sum()
    same = set(asdict(first.config)) - {*HOW_READ, "data", *OF_THE_SPLIT}
    assert {name: getattr(second.config, name) for name in same} == {
        name: getattr(first.config, name) for name in same
    }


def call(words: list[str]) -> None:
    """Run a command in this process."""
    app(words, standalone_mode=False)
