"""The melanoma atlas: what was taken for what, beside the training lesions that look like it."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lesionfast.data.files import FileReader
from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.canvas import class_styles, new_figure, save, sign
from lesionfast.evaluation.explain import nearest_of
from lesionfast.evaluation.grids import (
    caption,
    draw_cell,
    draw_grey_box,
    draw_words,
    explained,
    patient,
    read_pixels,
)
from lesionfast.evaluation.interpretation import Interpretation

NEAREST = 5
CELL = (2.15, 2.55)  # inches


@dataclass(frozen=True)
class Block:
    """One kind of cases: their truth and decision, and what the figure is called."""

    truth: str
    decision: str
    title: str
    nothing: str


def blocks_of(melanoma: str, nevus: str) -> dict[str, Block]:
    """Return the kinds of cases by the name of their figure."""
    return {
        "atlas_melanoma_as_nevus": Block(
            melanoma, nevus, "Melanomas taken for nevi", "no melanoma was taken for a nevus"
        ),
        "atlas_nevus_as_melanoma": Block(
            nevus, melanoma, "Nevi taken for melanomas", "no nevus was taken for a melanoma"
        ),
        "atlas_melanoma_right": Block(
            melanoma, melanoma, "Melanomas decided right", "no melanoma was decided right"
        ),
    }


def draw_atlas(interpretation: Interpretation, folder: Path, most: int = 6) -> list[Path]:
    """Draw missed melanomas, nevi taken for melanomas and melanomas decided right, a figure each.

    In each the `most` confident cases, a line each: the image, and the training lesions nearest
    to it by the image features. Raises `LesionfastError` for a run without melanomas and nevi,
    and for what `nearest_of` does.
    """
    if interpretation.classes.costliest is None:
        raise LesionfastError(
            f"an atlas of melanomas needs classes of melanoma and nevus; {interpretation.run.path} "
            f"has: {', '.join(interpretation.classes)}. Name a run with both."
        )
    blocks = blocks_of(*interpretation.classes.costliest)
    tables = {
        name: interpretation.taken_for(block.truth, block.decision)
        for name, block in blocks.items()
    }
    shown = pd.concat([table.head(most) for table in tables.values()], ignore_index=True)
    nearest = dict(
        zip(shown["image_id"], nearest_of(interpretation.run, shown, NEAREST), strict=True)
    )
    return [
        draw_block(interpretation, blocks[name], table, most, nearest, folder / f"{name}.png")
        for name, table in tables.items()
    ]


def draw_block(
    interpretation: Interpretation,
    block: Block,
    cases: pd.DataFrame,
    most: int,
    nearest: dict[str, pd.DataFrame],
    path: Path,
) -> Path:
    """Draw one kind of cases; return the path."""
    total = int((interpretation.rows["truth"] == block.truth).sum())
    subtitle = f"{explained(interpretation)}: {len(cases)} of {total} {block.truth}"
    if len(cases) > most:
        subtitle += f", the {most} most confident shown"
    if cases.empty:
        figure = draw_words(block.title, subtitle, block.nothing)
    else:
        subtitle += (
            "\nright of each image: the training lesions nearest to it by the image features, "
            "and the cosine less the mean"
        )
        shown = cases.head(most)
        figure = draw_lines(shown, nearest, interpretation.classes, block.title, subtitle)
    sign(figure, interpretation)
    return save(figure, path)


def draw_lines(
    cases: pd.DataFrame,
    nearest: dict[str, pd.DataFrame],
    classes: Classes,
    title: str,
    subtitle: str,
) -> Figure:
    """Return a figure with a line a case: its image, then its nearest training lesions."""
    columns = NEAREST + 1
    width, height = columns * CELL[0] + 0.6, len(cases) * CELL[1] + 1.2
    figure = new_figure(width, height, title, subtitle)
    ratios = [1.25] + [1] * NEAREST
    axes = figure.subplots(len(cases), columns, squeeze=False, width_ratios=ratios)
    with FileReader() as reader:
        for line, (_, row) in zip(axes, cases.iterrows(), strict=True):
            draw_cell(line[0], row, caption(row), reader)
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
    """Draw a training lesion in a frame of its class's colour, with its class and likeness."""
    style = class_styles(classes)[row["target"]]
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=style["color"], linewidth=3)
    try:
        axis.imshow(read_pixels(row["path"], reader))
    except (LesionfastError, OSError) as error:
        draw_grey_box(axis, str(error))
    weight = "bold" if row["target"] == classes.melanoma else "normal"
    axis.set_title(
        f"{row['target']}  {row['similarity']:.2f}", loc="left", fontsize=9, pad=4, weight=weight
    )
    axis.set_xlabel(patient(row), loc="left", fontsize=8)
