"""The built-in sample: SYNTHETIC lesions drawn from a seed, in the layout of HAM10000.

The images and the metadata belong to no patient. They can be learned in a minute but are not
trivial, so that a bug in training shows: some lesions look like another class, some melanomas like
nevi. In order: the folder, its table, a lesion, its seven painters, a photograph of it.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from lesionfast.cache import cache_folder, check_room, find_or_build, read_note, write_note
from lesionfast.files import disk_errors, sha256, sha256_once, workspace

logger = logging.getLogger("lesionfast")

VERSION = 2  # part of the folder's name: raise it when the pictures or the table change
TABLE, CHECKSUMS = "sample_metadata.csv", "checksums.json"
SIZE = 2_000_000  # bytes that it takes on a disk
WIDTH, HEIGHT = 160, 120
CANVAS, REACH = 112, 1.5  # pixels a side of a lesion's own picture, and its half side in radii

Generator = np.random.Generator
Colour = tuple[float, float, float]


def make_sample(seed: int = 0) -> Path:
    """Return the folder of the synthetic sample in the user's cache.

    It holds sample_metadata.csv and images/*.jpg; the same seed gives the same bytes. It is drawn
    if it is missing or damaged. Raises `LesionfastError` if the disk is full.
    """
    folder = cache_folder() / f"synthetic-sample-v{VERSION}-seed{seed}"
    with disk_errors(folder, SIZE, "Set LESIONFAST_CACHE to another folder."):
        find_or_build(folder, lambda: is_whole(folder) or None, partial(draw_sample, folder, seed))
    return folder


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds the sample as it was drawn; damage is logged."""
    checksums = read_note(folder / CHECKSUMS, {TABLE: str, str: str})
    for name, checksum in (checksums or {}).items():
        if not (folder / name).is_file() or sha256_once(folder / name) != checksum:
            logger.warning("%s is damaged. The sample will be drawn again", folder / name)
            return False
    return checksums is not None


def draw_sample(folder: Path, seed: int) -> None:
    """Draw the sample aside, and rename it when it is whole; an earlier one is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    with workspace(folder.parent) as aside:
        check_room(aside, SIZE)
        made = aside / "sample"
        made.mkdir()
        write_sample(made, seed)
        files = [made / TABLE, *sorted((made / "images").iterdir())]
        checksums = {file.relative_to(made).as_posix(): sha256(file) for file in files}
        write_note(made / CHECKSUMS, checksums)
        os.replace(made, folder)


@dataclass(frozen=True)
class Kind:
    """The images of a class, and who has it where (a site named twice is twice as likely)."""

    images: int
    age: float
    age_spread: float
    male: float
    sites: str
    confirmed_by: str


ANYWHERE = "back, trunk, abdomen, chest, face, neck, scalp, upper extremity, lower extremity"
KINDS = {
    "nv": Kind(150, 43, 15, 0.49, "trunk, trunk, back, abdomen, lower extremity", "follow_up"),
    "mel": Kind(80, 61, 14, 0.62, "back, back, upper extremity, lower extremity, face", "histo"),
    "bkl": Kind(60, 65, 12, 0.56, "back, face, face, trunk, upper extremity", "consensus"),
    "bcc": Kind(45, 67, 11, 0.62, "face, face, back, chest, neck", "histo"),
    "akiec": Kind(35, 68, 10, 0.69, "face, face, scalp, upper extremity, back", "histo"),
    "vasc": Kind(25, 50, 18, 0.48, "trunk, abdomen, chest, lower extremity", "consensus"),
    "df": Kind(25, 51, 13, 0.45, "lower extremity, lower extremity, upper extremity", "histo"),
}


def write_sample(folder: Path, seed: int) -> None:
    """Draw all images, and write the table in the order of the image ids."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir()
    lesions = [(name, size) for name in KINDS for size in draw_sizes(KINDS[name].images, rng)]
    lesions = [lesions[i] for i in rng.permutation(len(lesions))]  # ids must not tell the class
    numbers = iter(rng.permutation(sum(size for _, size in lesions)) + 1)
    rows = []
    for number, (name, size) in enumerate(lesions):
        patient, skin = invent_patient(name, KINDS[name], rng), mix_skin(rng)
        lesion_id, picture = f"SYNTH_LESION_{number:04d}", draw_lesion(name, rng)
        for _ in range(size):
            image_id = f"SYNTH_{next(numbers):05d}"
            view = photograph(picture, skin, rng)
            view.save(folder / "images" / f"{image_id}.jpg", quality=85, comment="synthetic")
            rows.append({"lesion_id": lesion_id, "image_id": image_id, **patient})
    table = pd.DataFrame(rows).sort_values("image_id")
    table.to_csv(folder / TABLE, index=False, lineterminator="\n")


def draw_sizes(images: int, rng: Generator) -> list[int]:
    """Return how many images the lesions of a class have, 1 to 3 each, that add up to `images`."""
    sizes: list[int] = []
    while sum(sizes) < images:
        sizes.append(min(int(rng.choice(3, p=[0.55, 0.3, 0.15])) + 1, images - sum(sizes)))
    return sizes


def invent_patient(name: str, kind: Kind, rng: Generator) -> dict[str, str]:
    """Return dx, dx_type, age, sex and localization as HAM10000 writes them."""
    age = np.clip(5 * round(rng.normal(kind.age, kind.age_spread) / 5), 5, 85)
    sex = ("female", "male")[int(rng.random() < kind.male)]
    sites = kind.sites if rng.random() < 0.5 else ANYWHERE
    return {
        "dx": name,
        "dx_type": kind.confirmed_by if rng.random() < 0.5 else "histo",
        "age": "" if rng.random() < 0.02 else f"{age:.1f}",
        "sex": "unknown" if rng.random() < 0.02 else sex,
        "localization": str(rng.choice(sites.split(", "))),
    }


def mix_skin(rng: Generator) -> np.ndarray:
    """Return a skin colour between light and dark, RGB 0 to 255."""
    light, dark = np.float32((232, 190, 172)), np.float32((172, 122, 98))
    return light + rng.beta(1.2, 2.5) * (dark - light) + rng.normal(0, 3, 3).astype(np.float32)


class Canvas:
    """A lesion's own picture: colour (0 to 255) and cover (0: skin, 1: lesion), both float."""

    def __init__(self, rng: Generator, colour: Colour, *, ragged: float, soft: float) -> None:
        self.rng = rng
        side = np.linspace(-REACH, REACH, CANVAS, dtype=np.float32)
        self.x, self.y = np.meshgrid(side, side)
        self.radius = np.hypot(self.x, self.y)
        angle = np.arctan2(self.y, self.x)
        edge = np.ones_like(self.radius)
        for wave in range(2, 10):
            swing = ragged * rng.normal() / (wave - 1) ** 0.7
            edge += np.float32(swing) * np.cos(wave * angle + np.float32(rng.uniform(0, 6.28)))
        self.edge = np.clip(edge, 0.5, REACH - 0.1)
        self.cover = sigmoid((self.edge - self.radius) / soft)
        near = np.float32(colour) * rng.normal(1, 0.09) + rng.normal(0, 4, 3)
        self.colour = np.ones((CANVAS, CANVAS, 3), np.float32) * near.astype(np.float32)
        self.shade(0.04 * noise(rng, 12))

    def shade(self, amount: np.ndarray) -> None:
        """Make the lesion lighter (amount above 0) or darker, as a share."""
        self.colour *= (1 + amount)[..., None]

    def paint(self, where: np.ndarray, colour: Colour) -> None:
        """Blend a colour in; `where` is how much, 0 to 1."""
        self.colour += np.clip(where, 0, 1)[..., None] * (np.float32(colour) - self.colour)

    def patches(self, cells: int, above: float) -> np.ndarray:
        """Return soft random patches, 0 to 1; the higher `above`, the fewer."""
        return sigmoid((noise(self.rng, cells) - above) * 5)

    def dots(self, count: int, size: float, spread: float = 0.75) -> np.ndarray:
        """Return `count` round dots of a radius of about `size` at random places, 0 to 1."""
        where = np.zeros_like(self.radius)
        for _ in range(count):
            away, angle = spread * self.rng.random() ** 0.5, self.rng.uniform(0, 6.28)
            far = np.hypot(self.x - away * np.cos(angle), self.y - away * np.sin(angle))
            where = np.maximum(where, sigmoid((1 - far / (size * self.rng.uniform(0.6, 1.3))) * 7))
        return where

    def vessels(self, count: int) -> np.ndarray:
        """Return thin branching lines, 0 to 1."""
        picture = Image.new("L", (CANVAS, CANVAS))
        draw = ImageDraw.Draw(picture)
        for _ in range(count):
            start, angle = self.rng.uniform(0.25, 0.75, 2) * CANVAS, self.rng.uniform(0, 6.28)
            for branch in (0.0, *self.rng.normal(0, 0.8, 2)):
                turns = angle + branch + np.cumsum(self.rng.normal(0, 0.35, 9))
                draw.line(wander(start, turns, 4.5), fill=200, width=2)
        return np.asarray(picture, np.float32) / 255

    def picture(self) -> Image.Image:
        """Return colour and cover as an RGBA picture."""
        rgba = np.dstack([np.clip(self.colour, 0, 255), 255 * self.cover])
        return Image.fromarray(rgba.astype(np.uint8))


def wander(start: np.ndarray, turns: np.ndarray, step: float) -> list[tuple[float, float]]:
    """Return the points of a line that takes steps in the directions `turns` (angles)."""
    steps = step * np.column_stack([np.cos(turns), np.sin(turns)])
    return [tuple(point) for point in start + np.cumsum(steps, axis=0)]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the logistic function."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def noise(rng: Generator, cells: int, width: int = CANVAS, height: int = CANVAS) -> np.ndarray:
    """Return smooth noise (height, width) of about unit spread, `cells` bumps across."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def paint_nevus(rng: Generator) -> Canvas:
    """Regular, round, brown, one colour; a little darker in the middle."""
    odd = rng.random() ** 3  # a few are as uneven as a melanoma
    canvas = Canvas(rng, (150, 98, 68), ragged=0.05 + 0.1 * odd, soft=0.09)
    canvas.shade(rng.uniform(-0.3, 0.05) * np.exp(-2 * canvas.radius**2))
    canvas.shade(0.05 * noise(rng, 28))
    canvas.paint(0.6 * odd * canvas.patches(4, 0.3), (85, 52, 42))
    return canvas


def paint_melanoma(rng: Generator) -> Canvas:
    """Dark, of several colours, with a ragged edge; one in four resembles a nevus."""
    typical = rng.uniform(0.0, 0.35) if rng.random() < 0.25 else rng.uniform(0.5, 1.0)
    base = np.float32((138, 88, 62)) - typical * np.float32((40, 30, 18))
    canvas = Canvas(rng, tuple(base), ragged=0.06 + 0.1 * typical, soft=0.06)
    canvas.paint(typical * 0.9 * canvas.patches(4, 0.1), (48, 32, 32))
    canvas.paint(typical * 0.7 * canvas.patches(3, 0.6), (98, 100, 122))
    canvas.paint(typical * 0.7 * canvas.patches(4, 0.9), (196, 140, 126))
    canvas.shade(0.06 * noise(rng, 24))
    return canvas


def paint_keratosis(rng: Generator) -> Canvas:
    """Waxy grey-brown with a sharp edge, light and dark specks (bkl)."""
    canvas = Canvas(rng, (150, 122, 94), ragged=0.08, soft=0.035)
    canvas.shade(0.08 * noise(rng, 9))
    canvas.paint(0.6 * canvas.dots(rng.integers(4, 14), 0.07), (216, 198, 160))
    canvas.paint(0.7 * canvas.dots(rng.integers(4, 14), 0.07), (84, 62, 48))
    canvas.paint(rng.uniform(0, 0.6) * canvas.patches(4, 0.5), (112, 82, 62))
    return canvas


def paint_basal_cell(rng: Generator) -> Canvas:
    """Pink and faint, with branching vessels and blue-grey spots (bcc)."""
    canvas = Canvas(rng, (212, 150, 140), ragged=0.08, soft=0.14)
    canvas.shade(0.06 * noise(rng, 6))
    canvas.paint(0.8 * canvas.vessels(rng.integers(1, 5)), (176, 58, 66))
    canvas.paint(0.75 * canvas.dots(rng.integers(0, 6), 0.17), (104, 104, 126))
    canvas.paint(rng.uniform(0, 0.6) * canvas.patches(4, 0.9), (234, 206, 192))
    return canvas


def paint_actinic(rng: Generator) -> Canvas:
    """Red, faint and scaly (akiec)."""
    canvas = Canvas(rng, (202, 122, 104), ragged=0.08, soft=0.16)
    canvas.shade(0.08 * noise(rng, 7))
    scales = canvas.patches(4, 0.3) * canvas.patches(22, 0.1)
    canvas.paint(rng.uniform(0.4, 0.9) * scales, (236, 218, 186))
    canvas.paint(0.4 * canvas.dots(rng.integers(6, 20), 0.04), (160, 66, 62))
    return canvas


def paint_vascular(rng: Generator) -> Canvas:
    """Red to purple lagoons with a sharp edge."""
    canvas = Canvas(rng, (176, 84, 92), ragged=0.08, soft=0.05)
    purple = rng.random()
    lagoon = (140 - 50 * purple, 28 + 10 * purple, 48 + 40 * purple)
    canvas.paint(0.85 * canvas.dots(rng.integers(5, 14), 0.3, spread=0.85), lagoon)
    return canvas


def paint_fibroma(rng: Generator) -> Canvas:
    """Pale centre with a brown ring that fades into the skin (df)."""
    canvas = Canvas(rng, (164, 112, 84), ragged=0.07, soft=0.15)
    centre = sigmoid((rng.uniform(0.35, 0.6) - canvas.radius + 0.08 * noise(rng, 5)) * 10)
    canvas.shade(0.07 * noise(rng, 28))
    canvas.paint(rng.uniform(0.5, 0.9) * centre, (222, 184, 164))
    return canvas


PAINTERS: dict[str, Callable[[Generator], Canvas]] = {
    "akiec": paint_actinic,
    "bcc": paint_basal_cell,
    "bkl": paint_keratosis,
    "df": paint_fibroma,
    "mel": paint_melanoma,
    "nv": paint_nevus,
    "vasc": paint_vascular,
}


def draw_lesion(name: str, rng: Generator) -> Image.Image:
    """Return a lesion of the class `name` as an RGBA picture; some are faded and hard to tell."""
    canvas = PAINTERS[name](rng)
    brown, pink = np.float32((160, 108, 80)), np.float32((205, 140, 122))
    canvas.paint(0.85 * rng.beta(1, 2.5), brown + rng.random() * (pink - brown))
    canvas.cover *= rng.uniform(0.65, 1)
    return canvas.picture()


def photograph(lesion: Image.Image, skin: np.ndarray, rng: Generator) -> Image.Image:
    """Return one view of a lesion, RGB of WIDTH x HEIGHT: turned, moved, lit, with hairs."""
    scale = CANVAS / (2 * REACH) / rng.uniform(22, 42)  # canvas pixels a pixel of the view
    angle, stretch = rng.uniform(0, 6.28), rng.uniform(0.85, 1.18)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    x, y = WIDTH / 2 + rng.normal(0, 9), HEIGHT / 2 + rng.normal(0, 7)
    a, b, d, e = cos * stretch, -sin, sin * stretch, cos
    centre = CANVAS / 2
    matrix = (a, b, centre - a * x - b * y, d, e, centre - d * x - e * y)
    view = lesion.transform(
        (WIDTH, HEIGHT), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return light(place(view, skin, rng), rng)


def place(view: Image.Image, skin: np.ndarray, rng: Generator) -> Image.Image:
    """Lay a lesion (RGBA) on skin with pores and hairs."""
    pores = 1 + 0.02 * noise(rng, 6, WIDTH, HEIGHT) + 0.012 * noise(rng, 60, WIDTH, HEIGHT)
    ground = np.clip(pores[..., None] * skin, 0, 255).astype(np.uint8)
    picture = Image.fromarray(ground)
    picture.paste(view, mask=view)
    if rng.random() < 0.35:
        draw_hairs(picture, rng)
    return picture


def draw_hairs(picture: Image.Image, rng: Generator) -> None:
    """Draw some dark hairs that lie about the same way."""
    draw = ImageDraw.Draw(picture)
    way, shade = rng.uniform(0, 6.28), rng.uniform(30, 90)
    for _ in range(rng.integers(2, 12)):
        start = rng.uniform(-0.1, 1.0, 2) * (WIDTH, HEIGHT)
        turns = way + rng.normal(0, 0.3) + np.cumsum(rng.normal(0, 0.06, 8))
        colour = (int(shade), int(0.75 * shade), int(0.6 * shade))
        draw.line(wander(start, turns, rng.uniform(5, 12)), fill=colour, width=1)


def light(picture: Image.Image, rng: Generator) -> Image.Image:
    """Change exposure and white balance, and darken towards the corners."""
    x, y = np.linspace(-1, 1, WIDTH, dtype=np.float32), np.linspace(-1, 1, HEIGHT, dtype=np.float32)
    fall = 1 - rng.uniform(0, 0.22) * (x[None] ** 2 + y[:, None] ** 2) / 2
    tint = np.float32(rng.normal(1, 0.07) * rng.normal(1, 0.015, 3))
    lit = np.asarray(picture, np.float32) * fall[..., None].astype(np.float32) * tint
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
