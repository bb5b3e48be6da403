"""Going on with an unfinished file of predictions: what began it, and the rows that are whole."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lesionfast.errors import LesionfastError
from lesionfast.files import check_target, sha256, write_json
from lesionfast.serving.outputs import RESUMABLE, csv_header
from lesionfast.serving.predictor import Predictor

ELSEWHERE = "Name another --out."
BY_HASH = ("weights", "decisions", "columns")  # what a person would not read


def note_beside(out: Path) -> Path:
    """Return the file beside a file of predictions that says what began it."""
    return out.with_name(f".{out.name}.resume.json")


def check_out(out: Path, kind: str, resume: bool) -> None:
    """Raise `LesionfastError` for a file that is there already, or that can't be gone on with."""
    if resume and kind not in RESUMABLE:
        raise LesionfastError(f"--resume goes on with CSV and JSON lines, not with {kind}.")
    check_target(out)
    if not out.exists():
        return
    if not resume:
        go_on = "Go on with it by --resume, or name" if kind in RESUMABLE else "Name"
        raise LesionfastError(f"{out} is there already. {go_on} another --out.")
    if out.stat().st_size and not note_beside(out).is_file():
        raise LesionfastError(
            f"{out} can't be gone on with: {note_beside(out).name}, which would say what model "
            f"and options began it, is not beside it. {ELSEWHERE}"
        )


def origin(predictor: Predictor, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return all that the rows of a file depend on, by the names that a person knows.

    `options` are those of the command, such as {"--set": {"age": "55"}}.
    """
    return {
        "weights": sha256(predictor.weights),
        "decisions": predictor.bundle.digest(),
        "--tta": predictor.views,
        "columns": hashlib.sha256(json.dumps(predictor.columns).encode()).hexdigest(),
        "--format": kind,
        **options,
    }


def begin(out: Path, began: dict[str, Any]) -> None:
    """Note what begins a file of predictions."""
    write_json(note_beside(out), began)


def check_origin(out: Path, now: dict[str, Any]) -> None:
    """Raise `LesionfastError` unless a file was begun by the same model with the same options."""
    try:
        began = json.loads(note_beside(out).read_text("utf-8"))
        differ = [name for name in {**began, **now} if began.get(name) != now.get(name)]
    except (ValueError, TypeError, AttributeError):
        raise LesionfastError(f"{note_beside(out)} is damaged. {ELSEWHERE}") from None
    if differ:
        told = "; ".join(difference(name, began.get(name), now.get(name)) for name in differ)
        raise LesionfastError(
            f"{out} was begun by another model or with other options: {told}. "
            "Go on with those that began it, or name another --out."
        )


def difference(name: str, before: Any, now: Any) -> str:
    """Return what differs, in words."""
    if name in BY_HASH:
        return f"other {name} (SHA-256 {str(before)[:12]}, now {str(now)[:12]})"
    return f"{name} {shown(before)}, now {shown(now)}"


def shown(value: Any) -> str:
    """Return the value of an option as a person types it."""
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items()) or "not given"
    return "not given" if value is None else str(value)


def check_beginning(out: Path, kind: str, columns: list[str]) -> None:
    """Raise `LesionfastError` unless a file begins as one of these columns, as far as it goes."""
    head = (csv_header(columns) if kind == "csv" else f'{{"{columns[0]}": ').encode()
    with out.open("rb") as file:
        if not head.startswith(file.read(len(head))):
            raise LesionfastError(f"{out} has other columns than these. {ELSEWHERE}")


def end_of_rows(out: Path, kind: str, most: int | None = None) -> int:
    """Return where the last whole row, or the `most`th, of a file of text ends, in bytes."""
    position = whole = quotes = 0
    rows = -1 if kind == "csv" else 0  # the names of the columns are no row
    with out.open("rb") as file:
        for line in file:
            if rows == most:
                break
            position += len(line)
            quotes += line.count(b'"') if kind == "csv" else 0
            if line.endswith(b"\n") and quotes % 2 == 0:  # else the line ends within a name
                whole, rows = position, rows + 1
    return whole


def lines_until(out: Path, end: int) -> Iterator[str]:
    """Yield the lines of a file before a position."""
    with out.open("rb") as file:
        while file.tell() < end:
            yield file.readline().decode("utf-8")


def written_rows(out: Path, kind: str, columns: list[str], end: int) -> Iterator[tuple[str, str]]:
    """Yield image and error of the whole rows of an unfinished file.

    Raises `LesionfastError` for a file that has other columns, or is damaged.
    """
    lines = lines_until(out, end)
    try:
        for row in csv.DictReader(lines) if kind == "csv" else map(json.loads, lines):
            if list(row) != columns:
                raise LesionfastError(f"{out} has other columns than these. {ELSEWHERE}")
            yield row["image"], row["error"]
    except (ValueError, TypeError, csv.Error) as error:
        raise LesionfastError(f"{out} is damaged: {error}. {ELSEWHERE}") from None


def cut_torn_row(out: Path, end: int) -> None:
    """Cut a last row that was not finished off a file of text."""
    if out.stat().st_size > end:
        os.truncate(out, end)
