"""Conditions on runs, as a person types them: "balanced_accuracy>0.7". No pandas, no NumPy."""

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lesionfast.config import ALIASES
from lesionfast.errors import LesionfastError, did_you_mean

COMPARISONS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
ORDERED = ("<", "<=", ">", ">=")
CONDITION = re.compile(r"\s*([^=!<>~\s][^=!<>~]*?)\s*(==|!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Condition:
    """What a value must be: `name` `operator` `value`, such as size >= 128.

    The operators are = != < <= > >= and ~ for text that contains another, in capitals or not. What
    is missing meets no condition; an option that is not set is the text 'none'.
    """

    name: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Return the condition that a text states; raises `LesionfastError` if it states none."""
        match = CONDITION.fullmatch(text)
        if match is None:
            raise LesionfastError(
                f"'{text}' is not a condition: it takes a name, one of = != < <= > >= ~, and a "
                'value. Type it in quotation marks, such as --where "balanced_accuracy>0.7".'
            )
        name, sign, value = match.groups()
        return cls(name, "=" if sign == "==" else sign, value)

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.value}"

    @property
    def number(self) -> float | None:
        """Its value as a number; None if that is text."""
        try:
            return float(self.value)
        except ValueError:
            return None

    def holds(self, value: Any) -> bool:
        """Return whether a number, a text or a truth value meets the condition; None does not."""
        if value is None:
            return False
        if self.operator == "~":
            return self.value.lower() in str(value).lower()
        wanted: Any = None if self.operator in ORDERED else self.value
        if isinstance(value, bool):
            wanted = WORDS.get(self.value.lower())
        elif is_number(value):
            wanted = self.number
        if wanted is None:
            return self.operator == "!="
        return bool(COMPARISONS[self.operator](value, wanted))

    def check(self, values: Iterable[Any]) -> None:
        """Raise `LesionfastError` if its operator needs numbers, and it or the values are text."""
        if self.operator not in ORDERED:
            return
        if self.number is None:
            raise LesionfastError(
                f"'{self}' compares with '{self.value}', which is not a number. Type a number, or "
                "= != ~ for text; type --where once for each condition."
            )
        found = [value for value in values if value is not None]
        if found and not any(is_number(value) for value in found):
            raise LesionfastError(
                f"'{self}' compares numbers, but {self.name} is text, such as "
                f"'{show_value(found[0])}'. Type = != or ~ instead of {self.operator}"
            )


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def show_value(value: Any) -> str:
    """Return a value as a person types it: "true" for True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_name(name: str, metrics: Sequence[str], options: Sequence[str]) -> str:
    """Return the metric or option that a person means: batch-size and bs are batch_size.

    Raises `LesionfastError`, which lists them, if there is none.
    """
    plain = name.replace("-", "_")
    for one in (name, plain, ALIASES.get(plain, plain)):
        if one in metrics or one in options:
            return one
    raise LesionfastError(
        f"these runs have no metric or option '{name}'."
        f"{did_you_mean(plain, [*metrics, *options])} Type a metric: "
        f"{', '.join(summarize_names(metrics))}; of one part: valid.NAME or test.NAME; or an "
        f"option: {', '.join(sorted(options))}."
    )


def summarize_names(names: Iterable[str]) -> list[str]:
    """Return the names that need no explanation, those of single classes as "auc.CLASS"."""
    own = [name for name in names if not name.startswith(("valid.", "test.", "rules."))]
    return sorted({f"{name.partition('.')[0]}.CLASS" if "." in name else name for name in own})
