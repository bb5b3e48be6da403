"""Commands that read a run: interpret, report, runs, compare."""

import json as json_module
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lesionfast.cli.base import Json, Root, app, print_comparison
from lesionfast.console import counting_bar
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.files import check_target, write_atomically
from lesionfast.runs import FEATURES, Run, empty_folders, list_runs, newest_run

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("lesionfast")


@app.command()
def interpret(
    run: Annotated[Path | None, typer.Argument(help="A run; default: the newest.")] = None,
    split: Annotated[str, typer.Option(help="Which predictions: valid or test.")] = "test",
    rule: Annotated[
        str | None,
        typer.Option(
            help="argmax or balanced, for this report only; default: the one that decides."
        ),
    ] = None,
    cost: Annotated[
        str | None, typer.Option(help="What errors cost, such as mel:nv=10 (truth:decision).")
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(help="Share of the prediction sets that hold the truth; kept. Initially 0.9."),
    ] = None,
    refer: Annotated[
        float | None,
        typer.Option(help="Share of the images to refer to a dermatologist; kept. Initially 0.2."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Run the model for what speaks for its decisions.")
    ] = False,
    masks: Annotated[
        Path | None, typer.Option(help="With that: a folder of lesion masks to compare with.")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="CSV file for the ISIC 2018 challenge to write.")
    ] = None,
    nearest: Annotated[
        str | None,
        typer.Option(help="Instead: the training lesions most like this image id or file."),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="How many of them.")] = 5,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Show what a run confuses, melanoma first; write its figures/ and its report.html.

    The run keeps --coverage and --refer: predict, export and report go by them until others are
    typed here.

    Example: lesionfast interpret runs/20260102-030405-densenet121 --nearest ISIC_0024306
    """
    if submission:
        check_target(submission)  # before the work, which may take minutes
    found = Run.open(run) if run else newest_run(out)
    renew_damaged(found)
    if nearest is not None:
        print_nearest(found, nearest, k, json)
        return
    from lesionfast.evaluation.findings import Findings
    from lesionfast.report.overview import write_report

    chosen = {"cost": cost, "coverage": coverage, "refer": refer}
    findings = Findings.of(found, split, rule, **chosen, explain=explain, masks=masks)
    for kept in findings.decisions.kept_choices():
        print(f"as kept in {found.path}: {kept}", file=sys.stderr)
    page = write_report(findings)
    if submission:
        from lesionfast.evaluation.isic import write_submission

        rows = found.predictions[found.predictions["split"] == split]
        write_submission(rows, submission)
        told = "the probabilities, of which the challenge takes the largest (the rule argmax)"
        print(f"{submission}: {told}", file=sys.stderr)
    figures = [str(file) for file in findings.files.values()]
    if json:
        print(json_module.dumps(findings.to_dict() | {"figures": figures, "report": str(page)}))
        return
    from lesionfast.console import print_table
    from lesionfast.report.errors import interpretation_tables

    for table in interpretation_tables(findings):
        print_table(table)
    print("\n".join([*figures, str(page)]))


def renew_damaged(run: Run) -> None:
    """Remove what a run keeps of its validation and is damaged; compute its features anew."""
    from lesionfast.evaluation.decisions import discard_damaged

    if FEATURES in discard_damaged(run):
        from lesionfast.data.split import load_dataset
        from lesionfast.evaluation.explain import dataset_features

        dataset_features(run, load_dataset(run.config, split=run.file("split.csv")))


def print_nearest(run: Run, image: str, k: int, as_json: bool) -> None:
    """Print the training lesions most similar to an image, and the path of their picture."""
    from lesionfast.console import print_table
    from lesionfast.evaluation.explain import nearest_lesions
    from lesionfast.evaluation.interpretation import records
    from lesionfast.report.images import draw_nearest, nearest_table

    table = nearest_lesions(run, image, k)
    figure = draw_nearest(run, table)
    if as_json:
        print(json_module.dumps({"nearest": records(table), "figure": str(figure)}))
        return
    print_table(nearest_table(table))
    print(figure)


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="A run (default: the newest), or several.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which predictions: valid or test.")] = "test",
    to: Annotated[
        Path | None, typer.Option(help="HTML file; default: report.html in the run.")
    ] = None,
    out: Root = "runs",
) -> None:
    """Write all that is known of a run as one HTML file, or of several beside each other.

    Example: lesionfast report runs/20260102-030405-densenet121
    """
    from lesionfast.evaluation.findings import Findings
    from lesionfast.report.comparison import write_comparison
    from lesionfast.report.overview import write_report

    if to:
        check_target(to)
    found = [Run.open(run) for run in runs] if runs else [newest_run(out)]
    if len(found) == 1:
        print(write_report(Findings.of(found[0], split), to))
    else:
        print(write_comparison(found, to or Path(out) / "comparison" / "report.html", split))


def near_duplicates_of(run: Run) -> "pd.DataFrame | None":
    """Return the near-duplicates in a run's data; None, and why, if it is elsewhere."""
    from lesionfast.data.duplicates import find_near_duplicates
    from lesionfast.data.split import load_dataset

    try:
        df = load_dataset(run.config, split=run.file("split.csv"))
        with counting_bar("comparing images") as progress:
            return find_near_duplicates(df, progress, cache=run.config.cache)
    except DamageError:
        raise
    except LesionfastError as error:
        logger.warning("left out: near-duplicates; %s", error)
        return None


@app.command()
def labels(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="The runs of --folds 5 --fold 0 to 4; default: the newest run."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
    out: Root = "runs",
) -> None:
    """List and draw the images whose label is doubtful, by confident learning.

    Images that a run was trained on tell nothing: one run covers its validation and test images,
    the runs of all folds of a cross-validation all of them. Images of one lesion, and
    near-duplicates under different lesion ids, that were decided differently are listed too.

    Example: lesionfast labels runs/fold0 runs/fold1 runs/fold2 runs/fold3 runs/fold4
    """
    from lesionfast.console import print_table
    from lesionfast.evaluation.labels import contradictions, suspicious_labels
    from lesionfast.report.errors import contradictions_table, draw_suspicious_labels, labels_table

    if csv:
        check_target(csv)
    found = [Run.open(run) for run in runs] if runs else [newest_run(out)]
    table = suspicious_labels(found)
    print_table(labels_table(table))
    if "group" in found[0].predictions:
        print_table(contradictions_table(contradictions(found, near_duplicates_of(found[0]))))
    if csv:
        write_atomically(csv, lambda aside: table.to_csv(aside, index=False))
        print(csv)
    print(draw_suspicious_labels(found, found[0].path / "figures", table))


@app.command()
def runs(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files, and say which are damaged.")
    ] = False,
    seal: Annotated[
        Path | None,
        typer.Option(help="Accept the files of this run as they are, and rewrite its manifest."),
    ] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """List the runs and their metrics, oldest first; the exit code is 2 if one is damaged.

    Example: lesionfast runs --verify
    """
    if seal is not None:
        Run.open(seal).seal()
        print(seal)
        return
    if empty := empty_folders(out):
        names = " ".join(map(str, empty))
        logger.warning(
            "runs that stopped before they began left empty folders; type: rmdir %s", names
        )
    found = list_runs(out)
    if not found:
        raise LesionfastError(f"there is no run in {out}. Make one: lesionfast train")
    if verify:
        print_verified(found, json)
        return
    if json:
        print(json_module.dumps([row_of(run) for run in found]))
    else:
        from lesionfast.console import print_table
        from lesionfast.report.comparison import runs_table

        print_table(runs_table(found))
    if damaged := [run for run in found if "damaged" in row_of(run)]:
        raise DamageError(
            f"{len(damaged)} of {len(found)} runs damaged: {row_of(damaged[0])['damaged']} "
            f"To see all damage, type: lesionfast runs --verify --out {out}"
        )


def row_of(run: Run) -> dict[str, Any]:
    """Return what `runs --json` says of a run."""
    row = {"run": str(run.path)}
    try:
        return row | (run.metrics if run.finished and run.classes else {})
    except DamageError as error:
        return row | {"damaged": str(error)}


def print_verified(found: list[Run], as_json: bool) -> None:
    """Print whether the files of runs are what was written; raise `DamageError` if one is not."""
    conditions = {run: run.condition() for run in found}
    if as_json:
        rows = [{"run": str(r.path), "state": c[0], "wrong": c[1]} for r, c in conditions.items()]
        print(json_module.dumps(rows))
    else:
        from lesionfast.console import print_table
        from lesionfast.report.comparison import verified_table

        print_table(verified_table(conditions))
    damaged = [run for run, (_, wrong) in conditions.items() if wrong]
    if damaged:
        name, why = next(iter(conditions[damaged[0]][1].items()))
        raise DamageError(
            f"{len(damaged)} of {len(found)} runs damaged; the first: {damaged[0].path / name}: "
            f"{why}. {damaged[0].remedy(name)}"
        )


@app.command()
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs; default: all with the split of the newest."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which predictions: valid or test.")] = "test",
    csv: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Compare runs on one split, with intervals, and draw them to the comparison/ of --out.

    Example: lesionfast compare --csv comparison.csv
    """
    from lesionfast.evaluation.comparison import Comparison, comparable_runs

    chosen = [Run.open(run) for run in runs] if runs else comparable_runs(out)
    comparison = Comparison.of(chosen, split)
    files = [comparison.write_csv(csv)] if csv else []
    print_comparison(comparison, Path(out) / "comparison", json, files)
