"""What is known of the person in each image, as the encoder takes it; what is not is counted."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.encoder import BadValue, MetadataEncoder, UnseenValue, read_value
from lesionfast.errors import LesionfastError, did_you_mean

logger = logging.getLogger("lesionfast")


class Known:
    """Cleans the metadata of images and counts what they do not say.

    `find_caution` returns what to know before the model predicts without metadata.
    """

    def __init__(self, encoder: MetadataEncoder, find_caution: Callable[[], str] = str) -> None:
        self.encoder, self._find_caution, self._warned = encoder, find_caution, False
        self.missing, self.unseen, self.images = Counter(), Counter(), 0
        self._lock = Lock()  # images are prepared in threads

    def clean(self, told: dict[str, Any]) -> dict[str, Any]:
        """Return the value of each column of the model, NaN if not known or never seen in training.

        Raises `BadValue` for what a column can't have, such as an age of 999.
        """
        with self._lock:
            self.images += 1
            row = {column["name"]: self.value(column, told) for column in self.encoder.learned}
            self.missing.update(name for name, value in row.items() if pd.isna(value))
        return row

    def value(self, learned: dict[str, Any], told: dict[str, Any]) -> Any:
        """Return one column's value; what training never saw is counted."""
        name = learned["name"]
        try:
            return read_value(name, told.get(name), learned)
        except UnseenValue:
            self.unseen[f"{name} {str(told[name]).strip()}"] += 1
            return np.nan

    def check(self, told: dict[str, Any]) -> None:
        """Raise `LesionfastError` for what a column can't have, and for what training never saw.

        In a table, one image may have such a value; what a person types is a slip of the pen.
        """
        for learned in self.encoder.learned:
            name = learned["name"]
            try:
                read_value(name, told.get(name), learned)
            except BadValue as bad:
                raise LesionfastError(f"{bad}.{what_to_type(learned, told[name])}") from None

    def encode(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return cleaned rows as float32 (n, width)."""
        columns = self.encoder.columns
        table = pd.DataFrame({name: [row[name] for row in rows] for name in columns})
        for each in self.encoder.learned:
            kind = float if each["kind"] == "number" else object
            table[each["name"]] = table[each["name"]].astype(kind)
        if not columns:
            return np.zeros((len(rows), 0), np.float32)
        return self.encoder.transform(table)

    @cached_property
    def caution(self) -> str:
        """What to know before the model predicts without metadata, '' if nothing."""
        return self._find_caution()

    def warn(self) -> None:
        """Say once what predicting without metadata does, if something was missing."""
        if self.missing and not self._warned and self.caution:
            logger.warning("%s", self.caution)
            self._warned = True

    def report(self) -> None:
        """Say once what was missing."""
        self.warn()
        for name, count in self.missing.items():
            logger.warning("%s is missing for %d of %d images", name, count, self.images)
        if self.unseen:
            told = ", ".join(f"{value} ({n})" for value, n in self.unseen.most_common(5))
            logger.warning("values that training never saw count as missing: %s", told)


def what_to_type(learned: dict[str, Any], value: Any) -> str:
    """Return what a column takes instead of a value."""
    if learned["kind"] == "number":
        digits = 0 if learned["scale"] > 1 else 2
        return f" Type for example {learned['name']}={learned['mean']:.{digits}f}."
    near = did_you_mean(str(value), learned["values"])
    return f"{near} Type one of: {', '.join([*learned['values'], 'unknown'])}."
