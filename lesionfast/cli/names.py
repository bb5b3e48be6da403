"""The command that lists what options take."""

from typing import Annotated

import typer

from lesionfast.cli.base import app
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


LISTS = ("archs", "augmentations", "balances", "fusions", "heads", "losses", "mixes")


def name_lists(what: str) -> dict[str, str]:
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
            from lesionfast.training.frozen import heads as registry
        case "losses":
            from lesionfast.training.losses import losses as registry
        case "mixes":
            from lesionfast.training.callbacks.mixing import mixes as registry
        case _:
            raise LesionfastError(
                f"there is no list '{what}'.{did_you_mean(what, LISTS)} "
                f"Type one of: {', '.join(LISTS)}."
            )
    return registry.describe()
