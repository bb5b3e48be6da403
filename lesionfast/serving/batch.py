"""Many images to a file: what is done already is skipped, what fails is counted."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import Item
from lesionfast.serving.outputs import cut_torn_row, open_writer, written_rows
from lesionfast.serving.predictor import Predictor

logger = logging.getLogger("lesionfast")


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
) -> Count:
    """Write a row an image to a file, or to stdout; return how many there are and failed.

    `kind` is csv, jsonl, parquet or isic. With `resume` the images that a file of an earlier call
    has are skipped; a row that was not finished is written anew. `progress(images)` is called
    after each chunk. Raises `LesionfastError` for a file that is there already, or is of other
    images or of another model.
    """
    count, items = Count(), iter(items)
    go_on = resume and out is not None and out.is_file()
    if go_on and out.stat().st_size == 0:  # of a call that was stopped before its first row
        out.unlink()
        go_on = False
    if resume and kind not in ("csv", "jsonl"):
        raise LesionfastError(f"--resume goes on with CSV and JSON lines, not with {kind}.")
    if go_on:
        skip_written(predictor, items, out, kind, count)
    writer = open_writer(out, kind, predictor.columns, go_on)
    try:
        for table in predictor.stream(items):
            writer.write(table)
            count.images += len(table)
            count.failed += int((table["error"] != "").sum())
            if progress:
                progress(count.images)
    finally:
        writer.close()
    predictor.known.report()
    return count


def skip_written(
    predictor: Predictor, items: Iterator[Item], out: Path, kind: str, count: Count
) -> None:
    """Skip the images that a file has; raises `LesionfastError` if they are others."""
    cut_torn_row(out, kind)
    for name, error in written_rows(out, kind, predictor.columns):
        item = next(items, None)
        if item is None or item.name != name:
            asked = "there are no more" if item is None else f"asked for is {item.name!r}"
            raise LesionfastError(
                f"{out} is of other images: number {count.images + 1} is {name!r}, and {asked}. "
                "Name the same inputs in the same order, or another --out."
            )
        count.images += 1
        count.failed += bool(error)
    count.before = count.images
    logger.info("%d images are in %s already", count.before, out)
