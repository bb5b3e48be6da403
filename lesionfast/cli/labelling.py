"""Commands about labels: which are doubtful, the page that takes answers, what to label next."""

from pathlib import Path

from lesionfast.cli.base import READ, CsvFile, Root, app, argument, open_runs, option
from lesionfast.console import print_table
from lesionfast.files import check_target, write_atomically

FoldRuns = argument(
    list[Path] | None,
    "The run of --folds 5 --all, or those of --fold 0 to 4 (default: the newest run).",
)


Corrections = option(Path | None, "CSV file of answers about labels; none is listed again.")


@app.command(rich_help_panel=READ)
def labels(
    runs: FoldRuns = None,
    corrections: Corrections = None,
    csv: CsvFile = None,
    out: Root = "runs",
) -> None:
    """List and draw images whose label is doubtful (confident learning).

    A run can judge only images that it was not trained on: its validation and
    test images. The run of train --folds 5 --all judges all. The command also lists
    pairs of images with different decisions: images of one lesion, and
    near-duplicates with different lesion ids.

    Example: lesionfast labels runs/20260102-030405-densenet121-5-folds
    """
    from lesionfast.data.corrections.answers import read_answers
    from lesionfast.evaluation.labels import contradictions, find_duplicates, suspicious_labels
    from lesionfast.reporting.errors import (
        contradictions_table,
        draw_suspicious_labels,
        labels_table,
    )

    if csv:
        check_target(csv)
    opened, answers = open_runs(runs, out), read_answers(corrections) if corrections else None
    first, table = opened[0], suspicious_labels(opened, answers)
    print_table(labels_table(table))
    if "group" in first.predictions:
        pairs = find_duplicates(first)
        print_table(contradictions_table(contradictions(opened, pairs, answers)))
    if csv:
        write_atomically(csv, lambda aside: table.to_csv(aside, index=False))
        print(csv)
    print(draw_suspicious_labels(opened, first.path / "figures", table))
