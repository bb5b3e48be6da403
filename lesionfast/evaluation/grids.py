"""Picture grids: each image with its truth, decision, probabilities, age and sex in plain words."""

import logging
from collections.abc import Callable
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lesionfast.data.files import FileReader
from lesionfast.data.images import read_image
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.canvas import GREY, new_figure, save, sign
from lesionfast.evaluation.interpretation import Interpretation

logger = logging.getLogger("lesionfast")

COLUMNS = 4
CELL, LINES = (3.0, 3.1), 3  # inches: width, height with a caption of that many lines
LINE = 0.2  # inches of a further one
LONGEST_SIDE = 480  # pixels: more than a cell can show


def draw_top_losses(interpretation: Interpretation, folder: Path, k: int = 12) -> Path:
    """Draw the k images whose truth was given the least probability; return the path."""
    rows = interpretation.top_losses(k)
    title = "Highest losses: where the truth was given the least probability"
    shown = f"the worst {len(rows)} of {len(interpretation.rows)} images"
    figure = draw_grid(rows, title, f"{explained(interpretation)}: {shown}", "there are no images")
    sign(figure, interpretation)
    return save(figure, folder / "top_losses.png")


def draw_melanomas_taken_for_nevi(
    interpretation: Interpretation, folder: Path, most: int = 24
) -> Path:
    """Draw the melanomas that were decided nevi, the most confident first; return the path."""
    rows = interpretation.taken_for()
    total = int((interpretation.rows["truth"] == interpretation.classes.melanoma).sum())
    shown = f"{len(rows)} of {total} melanomas"
    if len(rows) > most:
        shown += f", the {most} most confident of them shown"
    subtitle = f"{explained(interpretation)}: {shown}"
    nothing = "no melanoma was taken for a nevus" if total else "none of the images is a melanoma"
    figure = draw_grid(rows.head(most), "Melanomas taken for nevi", subtitle, nothing)
    sign(figure, interpretation)
    return save(figure, folder / "melanomas_taken_for_nevi.png")


def explained(interpretation: Interpretation) -> str:
    """Return the split and the rule as the start of a subtitle."""
    return f"{interpretation.split}, rule {interpretation.rule}"


def draw_grid(
    rows: pd.DataFrame,
    title: str,
    subtitle: str,
    nothing: str,
    words: Callable[[pd.Series], str] | None = None,
) -> Figure:
    """Return a figure with one picture a row of the table, or with the words of `nothing`.

    `words` makes the caption of a row; that of `caption` unless given.
    """
    if rows.empty:
        return draw_words(title, subtitle, nothing)
    columns = min(COLUMNS, max(len(rows), 2))
    lines = ceil(len(rows) / columns)
    captions = [(words or caption)(row) for _, row in rows.iterrows()]
    more = max(0, max(each.count("\n") for each in captions) + 1 - LINES) * LINE
    width, height = columns * CELL[0], lines * (CELL[1] + more) + 0.9
    subtitle += "\nin per cent: the probability that the model gave"
    figure = new_figure(width, height, title, subtitle)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    with FileReader() as reader:
        reasons = [
            draw_cell(axis, row, text, reader)
            for axis, (_, row), text in zip(axes, rows.iterrows(), captions, strict=False)
        ]
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    bad = [reason for reason in reasons if reason]
    if bad:
        logger.warning("%s: %d of %d images not drawn; %s", title, len(bad), len(rows), bad[0])
    return figure


def draw_words(title: str, subtitle: str, words: str) -> Figure:
    """Return a figure that only says something."""
    figure = new_figure(8, 2.4, title, subtitle)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=14)
    return figure


def draw_cell(axis: Axes, row: pd.Series, text: str, reader: FileReader | None = None) -> str:
    """Draw one image with its caption, `text`; return why it could not be read, else ''."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("0.8")
    axis.set_title(str(row["image_id"]), loc="left", fontsize=7.5, color=GREY, pad=3)
    axis.set_xlabel(text, loc="left", fontsize=9, linespacing=1.3)
    try:
        pixels = read_pixels(row.get("path"), reader)
    except (LesionfastError, OSError) as error:
        draw_grey_box(axis, str(error))
        return str(error)
    axis.imshow(pixels)
    return ""


def read_pixels(path: Any, reader: FileReader | None = None) -> np.ndarray:
    """Return an image as uint8 (height, width, 3), no larger than a cell can show."""
    if not isinstance(path, str):
        raise LesionfastError("predictions.csv has no path of this image")
    image = read_image(path, reader)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def draw_grey_box(axis: Axes, reason: str) -> None:
    """Draw what stands in for an image that can't be read: its place, and the reason."""
    axis.imshow(np.full((3, 4, 3), 225, dtype=np.uint8))
    words = fill(reason, 34, max_lines=7, placeholder=" …")
    axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=7.5, transform=axis.transAxes)


def caption(row: pd.Series) -> str:
    """Return truth and decision with their probabilities, then age, sex and site if known."""
    lines = [
        f"truth: {full_name(row['truth'])}, {per_cent(row['probability_of_truth'])}",
        f"decided: {full_name(row['decision'])}, {per_cent(row['probability'])}",
        patient(row),
    ]
    return "\n".join(fill(line, 42) for line in lines if line)


def patient(row: pd.Series) -> str:
    """Return "35 years, female, neck" as far as the dataset has such columns."""
    words = []
    if "age" in row:
        words.append("age unknown" if pd.isna(row["age"]) else f"{plain(row['age'])} years")
    if "sex" in row:
        words.append("sex unknown" if pd.isna(row["sex"]) else str(row["sex"]))
    if "localization" in row and pd.notna(row["localization"]):
        words.append(str(row["localization"]))
    return ", ".join(words)


def plain(value: Any) -> str:
    """Return 35.0 as "35", and anything that is no number as it is."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def per_cent(probability: float) -> str:
    """Return a share in whole per cent, "<1%" and ">99%" where it would round to none and all."""
    text = f"{probability:.0%}"
    if text == "0%" and probability > 0:
        return "<1%"
    return ">99%" if text == "100%" and probability < 1 else text
