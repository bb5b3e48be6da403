"""Names that a person types in a list: one with a comma, a colon or the like is quoted as in CSV.

`"a, b"=2,mel=3` names two classes; a quote within a quoted name is doubled.
"""

import re

MARKS = ',:="'  # what has a meaning in a list


def split_unquoted(text: str, separator: str) -> list[str]:
    """Return the parts of a text between separators that are not in double quotes."""
    return re.split(rf'{re.escape(separator)}(?=(?:[^"]*"[^"]*")*[^"]*$)', text)


def unquote(typed: str) -> str:
    """Return the name that was typed, with or without quotes around it."""
    name = typed.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        return name[1:-1].replace('""', '"')
    return name


def quote(name: str) -> str:
    """Return a name as it is typed in a list: in double quotes if it has a mark in it."""
    plain = name == name.strip() and not any(mark in name for mark in MARKS)
    return name if plain else '"{}"'.format(name.replace('"', '""'))


def split_names(text: str) -> list[str]:
    """Return the names of a list such as `mel,"a, b"`."""
    return [unquote(part) for part in split_unquoted(text, ",") if part.strip()]


def join_names(names: list[str], separator: str = ", ") -> str:
    """Return names as a list that `split_names` reads."""
    return separator.join(map(quote, names))
