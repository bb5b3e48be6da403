"""Commands that combine or train several runs: ensemble, ablate, study."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lesionfast.cli.base import Json, Root, app, options_of, print_comparison, print_run
from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.runs import Run, newest_run

if TYPE_CHECKING:
    from lesionfast.training.study import Outcome


@app.command()
@app.command("committee", hidden=True)  # its earlier name
def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Runs trained on the same split.")],
    mean: Annotated[str, typer.Option(help="arithmetic or geometric.")] = "arithmetic",
    fit_weights: Annotated[
        bool,
        typer.Option("--fit-weights", help="Fit the weights: least log loss on validation."),
    ] = False,
    specialists: Annotated[
        str | None,
        typer.Option(
            help="From one RUN, train a member for each of these classes, weighted three times."
        ),
    ] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Ensemble runs by averaging their probabilities; print the path of the new run.

    Members trained with different class shares have their probabilities divided by them first.

    Example: lesionfast ensemble runs/20260102-030405-densenet121 --specialists mel,bcc,akiec
    """
    from lesionfast.training.ensemble import combine

    members = [Run.open(run) for run in runs]
    if specialists is not None:
        from lesionfast.training.ensemble import add_specialists

        members = add_specialists(members, specialists, out)
    print_run(combine(members, out, mean=mean, fit_weights=fit_weights), json)


@app.command()
def ablate(
    run: Annotated[Path | None, typer.Argument(help="A fused run; default: the newest.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: ablation in the run.")
    ] = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """Say what age and sex add: the run on images alone, on metadata alone, and without metadata.

    The first two are trained, over the same split with the same seed; type it again after an
    interruption. The third predicts with every age and sex unknown.

    Example: lesionfast ablate runs/20260102-030405-densenet121
    """
    from lesionfast.console import print_table
    from lesionfast.evaluation.interpretation import records
    from lesionfast.report.comparison import contribution_table
    from lesionfast.training.study import ablate as take_away

    found = take_away(Run.open(run) if run else newest_run(out), to)
    if json:
        print(json_module.dumps({"table": records(found.table), "words": found.words()}))
        return
    print_table(contribution_table(found.table))
    print("\n".join(found.words()))


@app.command()
@options_of(TrainConfig)
def study(
    given: dict[str, Any],
    file: Annotated[
        Path | None, typer.Argument(help="TOML file with a table 'run' for each configuration.")
    ] = None,
    author: Annotated[
        bool, typer.Option("--author", help="The original author's systems.")
    ] = False,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="With --author: his all from random weights, at 64 pixels."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; default: runs/NAME.")
    ] = None,
) -> None:
    """Train the configurations of a file over one split, and compare them.

    Type it again after an interruption: what is done stays. Options override the file's
    table 'defaults'.

    Example: lesionfast study --author --data HAM10000 --dry-run
    """
    from lesionfast.console import print_table
    from lesionfast.report.comparison import plan_table
    from lesionfast.training.study import (
        AUTHOR,
        AUTHOR_FROM_SCRATCH,
        plan_study,
        read_study,
        run_study,
    )

    if (file is None) != author or (from_scratch and not author):
        raise LesionfastError(
            "type one of: lesionfast study FILE.toml, lesionfast study --author, "
            "lesionfast study --author --from-scratch"
        )
    settings = read_study(file or (AUTHOR_FROM_SCRATCH if from_scratch else AUTHOR), given)
    folder = out or Path("runs") / settings.name
    if dry_run:
        print_table(plan_table(plan_study(settings, folder)))
        return
    outcome = run_study(settings, folder)
    print_outcome(outcome, folder)


def print_outcome(outcome: "Outcome", folder: Path) -> None:
    """Print the comparison of a study's runs; raise `LesionfastError` if some failed."""
    from lesionfast.evaluation.comparison import Comparison

    if outcome.runs:
        split = "test" if "test" in outcome.runs[0].metrics else "valid"
        print_comparison(Comparison.of(outcome.runs, split), folder / "comparison")
    if outcome.failures:
        told = "; ".join(f"'{name}': {why}" for name, why in outcome.failures.items())
        raise LesionfastError(f"{len(outcome.failures)} runs failed. {told}")
