"""What is known of the person in each image, as the encoder takes it; what is not is counted."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.metadata import NOT_KNOWN
from lesionfast.errors import LesionfastError, did_you_mean

logger = logging.getLogger("lesionfast")

OLDEST = 120  # years


class BadValue(Exception):
    """A value that a column can't have; the message is the reason."""


class Known:
    """Cleans the metadata of images and counts what they do not say."""

    def __init__(self, encoder: MetadataEncoder) -> None:
        self.encoder = encoder
        self.missing, self.unseen, self.images = Counter(), Counter(), 0

    def clean(self, told: dict[str, Any]) -> dict[str, Any]:
        """Return the value of each column of the model, NaN if not known or never seen in training.

        Raises `BadValue` for text in a column of numbers.
        """
        self.images += 1
        found = {each["name"]: self.value(each, told) for each in self.encoder.learned}
        self.missing.update(name for name, value in found.items() if pd.isna(value))
        return found

    def value(self, learned: dict[str, Any], told: dict[str, Any]) -> Any:
        """Return one column's value."""
        name, text = learned["name"], text_of(told, learned)
        if text.lower() in NOT_KNOWN:
            return np.nan
        if learned["kind"] == "text":
            if text in learned["values"]:
                return text
            self.unseen[f"{name} {text}"] += 1
            return np.nan
        try:
            number = float(text)
        except ValueError:
            raise BadValue(f"{name} is '{text}', which is no number") from None
        return number if np.isfinite(number) else np.nan

    def check(self, told: dict[str, Any]) -> None:
        """Raise `LesionfastError` for what is no number, no age, or a text never seen in training.

        One image may have such a value; said of all of them it is a slip of the pen.
        """
        for learned in self.encoder.learned:
            name, text, values = learned["name"], text_of(told, learned), learned.get("values")
            if text.lower() in NOT_KNOWN:
                continue
            if values is None:
                if not self.is_plausible(learned, told):
                    kind = f"age in years (0 to {OLDEST})" if name == "age" else "number"
                    raise LesionfastError(
                        f"{name} is '{text}', which is no {kind}. "
                        f"Type for example {name}={learned['mean']:.0f}."
                    )
            elif text not in values:
                raise LesionfastError(
                    f"the model never saw {name} '{text}'.{did_you_mean(text, values)} "
                    f"Type one of: {', '.join([*values, 'unknown'])}."
                )

    def is_plausible(self, learned: dict[str, Any], told: dict[str, Any]) -> bool:
        """Return whether what is said of a column of numbers is a number, and of age an age."""
        try:
            value = self.value(learned, told)
        except BadValue:
            return False
        return 0 <= value <= OLDEST if learned["name"] == "age" else not np.isnan(value)

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

    def report(self) -> None:
        """Say once what was not known."""
        for name, count in self.missing.items():
            logger.warning("%s is not known of %d of %d images", name, count, self.images)
        if self.unseen:
            told = ", ".join(f"{value} ({n})" for value, n in self.unseen.most_common(5))
            logger.warning("values that training never saw count as not known: %s", told)


def text_of(told: dict[str, Any], learned: dict[str, Any]) -> str:
    """Return what is said of a column as text, "" if nothing is."""
    given = told.get(learned["name"])
    return "" if given is None or given is pd.NA else str(given).strip()
