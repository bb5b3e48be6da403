"""Small versions of public layouts, whole and damaged, and what reading them gives."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lesionfast.config import SplitConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError

MAKE = Path(__file__).parents[4] / "shared" / "layouts" / "make.py"


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Callable[[str], Path]:
    """A function that writes one of the public layouts, once, and returns its folder."""
    if not MAKE.is_file():
        pytest.skip("there is no ../shared/layouts/make.py, which writes public layouts")
    spec = importlib.util.spec_from_file_location("make_layouts", MAKE)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    out = tmp_path_factory.mktemp("layouts")

    def write(name: str) -> Path:
        if not (out / name).exists():
            (out / name).mkdir()
            getattr(make, name)(out / name)
        return out / name

    return write


@pytest.fixture
def copied(written, tmp_path) -> Callable[[str], Path]:
    """A function that returns a copy of a layout, to damage it; its images are hard links."""

    def link_image(source: str, target: str) -> None:
        (shutil.copy if source.endswith((".csv", ".tab")) else os.link)(source, target)

    def copy(name: str) -> Path:
        return shutil.copytree(written(name), tmp_path / name, copy_function=link_image)

    return copy


@pytest.fixture(scope="session")
def summarize() -> Callable[..., tuple[int, int, int]]:
    """A function that loads and splits a folder; returns its images, classes and groups."""

    def load(folder: Path, **options: object) -> tuple[int, int, int]:
        df = load_dataset(SplitConfig(data=str(folder), **options))
        assert (df.groupby("group")["split"].nunique() == 1).all(), "a group is in several parts"
        return len(df), df["target"].nunique(), df["group"].nunique()

    return load


@pytest.fixture(scope="session")
def refuse(summarize) -> Callable[..., str]:
    """A function that returns the message with which a folder is refused."""

    def load(folder: Path, **options: object) -> str:
        with pytest.raises(LesionfastError) as error:
            summarize(folder, **options)
        return str(error.value)

    return load
