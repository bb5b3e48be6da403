"""Metadata columns -> a vector of float32 for the model; what a value may be is decided here."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.columns.values import (
    LARGEST,
    OLDEST,
    find_category,
    is_age,
    is_missing,
    is_possible,
    is_truth,
    read_number,
    why_impossible,
)
from lesionfast.diagnoses import join_names
from lesionfast.errors import DamageError, LesionfastError, did_you_mean, pluralize, shell_quote
from lesionfast.files import read_json
from lesionfast.run import Run

logger = logging.getLogger("lesionfast")

SCALES = 10  # beyond the training values, or twice that around the mean, a number is far from them
MOST_SCALED = 1e18  # of a standardised value: its square is finite in float32
CONSTANT = 1e-12  # of the mean: a deviation that is due to rounding
MOST_CATEGORIES = 200  # a column with more texts holds names, not categories
SHAPE = [  # of encoder.json
    (
        {
            **{"name": str, "kind": "number", "mean": float, "scale": float},
            **{"low?": float, "high?": float, "comma?": bool, "unit?": str},
        },
        {"name": str, "kind": "text", "values": [str]},
    )
]


class BadValue(Exception):
    """A value that a column can't have; the message is the reason."""


class UnseenValue(BadValue):
    """A text that training never saw, or a number far from all that it saw: its `value`."""

    def __init__(self, message: str, value: float | str) -> None:
        super().__init__(message)
        self.value = value


class BadMetadata(LesionfastError):
    """What a person typed that a model does not take.

    It is of `columns` that the model does not have, or the `value` of one that it `learned`.
    """

    def __init__(
        self,
        message: str,
        columns: Sequence[str] = (),
        learned: Mapping[str, Any] | None = None,
        value: Any = None,
    ) -> None:
        super().__init__(message)
        self.columns, self.learned, self.value = columns, learned, value


def read_value(name: str, value: Any, learned: Mapping[str, Any] | None = None) -> float | str:
    """Return a value of a metadata column: a number, a text, or NaN if it is missing.

    It is read as in a table for training: 'M' is male, '45,5' is 45.5, '85+' is 85, '50-59' is
    54.5. `learned` is what an encoder learned of the column. Raises `BadValue` for what the
    column can't have (an age beyond 0 to 120 years, text among numbers), and `UnseenValue`.
    """
    text = "" if value is None or value is pd.NA else str(value).strip()
    if is_missing(text):
        return np.nan
    if learned is not None and learned["kind"] == "text":
        category = find_category(name, text, learned["values"])
        if category is None:
            raise UnseenValue(f"{name} is '{text}', which the model never saw in training", text)
        return category
    number = as_learned(name, text, learned)
    if number is None and learned is None:
        return text
    if number is None or not is_possible(name, number):
        raise BadValue(f"{name} is '{text}', which is {why_impossible(name, number)}")
    if learned is not None and not is_near(learned, number):
        raise UnseenValue(f"{name} is '{text}', which is far from all training values", number)
    return number


def as_learned(name: str, text: str, learned: Mapping[str, Any] | None) -> float | None:
    """Return the number of a text in the unit that the encoder learned, None if it is none.

    Raises `BadValue` for another unit, and for a comma that can mean two things.
    """
    flags = learned is not None and (learned.get("low"), learned.get("high")) == (0, 1)
    if flags and is_truth([text]):
        return float(find_category(name, text, ["true", "false"]) == "true")
    written = read_number(text)
    if written is None or (learned is None and written.how != "plain" and not is_age(name)):
        return None
    learned = learned or {}
    unit = "years" if is_age(name) else learned.get("unit", "")
    if written.unit not in ("", unit):
        takes = f"in {unit}" if unit else "without a unit"
        raise BadValue(f"{name} is '{text}', but the model takes it {takes}")
    if written.how == "ambiguous" and not learned.get("comma"):
        raise BadValue(
            f"{name} is '{text}', which can mean {text.replace(',', '.')} or "
            f"{text.replace(',', '')}"
        )
    return written.value


def is_near(learned: Mapping[str, Any], numbers: Any) -> Any:
    """Return whether numbers are not far from those of the training, twice their range at least.

    Every possible age is near. An encoder of an earlier version has no lowest and highest value.
    """
    if is_age(learned["name"]):
        return is_possible(learned["name"], numbers)
    reach = SCALES * learned["scale"]
    low, high = (
        learned.get(end, learned["mean"] + sign * reach) for end, sign in (("low", -1), ("high", 1))
    )
    margin = max(high - low, reach)
    return (numbers >= low - margin) & (numbers <= high + margin)


def describe_missing(name: str, count: int, total: int) -> str:
    """Return "Age is missing for 57 of 10,015 images"."""
    return f"{name[:1].upper()}{name[1:]} is missing for {count:,} of {pluralize(total, 'image')}"


def read_or_keep(name: str, value: Any, learned: Mapping[str, Any]) -> float | str:
    """Return a value as `read_value` does, also one that training never saw."""
    try:
        return read_value(name, value, learned)
    except UnseenValue as unseen:
        return unseen.value


def check_learned(column: Mapping[str, Any]) -> None:
    """Raise `DamageError` for a mean and a scale that training can't have learned.

    They are of possible numbers, and all that are near become finite numbers of float32.
    """
    if column["kind"] == "number" and not makes_numbers(column):
        raise DamageError(
            f"what the model learned of '{column['name']}' is damaged: its mean is "
            f"{column['mean']:g} and its scale {column['scale']:g}. Copy the model again."
        )


def makes_numbers(learned: Mapping[str, Any]) -> bool:
    """Return whether all numbers near those of the training can be standardised."""
    mean, scale = learned["mean"], learned["scale"]
    if not (abs(mean) <= LARGEST and 0 < scale <= LARGEST):
        return False
    ends = [learned.get("low", mean), learned.get("high", mean)]
    if is_age(learned["name"]):
        ends += [0, OLDEST]
    return max(abs(end - mean) for end in ends) + ends[1] - ends[0] < MOST_SCALED * scale


class MetadataEncoder:
    """Turn metadata columns into numbers, with an indicator for what is missing.

    A numeric column becomes its standardised value (0 when missing) and the indicator; a column
    of text one number for each value seen in `fit` (all 0 when missing or never seen) and the
    indicator. `learned` is what `fit` learned of each column, ready for JSON: name and kind, and
    mean, scale and range, or the values.
    """

    def __init__(self, columns: Iterable[str]) -> None:
        self.columns = list(columns)
        self.learned: list[dict[str, Any]] = []

    @classmethod
    def from_learned(cls, learned: list[dict[str, Any]]) -> "MetadataEncoder":
        """Return the encoder that learned this."""
        for column in learned:
            check_learned(column)
        encoder = cls(column["name"] for column in learned)
        encoder.learned = learned
        return encoder

    @classmethod
    def from_run(cls, run: Run) -> "MetadataEncoder":
        """Return the encoder of a run; raises `LesionfastError` if it has none or it is damaged."""
        path, advice = run.file("encoder.json"), run.remedy("encoder.json")
        return cls.from_learned(read_json(path, SHAPE, advice))

    def to_json(self) -> str:
        """Return what was learned as JSON."""
        return json.dumps(self.learned, indent=2) + "\n"

    def fit(self, df: pd.DataFrame) -> "MetadataEncoder":
        """Learn means, scales and categories from the training rows; returns the encoder itself.

        It warns of a column of one value, from which nothing can be learned.
        """
        for name in self.columns:
            warn_if_constant(require(df, name), self.columns)
        self.learned = [learn(require(df, name)) for name in self.columns]
        for column in self.learned:
            column |= df.attrs.get("written", {}).get(column["name"], {})
        return self

    def read(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the columns of a table from a user as `transform` takes them; absent ones are NaN.

        Raises `LesionfastError` for what a column can't have, such as an age of 999 years.
        """
        columns = {}
        for learned in self.learned:
            name = learned["name"]
            values = df[name].tolist() if name in df else [np.nan] * len(df)
            try:
                read = [read_or_keep(name, value, learned) for value in values]
                kind = float if learned["kind"] == "number" else object
                columns[name] = pd.Series(read, df.index, dtype=kind)
            except BadValue as bad:
                raise LesionfastError(f"{bad}. Correct it, or leave it empty.") from None
            except ValueError as error:
                raise LesionfastError(
                    f"column '{name}' should contain numbers: {error}. Correct it."
                ) from None
            if missing := int(columns[name].isna().sum()):
                logger.info("%s", describe_missing(name, missing, len(df)))
        return pd.DataFrame(columns, df.index)

    def check(self, metadata: Mapping[str, Any]) -> None:
        """Raise `BadMetadata` for what a person has typed that the model does not take.

        One image of a table may have a value that training never saw; a person who types it has
        made a mistake.
        """
        if unknown := sorted(set(metadata) - set(self.columns)):
            takes = ", ".join(self.columns) or "no metadata"
            raise BadMetadata(
                f"the model does not take {', '.join(unknown)}; it takes {takes}. "
                "Leave it out, or correct the name.",
                columns=unknown,
            )
        for learned in self.learned:
            value = metadata.get(learned["name"])
            try:
                read_value(learned["name"], value, learned)
            except BadValue as bad:
                message = f"{bad}.{suggest_value(learned, value)}"
                raise BadMetadata(message, learned=learned, value=value) from None

    def transform(self, df: pd.DataFrame) -> np.ndarray:
        """Return the rows as float32 of shape (n, width)."""
        blocks = [ENCODERS[c["kind"]](require(df, c["name"]), c) for c in self.learned]
        return np.hstack([np.zeros((len(df), 0), np.float32), *blocks])

    @property
    def names(self) -> list[str]:
        """What each number of the vector is: "age", "age missing", "sex female", …"""
        return [name for column in self.learned for name in name_numbers(column)]

    @property
    def width(self) -> int:
        """How many numbers a row becomes."""
        return len(self.names)

    @property
    def indicators(self) -> np.ndarray:
        """Where in the vector each column's missing indicator is, the last of its numbers."""
        widths = [len(name_numbers(column)) for column in self.learned]
        return np.cumsum(widths, dtype=np.int64) - 1

    @property
    def unknown(self) -> np.ndarray:
        """What a row becomes if all its metadata is missing, float32 (width,)."""
        vector = np.zeros(self.width, np.float32)
        vector[self.indicators] = 1
        return vector

    def split_columns(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the part of vectors (n, width) that is of each column."""
        parts = np.split(vectors, self.indicators + 1, axis=1)[:-1]
        return dict(zip(self.columns, parts, strict=True))

    def name_values(self, vectors: np.ndarray) -> pd.DataFrame:
        """Return the values of encoded rows (n, width) in words: "age 70", "male"."""
        parts, words = self.split_columns(vectors), {}
        for column in self.learned:
            rows = parts[column["name"]]
            words[column["name"]] = [name_value(column, row) for row in rows]
        return pd.DataFrame(words, index=range(len(vectors)))

    def in_words(self, vector: np.ndarray) -> str:
        """Return what one encoded row (width,) says: "age 55, female", "age unknown, male"."""
        parts = np.split(vector, self.indicators + 1)[:-1]
        return ", ".join(map(name_value, self.learned, parts))


class JointEncoder(MetadataEncoder):
    """The encoders of several models as one: a row becomes what each makes of it, side by side.

    Of a column that several have, `learned` covers what any of them has seen.
    """

    def __init__(self, encoders: Iterable[MetadataEncoder]) -> None:
        self.encoders = list(encoders)
        columns = [column for encoder in self.encoders for column in encoder.learned]
        super().__init__(dict.fromkeys(column["name"] for column in columns))
        self.learned = [
            join_learned([column for column in columns if column["name"] == name])
            for name in self.columns
        ]

    def to_json(self) -> str:
        """Return what each encoder learned as JSON."""
        return json.dumps([encoder.learned for encoder in self.encoders], indent=2) + "\n"

    def transform(self, df: pd.DataFrame) -> np.ndarray:
        """Return the rows as float32 of shape (n, width)."""
        return np.hstack([encoder.transform(df) for encoder in self.encoders])

    @property
    def names(self) -> list[str]:
        """What each number of the vector is: "1 age", "1 age missing", …, "2 age", …"""
        pairs = enumerate(self.encoders, 1)
        return [f"{number} {name}" for number, encoder in pairs for name in encoder.names]

    @property
    def unknown(self) -> np.ndarray:
        """What a row becomes if all its metadata is missing, float32 (width,)."""
        return np.concatenate([encoder.unknown for encoder in self.encoders])

    def split_columns(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the numbers (n, m) of each column in vectors (n, width), of all encoders."""
        ends = np.cumsum([encoder.width for encoder in self.encoders])[:-1]
        parts = zip(self.encoders, np.split(vectors, ends, axis=1), strict=True)
        found = [encoder.split_columns(part) for encoder, part in parts]
        return {
            name: np.hstack([columns[name] for columns in found if name in columns])
            for name in self.columns
        }

    def name_values(self, vectors: np.ndarray) -> pd.DataFrame:
        """Return the values of encoded rows (n, width) in words, as the first encoder has them."""
        ends = np.cumsum([encoder.width for encoder in self.encoders])[:-1]
        parts = zip(self.encoders, np.split(vectors, ends, axis=1), strict=True)
        tables = [encoder.name_values(part) for encoder, part in parts]
        table = pd.concat(tables, axis=1)
        return table.loc[:, ~table.columns.duplicated()][self.columns]


def join_learned(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what several encoders learned of one column as if one had."""
    first = columns[0]
    if any(column["kind"] != first["kind"] for column in columns):
        raise LesionfastError(
            f"column '{first['name']}' is a number for one model and text for another. Average "
            "models that were trained on the same tables."
        )
    if first["kind"] == "text":
        return first | {"values": sorted({value for one in columns for value in one["values"]})}
    ends = {name: [one[name] for one in columns if name in one] for name in ("low", "high")}
    joined = {"low": min(ends["low"], default=None), "high": max(ends["high"], default=None)}
    return first | {name: value for name, value in joined.items() if value is not None}


def require(df: pd.DataFrame, name: str) -> pd.Series:
    """Return a column; raises `LesionfastError` if it is not there."""
    if name not in df:
        raise LesionfastError(
            f"the model needs the column '{name}'; the table has: {', '.join(map(str, df))}."
            f"{did_you_mean(name, map(str, df))} Add it (empty where it is unknown)."
        )
    return df[name]


def warn_if_constant(column: pd.Series, columns: list[str]) -> None:
    """Warn of a training column that has the same value in all rows, or none at all."""
    if column.nunique(dropna=False) > 1 or column.empty:
        return
    first = column.iloc[0]
    kept = join_names((name for name in columns if name != column.name), ",")
    logger.warning(
        "%s is %s in all %d training rows: the model learns nothing from it, and its response to "
        "another value is arbitrary. Leave it out with --metadata %s",
        column.name, "missing" if pd.isna(first) else first, len(column),
        shell_quote(kept) if kept else "none --fusion none",
    )  # fmt: skip


def learn(column: pd.Series) -> dict[str, Any]:
    """Return what there is to know about a training column; raises `LesionfastError`."""
    name, known = str(column.name), column.dropna()
    if pd.api.types.is_numeric_dtype(column) and len(known):
        return learn_numbers(name, known.to_numpy(np.float64))
    values = sorted(known.astype(str).unique())
    if len(values) > MOST_CATEGORIES:
        raise LesionfastError(
            f"column '{name}' has {len(values)} different texts in {len(column)} rows, too "
            f"many for categories (at most {MOST_CATEGORIES}). Remove it from --metadata."
        )
    return {"name": name, "kind": "text", "values": values}


def learn_numbers(name: str, numbers: np.ndarray) -> dict[str, Any]:
    """Return mean, scale and range of a column; raises `LesionfastError` for impossible numbers."""
    impossible = numbers[~is_possible(name, numbers)]
    if len(impossible):
        raise LesionfastError(
            f"column '{name}' has {pluralize(len(impossible), 'value')} such as "
            f"{impossible[0]:g}, which is {why_impossible(name, 0)}. Correct them, or leave them "
            "empty if they are unknown."
        )
    mean, scale = float(numbers.mean()), float(numbers.std())
    return {
        "name": name,
        "kind": "number",
        "mean": mean,
        "scale": scale if scale > CONSTANT * abs(mean) else max(1.0, CONSTANT * abs(mean)),
        "low": float(numbers.min()),
        "high": float(numbers.max()),
    }


def encode_numbers(column: pd.Series, learned: dict[str, Any]) -> np.ndarray:
    """Return the standardised value and the missing indicator, float32 (n, 2)."""
    try:
        values = pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise LesionfastError(
            f"column '{learned['name']}' should contain numbers, as in training: {error}. "
            "Correct the value, or leave it empty if it is unknown."
        ) from None
    missing = ~is_near(learned, values)
    far = values[missing & ~np.isnan(values)]
    if len(far):
        logger.warning(
            "%s: %s far from all training values, counted as missing (such as %g)",
            learned["name"], pluralize(len(far), "value"), far[0],
        )  # fmt: skip
    scaled = (np.where(missing, learned["mean"], values) - learned["mean"]) / learned["scale"]
    return np.column_stack([scaled, missing]).astype(np.float32)


def encode_texts(column: pd.Series, learned: dict[str, Any]) -> np.ndarray:
    """Return the one-hot values and the missing indicator, float32 (n, values + 1)."""
    codes = pd.Categorical(column.astype("str"), categories=learned["values"]).codes
    unseen = column[(codes < 0) & column.notna().to_numpy()]
    if len(unseen):
        logger.warning(
            "%s: %s never seen in training, counted as missing (such as %s)",
            learned["name"], pluralize(len(unseen), "value"), unseen.iloc[0],
        )  # fmt: skip
    return np.eye(len(learned["values"]) + 1, dtype=np.float32)[codes]  # -1: the last, missing


ENCODERS = {"number": encode_numbers, "text": encode_texts}


def name_numbers(learned: dict[str, Any]) -> list[str]:
    """Return the names of the numbers that a column becomes."""
    name = learned["name"]
    values = [name] if learned["kind"] == "number" else [f"{name} {v}" for v in learned["values"]]
    return [*values, f"{name} missing"]


def name_value(learned: dict[str, Any], numbers: np.ndarray) -> str:
    """Return the value that a column's numbers stand for: "age 55", "female", "age unknown"."""
    if numbers[-1]:
        return f"{learned['name']} unknown"
    if learned["kind"] == "number":
        return f"{learned['name']} {numbers[0] * learned['scale'] + learned['mean']:.4g}"
    return learned["values"][int(numbers.argmax())]


def suggest_value(learned: dict[str, Any], value: Any) -> str:
    """Return what a column takes instead of a value."""
    if learned["kind"] == "number":
        digits = 0 if learned["scale"] > 1 else 2
        return f" Type for example {learned['name']}={learned['mean']:.{digits}f}."
    near = did_you_mean(str(value), learned["values"])
    return f"{near} Type one of: {', '.join([*learned['values'], 'unknown'])}."
