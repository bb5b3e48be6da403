"""The overview chapter: the whole report in its order, the data card and the model card."""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.console import Table, estimate
from lesionfast.data.split import PARTS
from lesionfast.diagnoses import full_name
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.comparison import finds_fewer
from lesionfast.evaluation.distilled import NAME as STUDENT
from lesionfast.evaluation.distilled import describe_student
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import OUT_OF_FOLD
from lesionfast.evaluation.labelling.corrected import corrections_table, describe_corrections
from lesionfast.reporting.advice.chapter import advice, predictive, run_advice, run_limits
from lesionfast.reporting.advice.limits import DRAWN, LIGHT, find_skin
from lesionfast.reporting.calibration import calibration
from lesionfast.reporting.checklist.chapter import checklist
from lesionfast.reporting.decisions import challenge, operating, prediction_sets, referral
from lesionfast.reporting.errors import confusion, melanoma
from lesionfast.reporting.explanations import attribution, pictures
from lesionfast.reporting.metrics import metrics, training
from lesionfast.reporting.page import Section, write_page
from lesionfast.reporting.subgroups import labels, metadata, out_of_distribution, subgroups
from lesionfast.run import Run

SECTIONS: list[Callable[[Findings], Section | None]] = [
    *(advice, melanoma, confusion, metrics, operating, predictive, challenge, calibration),
    *(prediction_sets, referral),
    *(subgroups, metadata, labels, out_of_distribution, pictures, attribution, training),
]
SOURCE = (
    "The image ids are those of HAM10000 (Tschandl, Rosendahl, Kittler 2018, Scientific Data 5, "
    "180161, doi:10.7910/DVN/DBW86T), which is licensed CC BY-NC 4.0: not for commercial use. Its "
    "patients are from Austria and Australia, most of them with light skin."
)
SAMPLE = "The built-in synthetic sample: drawn pictures, no patients. Its numbers mean nothing."
TIGHT = "No lesion has images in two parts."
TAUGHT = (
    "The model learned from its labels and from what {teacher} predicts out of fold. The models of "
    "{teacher} have seen the validation images, which are therefore a little too easy: what is "
    "fitted on them may be too sure. They have not seen the test images."
)
LEAKING = "Some lesions have images in two parts: the estimates are too optimistic."

logger = logging.getLogger("lesionfast")


def write_report(findings: Findings, to: Path | None = None) -> Path:
    """Write what is found of a run as one HTML file and return its path.

    It carries its figures in itself, fetches nothing, and gives no estimate without its interval.
    Unless given, the path is RUN/report.html, or RUN/report-valid.html of the validation images.
    """
    run, read = findings.run, findings.interpretation
    headline = {
        "name": "Balanced accuracy",
        "cell": estimate(findings.measure("balanced_accuracy", "all")),
        "words": f"{len(read.rows):,} {read.split} images of {len(set(read.lesions)):,} "
        f"lesions, rule {read.rule}",
        "split": run.metrics["split_sha256"][:12],
    }
    name = "report.html" if read.split == "test" else f"report-{read.split}.html"
    sections = [*report_sections(findings), *about_sections(findings)]
    return write_page(
        to or run.path / name,
        f"{run.path.name}: {run.model.get('arch') or 'ensemble'}",
        [*sections, checklist(run, sections)],
        headline,
        [
            (name, estimate(row))
            for name, metric, of in (
                ("Melanoma sensitivity", "sensitivity", read.classes.melanoma),
                ("Melanoma specificity", "specificity", read.classes.melanoma),
                ("Melanoma AUC", "auc", read.classes.melanoma),
                ("Malignant sensitivity", "sensitivity", read.classes.cancer),
                ("Macro AUC", "macro_auc", "all"),
                ("Accuracy", "accuracy", "all"),
            )
            if (row := findings.measure(metric, of)) is not None and not pd.isna(row["value"])
        ],
        run_advice(findings),
        run_limits(findings),
    )


def report_sections(findings: Findings) -> list[Section]:
    """Return the sections on what a run gets right and wrong, in the order of the report.

    A second process draws the pictures meanwhile.
    """
    from threadpoolctl import threadpool_limits

    sent = deepcopy(findings)  # by a thread, while this process fills in what it finds
    beside = second_process().submit(draw_apart, pictures, sent)
    sections = []
    with threadpool_limits(1):  # small products of matrices only wait for each other's threads
        for build in SECTIONS:
            if build is pictures:
                section, files, warnings = beside.result()
                findings.files |= files
                for text in warnings:
                    logger.warning("%s", text)
            else:
                section = build(findings)
            sections.append(section)
    return [section for section in sections if section is not None]


def second_process() -> Executor:
    """Return what runs functions in one more process, with half of the threads.

    It does not outlive this one, and ends when it had nothing to do for some seconds.
    """
    from joblib import cpu_count
    from joblib.externals.loky import get_reusable_executor

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


def draw_apart(
    build: Callable[[Findings], Section], findings: Findings
) -> tuple[Section, dict[str, Path], list[str]]:
    """Return a section, the figures that were drawn for it, and what was warned of meanwhile.

    The warnings are for the first process to log, which shows each once.
    """
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        return build(findings), findings.files, warnings
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def about_sections(findings: Findings) -> list[Section]:
    """Return the sections on how the run came about, and what it is for."""
    run, defaults = findings.run, asdict(TrainConfig())
    options = pd.DataFrame(
        [
            {"option": name, "value": str(value), "default": str(defaults[name])}
            for name, value in asdict(run.config).items()
        ]
    )
    changed = options[options["value"] != options["default"]]
    tables = [Table.from_frame(changed, "Options that are not the default")] if len(changed) else []
    environment = Table("Environment", ["part", "value"])
    facts: dict[str, Any] = run.environment if run.holds("environment.json") else {}
    if (seconds := run.metrics.get("train_seconds")) is not None:
        facts = facts | {"seconds of training": seconds}
    for name, value in facts.items():
        environment.add(name, str(value))
    tables += [Table.from_frame(options, "All options"), environment]
    return [
        Section("Data card", *data_card(findings)),
        Section("Model card", model_card(run)),
        Section("Configuration", tables=tables, folded=True),
    ]


def data_card(findings: Findings) -> tuple[list[str], list[Table]]:
    """Return what the images of a run are: in words, and counted by class and part."""
    run, split = findings.run, findings.run.split
    words = [f"The split has the SHA-256 {run.metrics['split_sha256']}."]
    if run.is_out_of_fold:
        words.append(OUT_OF_FOLD.format(n=len(run.model["members"])))
    if run.config.teacher:
        words.append(TAUGHT.format(teacher=Path(run.config.teacher).name))
    if student := run.metrics.get(STUDENT):
        words.append(f"The {describe_student(run, student)}.")
    if (skin := find_skin(run)) in (DRAWN, LIGHT):
        words.insert(0, SAMPLE if skin == DRAWN else SOURCE)
    if corrections := describe_corrections(run):
        words.append(corrections)
    if "group" in split:
        parts_of_lesions = split.groupby("group")["split"].nunique()
        words.append(TIGHT if (parts_of_lesions == 1).all() else LEAKING)
    tables = [corrections_table(run, findings.interpretation.split)] if corrections else []
    try:
        df = findings.dataset
    except DamageError:
        raise
    except LesionfastError as error:
        words.append(f"The data is not here, so classes are not counted: {error}")
        counts = count_images(split.assign(target="all"), "Images and lesions of each part")
        return words, [*tables, counts]
    missing = Table("Images with missing metadata", ["column", *PARTS])
    for column in run.config.metadata_columns:
        gaps = df[column].isna()
        missing.add(column, *(int(gaps[df["split"] == part].sum()) for part in PARTS))
    return words, [*tables, count_images(df, "Images and lesions of each class and part"), missing]


def count_images(df: pd.DataFrame, title: str) -> Table:
    """Return one row a class: images and lesions of each part."""
    kinds = ("images", "lesions") if "group" in df else ("images",)
    table = Table(title, ["class", *(f"{part} {kind}" for part in PARTS for kind in kinds)])
    names = sorted(df["target"].unique())
    for name in [*names, "all"] if len(names) > 1 else names:
        chosen = df if name == "all" else df[df["target"] == name]
        counts: list[int] = []
        for part in PARTS:
            rows = chosen[chosen["split"] == part]
            counts += [len(rows), *([int(rows["group"].nunique())] if "group" in df else [])]
        table.add(full_name(name), *counts)
    return table


def model_card(run: Run) -> list[str]:
    """Return intended use and limits of a run's model, one paragraph each."""
    classes = ", ".join(map(full_name, run.classes))
    *inputs, last = ["a dermoscopic image", *(run.model.get("metadata") or [])]
    given = f"{', '.join(inputs)} and {last}" if inputs else last
    return [
        f"What it does: from {given} it predicts the probability of each class: {classes}."
        + (f" It averages {n} models." if (n := len(run.model.get("members", ()))) else ""),
        "Intended use: research on skin-lesion classification, teaching, and comparing methods.",
        "It is not a medical device. No authority has approved it. It was tested only on stored "
        "images, and must not be used to decide on a patient's diagnosis or treatment.",
        "Limits: the model knows these classes only. It gives no decision on most pictures of "
        "something else, but not on all. Error rates may differ for skin tones, cameras and "
        "clinics that the training images lack; the subgroups above show what these images can "
        "tell. Class shares, and so predictive values, differ between a clinic that photographs "
        "suspicious lesions and a screening.",
        describe_decision(run),
    ]


def describe_decision(run: Run) -> str:
    """Return how a model decides, what its weight is for, and whether argmax finds more."""
    rule, asked = run.decision_rule, run.model.get("melanoma_sensitivity", 0.0)
    words = [f"Decision: by the rule {rule.name}: {rule.in_words}."]
    if rule.weight > 1:
        words.append(f"The weight was fitted for a validation sensitivity of {asked:g}.")
    if finds_fewer(run):
        words.append("By this rule it finds fewer of the validation melanomas than by argmax.")
    return " ".join(words)
