"""Many images to a file: what is done already is skipped, what fails is counted."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lesionfast.errors import LesionfastError
from lesionfast.files import disk_errors, only_writer
from lesionfast.serving.inputs import Item
from lesionfast.serving.outputs import RESUMABLE, name_lists_as_text, open_writer
from lesionfast.serving.predictor import Predictor
from lesionfast.serving.unfinished import (
    begin,
    check_beginning,
    check_origin,
    check_out,
    cut_torn_row,
    end_of_rows,
    origin,
    written_rows,
)

logger = logging.getLogger("lesionfast")

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
