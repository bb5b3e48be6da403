"""A figure in words: its titles, labels and numbers, for those who can't see it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 7  # of a curve, evenly spaced over its length
MOST = 6000  # characters


def describe_figure(figure: "Figure") -> str:
    """Return what a figure shows, axis by axis, a line each: titles, curves, bars and cells."""
    title = figure.get_suptitle()
    lines = [one_line(title)] if title else []
    for axis in figure.axes:
        if axis.get_visible() and (told := "; ".join(describe_axis(axis))):
            lines.append(f"{told}.")
    text = "\n".join(lines)
    return text if len(text) <= MOST else f"{text[:MOST].rsplit(' ', 1)[0]} …"


def one_line(text: str) -> str:
    """Return a text of several lines as one."""
    return ", ".join(part.strip() for part in str(text).splitlines() if part.strip())


def describe_axis(axis: "Axes") -> Iterator[str]:
    """Yield what an axis shows, a part each."""
    for place in ("left", "center", "right"):
        if text := axis.get_title(place):
            yield one_line(text)
    names = [one_line(text) for text in (axis.get_ylabel(), axis.get_xlabel())]
    if all(names):
        yield f"{names[0]} over {names[1]}"
    elif any(names):
        yield "".join(names)
    for line in axis.get_lines():
        label = str(line.get_label())
        if label and not label.startswith("_") and len(line.get_xdata()):
            yield f"{one_line(label)}: {describe_points(axis, *line.get_data())}"
    for bars in axis.containers:
        if type(bars).__name__ == "BarContainer":
            yield from describe_bars(axis, bars)
    yield from (describe_text(axis, text) for text in axis.texts if str(text.get_text()).strip())


def describe_points(axis: "Axes", x: Any, y: Any) -> str:
    """Return some points of a curve: "0.1 at 0, 0.5 at 1"."""
    x, y = np.asarray(x), np.asarray(y)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).round().astype(int))
    return ", ".join(f"{show(y[i])} at {find_label(axis.xaxis, x[i])}" for i in chosen)


def describe_bars(axis: "Axes", bars: Any) -> Iterator[str]:
    """Yield the values of bars, by the labels of their places."""
    lying = getattr(bars, "orientation", "vertical") == "horizontal"
    values = []
    for bar in bars.patches[:60]:
        value = bar.get_width() if lying else bar.get_height()
        middle = bar.get_y() + bar.get_height() / 2 if lying else bar.get_x() + bar.get_width() / 2
        values.append(f"{show(value)} at {find_label(axis.yaxis if lying else axis.xaxis, middle)}")
    label = str(bars.get_label())
    if values:
        yield f"{'' if label.startswith('_') else one_line(label) + ': '}{', '.join(values)}"


def describe_text(axis: "Axes", text: Any) -> str:
    """Return a text in an axis; that of a cell of a matrix by its row and column."""
    words = one_line(text.get_text())
    if not axis.images or text.get_transform() != axis.transData:
        return words
    x, y = text.get_position()
    row, column = find_label(axis.yaxis, y), find_label(axis.xaxis, x)
    return f"{row} as {column}: {words}"


def find_label(axis: Any, place: Any) -> str:
    """Return the label of a tick at a place, else the place as a number."""
    if isinstance(place, str):
        return place
    labels = (
        axis.get_ticklabels() if type(axis.get_major_locator()).__name__ == "FixedLocator" else []
    )
    for position, label in zip(axis.get_ticklocs(), labels, strict=False):
        if abs(position - place) < 0.25 and label.get_text():
            return one_line(label.get_text())
    return show(place)


def show(value: Any) -> str:
    """Return a number in three digits, or anything else as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return f"{number:.3g}"
