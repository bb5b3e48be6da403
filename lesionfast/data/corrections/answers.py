"""corrections.csv: what a person answered about labels and lesions, one line an answer.

Its columns are image (an image id), answer, and, where they are known, who, when (UTC, ISO 8601)
and why. An answer is "right" (the label is), "is NAME" (the class), "unclear" (leave the image
out), "same lesion as IMAGE", or "undo", which takes back the latest answer about that image. Lines
are only ever appended; of several answers about a label the latest counts.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lesionfast.data.table import open_table
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import append_texts

logger = logging.getLogger("lesionfast")

COLUMNS = ("image", "answer", "who", "when", "why")
REQUIRED = dict.fromkeys(COLUMNS[:2], "")
RIGHT, UNCLEAR, UNDO, IS, SAME = "right", "unclear", "undo", "is", "same lesion as"
FORMS = (RIGHT, f"{IS} CLASS", UNCLEAR, f"{SAME} IMAGE", UNDO)
FORMULAS = ("=", "+", "-", "@")  # what a spreadsheet would compute


@dataclass(frozen=True)
class Answer:
    """One line: what a person says about an image.

    `kind` is 'right', 'is', 'unclear', 'same lesion as' or 'undo'; `value` the class of 'is', or
    the other image of 'same lesion as'.
    """

    image: str
    kind: str
    value: str = ""
    who: str = ""
    when: str = ""
    why: str = ""

    @classmethod
    def parse(cls, image: str, text: str, **about: str) -> "Answer":
        """Return the answer of a line; raises `LesionfastError` for an unknown one."""
        words = " ".join(text.split())
        for kind in (SAME, IS):
            if words.lower().startswith(f"{kind} "):
                return cls(image, kind, words[len(kind) + 1 :], **about)
        if words.lower() not in (RIGHT, UNCLEAR, UNDO):
            raise LesionfastError(
                f"'{text}' is not an answer.{did_you_mean(words, FORMS)} Write one of: "
                f"{', '.join(FORMS)}."
            )
        return cls(image, words.lower(), **about)

    @property
    def text(self) -> str:
        """The answer as the file has it, such as "is mel"."""
        return f"{self.kind} {self.value}".strip()

    @property
    def is_of_lesion(self) -> bool:
        """Whether it joins lesions; others are about the label."""
        return self.kind == SAME

    def to_line(self) -> str:
        """Return its line of the file, without what would break it or be a formula."""
        values = (self.image, self.text, self.who, self.when, self.why)
        clean = [" ".join(value.split()) for value in values]
        clean[2:] = [value.lstrip("".join(FORMULAS)) for value in clean[2:]]
        return format_line(clean)


@dataclass(frozen=True)
class Answers:
    """What counts of a file of corrections: `log` are its lines, in their order.

    `data` are the bytes of the file, `name` how it was named.
    """

    log: tuple[Answer, ...] = ()
    name: str = "corrections.csv"
    data: bytes = b""
    _lasting: dict[str, list[Answer]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for answer in self.log:
            lasting = self._lasting.setdefault(answer.image, [])
            if answer.kind != UNDO:
                lasting.append(answer)
            elif lasting:
                lasting.pop()

    @property
    def labels(self) -> dict[str, Answer]:
        """The answer about the label of each image that has one."""
        return {
            image: about[-1]
            for image, answers in self._lasting.items()
            if (about := [answer for answer in answers if not answer.is_of_lesion])
        }

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of images that show one lesion."""
        return [
            (answer.image, answer.value)
            for answers in self._lasting.values()
            for answer in answers
            if answer.is_of_lesion
        ]

    def same_as(self, image: str) -> list[str]:
        """Return the images that an image was said to show the lesion of."""
        return [one.value for one in self._lasting.get(image, []) if one.is_of_lesion]

    @property
    def images(self) -> set[str]:
        """All images that some answer is about."""
        return {image for image, about in self._lasting.items() if about} | {
            other for _, other in self.pairs
        }

    def find_latest(self, images: Container[str] | None = None) -> Answer | None:
        """Return the latest answer that was not taken back, of all images or of some."""
        left = {image: len(answers) for image, answers in self._lasting.items()}
        taken = dict.fromkeys(left, 0)
        for answer in reversed(self.log):
            if answer.kind == UNDO:
                taken[answer.image] += 1
            elif taken[answer.image]:
                taken[answer.image] -= 1
            elif images is None or answer.image in images:
                return answer
        return None

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()


def read_answers(path: str | Path, option: str = "--corrections") -> Answers:
    """Read a file of corrections.

    Raises `LesionfastError`, with the line, for a column that is missing, an unknown answer, a line
    without an image, and an undo of nothing.
    """
    path = Path(path).expanduser()
    table = open_table(path, option=option)
    table.require(REQUIRED)
    data = path.read_bytes()
    if not data.decode("utf-8", "replace").strip().partition("\n")[2].strip():
        return Answers(name=str(path), data=data)  # the header alone: nothing was answered yet
    rows = [chunk.reindex(columns=[*COLUMNS], fill_value="") for chunk in table.read_chunks()]
    records = ((n, row) for chunk in rows for n, *row in chunk.itertuples(name=None))
    return Answers(tuple(parse_lines(path, records)), str(path), data)


def parse_lines(path: Path, records: Iterable[tuple[int, list[str]]]) -> Iterator[Answer]:
    """Yield the answers of numbered lines; raises `LesionfastError` as `read_answers` does."""
    open_answers: dict[str, int] = {}
    for number, (image, text, who, when, why) in records:
        where = f"line {number} of {path}"
        if not image:
            raise LesionfastError(f"{where} names no image. Write its id, or remove the line.")
        try:
            answer = Answer.parse(image, text, who=who, when=when, why=why)
        except LesionfastError as error:
            raise LesionfastError(f"{where}: {error}") from None
        if answer.value == image and answer.is_of_lesion:
            raise LesionfastError(f"{where} joins '{image}' with itself. Name another image.")
        step = -1 if answer.kind == UNDO else 1
        open_answers[image] = open_answers.get(image, 0) + step
        if open_answers[image] < 0:
            raise LesionfastError(
                f"{where} takes back an answer about '{image}', which has none. Remove the line."
            )
        yield answer


def append_answer(path: str | Path, answer: Answer) -> None:
    """Append an answer to a file, which is on the disk when this returns; a new file is begun.

    Raises `LesionfastError` for a full disk and the like.
    """
    append_texts(Path(path).expanduser(), [answer.to_line()], head=format_line(COLUMNS))


def format_line(values: Iterable[str]) -> str:
    """Return a line of CSV, with its end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def now() -> str:
    """Return the time in UTC, such as "2026-01-02T03:04:05Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
