"""Commands over a dataset: check it, or split it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lesionfast.cli.base import Json, data_app, options_of
from lesionfast.config import DataConfig, SplitConfig
from lesionfast.console import counting_bar


@data_app.command()
@options_of(DataConfig, "data")
def check(
    given: dict[str, Any],
    data: Annotated[str | None, typer.Argument(help="Folder as downloaded.")] = None,
    json: Json = False,
) -> None:
    """Report everything wrong with a dataset; the exit code is 2 if something must be mended.

    Example: lesionfast data check HAM10000
    """
    from lesionfast.console import print_table
    from lesionfast.data.audit import audit, audit_table

    with counting_bar("comparing images") as progress:
        report = audit(DataConfig(data=data, **given), progress)
    if json:
        print(report.to_json())
    else:
        for table in audit_table(report):
            print_table(table)
    raise typer.Exit(0 if report.ok else 2)


@data_app.command()
@options_of(SplitConfig, "data")
def split(
    given: dict[str, Any],
    data: Annotated[str | None, typer.Argument(help="Folder as downloaded.")] = None,
    out: Annotated[Path, typer.Option("--out", help="CSV file to write.")] = Path("split.csv"),
) -> None:
    """Write the split of a dataset as a CSV file and print its path.

    Example: lesionfast data split HAM10000 --out split.csv --seed 1
    """
    from lesionfast.data.split import load_dataset, write_split

    df = load_dataset(SplitConfig(data=data, **given))
    digest = write_split(df, out)
    print(df.groupby(["target", "split"]).size().unstack(fill_value=0), file=sys.stderr)
    print(f"sha256 {digest}", file=sys.stderr)
    print(out)
