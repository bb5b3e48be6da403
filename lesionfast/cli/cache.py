"""The command about the cache: what is in it, and how to clear it."""

import re
from datetime import datetime

import typer

from lesionfast.cli.base import DATA, Json, app, option, print_json
from lesionfast.console import Table, echo, print_table
from lesionfast.errors import LesionfastError, did_you_mean, pluralize
from lesionfast.files import format_bytes, free_bytes

SECONDS = {"h": 3600, "d": 86400, "w": 604800}
Older = option(str | None, "Only arrays that were not used for a time, such as 12h, 30d or 8w.")
Only = option(str | None, "Only arrays of one kind: images or features.")

cache_app = typer.Typer(invoke_without_command=True)
app.add_typer(cache_app, name="cache", rich_help_panel=DATA)


@cache_app.callback()
def list_cache(context: typer.Context, json: Json = False) -> None:
    """List what is in the cache, or clear it: decoded images and features.

    All of it can be made again. LESIONFAST_CACHE is its folder. Set
    LESIONFAST_CACHE_SIZE to its largest size, such as 20G: the least recently used
    arrays are removed before a new one would exceed it.

    Example: lesionfast cache
    """
    if context.invoked_subcommand:
        return
    from lesionfast.cache import LIMIT, cache_folder, list_entries, measure_cache, size_limit

    limit, folder, total = size_limit(), cache_folder(), measure_cache()
    entries = list_entries()[::-1]
    if json:
        rows = [
            {"file": str(e.file), "holds": e.describe(), "bytes": e.size, "used": when(e.used)}
            | {"in_use": e.in_use}
            for e in entries
        ]
        values = {"folder": str(folder), "bytes": total, "limit": limit, "free": free_bytes(folder)}
        print_json({**values, "arrays": rows})
        return
    if not entries:
        echo(f"the cache in {folder} is empty")
        return
    table = Table(f"Cache in {folder}", ["array", "size", "last used", "in use"])
    for entry in entries:
        size, open_now = format_bytes(entry.size), "yes" if entry.in_use else ""
        table.add(entry.describe(), size, when(entry.used), open_now)
    print_table(table)
    most = f"{LIMIT} is {format_bytes(limit)}" if limit else f"no limit ({LIMIT} is not set)"
    free = format_bytes(free_bytes(folder))
    count = pluralize(len(entries), "array")
    echo(f"{count}, with notes {format_bytes(total)}; {most}; {free} of the disk are free")


def when(used: float) -> str:
    """Return a time as "2026-01-02 03:04", in the time of this place."""
    return datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M")


@cache_app.command()
def clear(older: Older = None, only: Only = None) -> None:
    """Empty the cache, except for what a process is using.

    Example: lesionfast cache clear --older 30d
    """
    from lesionfast.cache import KINDS, clear_cache

    if only not in (None, *KINDS[:2]):
        raise LesionfastError(
            f"the cache has no '{only}'.{did_you_mean(only, KINDS[:2])} "
            f"Type --only {' or '.join(KINDS[:2])}."
        )
    gone, kept = clear_cache(read_age(older) if older else 0, only)
    size = format_bytes(sum(entry.size for entry in gone))
    echo(f"removed {pluralize(len(gone), 'array')}, {size}")
    if kept:
        size = format_bytes(sum(entry.size for entry in kept))
        echo(f"kept {pluralize(len(kept), 'array')} in use, {size}", stderr=True)


def read_age(text: str) -> float:
    """Return a time such as 12h, 30d or 8w in seconds; raises `LesionfastError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if not found:
        example = f"{text}d" if text.isdecimal() else "30d"
        raise LesionfastError(
            f"--older is '{text}', which is not a time. Type hours, days or weeks, such as "
            f"--older {example}."
        )
    return float(found[1]) * SECONDS[found[2]]
