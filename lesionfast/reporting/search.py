"""The chapter of a search: its best trials, which options matter, and Optuna's plots of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lesionfast.console import Table, cell
from lesionfast.files import write_atomically
from lesionfast.reporting.page import (
    DOTS_PER_INCH,
    QUICKLY,
    Picture,
    Section,
    take_words_literally,
    write_page,
)

if TYPE_CHECKING:
    from optuna.study import Study

logger = logging.getLogger("lesionfast")

SHOWN = 10  # trials
FEWEST = 4  # finished trials that say something of an option
STATES = {
    "complete": "finished", "pruned": "pruned", "fail": "failed", "running": "running",
    "waiting": "waiting",
}  # fmt: skip
CAPTIONS = {
    "history": "Each trial, and the best value so far",
    "importance": "How much each option matters",
    "slices": "The value of each trial over each option",
    "parallel": "All options of each trial, coloured by its value",
}


def trials_table(trials: pd.DataFrame, by: str, more_is_better: bool) -> Table:
    """Return the best finished trials, one row each; `trials` are those of a search."""
    done = trials[trials["state"] == "complete"].sort_values(
        by, ascending=not more_is_better, kind="stable"
    )
    counts = trials["state"].value_counts()
    states = ", ".join(f"{count} {STATES[name]}" for name, count in counts.items())
    options = [name for name in trials if name not in ("try", "state", by, "seconds", "error")]
    table = Table(
        f"The best of {len(trials)} trials", ["try", by, *options, "s"],
        note=f"{states}; {by} of the validation images; s: seconds of a trial",
    )  # fmt: skip
    for row in done.head(SHOWN).to_dict("records"):
        values = [
            cell(row[name], ".3g") if isinstance(row[name], float) else row[name]
            for name in options
        ]
        table.add(row["try"], cell(row[by], ".4f"), *values, cell(row["seconds"], ".0f"))
    return table


def importance_table(shares: Mapping[str, float]) -> Table:
    """Return how much each option matters."""
    table = Table(
        "What matters", ["option", "importance"], note="relative, of 1 in all (PED-ANOVA)"
    )
    for name, share in shares.items():
        table.add(name, cell(share, ".2f"))
    return table


def find_importance(study: Study) -> dict[str, float]:
    """Return the importance of each option; empty if too few trials have finished to say.

    (PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255.)
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(finished(study)) < FEWEST:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        except (RuntimeError, ValueError) as error:
            logger.info("no importance of options: %s", error)
            return {}


def finished(study: Study) -> list[Any]:
    """Return the finished trials of a study."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


def draw_search(study: Study, folder: Path, by: str, shares: Mapping[str, float]) -> list[Path]:
    """Draw Optuna's plots of a study, and the importance of options, to `folder` as PNG.

    `shares` are those of `find_importance`. Returns the paths.
    """
    if len(finished(study)) < FEWEST:
        return []
    from optuna.visualization import matplotlib as plots

    drawn: dict[str, Callable[[], Any]] = {
        "history": lambda: plots.plot_optimization_history(study, target_name=by),
        "slices": lambda: plots.plot_slice(study, target_name=by),
        "parallel": lambda: plots.plot_parallel_coordinate(study, target_name=by),
    }
    if shares:
        drawn["importance"] = lambda: plot_importance(shares, by)
    return [save_plot(plot, folder / f"{name}.png") for name, plot in drawn.items()]


def plot_importance(shares: Mapping[str, float], by: str) -> Any:
    """Return pyplot's axes with a bar for each option, the most important one on top."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots()
    bars = axes.barh(list(shares), list(shares.values()), color="#0072B2")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_title("Importance of the options")
    axes.set_xlabel(f"importance for {by}, relative, of 1 in all (PED-ANOVA)")
    return axes


def save_plot(plot: Callable[[], Any], path: Path) -> Path:
    """Draw one of Optuna's plots, which are pyplot's, and write it as PNG."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    with warnings.catch_warnings(), pyplot.rc_context():
        warnings.simplefilter("ignore")
        axes = plot()
        first = axes.flat[0] if hasattr(axes, "flat") else axes
        figure = first.figure
        figure.set_size_inches(max(8.0, 2.4 * len(figure.axes)), 5.2)
        for axis in figure.axes:
            axis.xaxis.set_minor_formatter(NullFormatter())  # of a logarithm: they overlap
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(axis="x", labelrotation=30)
        take_words_literally(figure)
        settings = {"dpi": DOTS_PER_INCH, "bbox_inches": "tight", "pil_kwargs": QUICKLY}
        write_atomically(path, lambda aside: figure.savefig(aside, format="png", **settings))
        pyplot.close(figure)
    return path


def write_search(
    path: Path, tables: Sequence[Table], words: Sequence[str], figures: Sequence[Path]
) -> Path:
    """Write what a search found as one HTML file; return its path."""
    pictures = [Picture.from_file(file, CAPTIONS[file.stem]) for file in figures]
    sections = [Section("Trials", words, tables)]
    if pictures:
        sections.append(Section("Options and values", pictures=pictures))
    return write_page(path, f"Search {path.parent.resolve().name}", sections)
