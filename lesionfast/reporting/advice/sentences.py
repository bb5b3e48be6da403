"""The sentences that a person reads first, from one file of messages a language."""

import tomllib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from lesionfast.diagnoses import NAMES, Classes, plain

ENGLISH = "en"


@lru_cache
def read_messages(language: str = ENGLISH) -> dict[str, dict[str, str]]:
    """Return the messages of a language by section and key."""
    file = resources.files("lesionfast.reporting.advice") / f"{language}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def say(key: str, **values: Any) -> str:
    """Return a message such as "advice.examine" with its values, from a capital letter on."""
    return capitalize(word(key).format(**values))


def capitalize(text: str) -> str:
    """Return a text that begins with a capital letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def word(key: str) -> str:
    """Return a message such as "share.benign" as it is, to stand within a sentence."""
    section, _, name = key.partition(".")
    return read_messages()[section][name]


def name_class(name: str, indefinite: bool = False) -> str:
    """Return the name of a class in a sentence: "melanoma" or, `indefinite`, "a melanoma".

    A name that is not known is returned as it is.
    """
    messages, meaning = read_messages(), NAMES.get(plain(name), plain(name))
    known = messages["names"].get(meaning) or (meaning if meaning in NAMES.values() else name)
    return messages["indefinite"].get(meaning, known) if indefinite else known


def list_classes(names: Sequence[str], indefinite: bool = False) -> str:
    """Return names of classes in a sentence: "melanoma, nevus or dermatofibroma"."""
    *most, last = [name_class(name, indefinite) for name in names]
    return f"{', '.join(most)} {read_messages()['names']['or']} {last}" if most else last


def describe_key(key: str) -> str:
    """Return the advice of one of `stats.advice` without the classes of a picture."""
    return say(f"key.{key}")


def malignant_first(names: Iterable[str], classes: Classes) -> list[str]:
    """Return the malignant ones of some class names, melanoma first."""
    return sorted((name for name in names if name in classes.malignant), key=classes.gravity)


def describe_advice(key: str, likely: str, left: Sequence[str], classes: Classes) -> str:
    """Return the advice on a picture as one sentence.

    `key` is one of `stats.advice`, `likely` the most probable class, and `left` the classes that
    can't be ruled out, most probable first.
    """
    cancers = malignant_first(left, classes)
    return say(
        f"advice.{key}",
        likely=name_class(likely, indefinite=True),
        left=list_classes(left, indefinite=True),
        Cancers=capitalize(list_classes(cancers)) if cancers else "",
    )
