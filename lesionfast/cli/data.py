"""Commands about data and names: check a dataset, split it, list what options take."""

from pathlib import Path
from typing import Any

import typer

from lesionfast.cli.base import DATA, Json, app, argument, config_options, data_app, option
from lesionfast.config import DataConfig, SplitConfig, read_option
from lesionfast.console import counting_bar, echo, print_table
from lesionfast.errors import LesionfastError, did_you_mean

app.add_typer(data_app, name="data", rich_help_panel=DATA)

DataFolder = argument(list[str] | None, "Dataset folder as downloaded, or several.")
SplitFile = option(Path, "CSV file to write.", "--out")
LISTS = (
    "archs",
    "augmentations",
    "balances",
    "fusions",
    "heads",
    "layouts",
    "losses",
    "mixes",
    "trackers",
)
Kind = argument(str, f"{', '.join(LISTS[:-1])} or {LISTS[-1]}.")
Part = argument(str, "Show only names that contain this.")


@data_app.command()
@config_options(DataConfig, "data")
def check(given: dict[str, Any], data: DataFolder = None, json: Json = False) -> None:
    """Report everything that is wrong with a dataset.

    The exit code is 2 if something must be fixed.

    Example: lesionfast data check HAM10000
    """
    from lesionfast.data.audit import audit, audit_table

    with counting_bar("comparing images") as progress:
        config = DataConfig(data=read_option(data or None), **given)
        report = audit(config, progress, None if json else echo)
    if json:
        echo(report.to_json())
    else:
        for table in audit_table(report):
            print_table(table)
    raise typer.Exit(0 if report.ok else 2)


@data_app.command()
@config_options(SplitConfig, "data", "corrections")
def split(
    given: dict[str, Any], data: DataFolder = None, out: SplitFile = Path("split.csv")
) -> None:
    """Write the split of a dataset to a CSV file and print its path.

    Example: lesionfast data split HAM10000 --out split.csv --seed 1
    """
    from lesionfast.data.split import load_dataset, write_split

    df = load_dataset(SplitConfig(data=read_option(data or None), **given))
    digest = write_split(df, out)
    echo(df.groupby(["target", "split"]).size().unstack(fill_value=0), stderr=True)
    echo(f"sha256 {digest}", stderr=True)
    echo(out)


Target = option(Path, "Folder to write to.", "--to")


@data_app.command()
@config_options(DataConfig, "data", "corrections")
def convert(given: dict[str, Any], to: Target, data: DataFolder = None) -> None:
    """Write a dataset as one CSV file and one folder of images, and print the folder.

    Example: lesionfast data convert ISIC2019 --to isic2019
    """
    from lesionfast.data.layouts.convert import convert

    with counting_bar("images") as progress:
        echo(convert(DataConfig(data=read_option(data or None), **given), to, progress))


Public = argument(str, "ham10000 or isic2018-test.")
Server = option(str | None, "Address of a mirror (default: Harvard's Dataverse).")


@data_app.command("download")
def fetch(name: Public, to: Target, server: Server = None) -> None:
    """Download a public dataset and print its folder; type it again to go on after a break.

    Example: lesionfast data download ham10000 --to HAM10000
    """
    from lesionfast.data.layouts.download import SERVER, download

    with counting_bar("bytes") as progress:
        download(name, to, server or SERVER, progress)
    echo(to)


@app.command("list", rich_help_panel=DATA)
def list_names(what: Kind, containing: Part = "") -> None:
    """List the names that an option takes.

    Example: lesionfast list archs densenet
    """
    described = describe_names(what)
    rows = {name: text for name, text in described.items() if containing in name}
    if not rows:
        raise LesionfastError(
            f"none of the {len(described)} {what} has '{containing}' in its name."
            f"{did_you_mean(containing, described)} Type fewer letters."
        )
    width = max(map(len, rows))
    echo("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows.items()))


def describe_names(what: str) -> dict[str, str]:
    """Return name -> description of one kind of thing; only its own module is loaded."""
    match what:
        case "archs":
            from lesionfast.models.archs import list_archs

            return list_archs()
        case "augmentations":
            from lesionfast.data.augment import augmentations as registry
        case "balances":
            from lesionfast.training.balancing import balances as registry
        case "fusions":
            from lesionfast.models.fusion import fusions as registry
        case "heads":
            from lesionfast.training.heads import heads as registry
        case "layouts":
            from lesionfast.data.layouts.recognise import layouts as registry
        case "losses":
            from lesionfast.training.losses import losses as registry
        case "mixes":
            from lesionfast.training.callbacks.regularization import mixes as registry
        case "trackers":
            from lesionfast.training.trackers.services import trackers as registry
        case _:
            raise LesionfastError(
                f"there is no list '{what}'.{did_you_mean(what, LISTS)} "
                f"Type one of: {', '.join(LISTS)}."
            )
    return registry.describe()
