"""What the tests of figures and tables share."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lesionfast.evaluation.interpretation import Interpretation


@pytest.fixture
def splits(make_run):
    """Test and validation of a run."""
    run = make_run(n=400)
    return Interpretation.from_run(run), Interpretation.from_run(run, "valid")


@pytest.fixture
def legend() -> Callable:
    """A function that gives the texts of an axis's legend."""
    return lambda axis: [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.fixture
def words() -> Callable:
    """A function that gives all text on a figure."""

    def read(figure) -> str:
        texts = [
            each.get_text()
            for axis in figure.axes
            for each in axis.findobj(match=lambda artist: hasattr(artist, "get_text"))
        ]
        return "\n".join([figure.get_suptitle(), figure.get_supxlabel(), *texts])

    return read


@pytest.fixture
def check_figure() -> Callable:
    """A function that finds a PNG with something on it, and an SVG beside it."""

    def check(path, name) -> None:
        assert path.name == name
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
        assert 0.005 < (grey < 200).mean() < 0.9
        assert "<svg" in path.with_suffix(".svg").read_text()[:1000]

    return check


@pytest.fixture
def render() -> Callable:
    """A function that gives the lines of a table on a terminal of a width, without colours."""

    def lines(table, width: int = 80) -> list[str]:
        console = Console(file=io.StringIO(), width=width, color_system=None, markup=False)
        console.print(table.to_rich())
        return [line.rstrip() for line in console.file.getvalue().splitlines()]

    return lines


@pytest.fixture
def line_of() -> Callable:
    """A function that gives the words of the first line that starts with a text."""

    def find(lines: list[str], start: str) -> list[str]:
        return next(line for line in lines if line.strip().startswith(start)).split()

    return find
