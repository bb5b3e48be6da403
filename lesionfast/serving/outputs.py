"""Where predictions go, a chunk at a time: CSV, JSON lines, Parquet, a challenge submission."""

import csv
import json
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.challenge import COLUMNS, challenge_order
from lesionfast.evaluation.interpretation import records

FORMATS = ("csv", "jsonl", "parquet", "isic")
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


class TextWriter:
    """Writes rows of text as they come; `done` is whether the file has some already."""

    def __init__(self, out: Path | None, columns: list[str], done: bool = False) -> None:
        self.columns = columns
        self.file: TextIO = sys.stdout
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            self.file = out.open("a" if done else "x", encoding="utf-8", newline="")
        elif isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="")
        if not done:
            self.begin()

    def begin(self) -> None:
        """Write what comes before the first row."""

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows of a table."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left."""
        self.file.flush()
        if self.file is not sys.stdout:
            self.file.close()


class CsvWriter(TextWriter):
    """A line an image, empty where there is no value."""

    def begin(self) -> None:
        """Write the names of the columns."""
        csv.writer(self.file, lineterminator="\n").writerow(self.columns)

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows, all or none of each."""
        self.file.write(table.to_csv(index=False, header=False, lineterminator="\n"))
        self.file.flush()


class JsonLinesWriter(TextWriter):
    """A JSON object a line, null where there is no value."""

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows."""
        lines = (json.dumps(row, ensure_ascii=False) for row in records(table))
        self.file.write("".join(f"{line}\n" for line in lines))
        self.file.flush()


class IsicWriter(TextWriter):
    """The format of the ISIC 2018 challenge; images without an answer are left out."""

    def __init__(self, out: Path | None, columns: list[str], done: bool = False) -> None:
        names = [each.removeprefix("p_") for each in columns if each.startswith("p_")]
        self.chosen = [f"p_{names[i]}" for i in challenge_order(names)]
        super().__init__(out, columns, done)

    def begin(self) -> None:
        """Write the names of the columns."""
        self.file.write(",".join(["image", *COLUMNS]) + "\n")

    def write(self, table: pd.DataFrame) -> None:
        """Write image ids, the file names without folder and suffix, and probabilities."""
        good = table[table["error"] == ""]
        stems = [Path(name).stem for name in good["image"]]
        rows = good[self.chosen].astype(float).assign(image=stems)[["image", *self.chosen]]
        self.file.write(rows.to_csv(index=False, header=False, lineterminator="\n"))
        self.file.flush()


class ParquetWriter:
    """A Parquet file, in parts as they come."""

    def __init__(self, out: Path, columns: list[str], done: bool = False) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise LesionfastError(
                "Parquet needs pyarrow. Type: pip install 'lesionfast[parquet]', or --format csv."
            ) from None
        if out.exists():
            raise FileExistsError(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.columns, self.pyarrow = columns, pyarrow
        fields = [(name, type_of(name, pyarrow)) for name in columns]
        self.schema = pyarrow.schema(fields)
        self.out, self.aside = out, out.with_name(f".{out.name}.{os.getpid()}")
        self.writer = pyarrow.parquet.ParquetWriter(self.aside, self.schema)

    def write(self, table: pd.DataFrame) -> None:
        """Write the rows."""
        self.writer.write_table(self.pyarrow.Table.from_pylist(records(table), self.schema))

    def close(self) -> None:
        """Give the file its name, now that it is whole."""
        self.writer.close()
        os.replace(self.aside, self.out)


def type_of(name: str, pyarrow: Any) -> Any:
    """Return the type of a column of `Predictor.stream`."""
    if name.startswith(("p_", "calibrated_")) or name == "outlier_score":
        return pyarrow.float64()
    if "_at_" in name or name in ("refer", "outlier"):
        return pyarrow.bool_()
    return pyarrow.string()


WRITERS = {"csv": CsvWriter, "jsonl": JsonLinesWriter, "isic": IsicWriter, "parquet": ParquetWriter}


def open_writer(
    out: Path | None, kind: str, columns: list[str], done: bool = False
) -> TextWriter | ParquetWriter:
    """Return what writes rows; `done` goes on with a file. Raises `LesionfastError`."""
    try:
        return WRITERS[kind](out, columns, done)
    except FileExistsError:
        raise LesionfastError(
            f"{out} is there already. Go on with it by --resume, or name another --out."
        ) from None
    except OSError as error:
        raise LesionfastError(f"{out} can't be written: {error.strerror or error}.") from None


def cut_torn_row(out: Path, kind: str) -> None:
    """Cut a last row that was not finished off a file of text."""
    position = whole = quotes = 0
    with out.open("rb") as file:
        for line in file:
            position += len(line)
            quotes += line.count(b'"') if kind == "csv" else 0
            if line.endswith(b"\n") and quotes % 2 == 0:  # else the line ends within a name
                whole = position
    os.truncate(out, whole)


def written_rows(out: Path, kind: str, columns: list[str]) -> Iterator[tuple[str, str]]:
    """Yield image and error of the rows of an unfinished file.

    Raises `LesionfastError` for a file that was not written with these columns.
    """
    with out.open(encoding="utf-8", newline="") as file:
        if kind == "csv":
            rows = csv.DictReader(file)
            found = list(rows.fieldnames or [])
        else:
            rows = map(json.loads, file)
            found = columns
        if found != columns:
            raise LesionfastError(
                f"{out} is of another model: its columns are not those of this one. "
                "Name another --out."
            )
        for row in rows:
            if list(row) != columns:
                raise LesionfastError(f"{out} is of another model. Name another --out.")
            yield row["image"], row["error"]
