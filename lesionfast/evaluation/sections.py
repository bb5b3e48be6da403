"""The sections of a report, each from one part of the findings."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pandas as pd
from joblib import cpu_count
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits

from lesionfast.diagnoses import full_name
from lesionfast.evaluation.decision_sections import challenge, operating
from lesionfast.evaluation.figures import (
    draw_confusion,
    draw_precision_recall,
    draw_roc,
    draw_training,
)
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.grids import draw_melanomas_taken_for_nevi
from lesionfast.evaluation.group_sections import labels, metadata, outliers, subgroups
from lesionfast.evaluation.measures import ALL
from lesionfast.evaluation.page import Section, Table, picture_of, table_of
from lesionfast.evaluation.picture_sections import attribution, pictures
from lesionfast.evaluation.trust_sections import calibration, prediction_sets, referral

BY_IMAGE = "Against the rest, by image"
OF_CLASS = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "average precision",
}
OVER_ALL = {  # plain accuracy last
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "macro_f1": "macro F1",
    "macro_average_precision": "macro average precision",
    "macro_precision": "macro precision",
    "macro_specificity": "macro specificity",
    "kappa": "Cohen's kappa",
    "log_loss": "log loss, nats",
    "brier": "Brier score",
    "accuracy": "accuracy",
}


def sections_of(findings: Findings) -> list[Section]:
    """Return the sections on what a run gets right and wrong, in the order of the report.

    A second process draws the pictures meanwhile.
    """
    beside = second_process().submit(with_files, pictures, findings)
    with threadpool_limits(1):  # small products of matrices only wait for each other's threads
        found = [
            collected(findings, *beside.result()) if build is pictures else build(findings)
            for build in SECTIONS
        ]
    return [each for each in found if each is not None]


def second_process() -> Executor:
    """Return what runs functions in one more process, with half of the threads.

    It does not outlive this one, and ends when it had nothing to do for some seconds.
    """
    threads = str(max(1, cpu_count() // 2))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    return get_reusable_executor(
        max_workers=1, initializer=end_with, initargs=(os.getpid(),), env=limits
    )


def end_with(parent: int) -> None:
    """End this process within a second of its parent, which may be killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def with_files(
    build: Callable[[Findings], Section], findings: Findings
) -> tuple[Section, dict[str, Path]]:
    """Return a section and the figures that were drawn for it, by name."""
    return build(findings), findings.files


def collected(findings: Findings, section: Section, files: dict[str, Path]) -> Section:
    """Return a section that another process made, and note its figures."""
    findings.files |= files
    return section


def melanoma(findings: Findings) -> Section | None:
    """Return what becomes of the melanomas."""
    read = findings.interpretation
    melanoma = read.classes.melanoma
    if melanoma is None:
        return None
    confused = read.most_confused()
    confused = confused[confused["truth"] == melanoma]
    total = int((read.rows["truth"] == melanoma).sum())
    missed = int(confused["count"].sum())
    words = [f"{missed} of {total} melanomas are decided to be something else."]
    pictures = []
    if read.classes.costliest:
        taken = read.taken_for()
        words.append(f"{len(taken)} are taken for nevi, the costliest error.")
        file = findings.drawn(draw_melanomas_taken_for_nevi)
        pictures.append(picture_of(file, "The melanomas taken for nevi, most confident first"))
    return Section("Melanoma", [" ".join(words)], [pivot(findings.measures, [melanoma])], pictures)


def metrics(findings: Findings) -> Section:
    """Return every metric, over images and over lesions."""
    classes = findings.interpretation.classes
    classes = list(dict.fromkeys([*classes, classes.cancer]))
    tables = [
        overall(findings),
        pivot(findings.measures, classes, "Each class against the rest, by image"),
        pivot(findings.lesion_measures, classes, "Each class against the rest, by lesion"),
    ]
    words = ["By lesion: the probabilities of a lesion's images are averaged, then decided."]
    files = {
        draw_roc: "ROC curve of each class against the rest",
        draw_precision_recall: "Precision and sensitivity of each class against the rest",
    }
    curves = [
        picture_of(findings.drawn(draw, findings.measures), told) for draw, told in files.items()
    ]
    return Section("Metrics", words, tables, curves)


def overall(findings: Findings) -> Table:
    """Return the metrics over all classes, by image and by lesion."""
    parts = {"by image": findings.measures, "by lesion": findings.lesion_measures}
    rows = []
    for name, label in OVER_ALL.items():
        row: dict[str, object] = {"metric": label}
        for part, measures in parts.items():
            found = measures[(measures["metric"] == name) & (measures["of"] == ALL)].iloc[0]
            row |= {part: found["value"]}
            row |= {f"{part}_low": found["low"], f"{part}_high": found["high"]}
        rows.append(row)
    return table_of(pd.DataFrame(rows), "Over all classes")


def pivot(measures: pd.DataFrame, of: list[str], caption: str = BY_IMAGE) -> Table:
    """Return one row a class, one column a metric."""
    rows = []
    for name in of:
        chosen = measures[measures["of"] == name].set_index("metric")
        if chosen.empty:
            continue
        row: dict[str, object] = {"class": full_name(name), "n": int(chosen["n"].iloc[0])}
        for metric, label in OF_CLASS.items():
            found = chosen.loc[metric]
            row |= {label: found["value"]}
            row |= {f"{label}_low": found["low"], f"{label}_high": found["high"]}
        rows.append(row)
    return table_of(pd.DataFrame(rows), caption)


def confusion(findings: Findings) -> Section:
    """Return the confusion matrix and the errors, the gravest first."""
    picture = picture_of(findings.drawn(draw_confusion), "Truth by decision")
    return Section("Confusion", pictures=[picture])


def training(findings: Findings) -> Section | None:
    """Return the training curves, if the run has any."""
    if not findings.run.holds("history.csv"):
        return None
    file = findings.drawn(draw_training)
    words = "Losses and validation metrics over the epochs"
    return Section("Training", pictures=[picture_of(file, words)])


SECTIONS: list[Callable[[Findings], Section | None]] = [
    melanoma,
    confusion,
    metrics,
    operating,
    challenge,
    calibration,
    prediction_sets,
    referral,
    subgroups,
    metadata,
    labels,
    outliers,
    pictures,
    attribution,
    training,
]
