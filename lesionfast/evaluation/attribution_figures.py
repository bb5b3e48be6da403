"""Pictures beside what the model looked at in them, with what age, sex and site added."""

from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from lesionfast.data.images import open_images
from lesionfast.evaluation.attribution import Explanation, explain_images
from lesionfast.evaluation.canvas import GREY, new_figure, save, sign
from lesionfast.evaluation.grids import caption, draw_words, explained
from lesionfast.evaluation.interpretation import Interpretation

COLUMNS = 3
CELL = (4.3, 3.05)  # inches of a picture and its map, with the caption
SIDE = 240  # pixels of a picture
GAP = 8  # pixels between a picture and its map
HEAT = "inferno"
COVER = 0.55  # how much of the colour lies over the picture
CONTOUR = 0.5  # of the largest value
FEWEST_CELLS = 4  # a side: of fewer, each is a third of the picture or more


def draw_attribution(
    interpretation: Interpretation, folder: Path, losses: int = 12, most: int = 24
) -> list[Path]:
    """Draw what speaks for the decision in the top losses, and in melanomas taken for nevi.

    The second figure is left out if the run has no classes mel and nv. Images that can't be read
    are left out and counted. Raises `LesionfastError` for what `explain_images` does.
    """
    tables = {
        "top_losses": (
            interpretation.top_losses(losses),
            "What spoke for the wrong decision: the highest losses",
            "there are no images",
        )
    }
    if interpretation.classes.costliest:
        tables["melanomas_taken_for_nevi"] = (
            interpretation.taken_for().head(most),
            "What spoke for 'nevus' in melanomas taken for nevi",
            "no melanoma was taken for a nevus",
        )
    shown = pd.concat([rows for rows, _, _ in tables.values()]).drop_duplicates("image_id")
    explanation = None
    if len(shown):
        names, decisions = shown["image_id"].tolist(), shown["decision"].tolist()
        explanation = explain_images(interpretation.run, names, decisions)
    return [
        draw_explained(
            interpretation, explanation, rows, title, nothing, folder / f"attribution_{name}.png"
        )
        for name, (rows, title, nothing) in tables.items()
    ]


def draw_explained(
    interpretation: Interpretation,
    explanation: Explanation | None,
    rows: pd.DataFrame,
    title: str,
    nothing: str,
    path: Path,
) -> Path:
    """Draw rows of an interpretation beside their maps for the decision; return the path."""
    split = explained(interpretation)
    if explanation is None or rows.empty:
        figure = draw_words(title, split, nothing)
    else:
        mine = explanation.of(rows["image_id"].tolist())
        left_out = f", {mine.bad} more that can't be read left out" if mine.bad else ""
        subtitle = f"{split}: {len(mine.rows)} images{left_out}\n{about(mine)}"
        figure = draw_maps(mine, rows, title, subtitle)
    sign(figure, interpretation)
    return save(figure, path)


def about(explanation: Explanation) -> str:
    """Return what the maps and the numbers of a figure mean."""
    height, width = explanation.cells
    text = (
        f"right of each picture: Grad-CAM for the decision, from {height} × {width} cells, smoothed"
    )
    if min(height, width) < FEWEST_CELLS:
        text += "\nso few cells show no place in a picture: train at a larger --size for that"
    columns = list(explanation.metadata) if explanation.metadata.to_numpy().any() else []
    if not columns:
        return text
    names = " and ".join(filter(None, [", ".join(columns[:-1]), columns[-1]]))
    return (
        f"{text}\n{names}: what is added to the log-odds of the decision, against the mean of the "
        "training images (integrated gradients)"
    )


def draw_maps(explanation: Explanation, rows: pd.DataFrame, title: str, subtitle: str) -> Figure:
    """Return a figure with a picture, its map and a caption for each image of an explanation."""
    about_model, paths = explanation.run.model, explanation.rows["path"].tolist()
    pictures = open_images(
        paths, SIDE, resize=about_model["resize"], cache=False, skip_bad=True, report=False
    ).pixels
    captions = rows.set_index("image_id")
    n = len(paths)
    columns = min(COLUMNS, max(n, 2))
    lines = max(ceil(n / columns), 1)
    more = 0.16 * len(explanation.metadata.columns)
    figure = new_figure(columns * CELL[0], lines * (CELL[1] + more) + 1.7, title, subtitle)
    figure.get_layout_engine().set(h_pad=0.12)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for i, axis in enumerate(axes):
        if i >= n:
            axis.set_axis_off()
            continue
        row = captions.loc[explanation.rows["image_id"].iloc[i]]
        told = explanation.told(i) if explanation.metadata.to_numpy().any() else []
        draw_pair(axis, pictures[i], explanation.maps[i])
        axis.set_title(str(row.name), loc="left", fontsize=7.5, color=GREY, pad=3)
        axis.set_xlabel("\n".join([caption(row), *told]), loc="left", fontsize=9, linespacing=1.3)
    bar = figure.colorbar(
        ScalarMappable(cmap=HEAT),
        ax=axes,
        location="top",
        shrink=0.25,
        aspect=30,
        pad=0.01,
        anchor=(0, 0),
    )
    bar.set_label("heat, as a share of the most in the image; line at one half", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_pair(axis: Axes, picture: np.ndarray, heat: np.ndarray) -> None:
    """Draw a picture uint8 (S, S, 3) and, right of it, the map (H, W) over it in grey."""
    side = picture.shape[0]
    large = np.asarray(Image.fromarray(heat).resize((side, side), Image.Resampling.BILINEAR))
    gap = np.full((side, GAP, 3), 255, np.uint8)
    axis.imshow(np.hstack([picture, gap, overlay(picture, large)]))
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if large.max() > CONTOUR > large.min():
        x, y = np.arange(side) + side + GAP, np.arange(side)
        axis.contour(x, y, large, levels=[CONTOUR], colors="white", linewidths=1.2)


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return the colours of a map (S, S) over a picture uint8 (S, S, 3) made grey."""
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None]
    colours = 255 * colormaps[HEAT](heat)[..., :3]
    return (COVER * colours + (1 - COVER) * grey).round().astype(np.uint8)
