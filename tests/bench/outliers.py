"""Which pictures get no decision: 300 that are not dermoscopic, test images, melanomas on a phone.

    python tests/bench/outliers.py RUN --save DIR

RUN is a run on HAM10000 whose data is found. Pictures are drawn, or made of its test images, with a
seed; --save keeps them to look at. Nothing is fitted here: the run's own rule decides.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont
from scipy import ndimage

from lesionfast.data.images import read_image
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import Classes
from lesionfast.run import Run
from lesionfast.serving.predictor import Predictor

SIZE = (800, 600)
DRAWN_FROM = 150  # test images, for pasted lesions and degraded images
MELANOMA, SKIN = "phone photo of a melanoma", "dermoscopic skin, no lesion"
TONES = [(250, 222, 200), (238, 200, 170), (222, 178, 142), (190, 138, 102), (140, 94, 66)]
TEXT = (
    "invoice total amount due date patient letter report reference item quantity price address "
    "street city account payment number thank you terms bank order page from regarding please the "
    "of and with for is 2024 118.40 19 % EUR 7 12 45.00 3,210 Dr. No. net gross tax unit clinic"
)
WORDS = TEXT.split()
Random = np.random.Generator


def smooth(rng: Random, size: tuple[int, int], cells: int) -> np.ndarray:
    """Return smooth noise (H, W) of mean 0 and spread 1, with so many bumps a side."""
    grid = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    noise = np.asarray(grid.resize(size, Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def as_image(values: np.ndarray) -> Image.Image:
    """Return values (H, W, 3) in 0..255 as a picture."""
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def colour(rng: Random, low: int = 0, high: int = 255) -> tuple[int, int, int]:
    """Return a random colour."""
    return tuple(int(value) for value in rng.integers(low, high + 1, 3))


def muted(rng: Random, low: int = 30, high: int = 230) -> np.ndarray:
    """Return a random colour as walls, cloth and ground have it."""
    grey = rng.uniform(low, high)
    return np.clip(grey + rng.normal(0, 0.12 * grey + 6, 3), 0, 255)


def skin(rng: Random, size: tuple[int, int] = SIZE, lines: float = 1.0) -> np.ndarray:
    """Return skin (H, W, 3): a tone, blotches, pores, skin lines, light from one side, hairs."""
    tone = np.array(TONES[rng.integers(len(TONES))]) + rng.normal(0, 6, 3)
    values = np.full((size[1], size[0], 3), tone)
    values += smooth(rng, size, 6)[..., None] * (2, 4, 4) + smooth(rng, size, 30)[..., None] * 1.5
    pores = ndimage.gaussian_filter(rng.normal(size=(size[1], size[0])), rng.uniform(0.8, 2.0))
    values += (pores / pores.std())[..., None] * rng.uniform(1.5, 4)
    y, x = np.mgrid[: size[1], : size[0]]
    for angle in rng.uniform(0, np.pi, 2):
        along = x * np.cos(angle) + y * np.sin(angle) + 9 * smooth(rng, size, 9)
        values -= lines * 2.5 * (np.sin(along / rng.uniform(2.5, 5)) > 0.8)[..., None]
    angle = rng.uniform(0, 2 * np.pi)
    light = (x / size[0] - 0.5) * np.cos(angle) + (y / size[1] - 0.5) * np.sin(angle)
    values *= 1 + rng.uniform(0, 0.35) * light[..., None]
    picture = as_image(values)
    if rng.random() < 0.4:
        draw_hairs(rng, picture)
    return np.asarray(picture).astype(float)


def draw_hairs(rng: Random, picture: Image.Image) -> None:
    """Draw short thin hairs that lie much alike."""
    draw, lean = ImageDraw.Draw(picture), rng.uniform(0, np.pi)
    for _ in range(rng.integers(10, 60)):
        x, y = rng.uniform(0, picture.width), rng.uniform(0, picture.height)
        angle, length = lean + rng.normal(0, 0.3), rng.uniform(20, 70)
        end = (x + length * np.cos(angle), y + length * np.sin(angle))
        draw.line([(x, y), end], fill=colour(rng, 40, 110), width=1)


def write_text(rng: Random, draw: ImageDraw.ImageDraw, box: tuple, height: int, ink: tuple) -> None:
    """Fill a box (left, top, right, bottom) with lines of words."""
    left, top, right, bottom = box
    font = ImageFont.load_default(height)
    for y in range(int(top), int(bottom - height), int(height * 1.5)):
        line = " ".join(rng.choice(WORDS, 40))
        wanted = (right - left) * rng.choice([1, 1, 0.9, 0.5])
        while draw.textlength(line, font) > wanted and " " in line:
            line = line.rpartition(" ")[0]
        draw.text((left, y), line, ink, font)


def document(rng: Random) -> Image.Image:
    """Draw a letter or an invoice: flat as a scan, or lying on a table."""
    paper = Image.new("RGB", (600, 840), colour(rng, 240, 255))
    draw, ink = ImageDraw.Draw(paper), colour(rng, 0, 60)
    draw.rectangle((40, 40, 40 + rng.integers(60, 200), 90), colour(rng))
    write_text(rng, draw, (340, 40, 560, 130), 14, ink)
    draw.text((40, 170), str(rng.choice(WORDS)).title(), ink, ImageFont.load_default(30))
    if rng.random() < 0.5:
        rows = rng.integers(5, 12)
        for row in range(rows + 1):
            y = 240 + 40 * row
            draw.line((40, y, 560, y), ink)
            write_text(rng, draw, (50, y + 8, 360, y + 34), 16, ink)
            write_text(rng, draw, (460, y + 8, 550, y + 34), 16, ink)
        write_text(rng, draw, (40, 300 + 40 * rows, 560, 820), 14, ink)
    else:
        write_text(rng, draw, (40, 240, 560, 800), int(rng.integers(12, 20)), ink)
    if rng.random() < 0.5:
        return paper
    table = wood(rng) if rng.random() < 0.6 else Image.new("RGB", SIZE, colour(rng, 20, 200))
    turned = paper.convert("RGBA").rotate(rng.uniform(-25, 25), expand=True)
    scale = rng.uniform(0.7, 1.3) * SIZE[1] / turned.height
    turned = turned.resize((int(turned.width * scale), int(turned.height * scale)))
    place = tuple((side - own) // 2 for side, own in zip(SIZE, turned.size, strict=True))
    table.paste(turned, place, turned)
    light = 1 + 0.15 * smooth(rng, SIZE, 3)[..., None]
    return as_image(np.asarray(table) * light * (1, rng.uniform(0.9, 1), rng.uniform(0.75, 1)))


def screenshot(rng: Random) -> Image.Image:
    """Draw a window with a bar, a side list and text, bubbles or a bar chart in it."""
    dark = rng.random() < 0.4
    back, ink = ((30, 30, 36), (220, 220, 220)) if dark else (colour(rng, 240, 255), (30, 30, 30))
    picture = Image.new("RGB", SIZE, back)
    draw, accent = ImageDraw.Draw(picture), colour(rng, 30, 220)
    draw.rectangle((0, 0, SIZE[0], 48), accent)
    write_text(rng, draw, (20, 12, 300, 40), 18, (255, 255, 255))
    draw.rectangle((0, 48, 180, SIZE[1]), tuple(max(0, value - 14) for value in back))
    write_text(rng, draw, (16, 70, 165, 560), 15, ink)
    kind = rng.integers(3)
    if kind == 0:
        write_text(rng, draw, (210, 80, 780, 560), int(rng.integers(13, 22)), ink)
    for number in range(6 if kind == 1 else 0):
        left, y = 210 + 220 * (number % 2), 70 + 86 * number
        draw.rounded_rectangle((left, y, left + 330, y + 70), 16, colour(rng, 150, 240))
        write_text(rng, draw, (left + 16, y + 10, left + 310, y + 66), 15, (20, 20, 20))
    for number in range(9 if kind == 2 else 0):
        top = rng.integers(120, 480)
        draw.rectangle((230 + 60 * number, top, 270 + 60 * number, 540), colour(rng, 60, 220))
    return picture


def face(rng: Random) -> Image.Image:
    """Draw a face before a wall: hair, neck, shirt, eyes, brows, nose, mouth, light and shade."""
    tone = np.array(TONES[rng.integers(len(TONES))])
    shade = tuple((tone * 0.85).astype(int))
    hair = tuple(int(value) for value in muted(rng, 15, 110))
    picture = as_image(np.broadcast_to(muted(rng, 60), (*SIZE[::-1], 3)))
    draw, tone = ImageDraw.Draw(picture), tuple(int(value) for value in tone)
    x, y = 400 + rng.integers(-60, 60), 280 + rng.integers(-40, 40)
    w, h = rng.integers(110, 170), rng.integers(160, 220)
    draw.ellipse((x - w - 25, y - h - 45, x + w + 25, y + h * rng.uniform(0.2, 1)), hair)
    draw.rectangle((x - w // 2, y, x + w // 2, 600), shade)
    shirt = tuple(int(value) for value in muted(rng))
    draw.ellipse((x - 2 * w, y + h + 20, x + 2 * w, y + 3 * h), shirt)
    draw.ellipse((x - w, y - h, x + w, y + h), tone)
    draw.pieslice((x - w, y - h - 5, x + w, y + h // 3), 180, 360, hair)
    draw.ellipse((x - w + 10, y - h * 0.7, x + w - 10, y + h), tone)
    for side in (-1, 1):
        eye, r = x + side * w * 0.42, w * 0.16
        draw.ellipse((eye - r, y - r * 0.6 - 20, eye + r, y + r * 0.6 - 20), (245, 245, 240))
        draw.ellipse(
            (eye - r / 2, y - r / 2 - 20, eye + r / 2, y + r / 2 - 20), colour(rng, 20, 120)
        )
        draw.line((eye - r, y - 55, eye + r, y - 60), hair, 9)
    draw.polygon([(x, y - 10), (x - 18, y + 50), (x + 18, y + 50)], shade)
    draw.chord((x - w * 0.4, y + h * 0.4, x + w * 0.4, y + h * 0.7), 0, 180, (170, 70, 70))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4)))
    light = 1 + 0.12 * smooth(rng, SIZE, 4)[..., None]
    return as_image(np.asarray(picture) * light + rng.normal(0, 4, (*SIZE[::-1], 1)))


def wood(rng: Random) -> Image.Image:
    """Draw a wooden board."""
    y = np.mgrid[: SIZE[1], : SIZE[0]][0]
    rings = np.sin((y + 40 * smooth(rng, SIZE, 4)) / rng.uniform(4, 20))
    base = np.array([rng.uniform(120, 210), rng.uniform(80, 140), rng.uniform(40, 90)])
    return as_image(base * (1 + 0.15 * rings[..., None] + 0.05 * smooth(rng, SIZE, 60)[..., None]))


def texture(rng: Random) -> Image.Image:
    """Draw wood, bricks, cloth, tiles, gravel or marble."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]].astype(float)
    kind, a, b = rng.integers(6), np.array(colour(rng, 90, 255)), np.array(colour(rng, 0, 200))
    if kind == 0:
        return wood(rng)
    period = rng.uniform(8, 80)
    if kind == 1:
        row = np.floor(y / period)
        joint = (y % period < 4) | ((x + (row % 2) * period) % (2 * period) < 4)
        share = np.where(joint, 1.0, 0.2 * smooth(rng, SIZE, 24))
    elif kind == 2:
        share = 0.5 + 0.25 * np.sin(x * 2 * np.pi / period) + 0.25 * np.sin(y * 2 * np.pi / period)
    elif kind == 3:
        share = ((np.floor(x / period) + np.floor(y / period)) % 2).astype(float)
    elif kind == 4:
        share = (smooth(rng, SIZE, int(rng.integers(40, 120))) > 0).astype(float)
    else:
        share = 0.5 + 0.5 * np.sin(6 * smooth(rng, SIZE, int(rng.integers(4, 16))))
    values = a + (b - a) * np.clip(share, 0, 1)[..., None] + rng.normal(0, 5, (*SIZE[::-1], 1))
    return as_image(values)


def landscape(rng: Random) -> Image.Image:
    """Draw a sky that changes colour, a sun, hills one behind the other, or the sea."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]].astype(float)
    top = np.array([70, 130, 200]) + rng.normal(0, 35, 3)
    low = np.array([[225, 230, 235], [245, 190, 130], [240, 150, 130]][rng.integers(3)])
    values = top + (low - top) * (y / SIZE[1])[..., None] + 8 * smooth(rng, SIZE, 5)[..., None]
    if rng.random() < 0.6:
        sun = (x - rng.uniform(0, 800)) ** 2 + (y - rng.uniform(50, 250)) ** 2
        values += np.exp(-sun / rng.uniform(500, 6000))[..., None] * (140, 120, 60)
    for number in range(rng.integers(1, 4)):
        line = np.cumsum(rng.normal(0, rng.uniform(0.2, 1.5), SIZE[0]))
        line = 280 + 110 * number + ndimage.gaussian_filter1d(line, 5) * 3
        ground = np.array([[60, 90, 50], [110, 95, 60], [60, 80, 110]][rng.integers(3)])
        ground = ground * rng.uniform(0.4, 1.2) + 12 * smooth(rng, SIZE, 80)[..., None]
        values = np.where((y > line)[..., None], ground, values)
    return as_image(values)


def cut_lesion(image: Image.Image, to: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a lesion less the skin around it (h, w, 3) at a width, and its soft outline (h, w)."""
    picture = image.convert("RGB").resize((to, round(to * image.height / image.width)))
    values = np.asarray(picture).astype(float)
    h, w = values.shape[:2]
    y, x = np.mgrid[:h, :w]
    away = np.hypot((x - w / 2) / (w / 2), (y - h / 2) / (h / 2))
    around = np.median(values[away > 0.95], axis=0)
    dark = (around - values).mean(axis=2)
    inside = away < 0.9
    spread = dark[inside]
    found = ndimage.binary_opening((dark > 0.4 * np.percentile(spread, 95)) & inside, iterations=1)
    parts, n = ndimage.label(found)
    if n:
        sizes = ndimage.sum_labels(found, parts, range(1, n + 1))
        found = ndimage.binary_fill_holes(parts == 1 + int(np.argmax(sizes)))
    if not 0.03 < found.mean() < 0.6:
        found = away < 0.6
    soft = ndimage.gaussian_filter(ndimage.binary_dilation(found).astype(float), max(1, to / 60))
    return values - around, soft


def paste(values: np.ndarray, lesion: Image.Image, to: int, x: int, y: int) -> None:
    """Paste a lesion into skin (H, W, 3), its centre at x, y; in place."""
    less, soft = cut_lesion(lesion, to)
    top, left = int(y - less.shape[0] / 2), int(x - less.shape[1] / 2)
    part = values[max(top, 0) : top + less.shape[0], max(left, 0) : left + less.shape[1]]
    cut = (slice(max(-top, 0), None), slice(max(-left, 0), None))
    less, soft = less[cut][: part.shape[0], : part.shape[1]], soft[cut]
    soft = soft[: part.shape[0], : part.shape[1]]
    part += soft[..., None] * less


def as_photo(rng: Random, values: np.ndarray) -> Image.Image:
    """Return what a phone would make of a scene: its light, sharpness, noise and JPEG."""
    values = values * rng.uniform(0.8, 1.1) * (1, rng.uniform(0.92, 1.03), rng.uniform(0.8, 1.05))
    picture = as_image(values + rng.normal(0, rng.uniform(1, 5), values.shape))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    return jpeg(picture, int(rng.integers(60, 92)))


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """Return a picture as JPEG of a quality shows it."""
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=quality)
        return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def phone_photo(rng: Random, lesions: list[Image.Image]) -> Image.Image:
    """Draw an arm, a leg or a back with a lesion on it, clothes and a room, as a phone sees it."""
    values, (w, h) = skin(rng), SIZE
    y, x = np.mgrid[:h, :w].astype(float)
    width = rng.uniform(0.3, 1.6) * h  # of the limb; the widest fill the picture
    lean = rng.uniform(-0.3, 0.3)
    across = (y - h / 2 - lean * (x - w / 2) + 8 * smooth(rng, SIZE, 4)) / (width / 2)
    values *= (0.65 + 0.35 * np.sqrt(np.clip(1 - across**2, 0, 1)))[..., None]
    at_x, to = int(rng.uniform(0.38, 0.62) * w), int(rng.uniform(0.07, 0.28) * h)
    at_y = int(h / 2 + lean * (at_x - w / 2) + rng.uniform(-0.15, 0.15) * min(width, h))
    paste(values, lesions[rng.integers(len(lesions))], max(to, 24), at_x, at_y)
    room = muted(rng) * (1 + 0.15 * smooth(rng, SIZE, 5)[..., None])
    room = np.asarray(wood(rng)).astype(float) if rng.random() < 0.25 else room
    values = np.where((np.abs(across) > 1)[..., None], room, values)
    if rng.random() < 0.6:
        edge = (rng.choice([0.1, 0.9]) - 0.5) * w + 12 * smooth(rng, SIZE, 4)
        folds = 1 + 0.12 * smooth(rng, SIZE, 10) + 0.05 * np.sin(x * rng.uniform(0.5, 1.5))
        sleeve = (x - w / 2 > edge) if edge.mean() > 0 else (x - w / 2 < edge)
        cloth = muted(rng) * folds[..., None]
        values = np.where((sleeve & (np.abs(across) < 1.15))[..., None], cloth, values)
    return as_photo(rng, values)


def close_up(rng: Random, lesions: list[Image.Image]) -> Image.Image:
    """Draw a clinical close-up: a lesion without a dermatoscope, skin lines, often a rule."""
    values, (w, h) = skin(rng, lines=2.5), SIZE
    to = int(rng.uniform(0.3, 0.55) * h)
    x, y = int(w / 2 + rng.uniform(-60, 60)), int(h / 2 + rng.uniform(-40, 40))
    paste(values, lesions[rng.integers(len(lesions))], to, x, y)
    shine = ndimage.gaussian_filter(rng.normal(size=values.shape[:2]), 2)
    shine = np.clip(shine / shine.std() + 1.5 * smooth(rng, SIZE, 3) - 2.5, 0, 1.5)
    values += shine[..., None] * rng.uniform(25, 70)
    if rng.random() < 0.6:
        picture = as_image(values)
        draw, top = ImageDraw.Draw(picture), int(rng.choice([40, 480]))
        draw.rectangle((60, top, 740, top + 70), (245, 245, 235))
        for mark in range(0, 68):
            long = 30 if mark % 10 == 0 else 14
            draw.line((65 + 10 * mark, top, 65 + 10 * mark, top + long), (20, 20, 20), 2)
        values = np.asarray(picture).astype(float)
    return as_photo(rng, values)


def plain_skin(rng: Random) -> Image.Image:
    """Draw skin with nothing on it, as a phone sees it."""
    return as_photo(rng, skin(rng))


def skin_beside_lesion(rng: Random, images: list[Image.Image]) -> Image.Image:
    """Return dermoscopic skin without its lesion: a corner of an image, mirrored to the whole."""
    picture = np.asarray(images[rng.integers(len(images))].convert("RGB"))
    h, w = picture.shape[0] // 5, picture.shape[1] // 5
    corners = [picture[:h, :w], picture[:h, -w:], picture[-h:, :w], picture[-h:, -w:]]
    corner = min(corners, key=lambda part: part.std(axis=(0, 1)).sum())
    return as_image(np.pad(corner, ((0, 4 * h), (0, 4 * w), (0, 0)), "symmetric"))


def photograph(rng: Random) -> Image.Image:
    """Return a part of a photograph of a temple or a flower, which scikit-learn brings along."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    picture = Image.fromarray(images[rng.integers(len(images))])
    side = int(rng.uniform(0.3, 1) * picture.height)
    left, top = rng.integers(picture.width - side + 1), rng.integers(picture.height - side + 1)
    return picture.crop((left, top, left + side, top + side))


DEGRADED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "JPEG, quality 10": partial(jpeg, quality=10),
    "blurred, radius 2": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "half as bright": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "1.4 times as bright": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "blue cast": lambda image: as_image(np.asarray(image) * (0.8, 0.95, 1.15)),
    "yellow cast": lambda image: as_image(np.asarray(image) * (1.1, 1.0, 0.7)),
}


def draw_all(seed: int, lesions: list[Image.Image], melanomas: list[Image.Image]) -> Iterator:
    """Yield the kind of each picture and the picture."""
    kinds: dict[str, tuple[int, Callable[[Random], Image.Image]]] = {
        "document": (40, document),
        "screenshot": (35, screenshot),
        "face": (35, face),
        "texture": (40, texture),
        "landscape": (30, landscape),
        "photograph": (20, photograph),
        "plain skin": (30, plain_skin),
        "phone photo of a lesion": (40, partial(phone_photo, lesions=lesions)),
        "clinical close-up": (30, partial(close_up, lesions=lesions)),
        MELANOMA: (60, partial(phone_photo, lesions=melanomas)),
        SKIN: (30, partial(skin_beside_lesion, images=lesions)),
    }
    for number, (kind, (count, draw)) in enumerate(kinds.items()):
        for picture in range(count):
            yield kind, draw(np.random.default_rng([seed, number, picture]))
    for kind, degrade in DEGRADED.items():
        for lesion in lesions:
            yield kind, degrade(lesion)


def main() -> None:
    """Print a table: kind, pictures, share without a decision; then what the bar is about."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run on HAM10000")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures")
    parser.add_argument("--save", type=Path, help="keep the pictures in this folder")
    given = parser.parse_args()
    run = Run.open(given.run)
    df = load_dataset(run.config, split=run.file("split.csv"))
    test = df[df["split"] == "test"]
    lesions = [read_image(path) for path in test["path"].iloc[:: max(1, len(test) // DRAWN_FROM)]]
    melanomas = [read_image(path) for path in test["path"][test["target"] == "mel"]]
    with TemporaryDirectory() as folder:
        folder = given.save or Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (kind, picture) in enumerate(draw_all(given.seed, lesions, melanomas)):
            path = folder / f"{number:04} {kind.replace(',', '')}.png"
            picture.save(path)
            rows.append({"kind": kind, "path": str(path)})
        table = pd.DataFrame(rows)
        predictor = Predictor(run)
        found = predictor.predict(table).assign(kind=table["kind"])
    report(found, predictor.predict(test), predictor.bundle.classes)


def report(found: pd.DataFrame, test: pd.DataFrame, classes: Classes) -> None:
    """Print what came out."""
    withheld = found["decision"].isna()
    for kind, rows in withheld.groupby(found["kind"], sort=False):
        print(f"{kind:<28} {len(rows):>5} {rows.mean():8.1%}")
    other = ~found["kind"].isin([MELANOMA, SKIN, *DEGRADED])
    print(f"{'not dermoscopic, all':<28} {other.sum():>5} {withheld[other].mean():8.1%}")
    print(f"{'test images':<28} {len(test):>5} {test['decision'].isna().mean():8.1%}")
    malignant = classes.members(classes.cancer)
    benign = [name for name, bad in zip(classes, malignant, strict=True) if not bad]
    melanoma = found[found["kind"] == MELANOMA]
    wrong = melanoma["decision"].isin(benign) & ~melanoma["refer"].astype(bool)
    print(f"{wrong.sum()} of {len(melanoma)} melanomas on a phone called benign, not referred")


if __name__ == "__main__":
    main()
