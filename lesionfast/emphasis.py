"""What the user says of classes by name: weights, costs of errors, numbers of sub-classes."""

import numpy as np

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.quoting import join_names, quote, split_unquoted, unquote


def read_weights_of(text: str | None, classes: list[str]) -> np.ndarray:
    """Return the weight of each class (K,) from "mel=2,bcc=1.5"; 1 where nothing is said."""
    weights = np.ones(len(classes))
    for name, value in parse_weights(text).items():
        weights[find_class("--class-weight", name, classes)] = value
    return weights


def parse_weights(text: str | None) -> dict[str, float]:
    """Return the weights that "mel=2,bcc=1.5" says, by class name."""
    return {name: value for (name,), value in read_pairs("--class-weight", text, "mel=2")}


def write_weights(weights: dict[str, float]) -> str:
    """Return weights as `parse_weights` reads them."""
    return ",".join(f"{quote(name)}={value:g}" for name, value in weights.items())


def read_costs(text: str | None, classes: list[str]) -> np.ndarray:
    """Return what calling row (truth) column (decision) costs (K, K) from "mel:nv=4,bcc:nv=2".

    Raises `LesionfastError` for names that are no classes, and a cost of a right decision.
    """
    costs = np.zeros((len(classes), len(classes)))
    for names, value in read_pairs("--cost", text, "mel:nv=4"):
        if len(names) != 2 or names[0] == names[1]:
            raise LesionfastError(
                f"--cost has '{':'.join(names)}', which is no pair of truth and another decision. "
                f"{what_to_type('--cost', 'mel:nv=4')}"
            )
        pair = (find_class("--cost", name, classes) for name in names)
        costs[tuple(pair)] = value
    return costs


def read_subclasses(text: str | None, classes: list[str]) -> dict[str, int]:
    """Return the number of sub-classes by class name from "mel=3,nv=2"; each is 2 or more."""
    counts = {}
    for (name,), value in read_pairs("--subclass", text, "mel=3"):
        if value < 2 or value != int(value):
            raise LesionfastError(
                f"--subclass has {name}={value:g}; type a whole number from 2, such as "
                f"{quote(name)}=3."
            )
        counts[classes[find_class("--subclass", name, classes)]] = int(value)
    return counts


def read_pairs(option: str, text: str | None, example: str) -> list[tuple[tuple[str, ...], float]]:
    """Return names and positive numbers from "name=number,name=number", each once.

    Names are one, or as many as have colons between them if `example` has one. A name with a mark
    of its own is in double quotes.
    """
    pairs = []
    for part in split_unquoted(text, ",") if text else []:
        *left, value = split_unquoted(part, "=")
        name, number = "=".join(left), as_number(value)
        if not (name.strip() and number > 0):
            raise LesionfastError(
                f"{option} has '{part.strip()}', which is no name=number above 0. "
                f"{what_to_type(option, example)}"
            )
        names = split_unquoted(name, ":") if ":" in example else [name]
        pairs.append((tuple(map(unquote, names)), number))
    if len({names for names, _ in pairs}) < len(pairs):
        raise LesionfastError(f"{option} {text} names a class twice. Name each once.")
    return pairs


def what_to_type(option: str, example: str) -> str:
    """Return an example of what an option takes, with how a name with marks in it is typed."""
    name, number = example.split("=")
    quoted = name.replace("mel", '"a, b"')
    return (
        f"Type such as {option} {example}. A name with a comma, = or : goes in double quotes: "
        f"{option} '{quoted}={number}'."
    )


def as_number(text: str) -> float:
    """Return the finite number that a text says, NaN if it says none."""
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    return value if np.isfinite(value) else float("nan")


def find_class(option: str, name: str, classes: list[str]) -> int:
    """Return the number of a class; raises `LesionfastError` if there is none of that name."""
    if name not in classes:
        raise LesionfastError(
            f"{option} names '{name}', which is no class.{did_you_mean(name, classes)} "
            f"The data has: {join_names(classes)}."
        )
    return classes.index(name)
