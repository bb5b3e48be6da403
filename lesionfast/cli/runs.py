"""The commands `lesionfast runs`, `runs rm` and `runs note`: which runs there are, tidied up."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lesionfast.catalog.listing import (
    Listing,
    find_runs,
    folders_of_runs,
    select_runs,
    verified_table,
)
from lesionfast.cli.base import READ, Json, Root, app, argument, option, print_json, runs_app
from lesionfast.config import flag_name
from lesionfast.console import echo, print_table
from lesionfast.errors import DamageError, LesionfastError, pluralize, shell_quote
from lesionfast.files import format_bytes
from lesionfast.run import Run, empty_folders, list_runs

if TYPE_CHECKING:
    from lesionfast.catalog.removal import Removal

logger = logging.getLogger("lesionfast")
app.add_typer(runs_app, name="runs", rich_help_panel=READ)

MOST_NAMED = 20  # runs that are named before they are removed
Where = option(
    list[str] | None,
    'A condition on the runs, such as "balanced_accuracy>0.7", "arch=densenet121" or "note~first": '
    "a metric, of the test part where there is one, or else valid (valid.NAME and test.NAME choose "
    "one), or an option of train; = != < <= > >=, and ~ for text that contains. Repeat it: all "
    "must hold.",
)
Sort = option(
    str | None,
    "Sort by this metric, the best first, or by this option; -NAME turns the order round.",
)
Nested = option(bool, "Runs in folders below as well, such as those of studies.", "--nested")
Verify = option(bool, "Read all files and report which are damaged.", "--verify")
Seal = option(Path | None, "Accept the files of this run as they are: rewrite its manifest.")


@runs_app.callback()
def runs(
    context: typer.Context,
    where: Where = None,
    sort: Sort = None,
    nested: Nested = False,
    verify: Verify = False,
    seal: Seal = None,
    out: Root = "runs",
    json: Json = False,
) -> None:
    """List the runs with their metrics, oldest first; filter and sort them, remove some, add notes.

    The exit code is 2 if a run is damaged.

    Example: lesionfast runs --where "balanced_accuracy>0.7" --sort macro_auc
    """
    if context.invoked_subcommand:
        check_nothing_before(context)
        return
    if seal is not None:
        Run.open(seal).seal()
        echo(seal)
        return
    if empty := empty_folders(out):
        names = " ".join(map(str, empty))
        logger.warning("empty folders of runs that never started; type: rmdir %s", names)
    listed = select_runs(find_or_fail(out, nested), out, where or (), sort)
    if verify:
        print_verified(listed, out, json)
    else:
        print_runs(listed, out, json, nested)


def check_nothing_before(context: typer.Context) -> None:
    """Raise `LesionfastError` if an option stands before a sub-command: it would be lost."""
    typed = [
        flag_name(name)
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if typed:
        command = context.invoked_subcommand
        raise LesionfastError(
            f"{', '.join(typed)} before '{command}' would have no effect. Type the options of "
            f"{command} after it; see lesionfast runs {command} --help"
        )


def find_or_fail(root: str, nested: bool) -> list[Run]:
    """Return the runs under a folder; raises `LesionfastError` if there are none."""
    found = find_runs(root) if nested else list_runs(root)
    if found:
        return found
    if folders := folders_of_runs(root):
        raise LesionfastError(
            f"there is no run in {root}, but there are some below it, in {', '.join(folders)}. "
            f"Type --nested, or --out {shell_quote(Path(root) / folders[0])}"
        )
    raise LesionfastError(f"there is no run in {root}. Make one: lesionfast train")


def print_runs(listed: Listing, root: str, as_json: bool, nested: bool) -> None:
    """Print runs and their metrics; raise `DamageError` if one is damaged."""
    if as_json:
        print_json([row.to_dict(listed.columns) for row in listed.rows])
    else:
        table = listed.to_table()
        if not nested and (folders := folders_of_runs(root)):
            table.note += f"\nmore runs in: {', '.join(folders)}; list them with --nested"
        print_table(table)
    if damages := listed.damages:
        raise DamageError(
            f"{len(damages)} of {len(listed)} runs are damaged: {damages[0]} "
            f"To see all damage, type: lesionfast runs --verify --out {shell_quote(Path(root))}"
        )


def print_verified(runs: Listing, root: str, as_json: bool) -> None:
    """Print whether the files of runs are what was written; raise `DamageError` if one is not."""
    conditions = {run: run.condition() for run in runs}
    if as_json:
        print_json(
            [
                {"run": str(run.path), "state": state, "wrong": wrong}
                for run, (state, wrong) in conditions.items()
            ]
        )
    else:
        title = runs.title.replace("Runs", "Runs and their files", 1)
        print_table(verified_table(conditions, title, root))
    if damaged := [(run, wrong) for run, (_, wrong) in conditions.items() if wrong]:
        run, wrong = damaged[0]
        name, why = next(iter(wrong.items()))
        raise DamageError(
            f"{len(damaged)} of {len(runs)} runs are damaged; the first: {run.path / name}: {why}. "
            f"{run.remedy(name)}"
        )


RemovedRuns = argument(list[Path] | None, "Runs to remove (with --where: default all in --out).")
Yes = option(bool, "Do not ask.", "--yes", "-y")
Force = option(bool, "Remove also what other runs need.", "--force")


@runs_app.command("rm")
def remove(
    runs: RemovedRuns = None,
    where: Where = None,
    nested: Nested = False,
    yes: Yes = False,
    force: Force = False,
    out: Root = "runs",
) -> None:
    """Remove runs, with everything in them, and print their paths.

    A run that is being trained, that another run needs, or that a symbolic link
    stands for is not removed. All are checked before the first is removed.

    Example: lesionfast runs rm --where "balanced_accuracy<0.3"
    """
    from lesionfast.catalog.removal import plan_removal, remove

    if not runs and not where:
        raise LesionfastError(
            'nothing says which runs to remove. Name them, or type --where "balanced_accuracy<0.3"'
        )
    named = [Path(run) for run in runs or []]
    if where:
        found = [Run(path) for path in named] if named else find_or_fail(out, nested)
        named = [row.run.path for row in select_runs(found, out, where).rows if not row.damage]
        if not named:
            echo("no run meets that; nothing was removed", stderr=True)
            return
    planned = plan_removal(named, out, force)
    if not yes:
        confirm(planned)
    for one in planned:
        remove(one.path)
        echo(one.path, flush=True)


def confirm(planned: "list[Removal]") -> None:
    """Show what is to be removed and ask; raise `LesionfastError` if not, or without a terminal."""
    for one in planned[:MOST_NAMED]:
        inner = f", {pluralize(one.inner, 'run')} in it" if one.inner else ""
        note = f"{pluralize(one.files, 'file')}, {format_bytes(one.size)}{inner}"
        echo(f"{one.path}  ({note})", stderr=True)
    if len(planned) > MOST_NAMED:
        echo(f"and {len(planned) - MOST_NAMED} more", stderr=True)
    size = format_bytes(sum(one.size for one in planned))
    what = f"{pluralize(len(planned), 'run')}, {size}"
    if not sys.stdin.isatty():
        raise LesionfastError(f"nothing was removed of {what}. To remove it, type --yes.")
    if not typer.confirm(f"Remove {what}?", err=True):
        raise LesionfastError("nothing was removed.")


NotedRun = argument(Path, "The run.")
Text = argument(str | None, "The note; an empty one removes it (default: print the note).")


@runs_app.command("note")
def note(run: NotedRun, text: Text = None) -> None:
    """Keep a text in a run, which replaces the earlier one; the list of the runs shows it.

    It is in note.txt of the run, which you may also edit.

    Example: lesionfast runs note runs/first "baseline of the paper"
    """
    opened = Run.open(run)
    if text is None:
        echo(opened.note)
        return
    opened.note = text
    echo(opened.path)
