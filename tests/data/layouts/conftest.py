"""Small versions of public layouts, whole and damaged, and what reading them gives."""

import importlib.util
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

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


class Download:
    """A copy of a layout in `path`, with ways to change what lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def edit(self, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        """Rewrite a table."""
        rows = pd.read_csv(self.path / name, dtype=str, keep_default_na=False)
        change(rows).to_csv(self.path / name, index=False)

    def change_cell(self, name: str, row: int, **values: str) -> None:
        """Write values into a row of a table, counted as a spreadsheet does: the first is row 2."""

        def change(rows: pd.DataFrame) -> pd.DataFrame:
            rows.loc[row - 2, [*values]] = [*values.values()]
            return rows

        self.edit(name, change)

    def copy_table(self, name: str, other: str, change: Callable = lambda rows: rows) -> None:
        """Write another version of a table."""
        (self.path / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.path / name, self.path / other)
        self.edit(other, change)

    def remove(self, pattern: str) -> None:
        """Remove the files that fit a pattern, or folders with what is in them."""
        for path in sorted(self.path.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def move(self, name: str, other: str) -> None:
        """Move or rename a file or folder."""
        (self.path / other).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).rename(self.path / other)

    def nest(self) -> None:
        """Put everything two folders deeper."""
        inner = self.path.with_name("inner")
        self.path.rename(inner)
        self.path.mkdir()
        inner.rename(self.path / "archive")
        self.move("archive", "deeper/archive")

    def zip_folder(self, name: str) -> None:
        """Leave the zip file beside the folder that was unpacked from it."""
        with zipfile.ZipFile(self.path / f"{Path(name).name}.zip", "w") as archive:
            for path in sorted((self.path / name).rglob("*.*")):
                archive.write(path, path.relative_to(self.path))

    def draw(self, folder: str, *names: str) -> None:
        """Write tiny pictures, each of another colour."""
        (self.path / folder).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            colour = (number % 256, number // 256, 99)
            Image.new("RGB", (6, 4), colour).save(self.path / folder / f"{name}.jpg")


@pytest.fixture
def download(copied, tmp_path) -> Callable[..., Download]:
    """A function that returns a copy of a layout of make.py to change, or an empty folder."""

    def start(name: str | None = None) -> Download:
        (tmp_path / "empty").mkdir(exist_ok=True)
        return Download(copied(name) if name else tmp_path / "empty")

    return start
