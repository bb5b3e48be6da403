"""Named augmentation recipes, applied to whole batches: one resample, then one colour change."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fastai.vision.core import TensorImage
from fasttransform import DisplayedTransform
from torch import Tensor

from lesionfast.registry import Registry

augmentations = Registry("augmentation", "--augment")


@dataclass(frozen=True)
class Recipe:
    """How far each picture of a batch may be changed; all drawn uniformly, one draw a picture."""

    degrees: float = 0.0
    flip: bool = False
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether pixels change place."""
        return bool(self.degrees or self.flip or self.zoom or self.shift)

    @property
    def recolours(self) -> bool:
        """Whether pixels change value."""
        return bool(self.brightness or self.contrast)


@augmentations.register("none")
def none() -> Recipe:
    """No change."""
    return Recipe()


@augmentations.register("rotate")
def rotate() -> Recipe:
    """Any rotation, nothing else: lesions are centred and their colours are right."""
    return Recipe(degrees=180)


@augmentations.register("standard")
def standard() -> Recipe:
    """Any rotation, mirrored or not, zoom and shift to a tenth, slight brightness and contrast."""
    return Recipe(degrees=180, flip=True, zoom=0.1, shift=0.1, brightness=0.05, contrast=0.1)


class BatchAugment(DisplayedTransform):
    """A fastai batch transform that applies a `Recipe` to training batches only.

    Takes float images (B, 3, H, W) in 0..1 and returns the same shape. Draws from its own
    generator, so that a seed given to `reseed` repeats the same changes on any device.
    """

    split_idx, order = 0, 20  # training batches, after the integers became floats

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        super().__init__()
        self.recipe, self.generator = recipe, torch.Generator()
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Start the sequence of random changes that belongs to `seed`."""
        self.generator.manual_seed(seed)

    def encodes(self, image: TensorImage) -> TensorImage:
        """Return the changed images, channels-last in memory."""
        changed = augment(image.as_subclass(Tensor), self.recipe, self.generator)
        return TensorImage(changed.contiguous(memory_format=torch.channels_last))


def augment(image: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W) in 0..1 after one affine resample and one change of colour."""
    if recipe.moves:
        matrices = draw_affine(len(image), recipe, generator).to(image)
        grid = F.affine_grid(matrices, list(image.shape), align_corners=False)
        image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    if recipe.recolours:
        scale, offset = (each.to(image) for each in draw_colour(len(image), recipe, generator))
        image = ((image - 0.5) * scale + (0.5 + offset)).clamp(0, 1)
    return image


def draw_affine(n: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return n affine matrices (n, 2, 3): rotation, mirror, zoom and shift in one."""
    angle = uniform(n, math.radians(recipe.degrees), generator)
    zoom = torch.exp(uniform(n, math.log1p(recipe.zoom), generator))
    flip = torch.rand(n, generator=generator).lt(0.5).float().mul(-2).add(1) if recipe.flip else 1
    shift = uniform(2 * n, 2 * recipe.shift, generator).view(n, 2)  # the grid spans -1..1
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]]
    return torch.stack(rows, dim=1).view(n, 2, 3)


def draw_colour(n: int, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return contrast factors and brightness offsets, each (n, 1, 1, 1)."""
    scale = torch.exp(uniform(n, math.log1p(recipe.contrast), generator))
    offset = uniform(n, recipe.brightness, generator)
    return scale.view(-1, 1, 1, 1), offset.view(-1, 1, 1, 1)


def uniform(n: int, limit: float, generator: torch.Generator) -> Tensor:
    """Return n numbers between -limit and limit."""
    return (torch.rand(n, generator=generator) * 2 - 1) * limit
