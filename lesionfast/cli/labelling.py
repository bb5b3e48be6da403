"""Commands about labels: which are doubtful, the page that takes answers, what to label next."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lesionfast.cli.base import (
    READ,
    USE,
    CsvFile,
    Device,
    Root,
    app,
    argument,
    open_runs,
    option,
)
from lesionfast.cli.serving import Host, Port, Token
from lesionfast.config import IN_MEMORY, DataConfig, TrainConfig, write_options
from lesionfast.console import echo, print_table
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.files import check_target, write_sheet
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
FiftyOne = option(
    Path | None, "Write doubtful labels and answers to this folder, for FiftyOne.", "--fiftyone"
)
LabelStudio = option(Path | None, "Write them to this JSON file, as tasks for Label Studio.")
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
    fiftyone: FiftyOne = None,
    label_studio: LabelStudio = None,
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
        if csv or fiftyone or label_studio:
            raise LesionfastError("--page writes answers alone. Type the other files without it.")
        from lesionfast.serving.labelling.page import serve_labels  # first: it says what it needs

        queue = open_queue(open_runs(runs, out), list, corrections, who, device)
        serve_labels(queue, host=host, port=port, token=token)
        return
    if list is not None:
        raise LesionfastError(f"--list {list} is for the page. Type --page with it.")
    for file in filter(None, (csv, label_studio)):
        check_target(file)
    opened = open_runs(runs, out)
    print_doubts(opened, corrections, csv)
    if fiftyone or label_studio:
        export_labels(opened, corrections, fiftyone, label_studio)


def export_labels(
    runs: "list[Run]", corrections: Path | None, fiftyone: Path | None, studio: Path | None
) -> None:
    """Write doubtful labels and answers for FiftyOne and Label Studio; print the paths."""
    from lesionfast.data.corrections.answers import read_answers
    from lesionfast.evaluation.labelling.exports import (
        list_cases,
        write_fiftyone,
        write_label_studio,
    )

    cases = list_cases(runs, read_answers(corrections) if corrections else None)
    if fiftyone:
        echo(write_fiftyone(cases, fiftyone, runs[0].classes))
    if studio:
        echo(*write_label_studio(cases, studio, runs[0].classes, runs[0].path.name), sep="\n")


def print_doubts(runs: "list[Run]", corrections: Path | None, csv: Path | None) -> None:
    """Print the doubtful labels of runs, and pairs that disagree; write the table and a figure."""
    from lesionfast.data.corrections.answers import read_answers
    from lesionfast.evaluation.labels import contradictions, doubtful_labels, find_duplicates
    from lesionfast.reporting.errors import (
        contradictions_table,
        draw_suspicious_labels,
        labels_table,
    )

    answers = read_answers(corrections) if corrections else None
    first, table = runs[0], doubtful_labels(runs, answers)
    print_table(labels_table(table))
    if "group" in first.predictions:
        pairs = find_duplicates(first)
        print_table(contradictions_table(contradictions(runs, pairs, answers)))
    if csv:
        write_sheet(csv, table)
        echo(csv)
    echo(draw_suspicious_labels(runs, first.path / "figures", table))


def training_lines(config: TrainConfig, folder: Path, added: list[str]) -> list[list[str]]:
    """Return the commands that train with the options of a run on its data and what is `added`.

    Several datasets are joined by the usual names of their columns, so data that needs options to
    be read, or that has no folder, is converted first. The split says what is held out.
    """
    from lesionfast.data.layouts.recognise import list_paths

    named = list(map(str, list_paths(config.data))) if config.data else []
    plain = DataConfig()
    if not named or any(getattr(config, name) != getattr(plain, name) for name in HOW_READ):
        data = f"{folder}-before"
        others = {field.name for field in fields(TrainConfig)} - {*HOW_READ, "skip_bad"}
        convert = ["lesionfast", "data", "convert", *named, *write_options(config, others)]
        first, named = [[*convert, "--to", data]], [data]
    else:
        first = []
    words = [word for name in named for word in ("--data", name)]
    options = write_options(config, {*HOW_READ, "data", *OF_THE_SPLIT})
    return [*first, ["lesionfast", "train", *words, *added, *options]]


HOW_READ = ("csv", "images", "layout", "separator", "images_of", "image", "target", "group")
OF_THE_SPLIT = {  # which the file of the split replaces
    *("split", "split_seed", "val", "test", "folds", "fold", "all", "test_on", "join_duplicates"),
    *("corrections", "distill"),
}
Inputs = argument(
    list[str], "Images, folders, tables without labels, or zip, tar, HDF5, Parquet or .npz files."
)
Model = argument(Path, "The run whose doubt decides.")
Count = option(int, "How many images to list.", "--n")
NextFile = option(Path, "CSV file to write the list to.")
Answered = option(Path | None, "CSV file of answers; images that have one are left out.")
Labelled = option(
    Path | None,
    "Copy the images with a class in --corrections to this new folder instead, a dataset for train "
    "--data; beside it a split that keeps held-out images held out.",
)


@app.command("next", rich_help_panel=USE)
def list_next(
    run: Model,
    inputs: Inputs,
    n: Count = 50,
    csv: NextFile = Path("next.csv"),
    corrections: Answered = None,
    labelled: Labelled = None,
    device: Device = "auto",
) -> None:
    """List which unlabelled images to label next, and print the list's path.

    Of the images that the run is least sure of, or on which the models of its
    folds disagree, it lists those that differ most from each other and from the
    training images. The page of labels takes the list.

    Example: lesionfast next runs/20260102-030405-densenet121 photos --n 100
    """
    from lesionfast.data.corrections.answers import read_answers
    from lesionfast.serving.labelling.candidates import choose_next, write_labelled, write_list

    opened, answers = Run.open(run), read_answers(corrections) if corrections else None
    if labelled:
        if answers is None:
            raise LesionfastError("--labelled needs answers. Type --corrections FILE with it.")
        folder, split = write_labelled(opened, inputs, answers, labelled)
        added = ["--data", str(folder), "--split", str(split), "--corrections", str(corrections)]
        if opened.config.data == IN_MEMORY:
            echo(f"the run's data is a DataFrame: add the rows of {folder} to it", stderr=True)
        else:
            for line in training_lines(opened.config, folder, added):
                echo(f"type: {shell_quote(*line)}", stderr=True)
        echo(folder)
        return
    check_target(csv)
    echo(write_list(choose_next(opened, inputs, n, answers, device), csv))
    line = f"lesionfast labels {shell_quote(run)} --page --list {shell_quote(csv)}"
    echo(f"label them: {line}", stderr=True)
