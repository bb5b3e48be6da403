"""The command that lists what options take."""

from importlib import import_module
from typing import Annotated

import typer

from lesionfast.commands.base import app
from lesionfast.errors import LesionfastError, did_you_mean


@app.command("list")
def list_names(
    what: Annotated[
        str, typer.Argument(help="archs, augmentations, balances, fusions, heads, losses or mixes.")
    ],
    containing: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
) -> None:
    """List the names that an option takes.

    Example: lesionfast list archs densenet
    """
    described = name_lists(what)
    rows = {name: text for name, text in described.items() if containing in name}
    if not rows:
        near = did_you_mean(containing, described)
        raise LesionfastError(
            f"none of the {len(described)} {what} has '{containing}' in its name.{near} "
            f"Type fewer letters."
        )
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows.items()))


LISTS = {  # what `list` takes -> the module and the name of its registry
    "archs": ("models.backbones", ""),
    "augmentations": ("data.augment", "augmentations"),
    "balances": ("training.balancing", "balances"),
    "fusions": ("models.fusion", "fusions"),
    "heads": ("training.heads", "heads"),
    "losses": ("training.losses", "losses"),
    "mixes": ("training.mixing", "mixes"),
}


def name_lists(what: str) -> dict[str, str]:
    """Return name -> description of one kind of thing."""
    if what not in LISTS:
        raise LesionfastError(
            f"there is no list '{what}'.{did_you_mean(what, LISTS)} "
            f"Type one of: {', '.join(LISTS)}."
        )
    room, name = LISTS[what]
    module = import_module(f"lesionfast.{room}")
    return getattr(module, name).describe() if name else module.list_archs()
