"""The files of all shards of a prediction joined into the one that a single process writes."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.cache import check_room
from lesionfast.console import counting_bar
from lesionfast.errors import (
    DamageError,
    LesionfastError,
    import_extra,
    list_first,
    pluralize,
    shell_quote,
)
from lesionfast.files import (
    check_shape,
    check_target,
    damage_explained,
    load_json,
    only_writer,
    parse_json,
    rearm,
    sha256,
    write_atomically,
    write_json,
)
from lesionfast.serving.inputs import Shard, expand
from lesionfast.serving.outputs import (
    ELSEWHERE,
    FINISHED,
    MOST_ROW,
    RESUMABLE,
    Count,
    TextWriter,
    csv_head,
    describe_changes,
    find_first_row,
    note_path,
    read_rows,
)

OWN = ("--shard", "images at a time", FINISHED)  # of a note, what the joined file's does not have
COUNT = range(1, 10**9)
NOTE = {
    "--shard": str,
    "--format": ("csv", "jsonl", "parquet"),
    "images at a time": COUNT,
    "finished?": {
        **dict.fromkeys(("images", "failed"), range(10**12)),
        "sha256": str,
        "inputs": {"images": range(10**12), "names": str},
    },
}
WHOLE = "Predict that shard again."


@dataclass(frozen=True)
class Part:
    """The file of one shard, and its note."""

    path: Path
    note: dict[str, Any]
    shard: Shard

    @property
    def kind(self) -> str:
        """The format of the file."""
        return self.note["--format"]

    @property
    def chunk(self) -> int:
        """How many images were dealt out at a time."""
        return self.note["images at a time"]


def join_parts(paths: Sequence[str], out: Path, kind: str) -> Count:
    """Write the rows of all shards to one file, in the order of a single process; count them.

    `paths` are the files that `predict_inputs` wrote with `shard`, or patterns of them; `kind` is
    their format, or isic. Raises `LesionfastError` unless they are all the shards of the same
    inputs, each once and finished, predicted by the same model with the same options.
    """
    check_new(out)
    parts = [read_part(Path(path)) for pattern in paths for path in expand(pattern)]
    check_parts(parts)
    parts.sort(key=lambda part: part.shard.number)
    check_kind(parts[0], kind)
    for part in parts:
        check_whole(part)
    join = {"parquet": join_parquet, "isic": join_isic}.get(kind, join_text)
    with only_writer(out):
        check_new(out)  # again, as another process may have begun it
        if kind in RESUMABLE:
            note = {k: v for k, v in parts[0].note.items() if k not in OWN}
            write_json(note_path(out), note)
        needed = sum(part.path.stat().st_size for part in parts) if kind == parts[0].kind else 0

        def write(aside: Path) -> None:
            check_room(aside.parent, needed)
            join(parts, aside)

        write_atomically(out, write, needed)
    ends = [part.note[FINISHED] for part in parts]
    return Count(*(sum(end[name] for end in ends) for name in ("images", "failed")))


@contextmanager
def reading(parts: Sequence[Part]) -> Iterator[None]:
    """Turn what reading parts raises that are not what was written into a `DamageError`.

    Around what a generator yields it catches no fault of the code that takes it.
    Their SHA-256 is that of the notes, which whoever changes a part can change too.
    """
    try:
        yield
    except LesionfastError as error:
        if not str(error).endswith(ELSEWHERE):
            raise
        raise DamageError(f"{str(error).removesuffix(ELSEWHERE)}{WHOLE}") from None
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, csv.Error) as error:
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        names = list_first(str(part.path) for part in parts)
        raise DamageError(f"one of the parts is damaged ({names}): {why}. {WHOLE}") from None


def check_new(out: Path) -> None:
    """Raise `LesionfastError` for a file that exists already."""
    check_target(out)
    if out.exists():
        raise LesionfastError(f"{out} exists already. Name another --out.")


def read_part(path: Path) -> Part:
    """Return the file of a shard with its note; raises `LesionfastError` if it is none."""
    note = note_path(path)
    if not path.is_file():
        raise LesionfastError(f"there is no file or pattern '{path}'. Name the parts to join.")
    if not note.is_file():
        raise LesionfastError(
            f"{path} can't be joined: {note.name}, which says what it holds, is not beside it. "
            "If it was predicted with --shard, copy that file too."
        )
    with damage_explained(note, WHOLE):
        value = load_json(note)
        check_shape(value, {})
        if "--shard" in value:
            check_shape(value, NOTE)
            return Part(path, value, Shard.parse(value["--shard"]))
    raise LesionfastError(
        f"{path} can't be joined: it was predicted without --shard. Leave it out."
    )


def check_parts(parts: Sequence[Part]) -> None:
    """Raise `LesionfastError` unless parts are all shards of one prediction, each finished."""
    first, *others = parts
    for part in others:
        before, now = ({**p.note, "--shard": f"K/{p.shard.count}"} for p in (first, part))
        if differences := describe_changes(before, now, " and"):
            raise LesionfastError(
                f"{first.path} and {part.path} don't belong together: {differences}. "
                "Name the parts of one model with the same options."
            )
    for number, count in Counter(part.shard.number for part in parts).items():
        if count > 1:
            same = list_first(str(p.path) for p in parts if p.shard.number == number)
            raise LesionfastError(f"shard {number} is there {count} times: {same}. Name it once.")
    for part in parts:
        if FINISHED not in part.note:
            again = "Delete it, and predict that shard again."
            resume = "Type the command that began it again, with --resume."
            raise LesionfastError(
                f"{part.path} (shard {part.shard}) is not finished. "
                f"{resume if part.kind in RESUMABLE else again}"
            )
    check_all_there(first.shard.count, {part.shard.number for part in parts})
    for part in others:
        check_inputs(first, part)


def check_all_there(count: int, there: set[int]) -> None:
    """Raise `LesionfastError` unless the shards from 1 to `count` are there."""
    missing = [number for number in range(1, count + 1) if number not in there]
    if missing:
        one, names = len(missing) == 1, list_first(missing, 10)
        subject = f"shard {names} of {count} is" if one else f"shards {names} of {count} are"
        raise LesionfastError(
            f"{subject} missing. Predict {'it' if one else 'each'}, such as with --shard "
            f"{missing[0]}/{count}, and name all parts."
        )


def check_inputs(first: Part, part: Part) -> None:
    """Raise `LesionfastError` unless two shards are of the same images in the same order."""
    before, now = (p.note[FINISHED]["inputs"] for p in (first, part))
    if before != now:
        counts = [pluralize(inputs["images"], "image") for inputs in (before, now)]
        found = f"{counts[0]} and {counts[1]}"
        if counts[0] == counts[1]:
            found = f"{counts[0]} each, but with other names or in another order"
        raise LesionfastError(
            f"{first.path} and {part.path} are shards of different inputs: {found}. Predict all "
            "shards again from the inputs as they are now."
        )


def check_kind(part: Part, kind: str) -> None:
    """Raise `LesionfastError` unless parts can be joined to a format."""
    if kind not in (part.kind, "isic"):
        raise LesionfastError(
            f"the parts are {part.kind}, and the joined file would be {kind}. "
            f"Type --format {shell_quote(part.kind)}"
        )


def check_whole(part: Part) -> None:
    """Raise `LesionfastError` if the file of a shard changed after it was finished."""
    if sha256(part.path) != part.note[FINISHED]["sha256"]:
        raise LesionfastError(
            f"{part.path} changed after it was finished: its SHA-256 is another. {WHOLE}"
        )


def list_chunks(parts: Sequence[Part]) -> Iterator[tuple[Part, int]]:
    """Yield the part of each chunk of the images, and its number there, with a progress bar."""
    images, step = parts[0].note[FINISHED]["inputs"]["images"], parts[0].chunk
    with counting_bar("images") as bar:
        for chunk, start in enumerate(range(0, images, step)):
            yield parts[chunk % len(parts)], chunk // len(parts)
            bar(min(start + step, images), images)


def join_text(parts: Sequence[Part], out: Path) -> None:
    """Write the lines of CSV or JSON lines, as they are."""
    with out.open("wb") as joined:
        if parts[0].kind == "csv":
            joined.write(csv_head(read_columns(parts[0])).encode())
        for text in read_texts(parts):
            joined.write(text)


def read_texts(parts: Sequence[Part]) -> Iterator[bytes]:
    """Yield the lines of each chunk of parts of text; a name within quotes may have several.

    A file is open only as long as a chunk of it is read, as there may be thousands.
    """
    columns, places = read_columns(parts[0]), {}
    for part, _ in list_chunks(parts):
        with reading([part]):
            start = places.get(part.path)
            start = find_first_row(part.path, part.kind, columns) if start is None else start
            with closing(read_rows(part.path, part.kind, columns, start)) as rows:
                *_, (_, _, end) = islice(rows, part.chunk)
            with part.path.open("rb") as file:
                file.seek(start)
                yield file.read(end - start)
        places[part.path] = end


def read_columns(part: Part) -> list[str]:
    """Return the columns of a part; the first one has at least a row."""
    if part.kind == "parquet":
        return read_schema(part).names
    with reading([part]), part.path.open(encoding="utf-8", newline="") as file:
        if part.kind == "csv":
            lines = iter(partial(file.readline, MOST_ROW), "")
            return list(map(rearm, next(csv.reader(lines), [])))
        return list(parse_json(file.readline(MOST_ROW)))


def open_parquet() -> Any:
    """Return pyarrow.parquet; raises `LesionfastError` if it is not installed."""
    return import_extra("pyarrow.parquet", "parquet", "Parquet files can't be joined")


def read_schema(part: Part) -> Any:
    """Return the columns and types of a Parquet file."""
    parquet = open_parquet()
    with reading([part]):
        return parquet.read_schema(part.path)


def join_parquet(parts: Sequence[Part], out: Path) -> None:
    """Write the row groups of Parquet files, each of which is a chunk."""
    parquet = open_parquet()
    with parquet.ParquetWriter(out, read_schema(parts[0])) as joined:
        for rows in read_groups(parts):
            joined.write_table(rows)


def read_groups(parts: Sequence[Part]) -> Iterator[Any]:
    """Yield the row group of each chunk of Parquet files, a pyarrow.Table."""
    parquet, schema = open_parquet(), read_schema(parts[0])
    for part, number in list_chunks(parts):
        with reading([part]), parquet.ParquetFile(part.path) as file:
            rows, noted = file.metadata.num_rows, part.note[FINISHED]["images"]
            if rows != noted:
                raise LesionfastError(
                    f"{part.path} has {pluralize(rows, 'row')}, but its note says {noted}. "
                    "Predict this shard again."
                )
            group = file.read_row_group(number)
            if not group.schema.equals(schema):
                raise ValueError("its columns are not those of the first part")
            yield group


def join_isic(parts: Sequence[Part], out: Path) -> None:
    """Write a submission to ISIC 2018 from parts of any format."""
    columns = read_columns(parts[0])
    with closing(TextWriter(out, "isic", columns)) as writer:
        for table in read_tables(parts):
            writer.write(table)


def read_tables(parts: Sequence[Part]) -> Iterator[pd.DataFrame]:
    """Yield the rows of each chunk as a table."""
    kind, columns = parts[0].kind, read_columns(parts[0])
    shares = [name for name in columns if name.startswith(("p_", "uncalibrated_"))]
    with reading(parts):
        for chunk in read_groups(parts) if kind == "parquet" else read_texts(parts):
            if kind == "parquet":
                table = chunk.to_pandas()
            elif kind == "jsonl":
                table = pd.DataFrame(map(parse_json, chunk.splitlines()))
            else:
                table = pd.read_csv(BytesIO(chunk), names=columns, dtype=str, keep_default_na=False)
                table["image"] = table["image"].map(rearm)
                table[shares] = table[shares].replace("", "nan")
            # float32 as when they were written, so that a submission has the same digits
            yield table.astype(dict.fromkeys(("image", "error"), str) | dict.fromkeys(shares, "f4"))
