"""The log of predictions: one line of JSON a picture, which no picture, file name or name is in.

A line says when (UTC), which model (the SHA-256 of its weights, of what was chosen on validation,
and of the split), which costs and class shares were stated, which input (the SHA-256 of the bytes),
metadata in classes (age in steps of five years, 90 and older together), and what the answer was;
null if there was none.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pandas as pd
from PIL import Image

from lesionfast.data.columns.values import is_age
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.files import (
    LOCKED,
    NUMBER,
    append_texts,
    check_shape,
    only_process,
    parse_json,
    require_regular,
    sha256,
)
from lesionfast.run import installed_version
from lesionfast.stats.advice.costs import Costs
from lesionfast.stats.metrics import json_safe

if TYPE_CHECKING:
    from lesionfast.serving.bundle import Bundle

logger = logging.getLogger("lesionfast")

YEARS = 5  # of a class of ages
OLDEST = 90  # from here on ages are one class (45 CFR 164.514(b)(2)(i)(C))
DIGITS = 6  # of a probability
PATIENCE = 30  # seconds that a line waits for those of other processes
TOLD = ("advice", "likely", "decision", "no_decision", "prediction_set", "refer", "outlier")
MOST_LINE = 2**20  # characters; a line of a model with a thousand classes has 50,000
MOST_LINES = 2_000_000  # of a log: what is kept of them takes some 3 GB
START, START_BYTES = '{"time": ', 10_000  # of a log
ANSWER = {
    "probabilities": (None, {str: float}),
    "decision": (str, None),
    "outlier?": (bool, None),
    "outlier_score?": NUMBER,
    "refer?": (bool, None),
}
LINE = {
    **dict.fromkeys(("time", "version", "model", "decisions", "split", "input"), str),
    "metadata": {str: (str, None)},
    "answer": (None, ANSWER),
    "costs?": {str: float},
    "prior?": ([float], None),
}


@dataclass
class PredictionLog:
    """Appends what a model answered to a file, a line a picture, which is kept before it is told.

    Several threads and processes may append to one file.
    """

    path: Path
    about: dict[str, Any]
    encoder: Any
    classes: Sequence[str]

    @classmethod
    def open(cls, path: str | Path, bundle: "Bundle", weights: Path) -> "PredictionLog":
        """Return the log of a model; raises `LesionfastError` if the file can't be written."""
        about = {
            "version": installed_version(),
            "model": sha256(weights),
            "decisions": hash_decisions(bundle),
            "split": bundle.split_sha256,
            **describe_stated(bundle),
        }
        return cls(check_log(path), about, bundle.encoder, bundle.classes)

    def append(
        self,
        inputs: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None],
        answers: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Append a line for each picture: the hash of its bytes, what was known, the answer.

        `answers` are rows of `Predictor`, or None where there is none. All are on the disk when
        this returns. Raises `LesionfastError` for a full disk and the like.
        """
        begin = {"time": now(), **self.about}
        lines = []
        for key, known, row in zip(inputs, metadata, answers, strict=True):
            line = begin | {"input": key, "metadata": self._classify(known or {})}
            line["answer"] = row and describe_answer(row, self.classes)
            lines.append(f"{json.dumps(json_safe(line), ensure_ascii=False)}\n")
        append_lines(self.path, lines)

    def _classify(self, known: Mapping[str, Any]) -> dict[str, str | None]:
        return {
            learned["name"]: classify(learned, known.get(learned["name"]))
            for learned in self.encoder.learned
        }


def hash_decisions(bundle: "Bundle") -> str:
    """Return the SHA-256 of what validation chose, whatever costs and class shares were stated."""
    return replace(bundle, costs=Costs(), clinic=None).digest()


def describe_stated(bundle: "Bundle") -> dict[str, Any]:
    """Return the costs of errors, and the class shares of the clinic if there are any."""
    return {"costs": asdict(bundle.costs), "prior": bundle.clinic and list(bundle.clinic)}


def check_log(path: str | Path) -> Path:
    """Return the path of a log; raises `LesionfastError` if it can't be written, or is no log."""
    path = Path(path).expanduser()
    try:
        append_lines(path, [])
        check_start(path)
    except LesionfastError as error:
        raise LesionfastError(
            f"{error} Without its log nothing is predicted. Name another file with "
            "--log-predictions, or leave it out."
        ) from None
    return path


def check_start(path: Path) -> None:
    """Raise `LesionfastError` unless a file is empty or begins as a log does, if need be torn."""
    with path.open("rb") as file:
        start = file.read(START_BYTES).lstrip()
    line = start.partition(b"\n")[0].decode(errors="replace")
    if start and not line.startswith(START) and parse_line(line) is None:
        raise LesionfastError(
            f"{path} is not a log of predictions; its first line is {line.strip()[:40]!r}."
        )


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines after those of other processes, which are waited for."""
    busy = f"{path} can't be written: another process has held it for {PATIENCE} s."
    lock = path.absolute().with_name(f"{LOCKED}{path.name}")
    if not lines:
        append_texts(path, [])
        return
    with only_process(lock, busy, about=path, patience=PATIENCE):
        append_texts(path, lines)


def now() -> str:
    """Return the time in UTC, such as "2026-01-02T03:04:05.678Z"."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hash_input(image: Any) -> str:
    """Return the SHA-256 of encoded bytes; of decoded pixels that of size, mode and pixels."""
    if isinstance(image, Image.Image):
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        about = f"{image.shape} {image.dtype} ".encode()
        return hashlib.sha256(about + np.ascontiguousarray(image).tobytes()).hexdigest()
    return hashlib.sha256(image).hexdigest()


def classify(learned: Mapping[str, Any], value: Any) -> str | None:
    """Return the class of a value: "55-59" for an age, a text that training saw, or a range.

    None if it is missing. A range is half a standard deviation of the training values wide.
    """
    if value is None or pd.isna(value):
        return None
    if learned["kind"] == "text":
        return str(value) if value in learned["values"] else None
    if is_age(learned["name"]):
        low = YEARS * floor(value / YEARS)
        return f"{OLDEST}+" if low >= OLDEST else f"{low}-{low + YEARS - 1}"
    step = learned["scale"] / 2
    low = learned["mean"] + step * floor((value - learned["mean"]) / step)
    return f"{low:.4g} to {low + step:.4g}"


def describe_answer(row: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Return what is kept of a row of `Predictor`: what a person was told, and how sure it was."""
    shown = {name: row[f"p_{name}"] for name in classes}
    probabilities = None  # without a decision
    if row["likely"] is not None:
        probabilities = {name: round(float(chance), DIGITS) for name, chance in shown.items()}
    told = {name: row[name] for name in TOLD if name in row}
    if (score := row.get("outlier_score")) is not None:
        told["outlier_score"] = round(float(score), DIGITS)
    return {**told, "probabilities": probabilities}


@dataclass
class Lines:
    """What a log holds: its lines, and how many were left out because they can't be read."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    torn: int = 0


def read_log(path: str | Path) -> Lines:
    """Read a log; a line that can't be read is counted.

    A line has what `measure_drift` needs: time, model, decisions, split, input, metadata, prior and
    answer. Raises `LesionfastError` for a file that is missing, is no regular file, holds no line
    of a log, or more than two million.
    """
    path, found = Path(path).expanduser(), Lines()
    for number, line in enumerate(read_lines(path)):
        if number == MOST_LINES:
            raise LesionfastError(
                f"{path} has more lines than the {MOST_LINES:,} that are read. Keep the newest: "
                f"tail -n {MOST_LINES} {shell_quote(path)} > newest.jsonl"
            )
        if line is None:
            found.torn += 1
        else:
            found.lines.append(line)
    if found.torn:
        logger.warning("%s: %d lines can't be read and are left out", path, found.torn)
    return found


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the lines of a log, None for one that can't be read; raises as `read_log` does."""
    try:
        if path.exists():
            require_regular(path, path.stat().st_mode)
        with path.open(encoding="utf-8", errors="replace") as file:
            first = True
            for text in filter(str.strip, cut_lines(file)):
                line = parse_line(text)
                if first and line is None and not text.lstrip().startswith("{"):
                    raise LesionfastError(
                        f"{path} is not a log of predictions; its first line is "
                        f"{text.strip()[:40]!r}."
                    )
                first = False
                yield line
    except FileNotFoundError:
        raise LesionfastError(
            f"there is no log {path}. Keep one: lesionfast predict RUN IMAGES --log-predictions "
            f"{shell_quote(Path(path))}"
        ) from None
    except OSError as error:
        raise LesionfastError(f"{path} can't be read: {error.strerror}.") from None


def cut_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file, of one that is longer than any of a log only the start."""
    while line := file.readline(MOST_LINE):
        yield line
        while len(line) == MOST_LINE and line[-1] != "\n":
            line = file.readline(MOST_LINE)


def parse_line(text: str) -> dict[str, Any] | None:
    """Return what is kept of a line of a log, None if it is damaged."""
    try:
        line = parse_json(text)
        check_shape(line, LINE)
        check_values(line)
    except ValueError:
        return None
    return keep(line)


def check_values(line: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a time without its zone, and for what are no probabilities."""
    if datetime.fromisoformat(line["time"]).tzinfo is None:
        raise ValueError("its time has no zone")
    prior = line.get("prior")
    chances = [*(prior or ()), *((line["answer"] or {}).get("probabilities") or {}).values()]
    if not all(0 <= chance <= 1 for chance in chances) or not (prior is None or any(prior)):
        raise ValueError("it has what are no probabilities")


def keep(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is needed of a line; texts that lines share are in memory once."""

    def share(text: str | None) -> str | None:
        return text and sys.intern(text)

    kept = {name: line[name] for name in ("time", "input")}
    kept |= {name: share(line[name]) for name in ("model", "decisions", "split")}
    kept["metadata"] = {share(name): share(value) for name, value in line["metadata"].items()}
    kept["prior"], kept["answer"] = line.get("prior"), None
    if answer := line["answer"]:
        chances = answer["probabilities"]
        kept["answer"] = {
            "decision": share(answer["decision"]),
            "probabilities": chances and {share(name): one for name, one in chances.items()},
        }
        if "outlier" in answer:
            kept["answer"]["outlier"] = answer["outlier"]
    return kept
