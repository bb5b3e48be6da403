"""Where predictions go, a chunk at a time: CSV, JSON lines, Parquet, a challenge submission."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.interpretation import records
from lesionfast.evaluation.isic import COLUMNS, challenge_order
from lesionfast.files import put_in_place, workspace

FORMATS = ("csv", "jsonl", "parquet", "isic")
RESUMABLE = ("csv", "jsonl")  # written under their name, row by row; the others are renamed at last
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(out: Path | None, wanted: str | None) -> str:
    """Return the format to write: as asked, or by the file's suffix, else CSV."""
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


def name_lists_as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with tuples of names as text, such as "mel nv".

    A name that is more than a word is quoted as in a shell, so that `shlex.split` gives the names.
    """
    lists = [name for name in ("prediction_set", "not_known") if name in table]

    def joined(names: Any) -> Any:
        return shlex.join(names) if isinstance(names, tuple) else names

    return table.assign(**{name: table[name].map(joined) for name in lists})


class TextWriter:
    """Writes rows of text as they come; `done` is whether the file has some already."""

    def __init__(self, out: Path | None, columns: list[str], done: bool = False) -> None:
        self.columns, self.out = columns, out
        self.file: TextIO = sys.stdout
        if out is not None:
            self.file = out.open("a", encoding="utf-8", errors="backslashreplace", newline="")
        elif isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
        if not done:
            self.begin()

    def begin(self) -> None:
        """Write what comes before the first row."""

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows of a table."""
        raise NotImplementedError

    def put(self, text: str) -> None:
        """Write whole rows: all of them or, where the disk can't take them, none."""
        before = self.out.stat().st_size if self.out else 0
        try:
            self.file.write(text)
            self.file.flush()
        except OSError:
            if self.out:
                self.close()
                os.truncate(self.out, before)
            raise

    def close(self) -> None:
        """Close the file; each row was written to it as it came."""
        if self.file is not sys.stdout:
            with suppress(OSError):  # what a full disk did not take was told by `put`
                self.file.close()


class CsvWriter(TextWriter):
    """A line an image, empty where there is no value."""

    def begin(self) -> None:
        """Write the names of the columns."""
        self.put(csv_header(self.columns))

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows."""
        self.put(table.to_csv(index=False, header=False, lineterminator="\n"))


def csv_header(columns: list[str]) -> str:
    """Return the first line of a CSV file."""
    return pd.DataFrame(columns=columns).to_csv(index=False, lineterminator="\n")


class JsonLinesWriter(TextWriter):
    """A JSON object a line, null where there is no value."""

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows."""
        lines = (json.dumps(row, ensure_ascii=False) for row in records(table))
        self.put("".join(f"{line}\n" for line in lines))


class IsicWriter(TextWriter):
    """The format of the ISIC 2018 challenge; images without an answer are left out."""

    def __init__(self, out: Path | None, columns: list[str], done: bool = False) -> None:
        names = [each.removeprefix("p_") for each in columns if each.startswith("p_")]
        self.chosen = [f"p_{names[i]}" for i in challenge_order(names)]
        super().__init__(out, columns, done)

    def begin(self) -> None:
        """Write the names of the columns."""
        self.put(",".join(["image", *COLUMNS]) + "\n")

    def write(self, table: pd.DataFrame) -> None:
        """Write image ids, the file names without folder and suffix, and probabilities."""
        good = table[table["error"] == ""]
        stems = [Path(name).stem for name in good["image"]]
        rows = good[self.chosen].astype(float).assign(image=stems)[["image", *self.chosen]]
        self.put(rows.to_csv(index=False, header=False, lineterminator="\n"))


class ParquetWriter:
    """A Parquet file, in parts as they come; it can be read once it is closed."""

    def __init__(self, out: Path, columns: list[str], done: bool = False) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise LesionfastError(
                "Parquet needs pyarrow. Type: pip install 'lesionfast[parquet]', or --format csv."
            ) from None
        self.pyarrow = pyarrow
        self.schema = pyarrow.schema([(name, type_of(name, pyarrow)) for name in columns])
        self.writer = pyarrow.parquet.ParquetWriter(out, self.schema)

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows."""
        self.writer.write_table(self.pyarrow.Table.from_pylist(records(table), self.schema))

    def close(self) -> None:
        """Write what makes the file whole."""
        self.writer.close()


def type_of(name: str, pyarrow: Any) -> Any:
    """Return the type of a column of `Predictor.stream`."""
    if name.startswith(("p_", "calibrated_")) or name == "outlier_score":
        return pyarrow.float64()
    if "_at_" in name or name in ("refer", "outlier"):
        return pyarrow.bool_()
    return pyarrow.string()


WRITERS = {"csv": CsvWriter, "jsonl": JsonLinesWriter, "isic": IsicWriter, "parquet": ParquetWriter}


@contextmanager
def open_writer(
    out: Path | None, kind: str, columns: list[str], done: bool = False
) -> Iterator[TextWriter | ParquetWriter]:
    """Give what writes rows to a file, or to stdout; `done` goes on after the rows of a file.

    CSV and JSON lines are written in their place. The others get their name when they are whole:
    nothing is left of one that was stopped before.
    """
    if out is None or kind in RESUMABLE:
        writer = WRITERS[kind](out, columns, done)
        try:
            yield writer
        finally:
            writer.close()
        return
    with workspace(out.parent) as folder:
        writer = WRITERS[kind](folder / out.name, columns)
        try:
            yield writer
        except BaseException:
            with suppress(OSError):
                writer.close()
            raise
        writer.close()
        put_in_place(folder / out.name, out)
