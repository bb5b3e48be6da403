"""The built-in sample: SYNTHETIC lesions drawn from a seed, in the layout of HAM10000.

Nobody's skin: the pictures only borrow what the seven classes are told by in a dermatoscope, so
that a training learns something in a minute and a bug in it shows. Each class has its own
painter; some lesions look like another class, some melanomas like nevi.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lesionfast.data.images import cache_folder
from lesionfast.errors import LesionfastError

VERSION = 1  # part of the folder's name: raise it when the pictures or the table change
WIDTH, HEIGHT = 160, 120
CANVAS, REACH = 112, 1.4  # pixels a side of a lesion's own picture, and its half side in radii
TABLE = "sample_metadata.csv"

Generator = np.random.Generator
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Kind:
    """What is drawn for a class: how many images, and who has it where."""

    images: int
    age: float
    age_spread: float
    male: float
    sites: str
    confirmed_by: str


KINDS = {
    "nv": Kind(150, 43, 15, 0.49, "trunk trunk back abdomen lower_extremity foot", "follow_up"),
    "mel": Kind(80, 61, 14, 0.62, "back back upper_extremity lower_extremity face", "histo"),
    "bkl": Kind(60, 65, 12, 0.56, "back face face trunk upper_extremity", "consensus"),
    "bcc": Kind(45, 67, 11, 0.62, "face face back chest neck", "histo"),
    "akiec": Kind(35, 68, 10, 0.69, "face face scalp upper_extremity hand", "histo"),
    "vasc": Kind(25, 50, 18, 0.48, "trunk abdomen chest lower_extremity", "consensus"),
    "df": Kind(25, 51, 13, 0.45, "lower_extremity lower_extremity upper_extremity", "histo"),
}


def make_sample(folder: Path | None = None, seed: int = 0) -> Path:
    """Return the folder of the synthetic sample, drawn first if it is not there yet.

    It holds sample_metadata.csv and images/*.jpg; the same seed gives the same bytes. Without
    `folder` it lies in the user's cache. Raises `LesionfastError` if `folder` holds other files.
    """
    folder = Path(folder or cache_folder() / f"synthetic-sample-v{VERSION}-seed{seed}")
    if (folder / TABLE).is_file():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise LesionfastError(
            f"{folder} is not empty and holds no {TABLE}. Name an empty folder for the sample."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_sample(aside, seed)
        os.replace(aside, folder)
    except OSError:
        if not (folder / TABLE).is_file():  # another process was faster: its sample is the same
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def write_sample(folder: Path, seed: int) -> None:
    """Draw all images and write the table, the rows in the order of the image ids."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir()
    views = [view for name, kind in KINDS.items() for view in list_views(name, kind, rng)]
    numbers = rng.permutation(len(views)) + 1
    rows = []
    for number, (lesion, picture, row) in zip(numbers, views, strict=True):
        row = {"lesion_id": lesion, "image_id": f"SYNTH_{number:05d}", **row}
        picture.save(folder / "images" / f"{row['image_id']}.jpg", quality=85, comment="synthetic")
        rows.append(row)
    table = pd.DataFrame(rows).sort_values("image_id")
    table.to_csv(folder / TABLE, index=False, lineterminator="\n")


def list_views(name: str, kind: Kind, rng: Generator) -> list[tuple[str, Image.Image, dict]]:
    """Return `kind.images` pictures of lesions of one class: lesion id, picture, other columns."""
    views, lesions = [], 0
    while len(views) < kind.images:
        lesions += 1
        lesion, row, skin = draw_lesion(name, rng), draw_patient(name, kind, rng), skin_tone(rng)
        for _ in range(min(rng.choice(3, p=[0.55, 0.3, 0.15]) + 1, kind.images - len(views))):
            views.append((f"SYNTH_{name}_{lesions:03d}", photograph(lesion, skin, rng), row))
    return views


def draw_patient(name: str, kind: Kind, rng: Generator) -> dict:
    """Return dx, dx_type, age, sex and localization of an invented patient."""
    age = np.clip(5 * round(rng.normal(kind.age, kind.age_spread) / 5), 5, 85)
    return {
        "dx": name,
        "dx_type": kind.confirmed_by if rng.random() < 0.5 else "histo",
        "age": "" if rng.random() < 0.02 else f"{age:.1f}",
        "sex": "unknown" if rng.random() < 0.02 else ("female", "male")[rng.random() < kind.male],
        "localization": str(rng.choice(kind.sites.split())).replace("_", " "),
    }


def noise(rng: Generator, cells: int, size: tuple[int, int] = (CANVAS, CANVAS)) -> np.ndarray:
    """Return smooth noise of about unit spread with bumps of 1/`cells` of the picture."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


class Canvas:
    """A lesion's own picture: colour (float, 0 to 255) and cover (0: skin, 1: lesion)."""

    def __init__(self, rng: Generator, colour: Colour, *, ragged: float, soft: float) -> None:
        self.rng = rng
        side = np.linspace(-REACH, REACH, CANVAS, dtype=np.float32)
        self.x, self.y = np.meshgrid(side, side)
        self.radius, self.angle = np.hypot(self.x, self.y), np.arctan2(self.y, self.x)
        edge = np.ones_like(self.radius)
        for wave in range(2, 9):
            swing = ragged * rng.normal() / wave**0.7
            edge += swing * np.cos(wave * self.angle + rng.uniform(0, 2 * np.pi))
        self.edge = np.clip(edge, 0.45, REACH - 0.1)
        self.cover = sigmoid((self.edge - self.radius) / soft)
        self.colour = np.ones((CANVAS, CANVAS, 3), np.float32) * np.float32(colour)
        self.shade(0.04 * noise(rng, 12))

    def shade(self, amount: np.ndarray) -> None:
        """Make the lesion lighter (amount above 0) or darker, as a share."""
        self.colour *= (1 + amount)[..., None]

    def paint(self, where: np.ndarray, colour: Colour) -> None:
        """Blend a colour in; `where` is how much, 0 to 1."""
        self.colour += np.clip(where, 0, 1)[..., None] * (np.float32(colour) - self.colour)

    def dots(self, count: int, size: float, colour: Colour, spread: float = 0.75) -> np.ndarray:
        """Paint round dots of a radius of about `size` at random; returns where."""
        where = np.zeros_like(self.radius)
        for _ in range(count):
            away, angle = spread * np.sqrt(self.rng.random()), self.rng.uniform(0, 2 * np.pi)
            x, y = away * np.cos(angle), away * np.sin(angle)
            r = np.hypot(self.x - x, self.y - y) / (size * self.rng.uniform(0.6, 1.4))
            where = np.maximum(where, sigmoid((1 - r) * 6))
        self.paint(where, colour)
        return where

    def picture(self) -> Image.Image:
        """Return colour and cover as an RGBA picture."""
        rgba = np.dstack([np.clip(self.colour, 0, 255), 255 * self.cover])
        return Image.fromarray(rgba.astype(np.uint8), "RGBA")


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the logistic function."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def jitter(rng: Generator, colour: Colour, spread: float = 12) -> Colour:
    """Return a colour near the given one."""
    return tuple(np.float32(colour) + rng.normal(0, 0.7 * spread) + rng.normal(0, 0.5 * spread, 3))
