"""Names -> builders, so that to add a variant is to write one decorated function."""

import inspect
import logging
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from hashlib import sha1
from itertools import count
from types import CodeType, FrameType, MethodType
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
        self.digests: dict[str, str] = {}  # of their source when they were registered
        self._passed: dict[str, str] = {}  # where what was passed instead of a name is defined

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
            self.digests.pop(name, None)
            self._passed.pop(name, None)
            if module is not None:
                self.modules[name] = module
                self.digests[name] = short_digest(source_text(builder))
            return builder

        return file

    def name_passed(self, thing: Any, reserved: Container[str] = ()) -> str:
        """Return the name of what was passed instead of a name; it is registered if it is new.

        The name is its own, as `own_name` returns it, with a number if it is in `reserved` or
        another thing has it: a built-in or registered entry is never replaced. Only a function or
        class that is defined again, such as in a notebook cell, replaces what was passed before.
        """
        for name, builder in self._builders.items():
            if builder is thing or (isinstance(thing, MethodType) and builder == thing):
                return name
        own, place = own_name(thing), place_of_definition(thing)
        for name in (own if n == 1 else f"{own}-{n}" for n in count(1)):
            free = name not in self._builders or self._passed.get(name) == place
            if free and name not in reserved:
                break
        self.register(name, calling_module())(thing)
        self._passed[name] = place
        return name

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
        return "unnamed" if name == "<lambda>" else name.lstrip("_") or "unnamed"
    return f"{type(thing).__name__}-{short_digest(describe_object(thing))}"


def describe_object(thing: Any) -> str:
    """Return the text of an object with its plain attributes, which a module's text may lack."""
    plain = (bool, int, float, str, tuple)
    settings = {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if isinstance(value, plain) and not name.startswith("_") and name != "training"
    }
    return f"{thing!r} {settings}" if settings else repr(thing)


def source_text(thing: Any) -> str:
    """Return the source of a function or class; of an object its class's, with its own text.

    Python finds no source of a class in a notebook, but that of its methods.
    """
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        if inspect.isfunction(thing):
            return code_text(thing.__code__)
        parts: Iterable[Any] = [type(thing)]
        if isinstance(thing, type):
            parts = filter(inspect.isfunction, vars(thing).values())
        return "\n".join([describe_object(thing), *map(source_text, parts)])


def code_text(code: CodeType) -> str:
    """Return what a function without source does, as text: its instructions, names and values."""
    values = [code_text(v) if isinstance(v, CodeType) else repr(v) for v in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {values}"


def place_of_definition(thing: Any) -> str:
    """Return where a function, class or object's class is defined: the same if it is run again.

    A lambda, and what a function defines, has a place of its own: it may differ from call to call.
    So has a method of an object.
    """
    if isinstance(thing, MethodType):
        return f"{place_of_definition(thing.__func__)} {id(thing.__self__)}"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    place = f"{named.__module__}.{named.__qualname__}"
    return f"{place} {id(thing)}" if named is thing and "<" in place else place


def short_digest(text: str) -> str:
    """Return eight hexadecimal digits of the SHA-1 of a text."""
    return sha1(text.encode(), usedforsecurity=False).hexdigest()[:8]


def calling_module() -> str:
    """Return the name of the module outside lesionfast that called it, such as "__main__"."""
    frame: FrameType | None = sys._getframe()
    while frame and frame.f_globals.get("__name__", "").split(".")[0] == "lesionfast":
        frame = frame.f_back
    return frame.f_globals.get("__name__", "__main__") if frame else "__main__"
