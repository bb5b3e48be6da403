"""The most suspicious labels as a grid of pictures."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import pandas as pd

from lesionfast.diagnoses import full_name
from lesionfast.evaluation.canvas import GREY, save
from lesionfast.evaluation.grids import draw_grid, patient, per_cent
from lesionfast.evaluation.labels import coverage, suspicious_labels
from lesionfast.runs import Run

LINE = 42  # letters of a caption


def draw_suspicious_labels(
    runs: Sequence[Run], folder: Path, table: pd.DataFrame | None = None, k: int = 12
) -> Path:
    """Draw the k images whose label is the least likely; return the path.

    `table` is that of `suspicious_labels`, if it has been made already.
    """
    table = suspicious_labels(runs) if table is None else table
    shown = f"{len(table)} doubted"
    if len(table) > k:
        shown += f", the {k} least likely of them shown"
    subtitle = f"{coverage(runs)}\n{shown}"
    table = table.head(k)
    rows = table.assign(
        truth=table["target"],
        decision=table["suggested"],
        probability_of_truth=table["self_confidence"],
    )
    title = "Labels that the model contradicts (not proof that they are wrong)"
    figure = draw_grid(rows, title, subtitle, "no label is in doubt", label_caption)
    names = ("run " if len(runs) == 1 else "runs ") + ", ".join(run.path.name for run in runs)
    figure.supxlabel(names, x=0.012, ha="left", fontsize=7.5, color=GREY)
    return save(figure, folder / "suspicious_labels.png")


def label_caption(row: pd.Series) -> str:
    """Return label and suggestion with their probabilities, the patient, and how it was found."""
    lines = [
        f"label: {full_name(row['target'])}, {per_cent(row['self_confidence'])}",
        f"suggested: {full_name(row['suggested'])}, {per_cent(row['probability'])}",
        patient(row),
    ]
    if "dx_type" in row and pd.notna(row["dx_type"]):
        lines.append(f"diagnosed by: {row['dx_type']}")
    return "\n".join(fill(line, LINE) for line in lines if line)
