"""Commands that read runs: interpret, report, compare."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lesionfast.cli.base import (
    READ,
    CsvFile,
    Json,
    OneRun,
    Root,
    Split,
    app,
    argument,
    open_run,
    open_runs,
    option,
    print_comparison,
    print_json,
)
from lesionfast.console import echo, print_table
from lesionfast.files import check_target
from lesionfast.run import Run

if TYPE_CHECKING:
    from lesionfast.evaluation.findings import Findings

logger = logging.getLogger("lesionfast")

Rule = option(
    str | None,
    "Decision rule of this report: argmax or balanced, without a weight on melanoma (default: that "
    "of the run).",
)
Cost = option(
    str | None,
    "Costs that advice weighs, such as missed_melanoma=30,missed_cancer=10; the run keeps them "
    "(initially these and needless_excision=1). Or of confusions, for this report: mel:nv=10.",
)
Coverage = option(
    float | None, "Target coverage of the prediction sets; the run keeps it (initially 0.9)."
)
Refer = option(
    float | None, "Share of images to refer to a dermatologist; the run keeps it (initially 0.2)."
)
MelanomaSensitivity = option(
    float | None,
    "Share of the validation melanomas that the rule has to find, such as 0.8: it gets the weight "
    "on melanoma that this takes, and the run keeps it; 0: none.",
)
Explain = option(bool, "Run the model to explain decisions with Grad-CAM.", "--explain")
Masks = option(Path | None, "With --explain: folder of lesion masks to compare the maps with.")
Submission = option(Path | None, "CSV file for a submission to the ISIC 2018 challenge.")
Nearest = option(
    str | None, "Show only the training lesions most similar to this image id or file."
)
Neighbours = option(int, "Number of lesions that --nearest shows.", "--k")


@app.command(rich_help_panel=READ)
def interpret(
    run: OneRun = None,
    split: Split = "test",
    rule: Rule = None,
    cost: Cost = None,
    coverage: Coverage = None,
    refer: Refer = None,
    melanoma_sensitivity: MelanomaSensitivity = None,
    explain: Explain = False,
    masks: Masks = None,
    submission: Submission = None,
    nearest: Nearest = None,
    k: Neighbours = 5,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Show what a run confuses, melanoma first; write figures/ and report.html.

    The run keeps --melanoma-sensitivity, --coverage, --refer and stated costs:
    predict, export and report use them until you choose others here.

    Example: lesionfast interpret runs/20260102-030405-densenet121 --nearest ISIC_0024306
    """
    if submission:
        check_target(submission)  # before the work, which may take minutes
    opened = open_run(run, out)
    from lesionfast.evaluation.findings import Findings, renew_damaged

    renew_damaged(opened)
    if nearest is not None:
        print_nearest(opened, nearest, k, json)
        return
    choices = {"cost": cost, "coverage": coverage, "refer": refer}
    choices |= {"melanoma_sensitivity": melanoma_sensitivity}
    findings = Findings.from_run(opened, split, rule, **choices, explain=explain, masks=masks)
    if findings.fewer_melanomas:
        logger.warning("%s", findings.fewer_melanomas)
    for choice in findings.decisions.kept_choices():
        echo(f"kept in {opened.path}: {choice}", stderr=True)
    print_findings(findings, submission, json)


def print_nearest(run: Run, image: str, k: int, as_json: bool) -> None:
    """Print the training lesions most similar to an image, and the path of their figure."""
    from lesionfast.evaluation.features import nearest_lesions
    from lesionfast.evaluation.interpretation import records
    from lesionfast.reporting.images import draw_nearest, nearest_table

    lesions = nearest_lesions(run, image, k)
    figure = draw_nearest(run, lesions)
    if as_json:
        print_json({"nearest": records(lesions), "figure": str(figure)})
        return
    print_table(nearest_table(lesions))
    echo(figure)


def print_findings(findings: "Findings", submission: Path | None, as_json: bool) -> None:
    """Write the report and the submission; print the tables and the files, or JSON."""
    from lesionfast.reporting.overview import write_report

    page = write_report(findings)
    if submission:
        from lesionfast.evaluation.isic import write_submission

        predictions = findings.interpretation.run.predictions
        rows = predictions[predictions["split"] == findings.interpretation.split]
        write_submission(rows, submission)
        note = "probabilities; the challenge decides by the largest (the rule argmax)"
        echo(f"{submission}: {note}", stderr=True)
    figures = [str(figure) for figure in findings.files.values()]
    if as_json:
        print_json(findings.to_dict() | {"figures": figures, "report": str(page)})
        return
    from lesionfast.reporting.errors import interpretation_tables

    for table in interpretation_tables(findings):
        print_table(table)
    echo(*figures, page, sep="\n")


ReportedRuns = argument(list[Path] | None, "A run (default: the newest), or several.")
Page = option(Path | None, "HTML file (default: report.html of the run).")
Pdf = option(bool, "Print the report to a PDF beside it too; this takes Chromium.", "--pdf")


@app.command(rich_help_panel=READ)
def report(
    runs: ReportedRuns = None,
    split: Split = "test",
    to: Page = None,
    pdf: Pdf = False,
    out: Root = "runs",
) -> None:
    """Write a report of one run, or of several side by side, as one HTML file.

    Example: lesionfast report runs/20260102-030405-densenet121
    """
    from lesionfast.evaluation.findings import Findings
    from lesionfast.reporting.comparison import write_comparison
    from lesionfast.reporting.overview import write_report
    from lesionfast.reporting.page import find_browser, print_pdf

    if to:
        check_target(to)
    if pdf:
        find_browser()  # before the work, which may take minutes
    opened = open_runs(runs, out)
    if len(opened) == 1:
        page = write_report(Findings.from_run(opened[0], split), to)
    else:
        page = write_comparison(opened, to or Path(out) / "comparison" / "report.html", split)
    echo(page)
    if pdf:
        echo(print_pdf(page))


ComparedRuns = argument(list[Path] | None, "Runs (default: all with the split of the newest).")


@app.command(rich_help_panel=READ)
def compare(
    runs: ComparedRuns = None,
    split: Split = "test",
    csv: CsvFile = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Compare runs of the same split, with intervals; draw figures to comparison/ in --out.

    Example: lesionfast compare --csv comparison.csv
    """
    from lesionfast.evaluation.comparison import Comparison, comparable_runs

    opened = open_runs(runs, out) if runs else comparable_runs(out)
    comparison = Comparison.from_runs(opened, split)
    files = [comparison.write_csv(csv)] if csv else []
    print_comparison(comparison, Path(out) / "comparison", json, files)
