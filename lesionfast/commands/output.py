"""What more than one command prints."""

import json as json_module
import sys
from collections.abc import Iterable
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from lesionfast.runs import Run

if TYPE_CHECKING:
    from lesionfast.evaluation.comparison import Comparison


def print_run(run: Run, as_json: bool) -> None:
    """Print the metrics of a run to stderr and its path, or JSON, to stdout."""
    from lesionfast.evaluation.run_tables import metrics_table
    from lesionfast.evaluation.tables import print_table

    for split in ("valid", "test"):
        if split in run.metrics:
            print_table(metrics_table(run, split), stderr=True)
    if run.metrics["status"] == "interrupted":
        print(f"interrupted; go on with: lesionfast train --resume {run.path}", file=sys.stderr)
    print(json_module.dumps({"run": str(run.path), **run.metrics}) if as_json else run.path)


def print_comparison(
    comparison: "Comparison", folder: Path, as_json: bool = False, files: Iterable[Path] = ()
) -> None:
    """Draw a comparison to a folder; print it as a table or JSON, and the files, to stdout."""
    from lesionfast.evaluation.comparison_figures import draw_comparison
    from lesionfast.evaluation.comparison_tables import comparison_table
    from lesionfast.evaluation.tables import print_table

    figures = draw_comparison(comparison, folder)
    if as_json:
        print(json_module.dumps(comparison.to_dict() | {"figures": list(map(str, figures))}))
        return
    narrow = sys.stdout.isatty() and get_terminal_size().columns < 110
    print_table(comparison_table(comparison, narrow), whole=True)
    print("\n".join(map(str, [*files, *figures])))
