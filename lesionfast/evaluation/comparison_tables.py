"""Terminal tables of runs beside each other: a comparison, and the plan of a study."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lesionfast.evaluation.tables import (
    add_columns,
    count,
    decimal,
    duration,
    new_table,
    plain,
    with_interval,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from lesionfast.evaluation.comparison import Comparison


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
