"""The comparison chapter: runs side by side in a table and in figures; lists of runs."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lesionfast.console import Table, count, duration, estimate
from lesionfast.evaluation.comparison import LABEL_WIDTH, Comparison, comparison_tables
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.errors import draw_shares
from lesionfast.reporting.overview import write_report
from lesionfast.reporting.page import (
    COLOURS,
    DASHES,
    MARKERS,
    Picture,
    Section,
    count_drawn,
    drawn_classes,
    new_axes,
    new_figure,
    save,
    style_axis,
    write_page,
)
from lesionfast.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4  # confusion matrices in a line
MOST_NUMBERED = 12  # classes: the cells of more hold no number that can be read
PAIRED = (
    "The differences are paired: the same resamples of lesions for every run. If an interval holds "
    "0, these images can't tell the two runs apart."
)
CAPTIONS = {
    "training": "Validation metrics over the epochs of the runs",
    "confusion": "The confusion matrices of the runs",
}


def report(
    runs: Run | str | Path | Sequence[Run | str | Path],
    to: str | Path | None = None,
    split: str = "test",
) -> Path:
    """Write a report of a run, or of several side by side, as one HTML file; return its path.

    `to` is the file: by default report.html of the run, or runs/comparison/report.html. It needs no
    network to be read. Raises `LesionfastError` for runs that did not finish, or, of several, that
    can't be compared.

    >>> lf.report(run).name
    'report.html'
    """
    named = [runs] if isinstance(runs, Run | str | Path) else runs
    opened = [Run.open(run) for run in named]
    if len(opened) == 1:
        return write_report(Findings.from_run(opened[0], split), None if to is None else Path(to))
    return write_comparison(opened, Path(to or "runs/comparison/report.html"), split)


def write_comparison(runs: Sequence[Run], to: Path, split: str = "test") -> Path:
    """Write the comparison of runs over one split as one HTML file and return its path.

    Raises `LesionfastError` for runs that can't be compared.
    """
    comparison = Comparison.from_runs(runs, split)
    figures = draw_comparison(comparison, to.parent / f"{to.stem}_figures")
    best = comparison.table.iloc[0]
    headline = {
        "name": f"Best balanced accuracy: {best['name']}",
        "cell": estimate(best, "balanced_accuracy"),
        "words": f"{len(comparison.interpretations[0].rows):,} {split} images",
        "split": comparison.split_sha256[:12],
    }
    pictures = [Picture.from_file(file, CAPTIONS[file.stem]) for file in figures]
    sections = [
        Section("Runs", [PAIRED], comparison_tables(comparison)),
        Section("Pictures", pictures=pictures),
    ]
    return write_page(to, f"{len(runs)} runs compared", sections, headline)


def draw_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw training curves, if a run has any, and confusion matrices to `folder`."""
    drawn = [draw_confusions(comparison, folder)]
    trained = [
        run
        for run in comparison.runs
        if run.holds("history.csv") and "balanced_accuracy" in run.history
    ]
    return [draw_curves(comparison, trained, folder), *drawn] if trained else drawn


def draw_curves(comparison: Comparison, runs: list[Run], folder: Path) -> Path:
    """Draw the validation balanced accuracy of runs over their epochs, numbered by rank."""
    from matplotlib.ticker import MaxNLocator

    left_out = len(comparison.runs) - len(runs)
    text = "balanced accuracy of the validation images; large mark: the epoch that was kept"
    text += f"; {left_out} without a history" if left_out else ""
    labels = [run_label(run, comparison) for run in runs]
    lines = sum(label.count("\n") + 1.6 for label in labels)
    figure = new_figure(10.5, max(5.4, 1.5 + 0.16 * lines), "Training", text)
    axis = figure.subplots()
    for run, label in zip(runs, labels, strict=True):
        look = rank_style(comparison.runs.index(run))
        x, y = run.history["epoch"], run.history["balanced_accuracy"]
        axis.plot(x, y, linewidth=1.7, markersize=4.5, label=label, **look)
        kept = x == run.metrics.get("best_epoch")
        axis.plot(x[kept], y[kept], markersize=10, markeredgecolor="black", **look)
    number_ends(axis, runs, comparison)
    style_axis(axis, xlabel="epoch", ylabel="balanced accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.02), "frameon": False}
    axis.legend(**beside, fontsize=8.5, handlelength=3.8, labelspacing=0.75)
    return save(figure, folder / "training.png", f"split sha256 {comparison.split_sha256[:12]}")


def rank_style(place: int) -> dict:
    """Return colour, dashes and mark of the run at a place in the ranking."""
    dashes = ("solid", *(dash for dash in DASHES if dash != "solid"))
    return {
        "color": COLOURS[(place + 5) % len(COLOURS)],
        "linestyle": dashes[place % len(dashes)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def number_ends(axis: Axes, runs: list[Run], comparison: Comparison) -> None:
    """Write each run's rank at the end of its line; those that end together are moved apart."""
    ends = pd.DataFrame([run.history.iloc[-1][["epoch", "balanced_accuracy"]] for run in runs])
    ends["rank"] = [comparison.runs.index(run) + 1 for run in runs]
    bottom, top = axis.get_ylim()
    for epoch, together in ends.groupby("epoch"):
        together = together.sort_values("balanced_accuracy")
        heights = push_apart(together["balanced_accuracy"].to_numpy(float), (top - bottom) / 24)
        for rank, height in zip(together["rank"], heights, strict=True):
            axis.annotate(
                str(rank),
                (epoch, height),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                weight="bold",
                fontsize=9,
            )


def push_apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Return ascending heights with at least `gap` between neighbours, none lowered."""
    steps = gap * np.arange(len(heights))
    return np.maximum.accumulate(heights - steps) + steps


def draw_confusions(comparison: Comparison, folder: Path) -> Path:
    """Draw one confusion matrix a run, the best first, each cell its share of the truth."""
    read = comparison.interpretations
    columns = min(COLUMNS, len(read))
    lines, k = ceil(len(read) / columns), len(drawn_classes(read[0]))
    side = max(2.4, 0.4 * min(k, MOST_NUMBERED))
    notes = "per cent of the truth", "the best balanced accuracy first", count_drawn(read[0])
    text = "; ".join(filter(None, [comparison.split, *notes]))
    size = max(columns * (side + 0.25) + 1.0, 5.5), lines * (side + 1.0) + 1.3
    figure = new_figure(*size, "Confusion matrices", text)
    figure.get_layout_engine().set(h_pad=0.14)
    axes = new_axes(figure, len(read), columns, sharex=True, sharey=True)
    for place, axis in enumerate(axes):
        draw_confusion(axis, read[place], comparison)
        if place + columns >= len(read):  # nothing is below that names the classes
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("decision")
        if place % columns == 0:
            axis.set_ylabel("truth")
    return save(figure, folder / "confusion.png", f"split sha256 {comparison.split_sha256[:12]}")


def draw_confusion(axis: Axes, read: Interpretation, comparison: Comparison) -> None:
    """Draw the confusion matrix of one run, its cells in whole per cent."""
    names = drawn_classes(read)
    shares = read.confusion(normalize=True).loc[names, names]
    k = len(shares)
    texts = [[f"{share * 100:.0f}" if share > 0 else "" for share in row] for row in shares.values]
    draw_shares(axis, shares, texts if k <= MOST_NUMBERED else [], 7.5)
    axis.set_title(run_label(read.run, comparison, 32), loc="left", fontsize=8.5, linespacing=1.25)
    axis.set_xticks(range(k), shares.columns, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(k), shares.index)
    axis.tick_params(labelsize=8, labelbottom=False)


def run_label(run: Run, comparison: Comparison, width: int = LABEL_WIDTH) -> str:
    """Return a run's rank and name, over several lines if long, and its balanced accuracy."""
    place = comparison.runs.index(run)
    value = estimate(comparison.table.iloc[place], "balanced_accuracy")
    name = "\n".join(wrap(f"{place + 1}  {run.path.name}", width))
    return f"{name}\n{comparison.split} {value}"


def plan_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return what a study will do: one row a run, and the time of those that are not done."""
    left = duration(sum(row["seconds"] for row in rows if row["state"] != "done"))
    table = Table(
        f"Plan: {left} to go at most",
        ["run", "architecture", "parameters", "pixels", "epochs", "time", "state"],
        note="time: the training steps of all epochs, measured here on random pictures; for runs "
        "that are done, the time they took",
    )
    for row in rows:
        numbers = count(row["parameters"]), row["size"], row["epochs"], duration(row["seconds"])
        table.add(row["name"], row["arch"], *numbers, row["state"])
    return table
