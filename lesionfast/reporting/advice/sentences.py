"""The sentences that a person reads first, from one file of messages a language.

Another language is another file beside en.toml, named by its code (ISO 639-1); what it lacks is
said in English.
"""

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import resources
from typing import Any

from lesionfast.diagnoses import NAMES, Classes, plain
from lesionfast.errors import LesionfastError, did_you_mean

ENGLISH = "en"
LANGUAGE: ContextVar[str] = ContextVar("language", default=ENGLISH)  # of this request, if any


@lru_cache
def read_language(language: str) -> dict[str, dict[str, str]]:
    """Return the messages that a language has, by section and key."""
    file = resources.files("lesionfast.reporting.advice") / f"{language}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


@lru_cache
def list_languages() -> list[str]:
    """Return the codes of all languages, such as "de"."""
    folder = resources.files("lesionfast.reporting.advice").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in folder if file.name.endswith(".toml"))


@lru_cache
def join_messages(language: str) -> dict[str, dict[str, str]]:
    """Return the messages of a language, and in English what it lacks."""
    english, own = read_language(ENGLISH), read_language(language)
    return {section: english.get(section, {}) | own.get(section, {}) for section in english | own}


def read_messages() -> dict[str, dict[str, str]]:
    """Return the messages of the language that is spoken now, by section and key."""
    return join_messages(LANGUAGE.get())


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Say everything in a language meanwhile; raises `LesionfastError` for one without messages."""
    token = LANGUAGE.set(check_language(language))
    try:
        yield
    finally:
        LANGUAGE.reset(token)


def check_language(language: str) -> str:
    """Return a language; raises `LesionfastError` for one without messages."""
    if language not in list_languages():
        raise LesionfastError(
            f"there are no messages in the language '{language}'."
            f"{did_you_mean(language, list_languages())} Choose one with --lang: "
            f"{', '.join(list_languages())}."
        )
    return language


def choose_language(accepted: str) -> str:
    """Return the language that an Accept-Language header likes best of those there are."""
    wishes = []
    for part in accepted.split(","):
        tag, _, weight = part.partition(";")
        code = tag.strip().lower().split("-")[0]
        try:
            wishes.append((float(weight.strip().removeprefix("q=") or 1), code))
        except ValueError:
            continue
    liked = [code for weight, code in sorted(wishes, key=lambda wish: -wish[0]) if weight > 0]
    return next((code for code in liked if code in list_languages()), ENGLISH)


def translate(name: str) -> str:
    """Return the name of a metadata column, or a value of it; as it is if it is not known."""
    return read_messages().get("metadata", {}).get(name, name)


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


def refuse(key: str, **values: Any) -> str:
    """Return why a request is refused: a message such as "refusal.too_slow" with its values."""
    return word(f"refusal.{key}").format(**values)


def name_class(name: str, indefinite: bool = False) -> str:
    """Return the name of a class in a sentence: "melanoma" or, `indefinite`, "a melanoma".

    A name that is not known is returned as it is.
    """
    messages, meaning = read_messages(), NAMES.get(plain(name), plain(name))
    known = messages["names"].get(meaning) or (meaning if meaning in NAMES.values() else name)
    return messages["indefinite"].get(meaning, known) if indefinite else known


def label_class(name: str) -> str:
    """Return "mel (melanoma)" for a usual short name, any other class as it is."""
    return f"{name} ({name_class(name)})" if plain(name) in NAMES else name


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
    if key == "examine" and likely in classes.malignant:
        others = [name for name in cancers if name != likely]
        names = {"others": list_classes(others)} if others else {}
        which = "examine.among" if others else "examine.alone"
        return say(which, likely=name_class(likely, indefinite=True), **names)
    return say(
        f"advice.{key}",
        likely=name_class(likely, indefinite=True),
        left=list_classes(left, indefinite=True),
        Cancers=capitalize(list_classes(cancers)) if cancers else "",
    )
