"""What every figure shares: colours and line styles of the classes, titles, and how it is saved."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lesionfast.diagnoses import NAMES
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_atomically

GREY = "0.35"
MOST_CLASSES = 30  # in a figure
DOTS_PER_INCH = 140
DOTS_IN_SVG = 100  # of the images in it
QUICKLY = {"compress_level": 3}  # PNG: a third of the time, a tenth larger
# Okabe and Ito's palette, which colour-blind people can tell apart, without its yellow.
COLOURS = ("#CC79A7", "#E69F00", "#009E73", "#7F7F7F", "#D55E00", "#0072B2", "#56B4E9", "#000000")
DASHES = (
    (0, (5, 1.5)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (3, 1.5)),
    (0, (1.2, 1.2)),
    "solid",
    (0, (8, 2)),
    (0, (4, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
MARKERS = "osD^Pv*Xph<>"


def class_styles(classes: Iterable[str]) -> dict[str, dict]:
    """Return each class's colour, line style and marker, the same whichever others there are."""
    classes = list(classes)
    order = [*NAMES, *(name for name in classes if name not in NAMES)]
    places = {name: order.index(name) for name in classes}
    return {
        name: {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": DASHES[place % len(DASHES)],
            "marker": MARKERS[place % len(MARKERS)],
        }
        for name, place in places.items()
    }


def drawn_classes(interpretation: Interpretation) -> list[str]:
    """Return the classes that fit into a figure, in their order.

    Of more than 30 these are melanoma, the other malignant ones, then those of the most images.
    """
    classes = interpretation.classes
    counts = np.bincount(interpretation.truth, minlength=len(classes))
    first = sorted(
        range(len(classes)), key=lambda code: (classes.gravity(classes[code]), -counts[code])
    )
    return [classes[code] for code in sorted(first[:MOST_CLASSES])]


def count_drawn(interpretation: Interpretation) -> str:
    """Return "; 30 of 300 classes" as the end of a subtitle, '' where all are drawn."""
    all_classes = len(interpretation.classes)
    drawn = len(drawn_classes(interpretation))
    return f"; {drawn} of {all_classes} classes" if drawn < all_classes else ""


def new_figure(width: float, height: float, title: str, subtitle: str = "") -> Figure:
    """Return a figure of a size in inches with a title, and one line below it, on the left."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    text = f"{title}\n{subtitle}" if subtitle else title
    figure.suptitle(text, x=0.012, ha="left", fontsize=12, linespacing=1.4)
    return figure


def sign(figure: Figure, interpretation: Interpretation) -> None:
    """Write at the foot which run, and which split of the data, the figure is about."""
    run = interpretation.run
    split = f", split sha256 {run.metrics['split_sha256'][:12]}" if run.finished else ""
    text = f"run {run.path.name}{split}"
    figure.supxlabel(text, x=0.012, ha="left", fontsize=7.5, color=GREY)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and beside it as SVG, each atomically; return the path of the PNG.

    Straight from their canvases: `Figure.savefig` draws everything twice.
    """
    png = FigureCanvasAgg(figure)
    write_atomically(path, lambda aside: png.print_png(aside, pil_kwargs=QUICKLY))
    figure.set_layout_engine("none")  # what the first has laid out the second keeps
    figure.set_dpi(DOTS_IN_SVG)
    svg = partial(FigureCanvasSVG(figure).print_svg, metadata={"Date": None})
    with rc_context({"svg.hashsalt": "lesionfast"}):  # the same figure is the same file
        write_atomically(path.with_suffix(".svg"), svg)
    return path
