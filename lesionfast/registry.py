"""Names -> builders, so that to add a variant is to write one decorated function."""

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha1
from types import FrameType
from typing import Any, TypeVar

from lesionfast.errors import LesionfastError, did_you_mean

logger = logging.getLogger("lesionfast")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
Builder = TypeVar("Builder", bound=Callable[..., Any])


class Registry(Mapping[str, Callable[..., Any]]):
    """A mapping of names to builders, filled by the `register` decorator.

    `kind` is the singular noun used in errors, `option` the CLI option that takes a name. A second
    registration replaces the first, which is logged once. Looking up a name that is not registered
    raises a `LesionfastError` that lists those that are.
    """

    def __init__(self, kind: str, option: str) -> None:
        self.kind, self.option = kind, option
        self._builders: dict[str, Callable[..., Any]] = {}
        self._replaced: set[str] = set()
        self.modules: dict[str, str] = {}  # of the names that others registered

    def register(self, name: str, module: str | None = None) -> Callable[[Builder], Builder]:
        """Return a decorator that files a function or class under `name`.

        `module` is the one that registers it, None for lesionfast itself. Raises `LesionfastError`
        for a name that can't be typed as an option.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise LesionfastError(
                f"{name!r} can't be registered ({self.kind}): type a name of letters, digits, - "
                'and _, such as "mine".'
            )

        def file(builder: Builder) -> Builder:
            if name in self._builders and name not in self._replaced:
                self._replaced.add(name)
                logger.info("the %s '%s' is replaced", self.kind, name)
            self._builders[name] = builder
            self.modules.pop(name, None)
            if module is not None:
                self.modules[name] = module
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
        """Return name -> first line of the builder's docstring, or else the module it is from."""
        texts = {name: inspect.cleandoc(b.__doc__ or "") for name, b in self._builders.items()}
        return {
            name: text.splitlines()[0] if text else f"Registered by {self.modules.get(name)}."
            for name, text in texts.items()
        }


def own_name(thing: Any) -> str:
    """Return the name of a function or class; of an object its class's, with a digest of its text.

    So two modules of one class, such as `nn.Sequential`, have two names.
    """
    if name := getattr(thing, "__name__", ""):
        return "unnamed" if name == "<lambda>" else name
    return f"{type(thing).__name__}-{sha1(repr(thing).encode()).hexdigest()[:8]}"


def calling_module() -> str:
    """Return the name of the module outside lesionfast that called it, such as "__main__"."""
    frame: FrameType | None = sys._getframe()
    while frame and frame.f_globals.get("__name__", "").split(".")[0] == "lesionfast":
        frame = frame.f_back
    return frame.f_globals.get("__name__", "__main__") if frame else "__main__"
