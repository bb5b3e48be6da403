"""A map of the images as a run's backbone sees them: what is alike lies close together."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.canvas import class_styles, drawn_classes, new_figure, save, sign
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.interpretation import Interpretation

FEWEST = 10  # images of which a map makes sense
PERPLEXITY = 30.0
ITERATIONS = 500  # half of scikit-learn's default; the map looks the same


def project(features: np.ndarray, seed: int = 0, perplexity: float = PERPLEXITY) -> np.ndarray:
    """Return features (n, F) in the plane, (n, 2), by PCA to 50 numbers and then t-SNE.

    (van der Maaten and Hinton 2008, J. Mach. Learn. Res. 9:2579.) Neighbours mean something, the
    distances between clusters and their sizes do not. Raises `LesionfastError` for fewer than 10
    images.
    """
    n = len(features)
    if n < FEWEST:
        raise LesionfastError(
            f"{n} images are too few for a map. Choose a split of {FEWEST} or more with --split."
        )
    reduced = PCA(min(50, n, features.shape[1]), random_state=seed).fit_transform(features)
    perplexity = min(perplexity, (n - 1) / 3)
    how = {"perplexity": perplexity, "init": "pca", "max_iter": ITERATIONS, "n_jobs": -1}
    return TSNE(2, random_state=seed, **how).fit_transform(reduced)


def draw_feature_map(interpretation: Interpretation, folder: Path) -> Path:
    """Draw the images of a split by the features kept with the run, coloured by their truth.

    Melanomas taken for nevi are ringed and other errors crossed. Images without kept features are
    left out and counted. Raises `LesionfastError` if the run keeps no features.
    """
    rows, features = interpretation.rows, read_features(interpretation.run)
    known = rows["image_id"].isin(features.index).to_numpy()
    places = project(features.loc[rows["image_id"][known]].to_numpy())
    rows = rows[known]
    left_out = f"; {(~known).sum()} images without features left out" if not known.all() else ""
    figure = new_figure(
        10,
        7.4,
        f"The {len(rows)} images of {interpretation.split} as the image branch sees them",
        f"t-SNE of the image features: close is alike, far apart means little{left_out}",
    )
    axis = figure.subplots()
    truth, decision = rows["truth"].to_numpy(), rows["decision"].to_numpy()
    draw_classes(axis, places, truth, interpretation)
    draw_errors(axis, places, truth, decision, interpretation)
    axis.set(xticks=[], yticks=[], xlabel="t-SNE 1, no unit", ylabel="t-SNE 2, no unit")
    axis.set_aspect("equal")
    axis.spines[:].set_color("0.8")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    sign(figure, interpretation)
    return save(figure, folder / "feature_map.png")


def draw_classes(
    axis: Axes, places: np.ndarray, truth: np.ndarray, interpretation: Interpretation
) -> None:
    """Draw each class's images in its colour and with its mark, the rarest on top."""
    classes, named = interpretation.classes, drawn_classes(interpretation)
    styles = class_styles(classes)
    counts = {name: int((truth == name).sum()) for name in classes}
    order = sorted(classes, key=lambda name: -counts[name])
    for name in classes:
        if not counts[name]:
            continue
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


def draw_errors(
    axis: Axes,
    places: np.ndarray,
    truth: np.ndarray,
    decision: np.ndarray,
    interpretation: Interpretation,
) -> None:
    """Ring the melanomas taken for nevi, and mark every other error by a small black dot."""
    ringed = interpretation.classes.costliest or (None, None)
    missed = (truth == ringed[0]) & (decision == ringed[1])
    others = (truth != decision) & ~missed
    if missed.any():
        label = f"melanoma taken for a nevus, {missed.sum()}"
        ring = {"s": 110, "facecolors": "none", "edgecolors": "black", "linewidths": 1.5}
        axis.scatter(*places[missed].T, **ring, zorder=5, label=label)
    if others.any():
        label = f"other error (rule {interpretation.rule}), {others.sum()}"
        axis.scatter(*places[others].T, s=5, color="black", zorder=4, label=label)
