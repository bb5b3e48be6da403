"""What a written value of a metadata column means: a number, a category, a date, or nothing."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MISSING = frozenset(  # compared in lower case
    [
        *("", "nan", "na", "n/a", "n.a.", "n.a", "#n/a", "<na>", "nat", "null", "none", "missing"),
        *("unknown", "unk", "not known", "not available", "not recorded", "not reported"),
        *("not specified", "unspecified", ".", "-", "--", "---", "–", "—", "?", "??"),
    ]
)
AGE = re.compile(r"(patient[ _]?)?age([ _](approx|years|in[ _]years|at[ _]\w+))?", re.IGNORECASE)
SEX = re.compile(r"(patient[ _]?|biological[ _]?)?(sex|gender)", re.IGNORECASE)
OLDEST = 120  # years
LONGEST = 100  # characters of a number or a date: patterns take long to fail on longer texts
LARGEST = 1e30  # its square is finite in float64, itself in float32
SEXES = {  # in the languages of the datasets and their users
    "male": "m male man boy mann männlich maennlich homme masculin hombre masculino uomo maschio",
    "female": "f female w woman girl frau weiblich femme féminin feminin mujer femenino mulher "
    "feminino donna femmina",
}
SEX_OF = {word: sex for sex, words in SEXES.items() for word in words.split()}
YES_OR_NO = {"true": "true t yes y 1 1.0", "false": "false f no n 0 0.0"}
TRUTH_OF = {word: truth for truth, words in YES_OR_NO.items() for word in words.split()}
UNITS = {
    "years": "y yr yrs yr. yrs. year years yo y/o y.o. y.o jahre jahr ans años anos",
    "months": "mo mos month months monate mths",
    "weeks": "week weeks wk wks",
    "days": "day days",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "µm": "µm μm um micron microns micrometer micrometers micrometre micrometres",
    "inches": "inch inches",
    "mm²": "mm² mm2 mm^2",
    "cm²": "cm² cm2 cm^2",
    "kg": "kg",
    "mg": "mg",
    "%": "% percent",
}
UNIT_OF = {word: unit for unit, words in UNITS.items() for word in words.split()}
UNIT_OF |= {"years old": "years", "years of age": "years", "year old": "years"}
NUMBER = r"(?:\d+(?:[.,]\d+)?|[.,]\d+)"
IN_UNIT = re.compile(r"(.*?[\d.,+)\]])\s*-?([^\W\d_][^\d+]*?|[%µμ]\w*|mm\^?2|cm\^?2|\")", re.DOTALL)
COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)")
AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,234 is 1.234 or 1234
BOUND = re.compile(
    rf"(?:[<>]=?|[≤≥]|over|under|above|below)\s*({NUMBER})"
    rf"|({NUMBER})\s*(?:\+|plus|(?:or|and)\s+(?:older|over|more|above|younger|under|less|below))",
    re.IGNORECASE,
)
RANGE = re.compile(
    rf"({NUMBER})\s*(?:-|–|—|to|bis)\s*({NUMBER})"
    rf"|[\[(\]]\s*(\d+(?:\.\d+)?)\s*[,;]\s*(\d+(?:\.\d+)?)\s*[\])\[]",
    re.IGNORECASE,
)
MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
TIME = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?(\s*[ap]m)?(z|[+-]\d{2}:?\d{2})?"
DAY = (
    r"(\d{4}[-/]\d{1,2}([-/]\d{1,2})?|\d{4}\.\d{1,2}\.\d{1,2}"
    r"|\d{1,2}(?P<mark>[-/.])\d{1,2}(?P=mark)(\d{4}|\d{2})"
    rf"|\d{{1,2}}[ .-]+{MONTH}[ ,-]*(\d{{4}}|\d{{2}})|{MONTH}[ -]+(\d{{1,2}},?[ -]+)?\d{{4}})"
)
DATE = re.compile(rf"{DAY}([t ,]+{TIME})?|{TIME}", re.IGNORECASE)


@dataclass(frozen=True)
class Written:
    """A number as it was written: its value, how ('plain', 'comma', …), and its unit or ''.

    How is 'ambiguous' for 1,234: the value is what it is with a decimal comma.
    """

    value: float
    how: str
    unit: str = ""


def is_missing(text: str) -> bool:
    """Return whether a value says that nothing is known."""
    return text.strip().lower() in MISSING


def is_age(name: str) -> bool:
    """Return whether a column is an age in years by its name, such as age or age_approx."""
    return bool(AGE.fullmatch(name.strip()))


def is_sex(name: str) -> bool:
    """Return whether a column is the sex by its name, such as sex or gender."""
    return bool(SEX.fullmatch(name.strip()))


def is_date(text: str) -> bool:
    """Return whether a value is a date, a time or both, as 2024-05-01 or 1.5.24 09:30."""
    return len(text) <= LONGEST and bool(DATE.fullmatch(text.strip()))


def is_possible(name: str, numbers: Any) -> Any:
    """Return whether a column can have these numbers: ages from 0 to 120, others finite."""
    low, high = (0, OLDEST) if is_age(name) else (-LARGEST, LARGEST)
    return (numbers >= low) & (numbers <= high)


def why_impossible(name: str, number: float | None) -> str:
    """Return what is wrong with a number that a column can't have; None is text."""
    if is_age(name):
        return f"not an age in years (0 to {OLDEST})"
    return "not a number" if number is None else f"not between {-LARGEST:g} and {LARGEST:g}"


def as_number(text: str) -> float | None:
    """Return the number that a text says, None if it says none."""
    try:
        return None if "_" in text else float(text)  # Python's own 1_000
    except ValueError:
        return None


def read_number(text: str) -> Written | None:
    """Return the number of a value, None if it is none: 45, '3,5', '85+', '50-59', '12 mm'.

    A bound is its number, a range its middle.
    """
    text = text.strip()
    if len(text) > LONGEST:
        return None
    number = as_number(text)
    if number is not None:
        return Written(number, "plain")
    unit = ""
    if (split := IN_UNIT.fullmatch(text)) and split[2].strip().lower() in UNIT_OF:
        text, unit = split[1].strip(), UNIT_OF[split[2].strip().lower()]
        if (number := as_number(text)) is not None:
            return Written(number, "plain", unit)
    if AMBIGUOUS.fullmatch(text):
        return Written(with_point(text), "ambiguous", unit)
    if COMMA.fullmatch(text):
        return Written(with_point(text), "comma", unit)
    if bound := BOUND.fullmatch(text):
        return Written(with_point(bound[1] or bound[2]), "bound", unit)
    if ends := RANGE.fullmatch(text):
        low, high = (with_point(end) for end in ends.groups() if end)
        return Written((low + high) / 2, "range", unit) if low <= high else None
    return None


def with_point(text: str) -> float:
    """Return a number that may have a decimal comma."""
    return float(text.replace(",", "."))


def unify(name: str, text: str) -> str:
    """Return what all spellings of a category have in common: "Back " and "back", "M" and "male".

    A column of the sex by its name has the words of several languages.
    """
    plain = " ".join(text.split()).casefold()
    return SEX_OF.get(plain, plain) if is_sex(name) else plain


def is_truth(texts: Iterable[str]) -> bool:
    """Return whether all texts say true or false, and not with numbers alone."""
    words = {text.strip().lower() for text in texts}
    return bool(words) and words <= {*TRUTH_OF} and any(as_number(word) is None for word in words)


def unify_all(name: str, texts: Iterable[str]) -> dict[str, str]:
    """Return each text with what all its spellings have in common; see `unify`."""
    texts = list(texts)
    if is_truth(texts) and not is_sex(name):  # F alone is female
        return {text: TRUTH_OF[text.strip().lower()] for text in texts}
    return {text: unify(name, text) for text in texts}


def find_category(name: str, text: str, known: Iterable[str]) -> str | None:
    """Return the one of the known categories that a text spells, None if it spells none."""
    known = list(known)
    if text in known:
        return text
    keys = unify_all(name, [*known, text])
    return next((category for category in known if keys[category] == keys[text]), None)
