"""What the tests of figures and tables share."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

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
