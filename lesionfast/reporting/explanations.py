"""The explanations chapter: what the model looks at, and which images it finds alike."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from lesionfast.console import Table
from lesionfast.data.images import open_images
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.images import (
    PER_CENT,
    atlas,
    decision_caption,
    draw_top_losses,
    draw_words,
)
from lesionfast.reporting.page import (
    GREY,
    Picture,
    Section,
    class_styles,
    draw_picture,
    drawn_classes,
    new_axes,
    new_figure,
    save,
    subtitle,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lesionfast.evaluation.explain import Explanation

COLUMNS = 3
CELL = (4.3, 3.05)  # inches of a picture and its map, with the caption
SIDE = 240  # pixels of a picture
GAP = 8  # pixels between a picture and its map
HEAT = "inferno"
COVER = 0.55  # how much of the colour lies over the picture
CONTOUR = 0.5  # of the largest value
FEWEST_CELLS = 4  # a side: of fewer, each is a third of the picture or more
FEWEST = 10  # images of which a map of the features makes sense
PERPLEXITY = 30.0
ITERATIONS = 500  # half of scikit-learn's default; the map looks the same
MAP = (
    "t-SNE of the image features: close images are alike, large distances mean little; "
    "melanomas taken for nevi are ringed"
)
MAPS = (
    "Grad-CAM: the part of the image that supports the decision; below each, what the metadata "
    "add to its log-odds (integrated gradients)"
)
OF_MEMBERS = "Maps, and what metadata add, are the weighted means over the models of the ensemble."
CAUTION = (
    "A map shows what the model reacts to, not whether it is right. Its cells are coarse: compare "
    "it with the picture beside it and, where masks were given, with the centred blob below."
)


def pictures(findings: Findings) -> Section:
    """Return the pictures that the model is most wrong about, and what it finds alike."""
    losses = draw_picture(findings, draw_top_losses, "The highest losses")
    return Section("Pictures", pictures=[losses, *atlas(findings), *feature_map(findings)])


def attribution(findings: Findings) -> Section | None:
    """Return the evidence for the decisions in the worst errors; it runs the model, if asked to."""
    if not findings.explain:
        return None
    from lesionfast.evaluation.explain import compare_with_masks, explain_images

    files = draw_attribution(findings.interpretation, findings.folder)
    findings.files |= {file.stem: file for file in files}
    tables = []
    if findings.masks:
        rows = findings.interpretation.rows
        explained = explain_images(findings.run, rows["image_id"].tolist(), rows["decision"])
        overlap = compare_with_masks(explained, Path(findings.masks))
        title = "Overlap of the maps with the lesion masks"
        tables = [Table.from_frame(overlap, title)]
    shown = [Picture.from_file(file, MAPS) for file in files]
    words = [CAUTION, *([OF_MEMBERS] if findings.run.model.get("members") else [])]
    return Section("Evidence for decisions", words, tables, shown)


def draw_attribution(
    interpretation: Interpretation, folder: Path, losses: int = 12, most: int = 24
) -> list[Path]:
    """Draw the evidence for the decision in the top losses, and in melanomas taken for nevi.

    The second figure is left out if the run has no classes mel and nv. Images that can't be read
    are left out and counted. Raises `LesionfastError` for what `explain_images` does.
    """
    from lesionfast.evaluation.explain import explain_images

    cases = {
        "top_losses": (
            interpretation.top_losses(losses),
            "Evidence for the wrong decision: the highest losses",
            "there are no images",
        )
    }
    if interpretation.classes.costliest:
        cases["melanomas_taken_for_nevi"] = (
            interpretation.taken_for().head(most),
            "Evidence for 'nevus' in melanomas taken for nevi",
            "no melanoma was taken for a nevus",
        )
    shown = pd.concat([rows for rows, _, _ in cases.values()]).drop_duplicates("image_id")
    if len(shown):
        names, decisions = shown["image_id"].tolist(), shown["decision"].tolist()
        explanation = explain_images(interpretation.run, names, decisions)
    files = []
    for name, (rows, title, nothing) in cases.items():
        if rows.empty:
            figure = draw_words(title, subtitle(interpretation), nothing)
        else:
            chosen = explanation.select(rows["image_id"].tolist())
            left_out = f", {chosen.bad} more that can't be read left out" if chosen.bad else ""
            text = subtitle(interpretation, f"{len(chosen.rows)} shown{left_out}")
            figure = draw_maps(chosen, rows, title, f"{text}\n{describe_maps(chosen)}")
        file = folder / f"attribution_{name}.png"
        files.append(save(figure, file, interpretation))
    return files


def describe_maps(explanation: Explanation) -> str:
    """Return what the maps and the numbers of a figure mean."""
    height, width = explanation.cells
    text = (
        f"right of each picture: Grad-CAM for the decision, from {height} × {width} cells, "
        f"smoothed; {PER_CENT}"
    )
    if min(height, width) < FEWEST_CELLS:
        text += "\ntoo few cells to locate anything in an image: train at a larger --size"
    columns = list(explanation.metadata) if explanation.metadata.to_numpy().any() else []
    if not columns:
        return text
    names = " and ".join(filter(None, [", ".join(columns[:-1]), columns[-1]]))
    return (
        f"{text}\n{names}: contribution to the log-odds of the decision, against the mean of the "
        "training images (integrated gradients)"
    )


def draw_maps(explanation: Explanation, rows: pd.DataFrame, title: str, subtitle: str) -> Figure:
    """Return a figure with a picture, its map and a caption for each image of an explanation."""
    about = explanation.run.full_model if explanation.run.members else explanation.run.model
    resize, paths = about["resize"], explanation.rows["path"].tolist()
    pictures = open_images(
        paths, SIDE, resize=resize, cache=False, skip_bad=True, report=False
    ).pixels
    captions = rows.set_index("image_id")
    n = len(paths)
    columns = min(COLUMNS, max(n, 2))
    lines = max(ceil(n / columns), 1)
    more = 0.16 * len(explanation.metadata.columns)
    figure = new_figure(columns * CELL[0], lines * (CELL[1] + more) + 1.7, title, subtitle)
    figure.get_layout_engine().set(h_pad=0.12)
    for i, axis in enumerate(new_axes(figure, n, columns)):
        row = captions.loc[explanation.rows["image_id"].iloc[i]]
        added = explanation.describe(i) if explanation.metadata.to_numpy().any() else []
        text = "\n".join([decision_caption(row), *added])
        draw_pair(axis, pictures[i], explanation.maps[i])
        axis.set_title(str(row.name), loc="left", fontsize=7.5, color=GREY, pad=3)
        axis.set_xlabel(text, loc="left", fontsize=9, linespacing=1.3)
    add_heat_bar(figure)
    return figure


def add_heat_bar(figure: Figure) -> None:
    """Add what the colours of the maps mean, above them."""
    from matplotlib.cm import ScalarMappable

    place = {"location": "top", "shrink": 0.25, "aspect": 30, "pad": 0.01, "anchor": (0, 0)}
    bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=figure.axes, **place)
    bar.set_label("heat, as a share of the image's maximum; contour at one half", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


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
    from matplotlib import colormaps

    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None]
    colours = 255 * colormaps[HEAT](heat)[..., :3]
    return (COVER * colours + (1 - COVER) * grey).round().astype(np.uint8)


def feature_map(findings: Findings) -> list[Picture]:
    """Return the map of the images, if the run keeps their features."""
    if not findings.keeps_features:
        return []
    try:
        return [draw_picture(findings, draw_feature_map, MAP)]
    except LesionfastError as error:
        findings.left_out("the feature map", error)
        return []


def draw_feature_map(interpretation: Interpretation, folder: Path) -> Path:
    """Draw the images of a split by the features kept with the run, coloured by their truth.

    Melanomas taken for nevi are ringed and other errors crossed. Images without kept features are
    left out and counted. Raises `LesionfastError` if the run keeps no features.
    """
    rows, features = interpretation.rows, read_features(interpretation.run)
    kept = rows["image_id"].isin(features.index).to_numpy()
    places = project(features.loc[rows["image_id"][kept]].to_numpy())
    rows = rows[kept]
    left_out = f"; {(~kept).sum()} images without features left out" if not kept.all() else ""
    figure = new_figure(
        10,
        7.4,
        f"Map of the image features of {len(rows)} {interpretation.split} images",
        f"t-SNE: images that are close are alike, large distances mean little{left_out}",
    )
    axis = figure.subplots()
    truth, decision = rows["truth"].to_numpy(), rows["decision"].to_numpy()
    draw_classes(axis, places, truth, interpretation)
    mark_errors(axis, places, truth, decision, interpretation)
    axis.set(xticks=[], yticks=[], xlabel="t-SNE 1, no unit", ylabel="t-SNE 2, no unit")
    axis.set_aspect("equal")
    axis.spines[:].set_color("0.8")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return save(figure, folder / "feature_map.png", interpretation)


def project(features: np.ndarray) -> np.ndarray:
    """Return features (n, F) in the plane, (n, 2), by PCA to 50 numbers and then t-SNE.

    (van der Maaten and Hinton 2008, J. Mach. Learn. Res. 9:2579.) Neighbours mean something, the
    distances between clusters and their sizes do not. Raises `LesionfastError` for fewer than 10
    images.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = len(features)
    if n < FEWEST:
        raise LesionfastError(
            f"{n} images are too few for a map. Choose a split of {FEWEST} or more with --split."
        )
    reduced = PCA(min(50, n, features.shape[1]), random_state=0).fit_transform(features)
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    how = {"perplexity": perplexity, "init": "pca", "max_iter": ITERATIONS, "n_jobs": -1}
    return TSNE(2, random_state=0, **how).fit_transform(reduced)


def draw_classes(
    axis: Axes, places: np.ndarray, truth: np.ndarray, interpretation: Interpretation
) -> None:
    """Draw each class's images in its colour and with its mark, the rarest on top."""
    classes, named = interpretation.classes, drawn_classes(interpretation)
    styles = class_styles(classes)
    counts = {name: int((truth == name).sum()) for name in classes}
    order = sorted(classes, key=lambda name: -counts[name])
    for name in filter(counts.get, classes):
        axis.scatter(
            *places[truth == name].T,
            s=24,
            color=styles[name]["color"],
            marker=styles[name]["marker"],
            linewidths=0.3,
            edgecolors="white",
            zorder=2 + order.index(name) / len(classes),
            label=f"{full_name(name)}, {counts[name]}" if name in named else None,
        )


def mark_errors(
    axis: Axes,
    places: np.ndarray,
    truth: np.ndarray,
    decision: np.ndarray,
    interpretation: Interpretation,
) -> None:
    """Ring the melanomas taken for nevi, and mark every other error by a small black dot."""
    melanoma, nevus = interpretation.classes.costliest or (None, None)
    missed = (truth == melanoma) & (decision == nevus)
    others = (truth != decision) & ~missed
    if missed.any():
        label = f"melanoma taken for a nevus, {missed.sum()}"
        ring = {"s": 110, "facecolors": "none", "edgecolors": "black", "linewidths": 1.5}
        axis.scatter(*places[missed].T, **ring, zorder=5, label=label)
    if others.any():
        label = f"other error (rule {interpretation.rule}), {others.sum()}"
        axis.scatter(*places[others].T, s=5, color="black", zorder=4, label=label)
