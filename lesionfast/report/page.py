"""What every figure shares: colours and line styles of the classes, titles, and how it is saved."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from lesionfast.diagnoses import NAMES, full_name
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

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
    folder = resources.files("lesionfast.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def told(interpretation: Interpretation) -> str:
    """Return "test, 1500 images, rule balanced"."""
    return f"{interpretation.split}, {len(interpretation.rows)} images, rule {interpretation.rule}"


BY_IMAGE = "Against the rest, by image"
OF_CLASS = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "average precision",
}
OVER_ALL = {  # plain accuracy last
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "macro_f1": "macro F1",
    "macro_average_precision": "macro average precision",
    "macro_precision": "macro precision",
    "macro_specificity": "macro specificity",
    "kappa": "Cohen's kappa",
    "log_loss": "log loss, nats",
    "brier": "Brier score",
    "accuracy": "accuracy",
}


def pivot(measures: pd.DataFrame, of: list[str], caption: str = BY_IMAGE) -> Table:
    """Return one row a class, one column a metric."""
    rows = []
    for name in of:
        chosen = measures[measures["of"] == name].set_index("metric")
        if chosen.empty:
            continue
        row: dict[str, object] = {"class": full_name(name), "n": int(chosen["n"].iloc[0])}
        for metric, label in OF_CLASS.items():
            found = chosen.loc[metric]
            row |= {label: found["value"]}
            row |= {f"{label}_low": found["low"], f"{label}_high": found["high"]}
        rows.append(row)
    return table_of(pd.DataFrame(rows), caption)


NOT_A_DEVICE = "Not a medical device: for research, not for diagnosis."

INTERVALS = (
    "In brackets 95 % intervals: percentiles of a bootstrap over lesions within each class, or "
    "Wilson's where every resample says the same."
)


def described(interpretation: Interpretation) -> str:
    """Return "test, rule balanced"."""
    return f"{interpretation.split}, rule {interpretation.rule}"


def mark(rule: str, deciding: str) -> str:
    """Return a rule's name, marked if it is the one that decides."""
    return f"{rule} (decides)" if rule == deciding else rule


def label_of(name: str, summary: dict[str, Any]) -> str:
    """Return "mel (melanoma), n 167"."""
    return f"{full_name(name)}, n {summary['counts'][name]}"
