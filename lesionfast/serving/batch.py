"""Many images to a file: what is done already is skipped, what fails is counted."""

import csv
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lesionfast.console import counting_bar
from lesionfast.errors import LesionfastError
from lesionfast.files import check_target, disk_errors, only_writer, sha256, write_json
from lesionfast.serving.inputs import Item, find_items, tables_among
from lesionfast.serving.outputs import RESUMABLE, csv_header, name_lists_as_text, open_writer
from lesionfast.serving.predictor import Predictor

logger = logging.getLogger("lesionfast")

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


GO_ON = "Free some space, then go on with --resume."


@dataclass
class Count:
    """How many images were predicted, by this call and before, and how many failed."""

    images: int = 0
    failed: int = 0
    before: int = 0


def predict_to(
    predictor: Predictor,
    items: Iterable[Item],
    out: Path | None,
    kind: str = "csv",
    *,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    options: dict[str, Any] | None = None,
) -> Count:
    """Write a row an image to a file, or to stdout; return how many there are and failed.

    `kind` is csv, jsonl, parquet or isic. With `resume` the images that a file of an earlier call
    has are skipped; a row that was not finished is written anew. `progress(images)` is called
    after each chunk. `options` are what else the rows depend on, as a person types it. Raises
    `LesionfastError` for a file that is there already, that another process writes, or that was
    begun with other images, another model or other options; where there is no image, or a table
    can't be read, no file is begun.
    """
    if out is not None:
        check_out(out, kind, resume)
    count, items = Count(), require_some(items)
    if out is None:
        write_rows(predictor, items, None, kind, count, progress)
    else:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(out):
            items = prepare(predictor, items, out, kind, count, resume, options or {})
            write_rows(predictor, items, out, kind, count, progress)
    predictor.known.report()
    return count


def predict_inputs(
    model: str | Path,
    inputs: list[str],
    out: Path | None,
    kind: str,
    *,
    metadata: dict[str, str],
    images: Path | None = None,
    separator: str | None = None,
    views: int | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Count:
    """Predict the images that a person named, with a progress bar; see `predict_to`.

    `images` and `separator` say how a CSV file among the inputs is read, `metadata` holds for all
    images. Wrong names are found before the model is loaded.
    """
    if out is not None:
        check_out(out, kind, resume)
    find_items(inputs)
    predictor = Predictor(model, views=views, device=device)
    predictor.check(metadata)
    items = find_items(
        inputs,
        images=images,
        metadata=metadata,
        image_column=predictor.bundle.image_column,
        columns=predictor.bundle.encoder.columns,
        separator=separator,
    )
    options = {
        "--set": metadata,
        "--images": images and str(images.absolute()),
        "--separator": separator,
        "the table": tables_among(inputs),
    }
    with counting_bar("images") as bar:
        return predict_to(
            *(predictor, items, out, kind),
            resume=resume,
            progress=lambda count: bar(count, None),
            options=options,
        )


def require_some(items: Iterable[Item]) -> Iterator[Item]:
    """Return images, the first one looked up; raises `LesionfastError` if there is none."""
    items = iter(items)
    first = next(items, None)
    if first is None:
        raise LesionfastError("there is no image in what was named. Name images, or a folder.")
    return chain([first], items)


def prepare(
    predictor: Predictor,
    items: Iterator[Item],
    out: Path,
    kind: str,
    count: Count,
    resume: bool,
    options: dict[str, Any],
) -> Iterator[Item]:
    """Return the images that a file of this model has not; note what begins a new one."""
    check_out(out, kind, resume)  # again, as another process may have begun it
    if kind not in RESUMABLE:
        return items
    now = origin(predictor, kind, options)
    if out.exists() and out.stat().st_size:
        check_origin(out, now)
        return skip_written(predictor, items, out, kind, count)
    begin(out, now)
    return items


def write_rows(
    predictor: Predictor,
    items: Iterable[Item],
    out: Path | None,
    kind: str,
    count: Count,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the rows of images, and count them."""
    done = out is not None and out.exists() and out.stat().st_size > 0
    advice = GO_ON if kind in RESUMABLE else None
    with (
        disk_errors(out, advice=advice) if out else nullcontext(),
        open_writer(out, kind, predictor.columns, done) as writer,
    ):
        for table in predictor.stream(items):
            writer.write(name_lists_as_text(table))
            count.images += len(table)
            count.failed += int((table["error"] != "").sum())
            if progress:
                progress(count.images)


def skip_written(
    predictor: Predictor, items: Iterator[Item], out: Path, kind: str, count: Count
) -> Iterator[Item]:
    """Return the images that a file has not; raises `LesionfastError` if those it has are others.

    Images are predicted some at a time, and those of an unfinished lot anew: the numbers of an
    image depend on its lot in the last digits, so the file becomes that of an unstopped call.
    """
    check_beginning(out, kind, predictor.columns)
    lot: list[tuple[Item, bool]] = []
    for name, error in written_rows(out, kind, predictor.columns, end_of_rows(out, kind)):
        item = next(items, None)
        check_item(out, item, name, count.images + len(lot) + 1)
        lot.append((item, bool(error)))
        if len(lot) == predictor.at_once:
            keep(count, lot)
    waiting = list(islice(items, 1))
    if not waiting:
        keep(count, lot)
    cut_torn_row(out, end_of_rows(out, kind, count.images))
    count.before = count.images
    logger.info("%d images are in %s already", count.before, out)
    return chain([item for item, _ in lot], waiting, items)


def check_item(out: Path, item: Item | None, name: str, number: int) -> None:
    """Raise `LesionfastError` unless an image is the one that a file has as its nth."""
    if item is None or item.name != name:
        asked = "there are no more" if item is None else f"asked for is {item.name!r}"
        raise LesionfastError(
            f"{out} is of other images: number {number} is {name!r}, and {asked}. "
            "Name the same inputs in the same order, or another --out."
        )


def keep(count: Count, lot: list[tuple[Item, bool]]) -> None:
    """Count images whose rows stay, and empty their lot."""
    count.images += len(lot)
    count.failed += sum(failed for _, failed in lot)
    lot.clear()
