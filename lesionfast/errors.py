"""The one error that means: the user can fix this."""

import os
import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

MOST_LETTERS = 4_000  # of a message


class LesionfastError(Exception):
    """A problem that the user can fix; the message says what is wrong and what to type."""

    def __init__(self, message: str) -> None:
        super().__init__(shorten(message))
        self.message = shorten(message)

    def __str__(self) -> str:
        return self.message  # fastai rewrites the args of what its callbacks raise


def shorten(text: str, most: int = MOST_LETTERS) -> str:
    """Return a text with its middle left out if a file has made it longer than `most` letters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


class DiskError(LesionfastError):
    """A file can't be written: what stands in the way, and what to type."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}")
        self.problem, self.advice = problem, advice

    def __reduce__(self) -> tuple:
        return type(self), (self.problem, self.advice)  # to come out of another process whole


class DamageError(LesionfastError):
    """A file is not what was written; who catches other errors lets this one through."""


class TrainingInterrupted(LesionfastError):
    """The user stopped a training; the message says how to go on."""


def import_extra(module: str, extra: str, need: str) -> Any:
    """Return a module of an optional package; `LesionfastError` says how to install it.

    `need` begins the message, such as "a.hdf5 can't be read".
    """
    try:
        return import_module(module)
    except ImportError:
        raise extra_missing(module.partition(".")[0], extra, need) from None


def extra_missing(package: str, extra: str, need: str) -> LesionfastError:
    """Return the error for an optional package that is not installed; see `import_extra`."""
    package = package.replace("_", "-")
    return LesionfastError(
        f"{need}: {package} is not installed. Type: pip install 'lesionfast[{extra}]'"
    )


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the choice nearest to `name`, else an empty string."""
    lowered = {choice.lower(): choice for choice in choices}
    matches = get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean '{lowered[matches[0]]}'?" if matches else ""


def shell_quote(*words: object) -> str:
    """Return words as they are typed in a shell, where a name from a stranger is only a name.

    A line of advice is pasted. A path that begins with a dash is no option, and what can't be seen
    or would end the line is spelled out, as bash and zsh read it: $'a\\x0ab'.
    """
    return " ".join(map(quote_word, words))


def quote_word(word: object) -> str:
    """Return one word of a command; see `shell_quote`."""
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    return "$'{}'".format("".join(map(spell_in_shell, text)))


def spell_in_shell(letter: str) -> str:
    """Return a letter as it stands between $' and '."""
    if letter.isprintable():
        return re.sub(r"[\\']", r"\\\g<0>", letter)
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


def list_first(names: Iterable[object], most: int = 3) -> str:
    """Return the first few of some names, and how many follow: "a, b, c and 9 more"."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def pluralize(count: int, noun: str) -> str:
    """Return "1 image", "10,015 images" or "7 classes"."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"
