"""What all chapters share: how a figure looks and is saved, and how sections become a page."""

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import resources
from io import BytesIO
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from lesionfast.console import Cell, Table, printable
from lesionfast.diagnoses import NAMES, plain
from lesionfast.errors import LesionfastError, shorten
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import temporary_folder, write_atomically, write_text
from lesionfast.reporting.advice.sentences import LANGUAGE, read_messages, translate, word
from lesionfast.reporting.figures.words import describe_figure
from lesionfast.run import installed_version

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "0.35"
MOST_CLASSES = 30  # in a figure
DOTS_PER_INCH = 140
DOTS_IN_SVG = 100  # of the images in it
POWER = "$\\mathdefault{"  # begins a number on a logarithmic axis
QUICKLY = {"compress_level": 3}  # PNG: a third of the time, a tenth larger
LARGE, QUALITY = 300_000, 82  # bytes above which a picture loses what nobody sees
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
BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("microsoft-edge", "msedge"),
)
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
PLAYWRIGHT = (
    *("~/.cache/ms-playwright", "~/Library/Caches/ms-playwright"),
    "~/AppData/Local/ms-playwright",
)
PROGRAMS = "chromium*/chrom*/[cC]hrom[ei]*"  # below those folders
# Letters of a text in a figure, beyond which there is no room for what is drawn: at a tick, in a
# legend or above an axis, and across the whole figure. ISIC has diagnoses of 41.
MOST_OF_TICK, MOST_OF_LABEL, MOST_OF_TITLE = 60, 64, 200
LINE_OF_TICK = 34  # letters; longer ones are put into two lines
SLOWEST = 180  # seconds that printing may take
NO_FORMS = "base-uri 'none'; form-action 'none'"
NOT_A_DEVICE = "Not a medical device: for research, not for diagnosis."
INTERVALS = (
    "Brackets hold 95 % intervals: percentiles of a bootstrap over lesions within each class, or "
    "Wilson's interval where all resamples agree."
)


def subtitle(interpretation: Interpretation, *notes: str, rule: bool = True) -> str:
    """Return "test, 600 images, rule balanced; a note; another": what a figure or table is about.

    Without `rule` for what does not depend on the decisions.
    """
    text = interpretation.caption if rule else interpretation.images
    return "; ".join(filter(None, [text, *notes]))


def class_styles(classes: Iterable[str]) -> dict[str, dict]:
    """Return the colour, line style and marker of each class, whichever others there are."""
    meanings: dict[str, str] = {}  # MEL, mel and Melanoma look alike, unless one table has several
    for name in classes:
        meaning = NAMES.get(plain(name), plain(name))
        taken = meaning in meanings.values()
        meanings[name] = f"{meaning} {name}" if taken else meaning
    order = list(dict.fromkeys([*NAMES.values(), *meanings.values()]))
    places = {name: order.index(meaning) for name, meaning in meanings.items()}
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

    Of more than 30 these are melanoma, the other malignant ones, then those with the most images.
    """
    classes = interpretation.classes
    counts = np.bincount(interpretation.truth, minlength=len(classes))
    first = sorted(
        range(len(classes)), key=lambda code: (classes.gravity(classes[code]), -counts[code])
    )
    return [classes[code] for code in sorted(first[:MOST_CLASSES])]


def count_drawn(interpretation: Interpretation) -> str:
    """Return "30 of 300 classes" as a note of a subtitle, '' if all classes are drawn."""
    drawn, total = len(drawn_classes(interpretation)), len(interpretation.classes)
    return f"{drawn} of {total} classes" if drawn < total else ""


def new_figure(width: float, height: float, title: str, subtitle: str = "") -> "Figure":
    """Return a figure of a size in inches with a title, and a subtitle below it, on the left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    text = f"{title}\n{subtitle}" if subtitle else title
    figure.suptitle(text, x=0.012, ha="left", fontsize=12, linespacing=1.4)
    return figure


def new_axes(figure: "Figure", count: int, columns: int, **shared: bool) -> "list[Axes]":
    """Return `count` axes in lines of so many columns; what is left of the last line is empty."""
    lines = max(ceil(count / columns), 1)
    axes = list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return axes[:count]


def style_axis(axis: "Axes", legend: str = "", **settings: Any) -> None:
    """Give an axis its settings and grid, and a legend outside, 'right' of it or 'below' it."""
    axis.set(**settings)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    place = {
        "right": {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "handlelength": 3.5},
        "below": {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)},
    }
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(**place[legend], frameon=False, fontsize=9)


def save(figure: "Figure", path: Path, about: Interpretation | str = "") -> Path:
    """Write a figure as PNG and beside it as SVG, each atomically; return the path of the PNG.

    A small line below names the run and the split that it is `about`, or has these words. The
    canvases are used as they are, because `Figure.savefig` draws everything twice.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if isinstance(about, Interpretation):
        run = about.run
        split = f", split sha256 {run.metrics['split_sha256'][:12]}" if run.finished else ""
        about = f"run {run.path.name}{split}"
    if about:
        figure.supxlabel(about, x=0.012, ha="left", fontsize=7.5, color=GREY)
    take_words_literally(figure)
    png = FigureCanvasAgg(figure)
    words = {"Description": describe_figure(figure)}
    write_atomically(path, lambda aside: png.print_png(aside, metadata=words, pil_kwargs=QUICKLY))
    figure.set_layout_engine("none")  # the SVG keeps the layout of the PNG
    figure.set_dpi(DOTS_IN_SVG)
    svg = partial(FigureCanvasSVG(figure).print_svg, metadata={"Date": None})
    with rc_context({"svg.hashsalt": "lesionfast"}):  # the same figure is the same file
        write_atomically(path.with_suffix(".svg"), svg)
    return path


def take_words_literally(figure: "Figure") -> None:
    """Let a figure show names as they are: no formula between dollars, nothing unseen.

    Of a name of more than 60 letters the middle is left out, so that there is room for what is
    drawn.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    def show(value: float, place: int | None, formatter: Any) -> str:
        return fit_tick(formatter(value, place), place)

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        formatter = axis.get_major_formatter()
        if isinstance(formatter, FixedFormatter | FuncFormatter):  # others write numbers
            axis.set_major_formatter(FuncFormatter(partial(show, formatter=formatter)))
    for text in figure.findobj(Text):
        if not text.get_text().startswith(POWER):
            wide = text.figure is figure and text in figure.texts
            text.set_text(fit_lines(text.get_text(), MOST_OF_TITLE if wide else MOST_OF_LABEL))
            text.set_parse_math(False)


def fit_lines(text: str, most: int) -> str:
    """Return a text in which nothing is unseen, and no line longer than so many letters."""
    return "\n".join(shorten(line, most) for line in printable(text).split("\n"))


def fit_tick(text: str, place: int | None) -> str:
    """Return the text of a tick in lines of `LINE_OF_TICK` letters.

    One whose middle is left out begins with its place on the axis: others may begin and end alike.
    """
    whole = printable(text)
    cut = fit_lines(whole, MOST_OF_TICK)
    numbered = cut if cut == whole or place is None else f"{place + 1}: {cut}"
    return "\n".join(
        fill(line, LINE_OF_TICK) if len(line) > LINE_OF_TICK else line
        for line in numbered.split("\n")
    )


@dataclass(frozen=True)
class Picture:
    """A figure of a page: its caption, its PNG as a data URI, and its numbers in words, by line.

    `alternative` stands in place of the caption for those who do not see it.
    """

    words: str
    source: str
    alternative: str = ""
    numbers: Sequence[str] = ()

    @classmethod
    def from_file(cls, path: Path, words: str) -> "Picture":
        """Return a PNG file as a picture that the page carries in itself; a large one as WebP."""
        data, kind = path.read_bytes(), "png"
        with Image.open(path) as picture:
            numbers = picture.info.get("Description", "").splitlines()
        if len(data) > LARGE:
            with Image.open(path) as picture, BytesIO() as file:
                picture.convert("RGB").save(file, "WEBP", quality=QUALITY)
                data, kind = file.getvalue(), "webp"
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
        return cls(words, source, numbers=numbers)


def draw_picture(
    findings: Findings,
    draw: Callable[..., Path],
    words: str,
    *more: Any,
    read: Interpretation | None = None,
) -> Picture:
    """Return the figure of `draw(read, *more, folder)`, drawn once, as a picture.

    `read` are the predictions of the findings unless given.
    """
    return Picture.from_file(findings.drawn(draw, *more, read=read), words)


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading; a folded one shows its content when it is opened."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = False

    @property
    def anchor(self) -> str:
        """The name that a link to the section has."""
        return self.title.lower().replace(" ", "-")


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section],
    headline: dict[str, Any] | None = None,
    numbers: Sequence[tuple[str, Cell]] = (),
    advice: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> Path:
    """Write sections as one HTML file that carries all it shows; return its path.

    `headline` has the name and the cell of the first number, words about it, and the hash of the
    split; `numbers` are the names and cells of those that follow. `advice` stands before them all:
    a sentence, and what it is derived from; then `limits`, sentences on when not to rely on it.
    """
    text = render(
        "report.html",
        title=title,
        advice=advice,
        limits=limits,
        subtitle=f"lesionfast report. {NOT_A_DEVICE}",
        headline=headline,
        numbers=numbers,
        sections=sections,
        footer=f"lesionfast {installed_version()}. {INTERVALS} {NOT_A_DEVICE}",
        version=installed_version(),
    )
    return write_text(path, text)


def print_pdf(page: Path) -> Path:
    """Print a page to a PDF beside it with Chromium, and return the path of that.

    Raises `LesionfastError` where no browser is found, or it fails.
    """
    browser, to = find_browser(), page.with_suffix(".pdf")

    def write(aside: Path) -> None:
        with temporary_folder() as profile:
            quiet = ["--headless", "--disable-gpu", "--no-pdf-header-footer"]
            root = ["--no-sandbox"] if hasattr(os, "geteuid") and not os.geteuid() else []
            places = [f"--user-data-dir={profile}", f"--print-to-pdf={aside.absolute()}"]
            command = [browser, *quiet, *root, *places, page.absolute().as_uri()]
            try:
                done = subprocess.run(  # noqa: S603 - a list without a shell; the browser was found
                    command, capture_output=True, text=True, timeout=SLOWEST
                )
                told = done.stderr
            except (OSError, subprocess.TimeoutExpired) as error:
                told = str(error)
        if not aside.is_file():
            last = (told.strip().splitlines() or ["it says nothing"])[-1]
            raise LesionfastError(
                f"{browser} did not print {page}: {last[:200]}. Open the page in a browser and "
                "print it there."
            )

    return write_atomically(to, write)


def find_browser() -> str:
    """Return the program of Chromium, Chrome or Edge, or of Playwright's browser.

    Raises `LesionfastError` if there is none.
    """
    found = [shutil.which(name) for name in BROWSERS]
    found += [place for place in PLACES if Path(place).is_file()]
    for folder in PLAYWRIGHT:
        found += sorted(map(str, Path(folder).expanduser().glob(PROGRAMS)), reverse=True)
    if program := next(filter(None, found), None):
        return program
    raise LesionfastError(
        "printing a PDF takes Chromium, and neither it nor Chrome or Edge was found. Install one, "
        "such as by: apt install chromium. Or leave out --pdf, and print report.html in a browser."
    )


def render(template: str, **values: Any) -> str:
    """Return a template of this package filled with values, which are escaped.

    `page` are the messages of all pages, `lang` is their language, and `translate` puts columns and
    values of metadata into it.
    """
    environment = Environment(
        loader=FunctionLoader(read_template),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["exact"] = exact
    style, script = read_template("page.css"), read_template("page.js")
    allowed = f"style-src '{hash_of(style)}'; script-src '{hash_of(script)}'"
    policy = f"default-src 'none'; img-src data:; {allowed}; {NO_FORMS}"
    shared = {"policy": Markup(policy)}  # noqa: S704 - made of digests and words of our own
    shared |= {"style": style, "script": script, "page": read_messages()["page"]}
    shared |= {"lang": LANGUAGE.get(), "translate": translate, "word": word}
    return environment.get_template(template).render(**shared, **values)


def exact(value: str) -> Markup:
    """Return a value as HTML that stays letter by letter what it is, unseen ones too.

    For what a page sends back, such as the name of an image.
    """
    return escape(value).replace("\r", Markup("&#13;"))


def hash_of(text: str) -> str:
    """Return what names the only style or script of a page that a browser may use."""
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode('ascii')}"


def read_template(name: str) -> str:
    """Return the text of a template, style or script of this package."""
    folder = resources.files("lesionfast.reporting") / "templates"
    return (folder / name).read_text(encoding="utf-8")
