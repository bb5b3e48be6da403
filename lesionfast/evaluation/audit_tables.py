"""Terminal tables of what is wrong with a dataset."""

from typing import TYPE_CHECKING

from lesionfast.evaluation.tables import MOST_ROWS, add_columns, new_table, plain

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from lesionfast.data.audit import Audit


VERDICTS = {"ok": "green", "note": "yellow", "problem": "bold red"}


def audit_table(report: "Audit") -> list["Table"]:
    """Return the checks of a dataset, and its near-duplicates if there are any."""
    from rich.text import Text

    table = new_table("Dataset check")
    add_columns(table, "check", "count", "verdict", "detail")
    table.columns[2].justify = table.columns[3].justify = "left"
    table.columns[3].overflow = "fold"
    for row in report.table().itertuples():
        verdict = Text(row.verdict, style=VERDICTS.get(row.verdict, ""))
        table.add_row(row.check, str(row.count), verdict, row.detail)
    pairs = report.near_duplicates
    return [table] if pairs is None or pairs.empty else [table, duplicates_table(pairs)]


def duplicates_table(pairs: "pd.DataFrame") -> "Table":
    """Return the pairs of images that look like one lesion but have different lesion ids."""
    more = f"{MOST_ROWS} of {len(pairs)} pairs; all: --json" if len(pairs) > MOST_ROWS else ""
    table = new_table("Near-duplicates under different lesion ids", more)
    add_columns(table, *pairs.columns)
    for column in table.columns:
        column.no_wrap = True  # half an image id is of no use
    for row in pairs.head(MOST_ROWS).itertuples(index=False):
        table.add_row(*map(plain, row))
    return table
