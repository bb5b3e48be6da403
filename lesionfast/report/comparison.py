"""Figures of a comparison as PNG files: training curves on one axis, confusion matrices."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lesionfast.console import (
    add_columns,
    count,
    decimal,
    duration,
    new_table,
    plain,
    with_interval,
)
from lesionfast.diagnoses import full_name
from lesionfast.errors import DamageError
from lesionfast.evaluation.comparison import Comparison
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_text
from lesionfast.report.page import (
    COLOURS,
    DASHES,
    GREY,
    INTERVALS,
    MARKERS,
    NOT_A_DEVICE,
    Section,
    Table,
    count_drawn,
    drawn_classes,
    new_figure,
    picture_of,
    render,
    save,
    table_of,
)
from lesionfast.runs import Run, installed_version

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from lesionfast.evaluation.comparison import Comparison

COLUMNS = 4
MOST_NUMBERED = 12  # classes: the cells of more hold no number that can be read
LABEL_WIDTH = 34  # characters


def draw_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw training curves, if a run has any, and confusion matrices to `folder`."""
    drawn = [draw_confusions(comparison, folder)]
    trained = [run for run in comparison.runs if has_curve(run)]
    return [draw_curves(comparison, trained, folder), *drawn] if trained else drawn


def has_curve(run: Run) -> bool:
    """Return whether a run tells of its epochs; an ensemble had none."""
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


def comparison_table(comparison: "Comparison", narrow: bool = False) -> "Table":
    """Return two lines a run, the best first: values, and below them their 95 % intervals.

    With `narrow` an interval takes two lines, so that all fits into 80 columns.
    """
    melanoma = comparison.interpretations[0].classes.melanoma
    table = new_table(
        f"{comparison.split}: {len(comparison.interpretations[0].rows)} images, the best run first",
        f"each under its own deciding rule; AUC and F1: means of the classes; sens. of melanoma, "
        f"and how much of it is taken for nevi; params: parameters; time: of the training\n"
        f"in brackets: 95 % intervals of {comparison.resamples:,} resamples of the lesions, the "
        f"same for all runs\nsplit sha256 {comparison.split_sha256[:12]}",
    )
    columns = (
        "balanced\naccuracy",
        "AUC\nand F1",
        "mel.\nsens.",
        "taken\nfor nevi",
        "from\nthe best",
    )
    add_columns(table, "run\narchitecture, fusion", *columns, "params\nand time")
    table.columns[0].overflow = "fold"
    for position, row in enumerate(comparison.table.to_dict("records")):
        name, *cells = comparison_cells(row, melanoma, best=position == 0)
        cells = [cell.replace(", ", ",\n") for cell in cells] if narrow else cells
        table.add_row(name, *cells, end_section=True)
    return table


def comparison_cells(row: dict[str, Any], melanoma: str | None, best: bool) -> list[str]:
    """Return the cells of one run of a comparison."""
    built = f"{plain(row['arch'])}, {plain(row['fusion'])}"
    status = "" if row["status"] in ("finished", None) else f" ({row['status']})"
    return [
        "\n".join(filter(None, (f"{row['name']}{status}", built, fill(row["options"], 34)))),
        with_interval(row, "balanced_accuracy"),
        f"{decimal(row['macro_auc'])}\n{decimal(row['macro_f1'])}",
        with_interval(row, f"sensitivity_{melanoma}"),
        with_interval(row, "mel_to_nv"),
        "best" if best else with_interval(row, "difference", "+.3f"),
        f"{count(row['parameters'])}\n{duration(row['train_seconds'])}",
    ]


def plan_table(rows: Sequence[dict[str, Any]]) -> "Table":
    """Return what a study will do: one row a run, and the time of those that are not done."""
    left = sum(row["seconds"] for row in rows if row["state"] != "done")
    told = "the training steps of all epochs, measured here on random pictures"
    table = new_table(f"Plan: {duration(left)} to go at most", f"time: {told}; of done runs: taken")
    columns = ("architecture", "parameters", "pixels", "epochs", "time", "state")
    add_columns(table, "run", *columns)
    table.columns[1].justify = table.columns[-1].justify = "left"
    for row in rows:
        numbers = (count(row["parameters"]), str(row["size"]), str(row["epochs"]))
        table.add_row(row["name"], row["arch"], *numbers, duration(row["seconds"]), row["state"])
    return table


OF_A_SYSTEM = {
    "balanced_accuracy": "balanced\naccuracy",
    "macro_auc": "macro\nAUC",
    "sensitivity": "melanoma\nsensitivity",
    "auc": "malignant\nAUC",
}


def contribution_table(found: "pd.DataFrame") -> "Table":
    """Return the metrics of each system, and below their differences from the whole run."""
    table = new_table(
        "What each input contributes",
        "each with its 95 % interval; below: the difference from the whole run, and its paired one",
    )
    metrics = {key: name for key, name in OF_A_SYSTEM.items() if (found["metric"] == key).any()}
    add_columns(table, "system", *metrics.values())
    for system, rows in found.groupby("system", sort=False):
        cells = []
        for metric in metrics:
            chosen = rows[rows["metric"] == metric]
            row = {} if chosen.empty else chosen.iloc[0].to_dict()
            told = with_interval(row, "value")
            if system != "whole" and row:
                told += "\n" + with_interval(row, "difference", "+.3f")
            cells.append(told)
        table.add_row(str(system), *cells, end_section=True)
    return table


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
        footer=f"lesionfast {installed_version()}. {INTERVALS} {NOT_A_DEVICE}",
        version=installed_version(),
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


def runs_table(runs: Sequence[Run]) -> "Table":
    """Return one row a run: its metrics on the test images under the rule that decides."""
    caption = "on the test images, by the rule that decides; min: minutes of training"
    table = new_table("Runs, oldest first", caption)
    columns = ("balanced\naccuracy", "macro\nAUC", "mel\nsens.", "min", "status")
    add_columns(table, "run", *columns)
    table.columns[0].overflow = "fold"
    table.columns[-1].justify = "left"
    for run in runs:
        table.add_row(run.path.name, *run_cells(run))
    return table


def run_cells(run: Run) -> list[str]:
    """Return the cells of one run after its name."""
    try:
        return metric_cells(run) if run.finished else ["-", "-", "-", "-", "not ended"]
    except DamageError:
        return ["-", "-", "-", "-", "damaged"]


def metric_cells(run: Run) -> list[str]:
    """Return the metrics, the minutes and the status of a run that has ended."""
    summary = run.metrics.get("test", run.metrics.get("valid", {}))
    decided = summary.get("rules", {}).get(run.model["rule"], {})
    values = (
        decided.get("balanced_accuracy"),
        summary.get("macro_auc"),
        decided.get("mel_sensitivity"),
    )
    minutes = f"{run.metrics['train_seconds'] / 60:.1f}"
    return [*map(decimal, values), minutes, run.metrics["status"]]


def verified_table(conditions: Mapping[Run, tuple[str, dict[str, str]]]) -> "Table":
    """Return one row a run: whether its files are what was written, and what is wrong."""
    table = new_table("Runs and their files, oldest first")
    add_columns(table, "run", "state", "what is wrong")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "left"
    for run, (state, problems) in conditions.items():
        told = "\n".join(f"{name}: {why}" for name, why in problems.items())
        table.add_row(run.path.name, state, told)
    return table
