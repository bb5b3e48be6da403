"""What the user says of classes by name: weights, costs of errors, numbers of sub-classes."""

import numpy as np

from lesionfast.errors import LesionfastError, did_you_mean


def read_weights_of(text: str | None, classes: list[str]) -> np.ndarray:
    """Return the weight of each class (K,) from "mel=2,bcc=1.5"; 1 where nothing is said."""
    weights = np.ones(len(classes))
    for name, value in read_pairs("--class-weight", text, "mel=2"):
        weights[find_class("--class-weight", name, classes)] = value
    return weights


def read_costs(text: str | None, classes: list[str]) -> np.ndarray:
    """Return what calling row (truth) column (decision) costs (K, K) from "mel:nv=4,bcc:nv=2".

    Raises `LesionfastError` for names that are no classes, and a cost of a right decision.
    """
    costs = np.zeros((len(classes), len(classes)))
    for name, value in read_pairs("--cost", text, "mel:nv=4"):
        truth, colon, decision = name.partition(":")
        if not colon or truth == decision:
            raise LesionfastError(
                f"--cost has '{name}', which is no pair of truth and another decision. "
                "Type such as --cost mel:nv=4."
            )
        pair = (find_class("--cost", each, classes) for each in (truth, decision))
        costs[tuple(pair)] = value
    return costs


def read_subclasses(text: str | None, classes: list[str]) -> dict[str, int]:
    """Return the number of sub-classes by class name from "mel=3,nv=2"; each is 2 or more."""
    counts = {}
    for name, value in read_pairs("--subclass", text, "mel=3"):
        if value < 2 or value != int(value):
            raise LesionfastError(
                f"--subclass has {name}={value:g}; type a whole number from 2, such as {name}=3."
            )
        counts[classes[find_class("--subclass", name, classes)]] = int(value)
    return counts


def read_pairs(option: str, text: str | None, example: str) -> list[tuple[str, float]]:
    """Return names and positive numbers from "name=number,name=number", each name once."""
    pairs = []
    for part in (text or "").split(",") if text else []:
        name, equals, value = (each.strip() for each in part.partition("="))
        number = as_number(value)
        if not (name and equals and number > 0):
            raise LesionfastError(
                f"{option} has '{part.strip()}', which is no name=number above 0. "
                f"Type such as {option} {example}."
            )
        pairs.append((name, number))
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise LesionfastError(f"{option} {text} names a class twice. Name each once.")
    return pairs


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
            f"The data has: {', '.join(classes)}."
        )
    return classes.index(name)
