"""Predictions written to a file as they come: CSV, JSON lines, Parquet, a challenge submission.

A file of CSV or JSON lines that was not finished can be resumed by the same command. A note beside
it says what its rows depend on; the file of a shard, which has one too, can be joined by it.
"""

import csv
import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.console import counting_bar, printable
from lesionfast.errors import LesionfastError, did_you_mean, pluralize, shell_quote
from lesionfast.evaluation.interpretation import records
from lesionfast.evaluation.isic import COLUMNS, challenge_columns
from lesionfast.files import (
    check_target,
    count_disarmed,
    csv_text,
    disarm_texts,
    disk_errors,
    load_json,
    only_writer,
    open_to_append,
    parse_json,
    put_in_place,
    rearm,
    report_disarmed,
    sha256,
    workspace,
    write_json,
)
from lesionfast.reporting.advice.limits import list_limits, list_misses
from lesionfast.serving.inputs import Item, Shard, find_items, hash_tables
from lesionfast.serving.monitoring.log import describe_stated
from lesionfast.serving.predictor import Predictor
from lesionfast.stats.advice.prevalence import ESTIMATE, write_prior

logger = logging.getLogger("lesionfast")

FORMATS = ("csv", "jsonl", "parquet", "isic")
RESUMABLE = ("csv", "jsonl")  # written under their name, row by row; the others are renamed at last
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
ELSEWHERE = "Name another --out."
MOST_ROW = 2**24  # bytes; a row of a thousand classes has 50,000
FINISHED = "finished"  # in the note of a shard: what it holds, and what all the inputs are


@dataclass
class Count:
    """How many images were predicted, by this call and before, and how many failed.

    `limits` say when not to rely on the answers.
    """

    images: int = 0
    failed: int = 0
    before: int = 0
    limits: list[str] = field(default_factory=list)


def predict_to(
    predictor: Predictor,
    items: Iterable[Item],
    out: Path | None,
    kind: str = "csv",
    *,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    options: dict[str, Any] | None = None,
    shard: Shard | None = None,
) -> Count:
    """Write one row an image to a file, or to stdout; return how many there are and failed.

    `kind` is csv, jsonl, parquet or isic. With `resume` the images that the file already has are
    skipped, and a row that was not finished is written again. `progress(images)` is called after
    each chunk. `options` are what else the rows depend on, as a person types it; `shard` is the
    one that chose the images, if any. Raises `LesionfastError` for a file that exists, that another
    process writes, or that was begun with other images, another model or other options; where there
    is no image, or a table can't be read, no file is begun.
    """
    if out is not None:
        check_out(out, kind, resume)
    count, items = Count(), begin_items(items, predictor, shard)
    if out is None:
        write_rows(predictor, items, None, kind, count, progress)
    else:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(out):
            check_out(out, kind, resume)  # again, as another process may have begun it
            note = describe_origin(predictor, kind, options or {}, shard)
            if kind in RESUMABLE or shard:
                items = begin_or_resume(predictor, items, out, kind, count, note)
            write_rows(predictor, items, out, kind, count, progress)
            if shard:
                write_json(note_path(out), note | {FINISHED: describe_part(out, shard, count)})
    predictor.metadata.report()
    limits, classes = predictor.bundle.limits, predictor.bundle.classes
    misses = [] if predictor.metadata.is_mostly_missing else list_misses(limits, classes)
    count.limits = [*misses, *list_limits(limits, classes)]
    return count


def begin_items(items: Iterable[Item], predictor: Predictor, shard: Shard | None) -> Iterator[Item]:
    """Return the images, the first of them found; raises `LesionfastError` if there is none.

    A shard may have none if others do.
    """
    items = iter(items)
    first = list(islice(items, 1))
    if first:
        return chain(first, items)
    if not (shard and shard.images):
        raise LesionfastError("the inputs hold no image. Name images, or a folder of images.")
    logger.warning(
        "Shard %s has no image: the inputs hold %s, which are dealt out %d at a time. "
        "Its file has no row", shard, pluralize(shard.images, "image"), predictor.chunk,
    )  # fmt: skip
    return items


def predict_inputs(
    model: str | Path,
    inputs: list[str],
    out: Path | None,
    kind: str,
    *,
    metadata: dict[str, str],
    images: Path | None = None,
    image: str | None = None,
    separator: str | None = None,
    renamed: dict[str, str] | None = None,
    resume: bool = False,
    shard: str | None = None,
    cost: str | None = None,
    prior: str | None = None,
    **choices: Any,
) -> Count:
    """Predict the images that a person named, with a progress bar; see `predict_to`.

    `images`, `image`, `separator` and `renamed` say how a table among the inputs is read,
    `metadata` holds for all images. `shard`, such as "3/8", predicts a part for `join_parts`.
    `cost`, `prior` and `choices` are as in `Predictor`; the prior "estimate" is that of these
    images, which are then predicted twice. Wrong names are found before the model is loaded.
    """
    part = None if shard is None else find_shard(shard, out, kind, prior)
    if kind == "isic":
        choices["all_columns"] = True  # the challenge asks for pictures without a decision too
    if out is not None:
        check_out(out, kind, resume, choices.get("log"))
    find_items(inputs)
    predictor = Predictor(model, cost=cost, prior=None if prior == ESTIMATE else prior, **choices)
    predictor.check(metadata)
    bundle = predictor.bundle
    table = {"image_column": image or bundle.image_column, "columns": bundle.encoder.columns}
    table |= {"images": images, "separator": separator, "renamed": renamed, "metadata": metadata}
    if prior == ESTIMATE:
        prior = settle_prior(predictor, find_items(inputs, **table))
    table |= {"choose": partial(part.choose, chunk=predictor.chunk)} if part else {}
    items = find_items(inputs, **table)
    options = {"--set": metadata, "--images": images and str(images.absolute()), "--image": image}
    options |= {"--separator": separator, "--map": renamed, "--cost": cost, "--prior": prior}
    with counting_bar("images") as bar:
        given = {"resume": resume, "progress": lambda count: bar(count, None), "shard": part}
        given |= {"options": options | {"the table": hash_tables(inputs)}}
        return predict_to(predictor, items, out, kind, **given)


def check_log_apart(log: str | Path | None, out: Path) -> None:
    """Raise `LesionfastError` if the log and the output are one file, or the note beside it."""
    if log is None:
        return
    path = os.path.realpath(Path(log).expanduser())
    if path in (os.path.realpath(out), os.path.realpath(note_path(out))):
        raise LesionfastError(
            f"--log-predictions and --out both write {path}. Name another file for one of them."
        )


def settle_prior(predictor: Predictor, items: Iterable[Item]) -> str:
    """Give a predictor the class shares of the images, estimated; return and log them as typed."""
    with counting_bar("images for --prior estimate") as bar:
        shares = predictor.estimate_prior(items, progress=lambda count: bar(count, None))
    prior = write_prior(shares, predictor.bundle.classes)
    predictor.bundle = predictor.bundle.restated(prior=prior)
    if predictor.log:
        predictor.log.about |= describe_stated(predictor.bundle)
    logger.info(
        "estimated class shares of these images; to use them again: --prior %s", shell_quote(prior)
    )
    return prior


def find_shard(text: str, out: Path | None, kind: str, prior: str | None = None) -> Shard:
    """Return the shard that a person typed; raises `LesionfastError` if it can't be written."""
    shard = Shard.parse(text)
    if prior == ESTIMATE:
        raise LesionfastError(
            "a shard does not see all the images that --prior estimate needs. Estimate once "
            "without --shard, and type the shares that it prints."
        )
    if out is None:
        raise LesionfastError(
            f"--shard {text} writes a part, which is joined later. Name it with --out, such as "
            f"--out part{shard.number}.csv."
        )
    if kind == "isic":
        raise LesionfastError(
            "a part of a submission can't be joined, as it has no row for an image that failed. "
            "Leave out --isic, and type it with --join."
        )
    return shard


def choose_format(out: Path | None, wanted: str | None) -> str:
    """Return the format to write: as wanted, or by the file's suffix, else CSV."""
    if wanted is None:
        return SUFFIXES.get(out.suffix.lower(), "csv") if out else "csv"
    if wanted not in FORMATS:
        raise LesionfastError(
            f"there is no format '{wanted}'.{did_you_mean(wanted, FORMATS)} "
            f"Choose one with --format: {', '.join(FORMATS)}."
        )
    if wanted == "parquet" and out is None:
        raise LesionfastError("Parquet can't be printed. Name a file with --out.")
    return wanted


def check_out(out: Path, kind: str, resume: bool, log: str | Path | None = None) -> None:
    """Raise `LesionfastError` for a file that exists already, can't be resumed, or is the log."""
    check_log_apart(log, out)
    if resume and kind not in RESUMABLE:
        raise LesionfastError(
            f"--resume continues CSV and JSON lines, not {kind}. Leave it out, or add --format csv."
        )
    check_target(out)
    if not out.exists():
        return
    if not resume:
        choice = "Continue it with --resume, or name" if kind in RESUMABLE else "Name"
        raise LesionfastError(f"{out} exists already. {choice} another --out.")
    if out.stat().st_size and not note_path(out).is_file():
        raise LesionfastError(
            f"{out} can't be resumed: {note_path(out).name}, which names the model and the options "
            f"that began it, is not beside it. {ELSEWHERE}"
        )


def write_rows(
    predictor: Predictor,
    items: Iterable[Item],
    out: Path | None,
    kind: str,
    count: Count,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the rows of images, and count them."""
    advice = "Free some space, then continue with --resume." if kind in RESUMABLE else None
    with (
        disk_errors(out, advice=advice) if out else nullcontext(),
        open_writer(out, kind, predictor.columns) as writer,
    ):
        for table in predictor.stream(items):
            writer.write(join_names(table))
            count.images += len(table)
            count.failed += int((table["error"] != "").sum())
            if progress:
                progress(count.images)


def join_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with tuples of names as text, such as "mel nv".

    A name that is more than a word is quoted as in a shell, so that `shlex.split` gives the names.
    """

    def join(names: Any) -> Any:
        return shlex.join(names) if isinstance(names, tuple) else names

    lists = table.columns.intersection(["prediction_set", "not_known"])
    return table.assign(**{name: table[name].map(join) for name in lists})


@contextmanager
def open_writer(
    out: Path | None, kind: str, columns: list[str]
) -> Iterator["TextWriter | ParquetWriter"]:
    """Give what writes rows to a file, after those that it has, or to stdout.

    CSV and JSON lines are written in place. The others get their name when they are whole:
    nothing is left of one that was stopped before.
    """
    if out is None or kind in RESUMABLE:
        with closing(TextWriter(out, kind, columns)) as writer:
            yield writer
        return
    with workspace(out.parent) as folder:
        aside, parquet = folder / out.name, kind == "parquet"
        new = ParquetWriter(aside, columns) if parquet else TextWriter(aside, kind, columns)
        with closing(new) as writer:
            yield writer
        put_in_place(aside, out)


class TextWriter:
    """Writes rows of text as they come."""

    def __init__(self, out: Path | None, kind: str, columns: list[str]) -> None:
        head, self.format = choose_text_format(kind, columns)
        self.out, self.file, self.kind = out, sys.stdout, kind
        self.disarmed = count_disarmed(pd.DataFrame(columns=columns)) if kind == "csv" else 0
        if out is not None:
            how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
            self.file = open(open_to_append(out), "a", **how)  # noqa: SIM115 (it is closed later)
        elif isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
        if out is None or not out.stat().st_size:
            self._put(head)

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows of a table: all of them or, if the disk is full, none."""
        self._put(self.format(table))
        if self.kind == "csv":  # of a submission only the names of images are texts
            self.disarmed += count_disarmed(table.set_axis(range(table.shape[1]), axis=1))
        elif self.kind == "isic":
            good = table.loc[table["error"] == "", "image"]
            self.disarmed += count_disarmed(good.map(lambda name: Path(name).stem).to_frame())

    def _put(self, text: str) -> None:
        before = self.out.stat().st_size if self.out else 0
        try:
            self.file.write(printable(text) if self.file.isatty() else text)
            self.file.flush()
        except OSError:
            if self.out:
                self.close()
                os.truncate(self.out, before)
            raise

    def close(self) -> None:
        """Close the file; each row was written to it as it came."""
        report_disarmed(self.disarmed, self.out or "stdout")
        self.disarmed = 0
        if self.file is not sys.stdout:
            with suppress(OSError):  # writing has raised for what a full disk did not take
                self.file.close()


def choose_text_format(kind: str, columns: list[str]) -> tuple[str, Callable[[pd.DataFrame], str]]:
    """Return what comes before the first row, and what turns rows into text."""
    if kind == "jsonl":
        return "", to_json_lines
    if kind == "csv":
        return csv_head(columns), to_csv
    chosen = challenge_columns(columns)
    return csv_head(["image", *COLUMNS]), lambda table: to_isic(table, chosen)


def csv_head(columns: Iterable[str]) -> str:
    """Return the first line of a CSV file."""
    return to_csv(pd.DataFrame(columns=list(columns)), header=True)


def to_csv(table: pd.DataFrame, header: bool = False) -> str:
    """Return one line an image, empty where there is no value."""
    return csv_text(disarm_texts(table), header)


def to_json_lines(table: pd.DataFrame) -> str:
    """Return one JSON object a line, null where there is no value."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in records(table))


def to_isic(table: pd.DataFrame, chosen: list[str]) -> str:
    """Return the rows of the ISIC 2018 challenge; images without a prediction are left out.

    An image id is the name of its file without folder and suffix. An image without a decision has
    the model's own probabilities, as a challenge asks for some. Raises `LesionfastError` for a
    table without them.
    """
    good = table[table["error"] == ""]
    stems = [Path(name).stem for name in good["image"]]
    shown = good[chosen].astype(np.float32)
    withheld = shown.isna().any(axis=1)
    if withheld.any():
        own = [name.replace("p_", "uncalibrated_", 1) for name in chosen]
        if missing := [name for name in own if name not in good]:
            raise LesionfastError(
                f"{pluralize(int(withheld.sum()), 'image')} without a decision, such as "
                f"{good['image'][withheld].iloc[0]}, have no probability to submit, and the file "
                f"has no column {missing[0]}. Predict again with --all."
            )
        filled = good.loc[withheld, own].astype(np.float32).set_axis(chosen, axis=1)
        shown = shown.fillna(filled)
    return to_csv(shown.astype(float).assign(image=stems)[["image", *chosen]])


class ParquetWriter:
    """A Parquet file, in parts as they come; it can be read once it is closed."""

    def __init__(self, out: Path, columns: list[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise LesionfastError(
                "Parquet needs pyarrow. Type: pip install 'lesionfast[parquet]', or --format csv."
            ) from None
        self.pyarrow = pyarrow
        self.schema = pyarrow.schema([(name, self._choose_type(name)) for name in columns])
        self.writer = pyarrow.parquet.ParquetWriter(out, self.schema)

    def _choose_type(self, name: str) -> Any:
        if name.startswith("feature_"):
            return self.pyarrow.float32()
        if name.startswith(("p_", "uncalibrated_")) or name == "outlier_score":
            return self.pyarrow.float64()
        if "_at_" in name or name in ("refer", "outlier"):
            return self.pyarrow.bool_()
        return self.pyarrow.string()

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows of a table."""
        self.writer.write_table(self.pyarrow.Table.from_pylist(records(table), self.schema))

    def close(self) -> None:
        """Write what makes the file whole."""
        self.writer.close()


def note_path(out: Path) -> Path:
    """Return the file beside a file of predictions that says what began it."""
    return out.with_name(f".{out.name}.resume.json")


def describe_origin(
    predictor: Predictor, kind: str, options: dict[str, Any], shard: Shard | None = None
) -> dict[str, Any]:
    """Return all that the rows of a file depend on, by the names that a person knows.

    `options` are those of the command, such as {"--set": {"age": "55"}}.
    """
    dealt = {"--shard": str(shard), "images at a time": predictor.chunk} if shard else {}
    return {
        "weights": sha256(predictor.weights),
        "decisions": predictor.bundle.digest(),
        "--tta": predictor.views,
        "columns": hashlib.sha256(json.dumps(predictor.columns).encode()).hexdigest(),
        "--format": kind,
        **options,
        **dealt,
    }


def describe_part(out: Path, shard: Shard, count: Count) -> dict[str, Any]:
    """Return what the finished file of a shard holds, and what the inputs of all shards are."""
    inputs = {"images": shard.images, "names": shard.names.hexdigest()}
    counts = {name: value for name, value in asdict(count).items() if name != "limits"}
    return {"sha256": sha256(out), **counts, "inputs": inputs}


def begin_or_resume(
    predictor: Predictor, items: Iterator[Item], out: Path, kind: str, count: Count, note: dict
) -> Iterator[Item]:
    """Return the images that a file lacks; a new one gets its note.

    Images are predicted some at a time, and those of an unfinished chunk again: the numbers of an
    image depend on its chunk in the last digits, so the file becomes that of an unstopped call.
    """
    if not (out.exists() and out.stat().st_size):
        write_json(note_path(out), note)
        return items
    check_origin(out, note)
    write_json(note_path(out), note)  # a shard that had ended has not now
    end = find_first_row(out, kind, predictor.columns)
    rows = read_rows(out, kind, predictor.columns, end)
    while chunk := list(islice(rows, predictor.chunk)):
        numbered = enumerate(chunk, count.images + 1)
        done = [match(out, next(items, None), name, n) for n, (name, _, _) in numbered]
        following = list(islice(items, 1)) if len(chunk) < predictor.chunk else []
        if following:
            items = chain(done, following, items)
            break
        count.images += len(chunk)
        count.failed += sum(bool(error) for _, error, _ in chunk)
        end = chunk[-1][-1]
    os.truncate(out, end)
    count.before = count.images
    logger.info("%s has %d images already", out, count.before)
    return items


def check_origin(out: Path, now: dict[str, Any]) -> None:
    """Raise `LesionfastError` unless a file was begun by the same model with the same options."""
    try:
        before = load_json(note_path(out))
        differences = describe_changes(before, now, ", now")
    except (ValueError, TypeError, AttributeError):
        raise LesionfastError(f"{note_path(out)} is damaged. {ELSEWHERE}") from None
    if differences:
        raise LesionfastError(
            f"{out} was begun by another model or with other options: {differences}. "
            "Resume with the model and the options that began it, or name another --out."
        )


def describe_changes(before: dict[str, Any], now: dict[str, Any], then: str) -> str:
    """Return what differs between two notes, but for what a shard holds; '' if nothing does."""
    names = [name for name in {**before, **now} if name != FINISHED]
    return "; ".join(
        describe_change(name, before.get(name), now.get(name), then)
        for name in names
        if before.get(name) != now.get(name)
    )


def describe_change(name: str, before: Any, now: Any, then: str) -> str:
    """Return what differs, as a person types it; `then` stands between the two values."""
    if name in ("weights", "decisions", "columns"):
        return f"other {name} (SHA-256 {str(before)[:12]}{then} {str(now)[:12]})"

    def show(value: Any) -> str:
        if isinstance(value, dict):
            value = " ".join(f"{key}={text}" for key, text in value.items()) or None
        return "not given" if value is None else str(value)

    return f"{name} {show(before)}{then} {show(now)}"


def find_first_row(out: Path, kind: str, columns: list[str]) -> int:
    """Return where the first row of a file begins, in bytes; 0 if its head was not finished.

    Raises `LesionfastError` unless the file begins with these columns, as far as it goes.
    """
    head = (csv_head(columns) if kind == "csv" else f'{{"{columns[0]}": ').encode()
    with out.open("rb") as file:
        start = file.read(len(head))
    if not head.startswith(start):
        raise LesionfastError(f"{out} has other columns than these predictions. {ELSEWHERE}")
    return len(head) if kind == "csv" and start == head else 0


def read_rows(
    out: Path, kind: str, columns: list[str], start: int
) -> Iterator[tuple[str, str, int]]:
    """Yield image, error and end in bytes of the rows of a file; not of a last one that is torn.

    Raises `LesionfastError` for a file that has other columns, or is damaged.
    """
    position, ended = start, False

    def read_lines() -> Iterator[str]:
        nonlocal position, ended
        with out.open("rb") as file:
            file.seek(start)
            while line := file.readline(MOST_ROW):
                if len(line) == MOST_ROW:
                    raise ValueError(f"a row has {MOST_ROW >> 20} MB or more")
                if line.endswith(b"\n"):
                    position += len(line)
                    yield line.decode("utf-8")
        ended = True

    if kind == "csv":
        fields = csv.reader(read_lines(), strict=True)
        rows = (dict(zip(columns, values, strict=True)) for values in fields)
    else:
        rows = map(parse_json, read_lines())
    try:
        for row in rows:
            if list(row) != columns:
                raise ValueError("it has other columns than these predictions")
            yield rearm(row["image"]) if kind == "csv" else row["image"], row["error"], position
    except (ValueError, TypeError, csv.Error) as error:
        if not ended:  # else the last row is torn within a quoted name
            raise LesionfastError(f"{out} is damaged: {error}. {ELSEWHERE}") from None


def match(out: Path, item: Item | None, name: str, number: int) -> Item:
    """Return an image; raise `LesionfastError` unless it is the one that a file has as its nth."""
    if item is None or item.name != name:
        found = "there are no more inputs" if item is None else f"the input is {item.name!r}"
        raise LesionfastError(
            f"{out} holds other images: number {number} is {name!r}, but {found}. "
            "Name the same inputs in the same order, or another --out."
        )
    return item
