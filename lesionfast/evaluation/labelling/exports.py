"""Doubtful labels and answers for other programs: FiftyOne's and Label Studio's JSON.

Both refer to the images where they are; none is copied.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pandas as pd

from lesionfast.console import printable
from lesionfast.data.columns.labels import DROP
from lesionfast.data.corrections.answers import IS, RIGHT, Answers
from lesionfast.data.corrections.applying import name_classes
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.evaluation.labels import doubtful_labels, join_answers, out_of_sample
from lesionfast.files import check_target, split_path, write_json, write_text
from lesionfast.run import Run

logger = logging.getLogger("lesionfast")

FIELDS = ("image_id", "group", "age", "sex", "localization", "dx_type")
DOUBTFUL, ANSWERED = "doubtful", "answered"  # tags


def list_cases(runs: Sequence[Run], answers: Answers | None = None) -> list[dict[str, Any]]:
    """Return the doubtful labels of runs, then the other images that have an answer, as records.

    Each has image_id, path, target, tags, answer (an `Answer`, or None), if that names a class
    corrected (as the run names it, 'drop' if it leaves it out), and, if its label is doubtful,
    suggested, probability and self_confidence. Images inside a zip file or the like are
    left out and counted, for other programs can't open them. Raises `LesionfastError` for a run
    that has no paths.
    """
    answers = join_answers(runs, answers)
    doubted, table = doubtful_labels(runs), out_of_sample(runs)
    if "path" not in table:
        raise LesionfastError(
            f"{runs[0].path} does not say where its images are: it is a run of an early version. "
            "Train it again."
        )
    others = table[table["image_id"].isin(answers.labels)]
    others = others[~others["image_id"].isin(doubted["image_id"])]
    others = others[[name for name in (*FIELDS, "path", "target") if name in others]]
    records = doubted.to_dict("records") + others.to_dict("records")
    named = name_classes(answers, runs[0].classes, runs[0].config, set(table["image_id"]))
    cases = []
    for record in records:
        answer = answers.labels.get(record["image_id"])
        tags = [DOUBTFUL] * ("suggested" in record) + [ANSWERED] * (answer is not None)
        known = {name: value for name, value in record.items() if not pd.isna(value)}
        cases.append({**known, "tags": tags, "answer": answer})
        if answer is not None and answer.kind in (IS, RIGHT):
            cases[-1]["corrected"] = named.get(record["image_id"], record["target"])
    kept = [case for case in cases if split_path(case["path"])[1] is None]
    if lost := len(cases) - len(kept):
        logger.warning(
            "Left out %s inside of files such as zip files, which other programs can't open",
            pluralize(lost, "image"),
        )
    return kept


def find_class(case: dict[str, Any]) -> str | None:
    """Return the class of an image by its answer; None if it has none or is left out."""
    name: str | None = case.get("corrected")
    return None if name == DROP else name


def write_fiftyone(cases: Sequence[dict[str, Any]], folder: Path, classes: Sequence[str]) -> Path:
    """Write a folder that FiftyOne reads as `fo.types.FiftyOneDataset`, and return it.

    Its samples have ground_truth (the label in the data), suggested (with its probability) and
    corrected (by the answer). It is the JSON of versions before 0.8, which has no database ids and
    which later versions still read (`LegacyFiftyOneDatasetImporter` of fiftyone/utils/data/
    importers.py): metadata.json without a version, samples.json with fields by name, labels with
    `_cls`.
    """
    about = {"media_type": "image", "info": {"classes": list(classes), "source": "lesionfast"}}
    check_target(folder / "samples.json")
    write_json(folder / "metadata.json", about)
    write_json(folder / "samples.json", {"samples": list(map(make_sample, cases))})
    return folder


def make_sample(case: dict[str, Any]) -> dict[str, Any]:
    """Return an image as a sample of FiftyOne."""
    labels = {
        "ground_truth": (case["target"], None),
        "suggested": (case.get("suggested"), case.get("probability")),
        "corrected": (find_class(case), None),
    }
    fields = {name: case[name] for name in FIELDS if name in case}
    sample = {"filepath": case["path"], "tags": case["tags"], **fields}
    sample |= {"answer": case["answer"].text} if case["answer"] else {}
    for name, (label, confidence) in labels.items():
        if label is not None:
            more = {} if confidence is None else {"confidence": confidence}
            sample[name] = {"_cls": "Classification", "label": label, **more}
    return sample


def write_label_studio(
    cases: Sequence[dict[str, Any]], file: Path, classes: Sequence[str], model: str
) -> tuple[Path, Path]:
    """Write tasks for Label Studio, and beside them its labelling interface; return both paths.

    A task has the suggestion as a prediction, and an answer as an annotation (Label Studio's task
    format, labelstud.io/guide/task_format and /guide/predictions). The images are named for its
    local storage with the document root "/".
    """
    tasks = [make_task(case, model) for case in cases]
    return write_json(file, tasks), write_text(file.with_suffix(".xml"), make_interface(classes))


def make_task(case: dict[str, Any], model: str) -> dict[str, Any]:
    """Return an image as a task of Label Studio."""
    url = f"/data/local-files/?d={quote(case['path'].lstrip('/'))}"
    fields = {name: case[name] for name in FIELDS if name in case}
    task: dict[str, Any] = {"data": {"image": url, "label": case["target"], **fields}}
    if suggested := case.get("suggested"):
        prediction = {"model_version": model, "score": case["probability"]}
        task["predictions"] = [prediction | {"result": [*choose(suggested)]}]
    if (answered := find_class(case)) is not None:
        task["annotations"] = [{"result": [*choose(answered)], "was_cancelled": False}]
    elif case["answer"] is not None:  # unclear: skipped
        task["annotations"] = [{"result": [], "was_cancelled": True}]
    return task


def choose(name: str) -> Iterator[dict[str, Any]]:
    """Yield the result of Label Studio that chooses a class, named as in `make_interface`."""
    about = {"from_name": "diagnosis", "to_name": "image", "type": "choices"}
    yield {**about, "value": {"choices": [printable(name)]}}


def make_interface(classes: Sequence[str]) -> str:
    """Return the labelling interface of Label Studio: the image, and one class of several."""
    choices = "\n".join(f"    <Choice value={quoteattr(printable(name))}/>" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        '  <Text name="label" value="Label in the data: $label"/>\n'
        '  <Choices name="diagnosis" toName="image" choice="single" showInLine="true">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )
