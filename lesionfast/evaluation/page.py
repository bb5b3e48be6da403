"""What a page is made of: tables whose numbers carry their intervals, figures, sections."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from PIL import Image

LARGE, QUALITY = 300_000, 82  # bytes above which a picture loses what nobody sees


@dataclass(frozen=True)
class Cell:
    """What a cell says, the number that its column is sorted by (None: the text), its interval."""

    text: str
    number: float | None = None
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a page: a caption, column names and rows of cells."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Picture:
    """A figure of a page: what it shows in words, and its PNG as a data URI."""

    words: str
    source: str


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = field(default=False)  # shown when it is opened

    @property
    def anchor(self) -> str:
        """The name that a link to the section has."""
        return self.title.lower().replace(" ", "-")


def table_of(
    df: pd.DataFrame, caption: str, names: dict[str, str] | None = None, digits: int = 3
) -> Table:
    """Return a table of a DataFrame; columns x, x_low, x_high become one.

    So do value, low, high. `names` are the headings of columns, in the order that is shown; all
    columns under their own names unless given.
    """
    merged = {c: (f"{c}_low", f"{c}_high") for c in df if f"{c}_low" in df}
    if {"value", "low", "high"} <= set(df):
        merged["value"] = ("low", "high")
    ends = {end for pair in merged.values() for end in pair}
    names = names or {c: str(c).replace("_", " ") for c in df if c not in ends}
    rows = [
        [cell_of(row, column, merged.get(column), digits) for column in names]
        for row in df.to_dict("records")
    ]
    return Table(caption, list(names.values()), rows)


def cell_of(row: dict[str, Any], column: str, ends: tuple[str, str] | None, digits: int) -> Cell:
    """Return the cell of one value, with its interval if it has one."""
    value = row[column]
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return Cell("–")
    if isinstance(value, bool | np.bool_):
        return Cell("yes" if value else "no")
    if not isinstance(value, int | float | np.number):
        return Cell(str(value))
    text = f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.{digits}f}"
    known = ends is not None and not pd.isna(row[ends[0]])
    interval = f"[{row[ends[0]]:.{digits}f}, {row[ends[1]]:.{digits}f}]" if known else ""
    return Cell(text, float(value), interval)


def pairs_table(pairs: dict[str, Any], caption: str, heading: str = "what") -> Table:
    """Return a table of names and values, as text."""
    rows = [[Cell(str(name)), Cell(str(value))] for name, value in pairs.items()]
    return Table(caption, [heading, ""], rows)


def picture_of(path: Path, words: str) -> Picture:
    """Return a PNG file as a picture that the page carries in itself; a large one as WebP."""
    data, kind = path.read_bytes(), "png"
    if len(data) > LARGE:
        with Image.open(path) as picture, BytesIO() as file:
            picture.convert("RGB").save(file, "WEBP", quality=QUALITY)
            data, kind = file.getvalue(), "webp"
    return Picture(words, f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}")


def render(template: str, **values: Any) -> str:
    """Return a template of this package filled with values, which are escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = read_template("page.css"), read_template("page.js")
    text = read_template(template)
    return environment.from_string(text).render(style=style, script=script, **values)


def read_template(name: str) -> str:
    """Return the text of a template, style or script of this package."""
    folder = resources.files("lesionfast.evaluation") / "templates"
    return (folder / name).read_text(encoding="utf-8")
