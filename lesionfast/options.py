"""Configuration fields -> command-line options: nothing is declared twice."""

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from typing import Annotated, Any

import typer

from lesionfast.config import Columns, DataConfig, SplitConfig, TrainConfig

PANELS = {Columns: "Columns", DataConfig: "Data", SplitConfig: "Split", TrainConfig: "Training"}


def options_of(config_class: type, *left_out: str) -> Callable[[Callable], Callable]:
    """Give a command one option a field of `config_class`.

    The command receives those that the user typed as a dict in its first parameter, `given`.
    """
    names = [each.name for each in fields(config_class) if each.name not in left_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapper(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command({k: v for k, v in given.items() if v is not None}, **values)

        _, *own = inspect.signature(command).parameters.values()
        options = [option_of(f, config_class) for f in fields(config_class) if f.name in names]
        parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in [*own, *options]]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate


def option_of(each: Field, config_class: type) -> inspect.Parameter:
    """Return one field as a Typer option; None stands for "not typed"."""
    owner = next(c for c in PANELS if each.name in c.__annotations__)
    flag = "--" + each.name.replace("_", "-")
    flags = f"{flag}/--no-{flag[2:]}" if each.type is bool else flag
    kind = str if each.type == float | str else each.type
    choices = each.metadata["choices"]
    silent_choices = [name for name in choices if name not in each.metadata["help"]]
    listed = f" One of: {', '.join(choices)}." if silent_choices else ""
    silent = each.default is None or isinstance(each.default, bool)
    default = "" if silent else f" (default: {each.default})"
    option = typer.Option(
        flags, help=each.metadata["help"] + listed + default, rich_help_panel=PANELS[owner]
    )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )
