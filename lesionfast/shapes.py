"""Shapes: what a JSON value must look like before its reader believes it."""

import math
from collections.abc import Iterator
from typing import Any

NAMES = {list: "a list", dict: "an object"}


def check_shape(value: Any, shape: Any, name: str = "it") -> None:
    """Raise `ValueError` unless a JSON value has a shape.

    A shape is a type (`float` is any finite number, `object` anything, None is null), a text
    that it must be, `[shape]` for a list, `{key: shape}` for an object with these keys ("key?":
    it may be missing) and others, `{str: shape}` for one with any keys, and a tuple of shapes for
    one of them.
    """
    if isinstance(shape, tuple):
        if not any(has_shape(value, each) for each in shape):
            raise ValueError(f"{name} is {brief(value)}")
    elif isinstance(shape, list | dict):
        if type(value) is not type(shape):
            raise ValueError(f"{name} is {brief(value)}, not {NAMES[type(shape)]}")
        for key, part in parts_of(value, shape, name):
            check_shape(value[key], part, f"'{key}'" if name == "it" else f"{name}[{key!r}]")
    elif not has_type(value, shape):
        raise ValueError(f"{name} is {brief(value)}")


def has_shape(value: Any, shape: Any) -> bool:
    """Return whether a JSON value has a shape."""
    try:
        check_shape(value, shape)
    except ValueError:
        return False
    return True


def parts_of(value: Any, shape: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the keys of a list or an object, each with the shape that it must have."""
    if isinstance(shape, list):
        yield from ((index, shape[0]) for index in range(len(value)))
        return
    for key, part in shape.items():
        if key is str:
            yield from ((each, part) for each in value)
        elif key.rstrip("?") in value:
            yield key.rstrip("?"), part
        elif not key.endswith("?"):
            raise ValueError(f"{name} has no '{key}'")


def has_type(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is of a type."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return kind is object or value == kind or type(value) is kind


def brief(value: Any) -> str:
    """Return a JSON value in a few characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
