"""Names -> builders, so that to add a variant is to write one decorated function."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from lesionfast.errors import LesionfastError, did_you_mean

Builder = TypeVar("Builder", bound=Callable[..., Any])


class Registry(Mapping[str, Callable[..., Any]]):
    """A mapping of names to builders, filled by the `register` decorator.

    `kind` is the singular noun used in errors, `option` the CLI option that takes a name. A second
    registration replaces the first. Looking up a name that is not registered raises a
    `LesionfastError` that lists those that are.
    """

    def __init__(self, kind: str, option: str) -> None:
        self.kind, self.option = kind, option
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """Return a decorator that files a function or class under `name`."""

        def file(builder: Builder) -> Builder:
            assert builder.__doc__, f"{self.kind} '{name}' has no docstring to list"
            self._builders[name] = builder
            return builder

        return file

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._builders:
            raise LesionfastError(
                f"there is no {self.kind} '{name}'.{did_you_mean(name, self)} "
                f"Choose one with {self.option}: {', '.join(self)}."
            )
        return self._builders[name]

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)

    def describe(self) -> dict[str, str]:
        """Return name -> first line of the builder's docstring."""
        return {
            name: (b.__doc__ or "").strip().splitlines()[0] for name, b in self._builders.items()
        }
