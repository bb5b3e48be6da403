"""A column of text becomes numbers or categories; every repair is counted and said once."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.columns.values import (
    MISSING,
    Written,
    as_number,
    is_age,
    is_date,
    is_possible,
    is_truth,
    read_number,
    unify_all,
    why_impossible,
)
from lesionfast.data.table import MOST_OF_NAME
from lesionfast.errors import LesionfastError, list_first, pluralize, shorten

logger = logging.getLogger("lesionfast")

USUAL_MISSING = ("", "nan", "na", "n/a", "null", "unknown")  # too usual to be worth a line
FAR = 100  # times the range of the middle 90 %: a value that far off is worth a look
MOST_SPELLINGS = 5_000  # a column that is no input and has more texts holds ids or free text
HOW = {
    "comma": ("number", "with a decimal comma"),
    "bound": ("bound", "as the number alone"),
    "range": ("range", "as the middle"),
    "unit": ("number", "with a unit"),
}


@dataclass
class Column:
    """A column of a table: its distinct texts, how many rows have each, and what they mean."""

    csv: Path
    name: str
    is_input: bool
    index: pd.Index
    codes: np.ndarray  # of each row: which text
    texts: pd.Series
    repairs: list[str] = field(default_factory=list)  # sentences
    written: dict[str, Any] = field(default_factory=dict)  # what an encoder has to know of it

    @classmethod
    def of(cls, csv: Path, column: pd.Series, is_input: bool) -> "Column":
        """Return a column of text of a table."""
        codes, texts = pd.factorize(column)  # a column has far fewer values than rows
        texts = pd.Series(texts, dtype=object)
        return cls(csv, str(column.name), is_input, column.index, codes, texts)

    @property
    def counts(self) -> np.ndarray:
        """How many rows have each text."""
        return np.bincount(self.codes, minlength=len(self.texts))

    def rows(self, chosen: np.ndarray) -> list[tuple[str, int]]:
        """Return text and row in the file of all rows whose text is one of the chosen."""
        places = np.flatnonzero(chosen[self.codes])
        texts = self.texts[self.codes[places]]
        return list(zip(texts, self.index[places], strict=True))

    def spread(self, values: pd.Series, dtype: str) -> pd.Series:
        """Return the value of each row from that of each text."""
        return pd.Series(values.to_numpy()[self.codes], self.index, name=self.name, dtype=dtype)

    def refuse(self, problem: str, advice: str) -> LesionfastError:
        """Return the error of a column that can't be an input."""
        return LesionfastError(f"column '{self.name}' of {self.csv.name} {problem}. {advice}")


def convert(csv: Path, column: pd.Series, is_input: bool) -> pd.Series:
    """Return a column of text as float if all of it is numbers, else as categories; missing is NaN.

    What was written in another way, such as '3,5', '85+', 'M' for male or UNK, is read as
    `values` does, and said. `attrs` has the "unit" of numbers that have one, and "comma" where only
    that settles what 1,234 is. Raises `LesionfastError` for an input of dates, and for one that
    mixes numbers and text.
    """
    read = Column.of(csv, column, is_input)
    known = ~read.texts.str.lower().isin(MISSING).to_numpy()
    plain = pd.to_numeric(read.texts.where(known), errors="coerce").astype(float)
    is_number = np.isfinite(plain.to_numpy())
    has_codes = not is_input and read.texts.str.match(r"0\d").any()  # 007 is not a number
    if (is_number | ~known).all() and not has_codes:
        numbers: pd.Series | None = plain
    else:
        numbers = None if has_codes else read_numbers(read, plain, known)
    note_missing(read, known)
    if numbers is None:
        converted = read.spread(merge_spellings(read, known), "str")
    else:
        converted = remove_impossible(csv, read.spread(numbers, "float64"), is_input)
        converted.attrs |= read.written
    if read.repairs:
        level = logging.WARNING if is_input else logging.INFO
        logger.log(level, "%s: %s", read.name, "; ".join(read.repairs))
    return converted


def read_numbers(read: Column, plain: pd.Series, known: np.ndarray) -> pd.Series | None:
    """Return the number of each text where some are written in another way; None for categories.

    An age is a number even if all of it is bounds and ranges; another column is one only if at
    least half of it is plain numbers, or such with a decimal comma or a unit.
    """
    others = np.flatnonzero(known & ~np.isfinite(plain.to_numpy()))
    if (not read.is_input and len(others) > MOST_SPELLINGS) or is_truth(read.texts[known]):
        return None
    written = {i: number for i in others if (number := read_number(read.texts[i]))}
    written = settle_commas(
        read, {i: number for i, number in written.items() if not np.isinf(number.value)}
    )
    sure = np.isfinite(plain.to_numpy())
    sure[[i for i, number in written.items() if number.how in ("plain", "comma")]] = True
    wrong = known & ~sure
    wrong[[i for i in written if written[i].how != "ambiguous"]] = False
    counts, total = read.counts, max(read.counts[known].sum(), 1)
    if read.is_input:
        refuse_dates(read, known & ~sure)
    as_ages = is_age(read.name) and (sure.any() or len(written) > 0)
    sure[[i for i in written if written[i].how == "ambiguous"]] = True
    if not as_ages and 2 * counts[sure].sum() < total:
        return None
    if wrong.any():
        if read.is_input and (as_ages or 2 * counts[sure].sum() > total):
            raise refuse_mixture(read, wrong, written)
        return None
    if not is_consistent(read, plain, written):
        return None
    numbers = plain.copy()
    numbers[list(written)] = [number.value for number in written.values()]
    note_numbers(read, known, written)
    return numbers


def settle_commas(read: Column, written: dict[int, Written]) -> dict[int, Written]:
    """Return numbers in which a comma means what it does in the others: 1,234 beside 3,5."""
    if not any(number.how == "comma" for number in written.values()):
        return written
    settled = {
        i: replace(number, how="comma")
        for i, number in written.items()
        if number.how == "ambiguous"
    }
    if settled:
        read.written["comma"] = True
    return written | settled


def refuse_dates(read: Column, chosen: np.ndarray) -> None:
    """Raise `LesionfastError` if most of the chosen texts of an input are dates or times."""
    dates = chosen & np.array([is_date(text) for text in read.texts], bool)
    if 2 * dates.sum() > chosen.sum():
        text, row = read.rows(dates)[0]
        raise read.refuse(
            f"holds dates or times, such as '{text}' in row {row}: they "
            "say when an image was taken, not what it shows, and models learn from them which "
            "hospital it comes from",
            "Remove it from --metadata, or add a column with what matters in it as a number, such "
            "as the age in years.",
        )


def refuse_mixture(read: Column, wrong: np.ndarray, written: dict[int, Written]) -> LesionfastError:
    """Return the error of an input in which some texts among numbers are none."""
    advice = "Correct them (leave them empty if they are missing), or remove the column from "
    rows = read.rows(wrong)
    examples = ", ".join(f"'{shorten(text, MOST_OF_NAME)}' in row {row}" for text, row in rows[:5])
    more = f" and {pluralize(len(rows) - 5, 'more row')}" if len(rows) > 5 else ""
    if all(i in written for i in np.flatnonzero(wrong)):
        return read.refuse(
            f"can be read in two ways: {examples}{more} has a comma before three digits",
            "Write it with a point, or without the comma.",
        )
    count = "is not a number" if len(rows) == 1 else "are not numbers"
    return read.refuse(f"mixes numbers and text: {examples}{more} {count}", f"{advice}--metadata.")


def is_consistent(read: Column, plain: pd.Series, written: dict[int, Written]) -> bool:
    """Return whether numbers have one unit and one decimal sign; an input without is an error."""
    units = Counter(number.unit for number in written.values() if number.unit)
    unit = next(iter(units), "")
    wanted = "years" if is_age(read.name) else unit
    commas = [i for i, number in written.items() if number.how == "comma"]
    points = [i for i in plain.dropna().index if has_decimals(read.texts[i])]
    if len(units) < 2 and unit in ("", wanted) and not (commas and points):
        if unit:
            read.written["unit"] = unit
        return True
    if not read.is_input:
        return False
    if commas and points:
        examples = [read.texts[points[0]], read.texts[commas[0]]]
        problem, advice = "has decimal points and decimal commas", "Write all with a point."
    else:
        examples = [
            next(read.texts[i] for i, number in written.items() if number.unit == name)
            for name in units
        ]
        problem = "has several units" if len(units) > 1 else f"is in {unit}, not in {wanted}"
        advice = "Convert all values to one unit, or remove the column from --metadata."
    quoted = list_first([f"'{example}'" for example in examples], 3)
    raise read.refuse(f"{problem}: {quoted}", advice)


def has_decimals(text: str) -> bool:
    """Return whether a number has a decimal point with more than zeros behind it."""
    return "." in text and bool(text.rpartition(".")[2].strip("0"))


def note_numbers(read: Column, known: np.ndarray, written: dict[int, Written]) -> None:
    """Note how many numbers were written in another way, with an example of each."""
    counts = read.counts
    for how, (noun, words) in HOW.items():
        chosen = [i for i, n in written.items() if how in (n.how, "unit" if n.unit else "")]
        if chosen:
            count = pluralize(int(counts[chosen].sum()), noun)
            text, number = read.texts[chosen[0]], written[chosen[0]]
            value = f"{number.value:g}{f' ({number.unit})' if how == 'unit' else ''}"
            read.repairs.append(f"read {count} {words}, such as '{text}' as {value}")
    bare = counts[known].sum() - counts[[i for i, n in written.items() if n.unit]].sum()
    if (unit := read.written.get("unit")) and bare and not is_age(read.name):
        read.repairs.append(f"{pluralize(int(bare), 'number')} without a unit taken as {unit}")


def note_missing(read: Column, known: np.ndarray) -> None:
    """Note how many values of an input are words that count as missing, but for the usual ones."""
    words = ~known & ~read.texts.str.lower().isin(USUAL_MISSING).to_numpy()
    if read.is_input and words.any():
        count = pluralize(int(read.counts[words].sum()), "value")
        texts = list_first([f"'{text}'" for text in sorted(read.texts[words])], 5)
        read.repairs.append(f"{count} count{'s' * (count[:2] == '1 ')} as missing ({texts})")


def merge_spellings(read: Column, known: np.ndarray) -> pd.Series:
    """Return the category of each text: the commonest of its spellings, male and female for sex."""
    texts = read.texts.where(known, np.nan)
    if not read.is_input and known.sum() > MOST_SPELLINGS:
        return texts
    common = unify_all(read.name, read.texts[known])
    counts = dict(zip(read.texts, read.counts, strict=True))
    spelling: dict[str, str] = {}
    for text in sorted(common, key=lambda text: (as_number(text) is not None, -counts[text], text)):
        spelling.setdefault(common[text], text)
    named = spelling | {key: key for key in set(spelling) & {"male", "female"}}
    changed = {text: named[key] for text, key in common.items() if named[key] != text}
    if changed:
        count = pluralize(sum(counts[text] for text in changed), "value")
        pairs = [
            f"'{text}' to '{changed[text]}' ({counts[text]:,})"
            for text in sorted(changed, key=lambda text: -counts[text])
        ]
        read.repairs.append(f"changed the spelling of {count}: {list_first(pairs, 5)}")
    return texts.map(lambda text: changed.get(text, text))


def remove_impossible(csv: Path, numbers: pd.Series, is_input: bool) -> pd.Series:
    """Return a column of numbers without those that it can't have, which are counted.

    Raises `LesionfastError` for such in an input: a model would scale all others by them.
    """
    name = str(numbers.name)
    wrong = numbers.index[numbers.notna() & ~is_possible(name, numbers)]
    if is_input and not is_age(name):
        warn_of_far_values(csv, numbers.drop(wrong).dropna())
    if not len(wrong):
        return numbers
    problem = (
        f"column '{name}' of {csv.name} has {numbers[wrong[0]]:g} in {list_rows(wrong)}, which is "
        f"{why_impossible(name, 0)}"
    )
    if is_input:
        raise LesionfastError(
            f"{problem}. Correct the value, leave it empty if it is missing, or remove the column "
            "from --metadata."
        )
    logger.warning("%s: treated as missing", problem)
    return numbers.mask(numbers.index.isin(wrong))


def warn_of_far_values(csv: Path, numbers: pd.Series) -> None:
    """Warn of numbers far from nearly all others, such as 9999 for a missing value."""
    low, high = numbers.quantile([0.05, 0.95])
    reach = FAR * (high - low)
    far = numbers.index[(numbers < low - reach) | (numbers > high + reach)]
    if low < high and len(far):
        logger.warning(
            "column '%s' of %s has %g in %s; 90 %% of the values are from %g to %g. If it stands "
            "for a missing value, leave it empty: the model scales all values by it.",
            numbers.name, csv.name, numbers[far[0]], list_rows(far), low, high,
        )  # fmt: skip


def list_rows(numbers: Iterable[int]) -> str:
    """Return "row 2" or "rows 2, 7, 9, 11, 12 and 4 more"."""
    numbers = list(numbers)
    return f"row{'s' * (len(numbers) > 1)} {list_first(numbers, 5)}"
