"""The report of a run: one HTML file that opens anywhere, without a network."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import full_name
from lesionfast.evaluation.cards import data_card, model_card
from lesionfast.evaluation.comparison import Comparison
from lesionfast.evaluation.comparison_figures import draw_comparison
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.page import Section, Table, pairs_table, picture_of, render, table_of
from lesionfast.evaluation.sections import sections_of
from lesionfast.files import write_text
from lesionfast.runs import Run, own_version

NOT_A_DEVICE = "Not a medical device: for research, not for diagnosis."


def write_report(findings: Findings, to: Path | None = None) -> Path:
    """Write what is found of a run as one HTML file and return its path.

    It carries its figures in itself, fetches nothing, and gives no estimate without its interval.
    Unless given, the path is RUN/report.html, or RUN/report-valid.html of the validation images.
    """
    run, split = findings.run, findings.interpretation.split
    text = render(
        "report.html",
        title=f"{run.path.name}: {run.model.get('arch') or 'committee'}",
        subtitle=f"lesionfast report. {NOT_A_DEVICE}",
        headline=headline(findings),
        numbers=numbers(findings),
        sections=[*sections_of(findings), *about(findings)],
        footer=f"lesionfast {own_version()}. {INTERVALS} {NOT_A_DEVICE}",
        version=own_version(),
    )
    name = "report.html" if split == "test" else f"report-{split}.html"
    return write_text(to or run.path / name, text)


INTERVALS = (
    "In brackets 95 % intervals: percentiles of a bootstrap over lesions within each class, or "
    "Wilson's where every resample says the same."
)


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


def write_comparison(runs: Sequence[Run], to: Path, split: str = "test") -> Path:
    """Write the comparison of runs over one split as one HTML file and return its path.

    Raises `LesionfastError` for runs that can't be compared.
    """
    comparison = Comparison.of(runs, split)
    names = {
        "name": "run",
        "balanced_accuracy": "balanced accuracy",
        "difference": "difference to the best",
        "sensitivity_mel": "melanoma sensitivity",
        "mel_to_nv": "melanomas taken for nevi",
        "arch": "architecture",
        "options": "options",
        "rule": "rule",
    }
    known = {k: v for k, v in names.items() if k in comparison.table}
    table = table_of(comparison.table, f"{split} images, the best run first", known)
    figures = draw_comparison(comparison, to.parent / f"{to.stem}_figures")
    best = comparison.table.iloc[0]
    text = render(
        "report.html",
        title=f"{len(runs)} runs compared",
        subtitle=f"lesionfast report. {NOT_A_DEVICE}",
        headline={
            "name": f"Best balanced accuracy: {best['name']}",
            "value": f"{best['balanced_accuracy']:.3f}",
            "interval": f"[{best['balanced_accuracy_low']:.3f}, "
            f"{best['balanced_accuracy_high']:.3f}]",
            "words": f"{len(comparison.interpretations[0].rows):,} {split} images",
            "split": comparison.split_sha256[:12],
        },
        numbers=[],
        sections=[
            Section("Runs", [PAIRED], [table]),
            Section(
                "Pictures",
                pictures=[picture_of(file, told_of(file)) for file in figures],
            ),
        ],
        footer=f"lesionfast {own_version()}. {INTERVALS} {NOT_A_DEVICE}",
        version=own_version(),
    )
    return write_text(to, text)


PAIRED = (
    "The differences are paired: the same resamples of lesions for every run. If an interval holds "
    "0, these images can't tell the two runs apart."
)


def told_of(file: Path) -> str:
    """Return what a figure of a comparison shows."""
    return {
        "confusion": "The confusion matrices of the runs",
        "training": "Validation figures over the epochs of the runs",
    }.get(file.stem, full_name(file.stem))
