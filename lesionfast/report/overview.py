"""What a reader must know of a run's data and of what the model is for, in words and tables."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import cpu_count
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits

from lesionfast.config import TrainConfig
from lesionfast.data.split import PARTS
from lesionfast.diagnoses import full_name
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.files import write_text
from lesionfast.report.calibration import calibration
from lesionfast.report.decisions import challenge, operating
from lesionfast.report.errors import confusion, melanoma
from lesionfast.report.explanations import attribution, pictures
from lesionfast.report.metrics import metrics, training
from lesionfast.report.page import (
    INTERVALS,
    NOT_A_DEVICE,
    Section,
    Table,
    pairs_table,
    render,
    table_of,
)
from lesionfast.report.selective import prediction_sets, referral
from lesionfast.report.subgroups import labels, metadata, out_of_distribution, subgroups
from lesionfast.runs import Run, installed_version


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
    out_of_distribution,
    pictures,
    attribution,
    training,
]

HAM10000 = ("ISIC_0024306", "ISIC_0034320")  # its first and last image
SOURCE = (
    "The image ids are those of HAM10000 (Tschandl, Rosendahl, Kittler 2018, Scientific Data 5, "
    "180161, doi:10.7910/DVN/DBW86T), which is licensed CC BY-NC 4.0: not for commercial use. Its "
    "patients are from Austria and Australia, most of them with light skin."
)
SAMPLE = "The built-in synthetic sample: drawn pictures, no patients. Its figures mean nothing."


def data_card(findings: Findings) -> tuple[list[str], list[Table]]:
    """Return what the images of a run are: in words, and counted by class and part."""
    run, split = findings.run, findings.run.split
    words = [f"The split has the SHA-256 {run.metrics['split_sha256']}."]
    if run.config.data is None and run.config.csv is None:
        words.insert(0, SAMPLE)
    elif split["image_id"].between(*HAM10000).all():
        words.insert(0, SOURCE)
    if "group" in split:
        words.append("No lesion has images in two parts." if tight(split) else LEAKING)
    try:
        df = findings.dataset
    except DamageError:
        raise
    except LesionfastError as error:
        words.append(f"The data is not here, so classes are not counted: {error}")
        return words, [table_of(counted(split.assign(target="all")), "Images and lesions")]
    return words, [
        table_of(counted(df), "Images and lesions of each class and part"),
        table_of(known(df, run.config.metadata_columns), "Where metadata is not known"),
    ]


LEAKING = "Some lesions have images in two parts: the estimates are too good."


def tight(split: pd.DataFrame) -> bool:
    """Return whether every lesion is in one part alone."""
    return bool((split.groupby("group")["split"].nunique() == 1).all())


def counted(df: pd.DataFrame) -> pd.DataFrame:
    """Return one row a class: images (lesions) of each part."""
    names = sorted(df["target"].unique())
    rows = []
    for name in [*names, "all"] if len(names) > 1 else names:
        chosen = df if name == "all" else df[df["target"] == name]
        row: dict[str, object] = {"class": full_name(name)}
        for part in PARTS:
            of_part = chosen[chosen["split"] == part]
            row[f"{part} images"] = len(of_part)
            if "group" in df:
                row[f"{part} lesions"] = int(of_part["group"].nunique())
        rows.append(row)
    return pd.DataFrame(rows)


def known(df: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return one row a metadata column: rows that have no value, by part."""
    rows = [
        {"column": column}
        | {part: int(df.loc[df["split"] == part, column].isna().sum()) for part in PARTS}
        for column in columns
    ]
    return pd.DataFrame(rows, columns=["column", *PARTS])


def model_card(run: Run) -> list[str]:
    """Return intended use and limits of a run's model, one paragraph each."""
    classes = ", ".join(map(full_name, run.classes))
    inputs = ", ".join(run.model.get("metadata") or [])
    with_inputs = f", with {inputs}" if inputs else ""
    return [
        f"What it does: it gives a dermoscopic image{with_inputs} a probability of each of "
        f"{classes}.",
        "Intended use: research on skin-lesion classification, teaching, and comparing methods.",
        "It is not a medical device. It has no approval of any authority, was tested on stored "
        "images alone, and must not decide on a patient's diagnosis or treatment.",
        "Limits: it knows these classes only and gives one of them to any picture, also of "
        "something else. Skin tones, cameras and clinics that the training images lack may have "
        "other error rates; the subgroups above show what these images can tell. A site that "
        "photographs what is suspicious has other class shares than a screening, and so other "
        "predictive values.",
        f"Decision: the rule {run.model['rule']} ('argmax': the largest probability; 'balanced': "
        "the largest after division by the class shares of the training).",
    ]


def write_report(findings: Findings, to: Path | None = None) -> Path:
    """Write what is found of a run as one HTML file and return its path.

    It carries its figures in itself, fetches nothing, and gives no estimate without its interval.
    Unless given, the path is RUN/report.html, or RUN/report-valid.html of the validation images.
    """
    run, split = findings.run, findings.interpretation.split
    text = render(
        "report.html",
        title=f"{run.path.name}: {run.model.get('arch') or 'ensemble'}",
        subtitle=f"lesionfast report. {NOT_A_DEVICE}",
        headline=headline(findings),
        numbers=numbers(findings),
        sections=[*sections_of(findings), *about(findings)],
        footer=f"lesionfast {installed_version()}. {INTERVALS} {NOT_A_DEVICE}",
        version=installed_version(),
    )
    name = "report.html" if split == "test" else f"report-{split}.html"
    return write_text(to or run.path / name, text)


def headline(findings: Findings) -> dict[str, str]:
    """Return the number that comes first: balanced accuracy, on how many images, of which split."""
    found, run = findings.measure("balanced_accuracy", "all"), findings.run
    read = findings.interpretation
    lesions = read.rows["group"].nunique() if "group" in read.rows else len(read.rows)
    return {
        "name": "Balanced accuracy",
        "value": f"{found['value']:.3f}",
        "interval": f"[{found['low']:.3f}, {found['high']:.3f}]",
        "words": f"{len(read.rows):,} {read.split} images of {lesions:,} lesions, rule {read.rule}",
        "split": run.metrics["split_sha256"][:12],
    }


def numbers(findings: Findings) -> list[dict[str, str]]:
    """Return the few numbers beside it."""
    classes = findings.interpretation.classes
    wanted = [
        ("Melanoma sensitivity", "sensitivity", classes.melanoma),
        ("Melanoma specificity", "specificity", classes.melanoma),
        ("Melanoma AUC", "auc", classes.melanoma),
        ("Malignant sensitivity", "sensitivity", classes.cancer),
        ("Macro AUC", "macro_auc", "all"),
        ("Plain accuracy", "accuracy", "all"),
    ]
    found = [(name, findings.measure(metric, of)) for name, metric, of in wanted]
    return [
        {
            "name": name,
            "value": f"{row['value']:.3f}",
            "interval": f"[{row['low']:.3f}, {row['high']:.3f}]",
        }
        for name, row in found
        if row is not None and not pd.isna(row["value"])
    ]


def about(findings: Findings) -> list[Section]:
    """Return the sections on how the run came about, and what it is for."""
    run = findings.run
    plain = asdict(TrainConfig())
    config = pd.DataFrame(
        [
            {"option": name, "value": str(value), "default": str(plain[name])}
            for name, value in asdict(run.config).items()
        ]
    )
    changed = config[config["value"] != config["default"]]
    tables = [table_of(changed, "Options that are not the default")] if len(changed) else []
    return [
        Section("Data card", *data_card(findings)),
        Section("Model card", model_card(run)),
        Section(
            "Configuration",
            tables=[*tables, table_of(config, "All options"), environment_table(run)],
            folded=True,
        ),
    ]


def environment_table(run: Run) -> Table:
    """Return the versions and the device that trained a run."""
    told: dict[str, Any] = {}
    if run.holds("environment.json"):
        told = run.environment
    seconds = run.metrics.get("train_seconds")
    told = told | ({"seconds of training": seconds} if seconds is not None else {})
    return pairs_table(told, "Environment", "part")
