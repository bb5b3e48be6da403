"""Doubtful labels and answers as FiftyOne and Label Studio read them."""

import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

import lesionfast as lf
from lesionfast.data.corrections.answers import Answer, Answers
from lesionfast.evaluation.labelling.exports import (
    list_cases,
    make_interface,
    write_fiftyone,
    write_label_studio,
)
from lesionfast.evaluation.labels import doubtful_labels

TINY = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "unfreeze": "none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> lf.Run:
    return lf.train(lf.load_data(), out=tmp_path_factory.mktemp("runs"), tta=1, **TINY)


@pytest.fixture(scope="module")
def doubted(run):
    return doubtful_labels([run])


@pytest.fixture(scope="module")
def answers(run, doubted) -> Answers:
    """One label confirmed, one changed, one unclear, and one of an image that was not in doubt."""
    first, second, third = doubted["image_id"].head(3)
    others = run.predictions.loc[~run.predictions["image_id"].isin(doubted["image_id"]), "image_id"]
    said = {first: "right", second: "is vasc", third: "unclear", others.iloc[0]: "is mel"}
    return Answers(tuple(Answer.parse(image, text) for image, text in said.items()))


def test_all_doubted_and_all_answered_images_are_cases(run, doubted, answers):
    cases = {case["image_id"]: case for case in list_cases([run], answers)}
    assert set(cases) == set(doubted["image_id"]) | set(answers.labels)
    *_, other = answers.labels
    assert cases[other]["tags"] == ["answered"] and "suggested" not in cases[other]
    assert cases[doubted["image_id"].iloc[0]]["tags"] == ["doubtful", "answered"]
    assert cases[doubted["image_id"].iloc[-1]]["tags"] == ["doubtful"]
    assert all(Path(case["path"]).is_file() for case in cases.values())


def test_fiftyone_gets_its_samples(run, doubted, answers, tmp_path):
    folder = write_fiftyone(list_cases([run], answers), tmp_path / "fo", run.classes)
    assert "version" not in json.loads((folder / "metadata.json").read_text())
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    named = {sample["image_id"]: sample for sample in samples}
    first, second, third, other = answers.labels
    row = doubted.iloc[0]
    assert named[first]["ground_truth"] == {"_cls": "Classification", "label": row["target"]}
    assert named[first]["suggested"]["label"] == row["suggested"]
    assert named[first]["suggested"]["confidence"] == pytest.approx(row["probability"])
    assert named[first]["corrected"]["label"] == row["target"]
    assert named[second]["corrected"]["label"] == "vasc" and named[second]["answer"] == "is vasc"
    assert "corrected" not in named[third] and named[third]["answer"] == "unclear"
    assert named[other]["corrected"]["label"] == "mel"
    assert all(Path(sample["filepath"]).is_file() for sample in samples)


def test_label_studio_gets_its_tasks(run, doubted, answers, tmp_path):
    files = write_label_studio(list_cases([run], answers), tmp_path / "t.json", run.classes, "m")
    tasks = {task["data"]["image_id"]: task for task in json.loads(files[0].read_text())}
    first, second, third, other = answers.labels
    controls = ElementTree.fromstring(files[1].read_text())
    names = {
        "from_name": controls.find("Choices").get("name"),
        "to_name": controls.find("Image").get("name"),
    }
    for task in tasks.values():
        path = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        assert Path(f"/{path}").is_file()
        for part in (*task.get("predictions", ()), *task.get("annotations", ())):
            for result in part["result"]:
                assert result.items() >= names.items() and result["type"] == "choices"
                assert set(result["value"]["choices"]) <= set(run.classes)
    assert tasks[second]["annotations"][0]["result"][0]["value"]["choices"] == ["vasc"]
    assert tasks[third]["annotations"] == [{"result": [], "was_cancelled": True}]
    assert (
        "predictions" not in tasks[other] and tasks[first]["predictions"][0]["model_version"] == "m"
    )
    assert 0 < tasks[first]["predictions"][0]["score"] < 1


def test_names_of_classes_may_hold_marks():
    tree = ElementTree.fromstring(make_interface(['a "b" <c> & d']))
    assert tree.find("Choices/Choice").get("value") == 'a "b" <c> & d'
