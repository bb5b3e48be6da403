"""The queue of images whose labels a person is asked for, and what the page shows of each."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.corrections.answers import (
    SAME,
    UNDO,
    Answer,
    append_answer,
    can_be_kept,
    now,
    open_answers,
)
from lesionfast.data.encoder import BadValue
from lesionfast.data.images import BadImage
from lesionfast.data.sources import FileReader
from lesionfast.data.split import load_dataset
from lesionfast.data.table import read_table
from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize
from lesionfast.evaluation.features import featured_run, rank, require_neighbours
from lesionfast.evaluation.labels import doubtful_labels
from lesionfast.files import rearm, stamp
from lesionfast.run import Run
from lesionfast.serving.web.api import Service

logger = logging.getLogger("lesionfast")

NEIGHBOURS = 4  # training lesions shown
KEPT = 8  # images whose pictures stay in memory
LONGEST = 200  # characters of who and why
NEEDED = {"image": "", "path": ""}  # columns of a list


@dataclass(frozen=True)
class Item:
    """An image to label: `label` is '' if it has none; `row` is all that is known of it."""

    image: str
    path: str
    label: str
    suggested: str
    row: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class View:
    """What is shown of an image: uint8 (H, W, 3) pictures, and the nearest training lesions.

    `seen` is what the model saw and `heat` its Grad-CAM for the suggested class in 0..1; `left_out`
    says why one is missing.
    """

    photo: np.ndarray | None
    seen: np.ndarray | None = None
    heat: np.ndarray | None = None
    similar: pd.DataFrame | None = None
    left_out: tuple[str, ...] = ()


def list_doubted(runs: Sequence[Run]) -> list[Item]:
    """Return the images whose label is doubtful, the least likely first, as `doubtful_labels`."""
    table = doubtful_labels(runs)
    if table.empty:
        raise LesionfastError(
            f"no label of {runs[0].path} is in doubt, so there is nothing to ask. List what to "
            "label next with: lesionfast next RUN FOLDER"
        )
    if "path" not in table:
        raise LesionfastError(
            f"{runs[0].path} does not say where its images are: it is a run of an early version. "
            "Train it again."
        )
    return [
        Item(row["image_id"], row["path"], row["target"], row["suggested"], row)
        for row in table.to_dict("records")
    ]


def read_list(path: Path) -> list[Item]:
    """Return the images of a list that `lesionfast next` wrote, or of one like it.

    It has the columns image and path, and may have suggested, probability and metadata. Raises
    `LesionfastError` for a list without them, and for an image that occurs twice.
    """
    table = read_table(path, NEEDED, option="--list").map(rearm).rename(columns=rearm)
    twice = table.loc[table["image"].duplicated(), "image"]
    if len(twice):
        raise LesionfastError(
            f"image '{twice.iloc[0]}' is in {path} twice (again in row {twice.index[0]}). Keep one "
            "row per image."
        )
    rows = table.to_dict("records")
    for row in rows:
        row["path"] = str(path.parent / row["path"])  # an absolute one stays as it is
        if row.get("probability"):
            row["probability"] = parse_share(path, row["image"], row["probability"])
    return [Item(row["image"], row["path"], "", row.get("suggested", ""), row) for row in rows]


def parse_share(path: Path, image: str, text: str) -> float:
    """Return a probability of a list; raises `LesionfastError` for what is none."""
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise LesionfastError(
            f"the probability of image '{image}' in {path} is '{text[:40]}'. Write a number from 0 "
            "to 1, or leave the column out."
        )
    return share


def leave_out_unkept(items: Sequence[Item]) -> dict[str, Item]:
    """Return images by their id without those whose id a CSV file can't hold; they are counted."""
    kept = {item.image: item for item in items if can_be_kept(item.image)}
    if count := sum(item.image not in kept for item in items):
        logger.warning(
            "Left out %s with a name that begins or ends with a space or can't be written as text. "
            "Rename the file",
            pluralize(count, "image"),
        )
    return kept


class Queue:
    """Images in the order in which they are asked for, and the file of the answers.

    `answers` are those of the file, `items` all images; what is answered there is not asked again.
    Raises `LesionfastError` for a file that can't be read or appended to, and for images with
    classes that the run does not know.
    """

    def __init__(
        self, run: Run, items: Sequence[Item], file: str | Path, who: str = "", device: str = "auto"
    ) -> None:
        self.run, self.file, self.device = run, Path(file).expanduser(), device
        self.items = leave_out_unkept(items)
        self._check_suggested()
        self._state = stamp(str(self.file))
        self.answers = open_answers(self.file)
        self.who = who or next((one.who for one in reversed(self.answers.log) if one.who), "")
        self._later: list[str] = []
        self._first = ""
        self._lock = RLock()
        self._drawn: OrderedDict[str, Future[View]] = OrderedDict()
        self._painter = ThreadPoolExecutor(1)

    @property
    def pending(self) -> list[Item]:
        """The images without an answer about their label, in the order in which they come."""
        answered = self.answers.labels
        left = [image for image in self.items if image not in answered]
        places = {image: place for place, image in enumerate(self._later, 1)}
        left.sort(key=lambda image: -1 if image == self._first else places.get(image, 0))
        return [self.items[image] for image in left]

    @property
    def done(self) -> int:
        """How many images have an answer about their label."""
        return len(self.items) - len(self.pending)

    def answer(self, image: str, text: str, who: str = "", why: str = "") -> Answer:
        """Append an answer to the file, at once, and return it.

        Raises `LesionfastError` for an image that is not in the queue, and for an answer that
        is none, or names no class of the run.
        """
        with self._lock:
            self._reload()
            item = self._find(image)
            about = {"who": who[:LONGEST], "when": now(), "why": why[:LONGEST]}
            answer = Answer.parse(image, text, **about)
            self._check(item, answer)
            self._append(answer)
            self.who = answer.who
            if not answer.is_of_lesion:
                self._first = ""
            return answer

    def undo(self, who: str = "") -> Answer:
        """Take back the latest answer about an image of the queue; that image is the next."""
        with self._lock:
            self._reload()
            latest = self.answers.find_latest(self.items)
            if latest is None:
                raise LesionfastError("there is no answer to take back. Answer one first.")
            self._append(Answer(latest.image, UNDO, who=who[:LONGEST], when=now()))
            self._first = latest.image
            return latest

    def postpone(self, image: str) -> None:
        """Ask for an image after all others."""
        with self._lock:
            self._find(image)
            self._later = [*(one for one in self._later if one != image), image]
            self._first = ""

    def view(self, item: Item) -> View:
        """Return what is shown of an image; the pictures of the one after it are made meanwhile."""
        found = self._draw(item)
        follow = [one for one in self.pending if one.image != item.image]
        for other in follow[:1]:
            self._draw(other)
        return found.result()

    def close(self) -> None:
        """Make no more pictures, which the process would wait for at its end."""
        self._painter.shutdown(wait=False, cancel_futures=True)

    def _find(self, image: str) -> Item:
        if image not in self.items:
            raise LesionfastError(f"'{image}' is not in this list. Load the page again.")
        return self.items[image]

    def _check(self, item: Item, answer: Answer) -> None:
        classes = self.run.classes
        if answer.kind == "is" and answer.value not in classes:
            raise LesionfastError(
                f"'{answer.value}' is not a class of {self.run.path}."
                f"{did_you_mean(answer.value, classes)} Its classes: {list_first(classes, 30)}."
            )
        if answer.kind == "right" and not item.label:
            raise LesionfastError(f"'{item.image}' has no label to confirm. Say which class it is.")
        if answer.kind == UNDO:
            raise LesionfastError("use undo for that.")
        known = answer.value in self.items or answer.value in self._places
        if answer.kind == SAME and (answer.value == item.image or not known):
            raise LesionfastError(f"'{answer.value}' is no other image of the data. Name another.")

    def _check_suggested(self) -> None:
        classes = {"", *self.run.classes}
        for item in self.items.values():
            if item.suggested not in classes:
                raise LesionfastError(
                    f"the list suggests '{item.suggested[:80]}' for image '{item.image}', which is "
                    f"not a class of {self.run.path}. Name the run that the list was made with."
                )

    def _append(self, answer: Answer) -> None:
        append_answer(self.file, answer)
        self.answers = replace(self.answers, log=(*self.answers.log, answer))
        self._state = stamp(str(self.file))

    def _reload(self) -> None:
        """Read the file again if another program has changed it: what it holds is what counts."""
        state = stamp(str(self.file))
        if state == self._state:
            return
        if self.answers.log and not self.file.exists():
            raise LesionfastError(
                f"{self.file} is gone, with {pluralize(len(self.answers.log), 'line')} of answers. "
                "Put it back, or stop this page and open it again."
            )
        self.answers, self._state = open_answers(self.file), state
        logger.warning(
            "%s was changed by another program; it has %s now",
            self.file, pluralize(len(self.answers.log), "line"),
        )  # fmt: skip

    def _draw(self, item: Item) -> Future[View]:
        with self._lock:
            if item.image not in self._drawn:
                self._drawn[item.image] = self._painter.submit(self._make, item)
                while len(self._drawn) > KEPT:
                    self._drawn.popitem(last=False)
            return self._drawn[item.image]

    def _make(self, item: Item) -> View:
        """Return the pictures of an image; what can't be made is left out, with the reason."""
        made: dict[str, Any] = {}
        reasons = []
        for name, make in {
            "photo": self._photo,
            "seen": self._seen,
            "similar": self._similar,
        }.items():
            try:
                made[name] = make(item)
            except (LesionfastError, BadImage, BadValue, OSError) as error:
                reasons.append(str(error))
            except Exception:  # one picture must not keep the others from being asked for
                logger.exception("%s can't be shown", item.path)
                reasons.append("A part can't be shown; the terminal of this page says why.")
            if "photo" not in made:  # the others would fail for the same reason
                reasons.append("Answer unclear to leave the image out.")
                break
        seen, heat = made.pop("seen", None) or (None, None)
        left_out = tuple(dict.fromkeys(reasons))
        return View(made.get("photo"), seen, heat, made.get("similar"), left_out)

    def _photo(self, item: Item) -> np.ndarray:
        from lesionfast.reporting.images import read_pixels

        return read_pixels(item.path)

    def _seen(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        target = item.suggested or item.label
        if not target:
            raise LesionfastError("No heat map: the list suggests no class for this image.")
        with FileReader() as reader:
            looks = self.service.predictor.pixels(reader, item.path)
        seen = [np.array(look) for look in looks]  # ones that PyTorch may write to
        return seen[0], self.service.heat(seen, self._metadata(item), target)

    def _metadata(self, item: Item) -> dict[str, Any]:
        """Return the metadata of an image, as far as it is known and the model takes it."""
        known = item.row
        if item.image in self._places:
            known = self._dataset.iloc[self._places[item.image]].to_dict() | known
        return {name: known.get(name) for name in self.service.bundle.encoder.columns}

    def _similar(self, item: Item) -> pd.DataFrame:
        require_neighbours(self.run, NEIGHBOURS)
        group = ""
        if item.image in self._places:
            group = self._dataset["group"].iloc[self._places[item.image]]
        row = pd.DataFrame([{"image_id": item.image, "group": group, "path": item.path}])
        return rank(featured_run(self.run), self._dataset, row, NEIGHBOURS)[0]

    @cached_property
    def service(self) -> Service:
        """What predicts and explains."""
        return Service(self.run, self.device)

    @cached_property
    def _dataset(self) -> pd.DataFrame:
        return load_dataset(self.run.config, split=self.run.file("split.csv"))

    @cached_property
    def _places(self) -> dict[str, int]:
        try:
            return {image: place for place, image in enumerate(self._dataset["image_id"])}
        except LesionfastError:
            return {}
