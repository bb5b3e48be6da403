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
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lesionfast.data.table import open_table
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import COMPUTED, append_texts, check_target, disarm, format_bytes, rearm

logger = logging.getLogger("lesionfast")

MOST_LINES = 1_000_000  # two about each image of the largest dataset; they take 1 GB
MOST_BYTES = 2**27  # of a file: so many lines with a sentence each
COLUMNS = ("image", "answer", "who", "when", "why")
REQUIRED = dict.fromkeys(COLUMNS[:2], "")
RIGHT, UNCLEAR, UNDO, IS, SAME = "right", "unclear", "undo", "is", "same lesion as"
FORMS = (RIGHT, f"{IS} CLASS", UNCLEAR, f"{SAME} IMAGE", UNDO)
JOINERS = "\u200c\u200d"  # unseen, and needed within words of Persian and within emoji
BEFORE = rf"""[\s"'{JOINERS}{COMPUTED}]*"""
FORMULA = re.compile(rf"(^|[;|]){BEFORE}[{COMPUTED}]{BEFORE}")  # a comma divides no quoted cell
KIND = re.compile(r"(same\s+lesion\s+as|is)\s+(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
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
        if found := KIND.fullmatch(text.strip()):  # ids and classes stay as they are
            return cls(image, IS if found[1].lower() == IS else SAME, found[2], **about)
        words = " ".join(text.split())
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
        about = map(clean, (self.who, self.when, self.why))
        return format_line([disarm(self.image), self.text, *about])


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


def clean(text: str) -> str:
    """Return a text as one line that a terminal shows and a spreadsheet does not compute."""
    shown = (one if one.isprintable() or one in JOINERS else " " for one in text)
    return FORMULA.sub(r"\1 ", " ".join("".join(shown).split())).strip()


def can_be_kept(image: str) -> bool:
    """Return whether the file can hold an id so that reading it gives the same one."""
    try:
        image.encode()
    except UnicodeError:
        return False
    return image != "" and image == image.strip() and "\0" not in image


def open_answers(path: str | Path) -> Answers:
    """Read a file of corrections that answers are appended to; a missing or empty one has none.

    Raises what `read_answers` does, and `LesionfastError` for a link, a pipe or the like, and for a
    file to which a line with a comma between its fields, in UTF-8, can't be added.
    """
    path = Path(path).expanduser()
    check_target(path)
    if not path.exists() or not path.stat().st_size:
        return Answers(name=str(path))
    answers = read_answers(path)
    header = next(csv.reader([answers.data.partition(b"\n")[0].decode("utf-8-sig", "replace")]))
    if [name.strip() for name in header] != [*COLUMNS] or not is_utf_8(answers.data):
        raise LesionfastError(
            f"{path} is not in the form that answers are appended in: UTF-8, and a first line "
            f"{format_line(COLUMNS).strip()}. Save it so, or name a new file with --corrections."
        )
    return answers


def is_utf_8(data: bytes) -> bool:
    """Return whether bytes are text in UTF-8."""
    try:
        return data.decode() is not None
    except UnicodeError:
        return False


def read_answers(path: str | Path, option: str = "--corrections") -> Answers:
    """Read a file of corrections.

    Raises `LesionfastError`, with the line, for a column that is missing, an unknown answer, a line
    without an image, and an undo of nothing.
    """
    path = Path(path).expanduser()
    check_size(path)
    table = open_table(path, option=option)
    table.require(REQUIRED)
    data = path.read_bytes()
    if not data.decode("utf-8", "replace").strip().partition("\n")[2].strip():
        return Answers(name=str(path), data=data)  # the header alone: nothing was answered yet
    rows = [chunk.reindex(columns=[*COLUMNS], fill_value="") for chunk in table.read_chunks()]
    records = ((n, row) for chunk in rows for n, *row in chunk.itertuples(name=None))
    return Answers(tuple(parse_lines(path, records)), str(path), data)


def check_size(path: Path) -> None:
    """Raise `LesionfastError` for a file that is larger than people's answers are."""
    if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
        raise LesionfastError(
            f"{path} has {format_bytes(size)}, and at most {format_bytes(MOST_BYTES)} of answers "
            "are read. Keep the latest answer about each image, or shorten what 'why' says."
        )


def parse_lines(path: Path, records: Iterable[tuple[int, list[str]]]) -> Iterator[Answer]:
    """Yield the answers of numbered lines; raises `LesionfastError` as `read_answers` does."""
    open_answers: dict[str, int] = {}
    for number, (marked, text, who, when, why) in records:
        if number > MOST_LINES:
            raise LesionfastError(
                f"{path} has more lines than the {MOST_LINES:,} that are read. Keep the latest "
                "answer about each image."
            )
        image = rearm(marked)
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
    values = list(values)
    whole = csv.QUOTE_ALL if "\r" in "".join(values) else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=whole).writerow(values)
    return text.getvalue()


def now() -> str:
    """Return the time in UTC, such as "2026-01-02T03:04:05Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
