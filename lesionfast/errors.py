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
MOST_OF_COMMAND = 2_000  # letters of the names in a command line: nobody pastes a page of them
# What is expanded or ends a word in cmd.exe or PowerShell, also between double quotes.
NEVER_ON_WINDOWS = re.compile('[&|<>^%"!$`\u201c-\u201f]')


class LesionfastError(Exception):
    """A problem that the user can fix; the message says what is wrong and what to type."""

    def __init__(self, message: str) -> None:
        super().__init__(shorten(message))
        self.message = shorten(message)

    def __str__(self) -> str:
        return self.message  # fastai rewrites the args of what its callbacks raise


def shorten(text: str, most: int = MOST_LETTERS) -> str:
    """Return a text with its middle left out if a file has made it longer than `most` letters.

    The end is what follows the last quotation mark: a command line whose first half is left out
    would be read by a shell the other way round, names as commands.
    """
    half = most // 2
    end = text[-half:].rpartition("'")[2]
    return text if len(text) <= most else f"{text[:half]} … {end}"


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
        f"{need}: {package} is not installed. Type: pip install "
        f"{shell_quote(f'lesionfast[{extra}]')}"
    )


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the choice nearest to `name`, else an empty string."""
    lowered = {choice.lower(): choice for choice in choices}
    matches = get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean '{lowered[matches[0]]}'?" if matches else ""


def shell_quote(*words: object, system: str = os.name) -> str:
    """Return words as they are typed in a shell, where a name from a stranger is only a name.

    A line of advice is pasted. A path that begins with a dash is no option, and what can't be seen
    or would end the line is spelled out, as bash and zsh read it: $'a\\x0ab'. What is too long, or
    can't be quoted on Windows (`system` is "nt"), is described in brackets, which no shell runs.
    """
    quote = quote_on_windows if system == "nt" else quote_word
    line = " ".join(quote(f"./{word}" if is_like_option(word) else str(word)) for word in words)
    if len(line) <= MOST_OF_COMMAND:
        return line
    return f"({pluralize(len(words), 'name')}, too long to be printed)"


def is_like_option(word: object) -> bool:
    """Return whether a path would be read as an option."""
    return isinstance(word, Path) and str(word).startswith("-")


def quote_word(text: str) -> str:
    """Return one word of a command for bash and zsh; see `shell_quote`."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'{}'".format("".join(map(spell_in_shell, text)))


def quote_on_windows(text: str) -> str:
    """Return one word of a command for cmd.exe and PowerShell; see `shell_quote`."""
    if NEVER_ON_WINDOWS.search(text) or not text.isprintable():
        return "(a name with signs that this shell would not take as a name)"
    if re.fullmatch(r"[\w.:/\\+=-]+", text):
        return text
    return '"{}"'.format(re.sub(r"\\+$", r"\g<0>\g<0>", text))  # \" would be a letter


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
