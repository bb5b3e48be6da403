"""The images chapter: pictures with truth, decision and patient below, alone or beside others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lesionfast.console import Table, cell
from lesionfast.data.images import read_image
from lesionfast.data.sources import FileReader
from lesionfast.diagnoses import Classes, full_name
from lesionfast.errors import LesionfastError, shorten
from lesionfast.evaluation.features import nearest_to_each
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.page import (
    GREY,
    Picture,
    class_styles,
    new_axes,
    new_figure,
    save,
    subtitle,
)
from lesionfast.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger("lesionfast")

COLUMNS = 4
CELL, LINES = (3.0, 3.1), 3  # inches: width, height with a caption of that many lines
LINE = 0.2  # inches of a further one
LETTERS = 42  # of a line of a caption
MOST_IN_CELL = 4 * LETTERS  # of one fact: a name of 5,000 letters would be a picture of 150 lines
LONGEST_SIDE = 480  # pixels: more than a cell can show
PER_CENT = "per cent: probability of the model, uncalibrated"
NEAREST = 5  # training lesions beside each image of the atlas
ATLAS_CELL = (2.15, 2.55)  # inches
ATLAS_TITLES = {  # title, and the words if there is no such case
    "atlas_melanoma_as_nevus": ("Melanomas taken for nevi", "no melanoma was taken for a nevus"),
    "atlas_nevus_as_melanoma": ("Nevi taken for melanomas", "no nevus was taken for a melanoma"),
    "atlas_melanoma_right": (
        "Melanomas classified correctly",
        "no melanoma was classified correctly",
    ),
}
BESIDE = (
    "right of each image: the training lesions nearest to it by the image features, with the "
    "cosine of the centred features"
)
ATLAS = "The most confident cases, each beside the training lesions that the model finds most alike"


def draw_top_losses(interpretation: Interpretation, folder: Path) -> Path:
    """Draw the images whose truth was given the least probability; return the path."""
    rows = interpretation.top_losses()
    title = "Highest losses: images whose true class got the lowest probability"
    text = subtitle(interpretation, f"the worst {len(rows)} shown")
    figure = draw_grid(rows, title, text, "there are no images")
    return save(figure, folder / "top_losses.png", interpretation)


def draw_melanomas_taken_for_nevi(
    interpretation: Interpretation, folder: Path, most: int = 24
) -> Path:
    """Draw the melanomas that were decided nevi, the most confident first; return the path."""
    rows = interpretation.taken_for()
    total = int((interpretation.rows["truth"] == interpretation.classes.melanoma).sum())
    shown = f"{len(rows)} of {total} melanomas"
    if len(rows) > most:
        shown += f", the {most} most confident of them shown"
    nothing = "no melanoma was taken for a nevus" if total else "none of the images is a melanoma"
    text, title = subtitle(interpretation, shown), "Melanomas taken for nevi"
    figure = draw_grid(rows.head(most), title, text, nothing)
    return save(figure, folder / "melanomas_taken_for_nevi.png", interpretation)


def draw_grid(
    rows: pd.DataFrame,
    title: str,
    subtitle: str,
    nothing: str,
    caption: Callable[[pd.Series], str] | None = None,
) -> Figure:
    """Return a figure with one picture a row of the table, or with the words of `nothing`.

    `caption` makes the words below a picture; default: `decision_caption`.
    """
    if rows.empty:
        return draw_words(title, subtitle, nothing)
    columns = min(COLUMNS, max(len(rows), 2))
    lines = ceil(len(rows) / columns)
    captions = [(caption or decision_caption)(row) for _, row in rows.iterrows()]
    more = max(0, max(text.count("\n") for text in captions) + 1 - LINES) * LINE
    size = columns * CELL[0], lines * (CELL[1] + more) + 0.9
    figure = new_figure(*size, title, f"{subtitle}\n{PER_CENT}")
    axes = new_axes(figure, len(rows), columns)
    with FileReader() as reader:
        reasons = [
            draw_cell(axis, row, text, reader)
            for axis, (_, row), text in zip(axes, rows.iterrows(), captions, strict=True)
        ]
    bad = [reason for reason in reasons if reason]
    if bad:
        logger.warning("%s: %d of %d images not drawn; %s", title, len(bad), len(rows), bad[0])
    return figure


def draw_words(title: str, subtitle: str, words: str) -> Figure:
    """Return a figure of words alone."""
    figure = new_figure(8, 2.4, title, subtitle)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=14)
    return figure


def draw_cell(axis: Axes, row: pd.Series, text: str, reader: FileReader | None = None) -> str:
    """Draw one image with its id above and `text` below; return why it can't be read, else ''."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("0.8")
    axis.set_title(str(row["image_id"]), loc="left", fontsize=7.5, color=GREY, pad=3)
    axis.set_xlabel(text, loc="left", fontsize=9, linespacing=1.3)
    return draw_image(axis, row.get("path"), reader)


def draw_image(axis: Axes, path: Any, reader: FileReader | None = None) -> str:
    """Draw an image, or a grey box with the reason why it can't be read, which is returned."""
    try:
        axis.imshow(read_pixels(path, reader))
    except (LesionfastError, OSError) as error:
        axis.imshow(np.full((3, 4, 3), 225, dtype=np.uint8))
        words = fill(str(error), 34, max_lines=7, placeholder=" …")
        axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=7.5, transform=axis.transAxes)
        return str(error)
    return ""


def read_pixels(path: Any, reader: FileReader | None = None) -> np.ndarray:
    """Return an image as uint8 (height, width, 3), no larger than a cell can show."""
    if not isinstance(path, str):
        raise LesionfastError("predictions.csv has no path for this image")
    image = read_image(path, reader)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def decision_caption(row: pd.Series) -> str:
    """Return truth and decision with their probabilities, then age, sex and site if there are."""
    decision, truth = ("decision", "probability"), ("truth", "probability_of_truth")
    return describe_image(row, truth=truth, decision=decision)


def describe_image(row: pd.Series, *more: str, **classes: tuple[str, str]) -> str:
    """Return classes with their probabilities, named by their columns, the patient and more."""
    lines = [
        f"{what}: {full_name(row[name])}, {rounded_percent(row[share])}"
        for what, (name, share) in classes.items()
    ]
    return "\n".join(
        fill(shorten(line, MOST_IN_CELL), LETTERS) for line in [*lines, patient(row), *more] if line
    )


def patient(row: pd.Series) -> str:
    """Return "35 years, female, neck" as far as the dataset has such columns."""
    words = []
    if "age" in row:
        words.append("age unknown" if pd.isna(row["age"]) else f"{cell(row['age'], 'g')} years")
    if "sex" in row:
        words.append("sex unknown" if pd.isna(row["sex"]) else str(row["sex"]))
    if "localization" in row and pd.notna(row["localization"]):
        words.append(str(row["localization"]))
    return ", ".join(words)


def rounded_percent(share: float) -> str:
    """Return a share in whole per cent, "<1%" and ">99%" where it would round to 0 or 100."""
    text = f"{share:.0%}"
    if text == "0%" and share > 0:
        return "<1%"
    return ">99%" if text == "100%" and share < 1 else text


def nearest_table(nearest: pd.DataFrame) -> Table:
    """Return the training lesions most similar to an image, the first row of `nearest`."""
    query = nearest.iloc[0]
    truth = f", {full_name(query['target'])}" if query["target"] else ""
    table = Table(
        f"Training lesions most similar to {query['image_id']}{truth}",
        ["image", "class", "similarity", "age", "sex"],
        note="similarity: cosine of the centred features",
    )
    for _, row in nearest.iloc[1:].iterrows():
        person = cell(row.get("age"), "g"), cell(row.get("sex"))
        table.add(row["image_id"], full_name(row["target"]), row["similarity"], *person)
    return table


def draw_nearest(run: Run, table: pd.DataFrame, folder: Path | None = None) -> Path:
    """Draw the image beside its nearest training lesions as PNG; return the path."""
    name = Path(str(table["image_id"].iloc[0])).stem
    columns = min(len(table), 6)
    title = f"The training lesions most similar to {table['image_id'].iloc[0]}"
    size = 2.5 * columns, 2.9 * ceil(len(table) / columns) + 0.8
    figure = new_figure(*size, title, "similarity: cosine of the centred image features")
    axes = new_axes(figure, len(table), columns)
    for place, (axis, (_, row)) in enumerate(zip(axes, table.iterrows(), strict=True)):
        likeness = f"similarity {row['similarity']:.3f}" if place else "this image"
        target = full_name(row["target"]) if row["target"] else ""
        draw_cell(axis, row, "\n".join(filter(None, [target, patient(row), likeness])))
        axis.spines[:].set(color="0.8" if place else "black", linewidth=1 if place else 2)
    return save(figure, (folder or run.path / "figures") / f"nearest_{name}.png")


def atlas(findings: Findings) -> list[Picture]:
    """Return missed melanomas, false alarms and found melanomas beside their neighbours."""
    if not findings.interpretation.classes.costliest or not findings.keeps_features:
        return []
    try:
        files = draw_atlas(findings.interpretation, findings.folder)
    except LesionfastError as error:
        findings.left_out("the atlas", error)
        return []
    findings.files |= {file.stem: file for file in files}
    return [
        Picture.from_file(file, f"{ATLAS}: {file.stem.removeprefix('atlas_').replace('_', ' ')}")
        for file in files
    ]


def draw_atlas(interpretation: Interpretation, folder: Path, most: int = 6) -> list[Path]:
    """Draw missed melanomas, nevi taken for melanomas and melanomas found, a figure each.

    In each the `most` confident cases, a line each: the image, and the training lesions nearest
    to it by the image features. Raises `LesionfastError` for a run without melanomas and nevi,
    and for what `nearest_to_each` does.
    """
    if interpretation.classes.costliest is None:
        raise LesionfastError(
            f"an atlas of melanomas needs classes of melanoma and nevus; {interpretation.run.path} "
            f"has: {', '.join(interpretation.classes)}. Name a run with both."
        )
    melanoma, nevus = interpretation.classes.costliest
    pairs = {
        "atlas_melanoma_as_nevus": (melanoma, nevus),
        "atlas_nevus_as_melanoma": (nevus, melanoma),
        "atlas_melanoma_right": (melanoma, melanoma),
    }
    tables = {name: interpretation.taken_for(*pair) for name, pair in pairs.items()}
    shown = pd.concat([table.head(most) for table in tables.values()], ignore_index=True)
    nearest = dict(
        zip(shown["image_id"], nearest_to_each(interpretation.run, shown, NEAREST), strict=True)
    )
    files = []
    for name, cases in tables.items():
        total = int((interpretation.rows["truth"] == pairs[name][0]).sum())
        note = f"{len(cases)} of {total} images of {pairs[name][0]}"
        note += f", the {most} most confident shown" if len(cases) > most else ""
        title, nothing = ATLAS_TITLES[name]
        text = subtitle(interpretation, note)
        if cases.empty:
            figure = draw_words(title, text, nothing)
        else:
            lines = f"{text}\n{BESIDE}\n{PER_CENT}"
            figure = draw_lines(cases.head(most), nearest, interpretation.classes, title, lines)
        files.append(save(figure, folder / f"{name}.png", interpretation))
    return files


def draw_lines(
    cases: pd.DataFrame,
    nearest: dict[str, pd.DataFrame],
    classes: Classes,
    title: str,
    subtitle: str,
) -> Figure:
    """Return a figure with a line a case: its image, then its nearest training lesions."""
    size = (NEAREST + 1) * ATLAS_CELL[0] + 0.6, len(cases) * ATLAS_CELL[1] + 1.4
    figure = new_figure(*size, title, subtitle)
    ratios = [1.25] + [1] * NEAREST
    axes = figure.subplots(len(cases), NEAREST + 1, squeeze=False, width_ratios=ratios)
    with FileReader() as reader:
        for line, (_, row) in zip(axes, cases.iterrows(), strict=True):
            draw_cell(line[0], row, decision_caption(row), reader)
            line[0].spines[:].set(color="black", linewidth=1.5)
            neighbours = nearest[row["image_id"]]
            for axis, (_, neighbour) in zip(line[1:], neighbours.iterrows(), strict=False):
                draw_neighbour(axis, neighbour, classes, reader)
            for axis in line[1 + len(neighbours) :]:
                axis.set_axis_off()
    return figure


def draw_neighbour(
    axis: Axes, row: pd.Series, classes: Classes, reader: FileReader | None = None
) -> None:
    """Draw a training lesion in a frame of its class's colour, with its class and similarity."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=class_styles(classes)[row["target"]]["color"], linewidth=3)
    draw_image(axis, row["path"], reader)
    weight = "bold" if row["target"] == classes.melanoma else "normal"
    text = f"{row['target']}  {row['similarity']:.2f}"
    axis.set_title(text, loc="left", fontsize=9, pad=4, weight=weight)
    axis.set_xlabel(patient(row), loc="left", fontsize=8)
