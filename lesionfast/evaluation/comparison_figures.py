"""Figures of a comparison as PNG files: training curves on one axis, confusion matrices."""

from math import ceil
from pathlib import Path
from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lesionfast.evaluation.canvas import (
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    count_drawn,
    drawn_classes,
    new_figure,
    save,
)
from lesionfast.evaluation.comparison import Comparison
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.tables import with_interval
from lesionfast.runs import Run

COLUMNS = 4
MOST_NUMBERED = 12  # classes: the cells of more hold no number that can be read
LABEL_WIDTH = 34  # characters


def draw_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw training curves, if a run has any, and confusion matrices to `folder`."""
    drawn = [draw_confusions(comparison, folder)]
    trained = [run for run in comparison.runs if has_curve(run)]
    return [draw_curves(comparison, trained, folder), *drawn] if trained else drawn


def has_curve(run: Run) -> bool:
    """Return whether a run tells of its epochs; a committee had none."""
    return run.holds("history.csv") and "balanced_accuracy" in run.history


def draw_curves(comparison: Comparison, runs: list[Run], folder: Path) -> Path:
    """Draw the validation balanced accuracy of runs over their epochs, numbered by rank."""
    left_out = len(comparison.runs) - len(runs)
    subtitle = "balanced accuracy of the validation images; large mark: the epoch that was kept"
    subtitle += f"; {left_out} without a history" if left_out else ""
    labels = [label_of(run, comparison) for run in runs]
    lines = sum(text.count("\n") + 1.6 for text in labels)
    figure = new_figure(10.5, max(5.4, 1.5 + 0.16 * lines), "Training", subtitle)
    axis = figure.subplots()
    for run, label in zip(runs, labels, strict=True):
        draw_curve(axis, run, place_of(run, comparison), label)
    number_ends(axis, runs, comparison)
    axis.set(xlabel="epoch", ylabel="balanced accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(color="0.92")
    axis.spines[["top", "right"]].set_visible(False)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.02), "frameon": False}
    axis.legend(**beside, fontsize=8.5, handlelength=3.8, labelspacing=0.75)
    sign(figure, comparison)
    return save(figure, folder / "training.png")


def draw_curve(axis: Axes, run: Run, place: int, label: str) -> None:
    """Draw one run, told apart by colour, dashes and mark."""
    history, look = run.history, look_of(place)
    x, y = history["epoch"], history["balanced_accuracy"]
    axis.plot(x, y, linewidth=1.7, markersize=4.5, label=label, **look)
    kept = x == run.metrics.get("best_epoch")
    axis.plot(x[kept], y[kept], markersize=10, markeredgecolor="black", **look)


def look_of(place: int) -> dict:
    """Return colour, dashes and mark of the run at a place in the ranking."""
    dashes = ("solid", *(each for each in DASHES if each != "solid"))
    return {
        "color": COLOURS[(place + 5) % len(COLOURS)],
        "linestyle": dashes[place % len(dashes)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def number_ends(axis: Axes, runs: list[Run], comparison: Comparison) -> None:
    """Write each run's rank at the end of its line; those that end together are moved apart."""
    ends = pd.DataFrame([run.history.iloc[-1][["epoch", "balanced_accuracy"]] for run in runs])
    ends["rank"] = [place_of(run, comparison) + 1 for run in runs]
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
    title, subtitle = "Confusion matrices", f"{comparison.split}; per cent of the truth"
    subtitle += f"; the best balanced accuracy first{count_drawn(read[0])}"
    width = max(columns * (side + 0.25) + 1.0, 5.5)
    figure = new_figure(width, lines * (side + 1.0) + 1.3, title, subtitle)
    figure.get_layout_engine().set(h_pad=0.14)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, each in zip(axes.flat, read, strict=False):
        draw_confusion(axis, each, comparison)
    for axis in axes.flat[len(read) :]:
        axis.set_axis_off()
    for place in range(len(read)):  # the names of the classes where nothing is below
        if place + columns >= len(read):
            axes.flat[place].tick_params(labelbottom=True)
            axes.flat[place].set_xlabel("decision")
    for axis in axes[:, 0]:
        axis.set_ylabel("truth")
    sign(figure, comparison)
    return save(figure, folder / "confusion.png")


def draw_confusion(axis: Axes, read: Interpretation, comparison: Comparison) -> None:
    """Draw the confusion matrix of one run."""
    names = drawn_classes(read)
    shares = read.confusion(normalize=True).loc[names, names]
    axis.imshow(shares.fillna(0), cmap="Blues", vmin=0, vmax=1)
    k = len(shares)
    if k <= MOST_NUMBERED:
        for i, j in np.ndindex(k, k):
            write_share(axis, i, j, shares.iat[i, j])
    axis.set_title(label_of(read.run, comparison, 32), loc="left", fontsize=8.5, linespacing=1.25)
    axis.set_xticks(range(k), shares.columns, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(k), shares.index)
    axis.tick_params(length=0, labelsize=8, labelbottom=False)


def write_share(axis: Axes, i: int, j: int, share: float) -> None:
    """Write one cell in whole per cent; nothing where there is nothing."""
    if share > 0:
        look = {"weight": "bold" if i == j else "normal", "fontsize": 7.5}
        color = "white" if share > 0.6 else "black"
        axis.text(j, i, f"{share * 100:.0f}", ha="center", va="center", color=color, **look)


def place_of(run: Run, comparison: Comparison) -> int:
    """Return a run's place in the ranking, counted from 0."""
    return comparison.runs.index(run)


def label_of(run: Run, comparison: Comparison, width: int = LABEL_WIDTH) -> str:
    """Return a run's rank and name, over several lines if it is long, and balanced accuracy.

    With its interval, as every number.
    """
    place = place_of(run, comparison)
    told = with_interval(comparison.table.iloc[place], "balanced_accuracy", between=" ")
    name = "\n".join(wrap(f"{place + 1}  {run.path.name}", width))
    return f"{name}\n{comparison.split} {told}"


def sign(figure: Figure, comparison: Comparison) -> None:
    """Write at the foot which split of the data the figure is about."""
    text = f"split sha256 {comparison.split_sha256[:12]}"
    figure.supxlabel(text, x=0.012, ha="left", fontsize=7.5, color=GREY)
