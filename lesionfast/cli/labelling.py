"""Commands about labels: which are doubtful, the page that takes answers, what to label next."""

from pathlib import Path
from typing import TYPE_CHECKING

from lesionfast.cli.base import (
    READ,
    CsvFile,
    Device,
    Root,
    app,
    argument,
    open_runs,
    option,
)
from lesionfast.cli.serving import Host, Port, Token
from lesionfast.console import print_table
from lesionfast.errors import LesionfastError
from lesionfast.files import check_target, write_atomically
from lesionfast.run import Run

if TYPE_CHECKING:
    from lesionfast.serving.labelling.queue import Queue

FoldRuns = argument(
    list[Path] | None,
    "The run of --folds 5 --all, or those of --fold 0 to 4 (default: the newest run).",
)


Corrections = option(
    Path | None,
    "CSV file of answers about labels; none is listed again (with --page: corrections.csv).",
)
Page = option(bool, "Open a local page that asks for the labels, and keeps the answers.", "--page")
List = option(Path | None, "With --page: ask for the images of this list of lesionfast next.")
Who = option(str, "With --page: who answers, kept with each answer.")


def open_queue(
    runs: "list[Run]", images: Path | None, file: Path | None, who: str, device: str
) -> "Queue":
    """Return the queue of a page: the images of a list, else those whose label is doubtful."""
    from lesionfast.serving.labelling.queue import Queue, list_doubted, read_list

    items = read_list(images) if images else list_doubted(runs)
    return Queue(runs[0], items, file or Path("corrections.csv"), who, device)


@app.command(rich_help_panel=READ)
def labels(
    runs: FoldRuns = None,
    corrections: Corrections = None,
    page: Page = False,
    list: List = None,
    who: Who = "",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    token: Token = None,
    device: Device = "auto",
    csv: CsvFile = None,
    out: Root = "runs",
) -> None:
    """List and draw images whose label is doubtful (confident learning).

    A run can judge only images that it was not trained on: its validation and
    test images. The run of train --folds 5 --all judges all. The command also lists
    pairs of images with different decisions: images of one lesion, and
    near-duplicates with different lesion ids.

    With --page a local page asks for one after the other: right, another class,
    unclear, or the same lesion as another. Each answer is appended to the file of
    corrections at once; the next start goes on where the last one ended.

    Example: lesionfast labels runs/20260102-030405-densenet121-5-folds --page
    """
    if page:
        queue = open_queue(open_runs(runs, out), list, corrections, who, device)
        from lesionfast.serving.labelling.page import serve_labels

        serve_labels(queue, host=host, port=port, token=token)
        return
    if list is not None:
        raise LesionfastError(f"--list {list} is for the page. Type --page with it.")
    print_doubts(open_runs(runs, out), corrections, csv)


def print_doubts(runs: "list[Run]", corrections: Path | None, csv: Path | None) -> None:
    """Print the doubtful labels of runs, and pairs that disagree; write the table and a figure."""
    from lesionfast.data.corrections.answers import read_answers
    from lesionfast.evaluation.labels import contradictions, find_duplicates, suspicious_labels
    from lesionfast.reporting.errors import (
        contradictions_table,
        draw_suspicious_labels,
        labels_table,
    )

    if csv:
        check_target(csv)
    answers = read_answers(corrections) if corrections else None
    first, table = runs[0], suspicious_labels(runs, answers)
    print_table(labels_table(table))
    if "group" in first.predictions:
        pairs = find_duplicates(first)
        print_table(contradictions_table(contradictions(runs, pairs, answers)))
    if csv:
        write_atomically(csv, lambda aside: table.to_csv(aside, index=False))
        print(csv)
    print(draw_suspicious_labels(runs, first.path / "figures", table))
