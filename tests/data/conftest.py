"""Drawn photographs of skin: different ones share no texture."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter


def draw_photograph(rng: np.random.Generator) -> Image.Image:
    """A picture of mottled skin with hairs and a dark mole: 200 by 150 pixels."""
    skin = rng.normal(size=(150, 200))
    fine, broad = gaussian_filter(skin, 1), gaussian_filter(skin, 6)
    shade = 12 * fine / fine.std() + 14 * broad / broad.std()
    colour = np.array([215, 170, 150]) + rng.normal(0, 8, 3)
    image = Image.fromarray(np.clip(colour + shade[:, :, None], 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, y = rng.uniform(85, 115), rng.uniform(65, 85)
    for _ in range(12):
        dx, dy, r = *rng.normal(0, 12, 2), rng.uniform(6, 18)
        box = (x + dx - r, y + dy - r, x + dx + r, y + dy + r)
        draw.ellipse(box, fill=tuple(rng.integers(40, 120, 3)))
    for _ in range(5):
        draw.line([tuple(rng.uniform(0, 200, 2)) for _ in range(2)], fill=(60, 40, 30))
    return image.filter(ImageFilter.GaussianBlur(1))


@pytest.fixture(scope="session")
def photograph() -> Callable[[np.random.Generator], Image.Image]:
    """A function that draws a photograph from a generator of random numbers."""
    return draw_photograph
