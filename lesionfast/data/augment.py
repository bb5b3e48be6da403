"""Named augmentation recipes, applied to whole batches: one resample, then sharpness and colour."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from inspect import signature
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from fastai.vision.core import TensorImage
from fasttransform import DisplayedTransform
from torch import Tensor

from lesionfast.data.images import LUMA
from lesionfast.errors import LesionfastError
from lesionfast.registry import Builder, Registry, calling_module

PROCESS = os.urandom(8).hex()
NUMBERS = count()  # of the recipes of this process
VERSION = 1  # part of the key of kept views: raise it when a seed gives other changes


@dataclass(frozen=True)
class Share:
    """What one of several processes reads: the `rank`-th of `size` parts, of batches or of rows.

    All processes draw the same order. Of each training batch a process has its part, and all of it
    if there are fewer rows than processes; of the rows of a validation each has a block.
    """

    rank: int = 0
    size: int = 1
    of: str = "batches"

    def of_epoch(self, n: int) -> slice:
        """Return which of the n rows of an epoch are read."""
        return self.part(n) if self.of == "rows" else slice(0, n)

    def of_batch(self, n: int) -> slice:
        """Return which of the n rows of a batch are read."""
        return self.part(n) if self.of == "batches" and n >= self.size else slice(0, n)

    def part(self, n: int) -> slice:
        """Return which of n rows belong to this process."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)


@dataclass(frozen=True)
class PartOfDraws:
    """The draws of some images of a batch of `total`: those that they have in the whole batch."""

    generator: torch.Generator
    part: slice
    total: int


Draws = torch.Generator | PartOfDraws | Sequence[torch.Generator]  # of a batch, or of each image
augmentations = Registry("augmentation", "--augment")


@dataclass(frozen=True)
class Recipe:
    """How far each picture of a batch may be changed; all changes are drawn uniformly.

    The detail finer than two pixels becomes up to `sharpen` times stronger or loses up to the share
    `blur`; each colour channel becomes up to `tint` times stronger or weaker, as another white
    balance makes it. `change` is a function of a user, from images (B, 3, H, W) to such images.
    """

    degrees: float = 0.0
    flip: bool = False
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpen: float = 0.0
    blur: float = 0.0
    tint: float = 0.0
    dihedral: bool = False
    change: Callable[[Tensor], Tensor] | None = None
    number: int = field(default_factory=NUMBERS.__next__, init=False, repr=False, compare=False)

    @property
    def key(self) -> tuple:
        """What names it in a cache; one with a function of a user is never named twice."""
        own = ("change", "number")
        values = tuple(getattr(self, one.name) for one in fields(self) if one.name not in own)
        return values if self.change is None else (*values, PROCESS, self.number)

    @property
    def moves(self) -> bool:
        """Whether pixels change place."""
        return bool(self.degrees or self.flip or self.zoom or self.shift)

    @property
    def recolours(self) -> bool:
        """Whether pixels change value."""
        return bool(self.brightness or self.contrast or self.saturation or self.tint)


def register_augmentation(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a function an augmentation: `augment=name`, `--augment NAME`.

    It changes a batch of training images, float32 (B, 3, H, W) in 0..1, and returns the same shape.
    It should draw with torch alone, which is seeded for each call, so that a training can be
    repeated. A second registration replaces the first. Raises `LesionfastError` for a name that
    can't be typed as an option.

    >>> @lf.register_augmentation("noise")
    ... def noise(images):
    ...     return (images + 0.02 * torch.randn_like(images)).clamp(0, 1)
    """
    return augmentations.register(name, calling_module())


def name_augmentation(augmentation: Any) -> str:
    """Return the name of an augmentation: a text as it is; a function is registered by its own.

    Raises `LesionfastError` for what is no augmentation.
    """
    if isinstance(augmentation, str):
        return augmentation
    if not callable(augmentation):
        raise LesionfastError(
            f"augment is {augmentation!r}; it takes a name, or a function that changes images "
            "(B, 3, H, W)."
        )
    return augmentations.name_passed(augmentation)


def build_recipe(name: str) -> Recipe:
    """Return the recipe of that name; raises `LesionfastError` if there is none."""
    build = augmentations[name]
    if name not in augmentations.modules:
        return build()
    parameters = () if isinstance(build, type) else signature(build).parameters.values()
    if any(parameter.default is parameter.empty for parameter in parameters):
        return Recipe(change=build)
    made = build()
    if isinstance(made, Recipe):
        return made
    if not callable(made):
        raise LesionfastError(
            f"the augmentation '{name}' gives {type(made).__name__}; it has to be a function of "
            "images (B, 3, H, W), or to return one."
        )
    return Recipe(change=made)


@augmentations.register("none")
def none() -> Recipe:
    """No change."""
    return Recipe()


@augmentations.register("rotate")
def rotate() -> Recipe:
    """Any rotation and nothing else."""
    return Recipe(degrees=180)


@augmentations.register("dihedral")
def dihedral() -> Recipe:
    """Quarter turns and mirror images, all eight equally often: no pixel is lost or blurred."""
    return Recipe(dihedral=True)


@augmentations.register("standard")
def standard() -> Recipe:
    """Any rotation and mirroring, zoom and shift up to a tenth, other sharpness, slight colour.

    So that a lesion gets one answer whatever the pixels, focus and white balance of its picture.
    """
    move = {"degrees": 180, "flip": True, "zoom": 0.1, "shift": 0.1}
    return Recipe(**move, sharpen=0.5, blur=1, brightness=0.05, contrast=0.1, tint=0.05)


@augmentations.register("strong")
def strong() -> Recipe:
    """Any rotation and mirroring, zoom and shift up to a quarter, strong changes of all else."""
    move = {"degrees": 180, "flip": True, "zoom": 0.25, "shift": 0.2}
    colour = {"brightness": 0.1, "contrast": 0.2, "saturation": 0.2, "tint": 0.1}
    return Recipe(**move, sharpen=1, blur=1, **colour)


class BatchAugment(DisplayedTransform):
    """A fastai batch transform that applies a `Recipe` to training batches only.

    Takes float images (B, 3, H, W) in 0..1 and returns the same shape. Draws from its own
    generator, so that a seed given to `reseed` repeats the same changes on any device.
    """

    split_idx, order = 0, 20  # training batches, after the integers became floats

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        super().__init__()
        self.recipe, self.generator, self.part = recipe, torch.Generator(), None
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Start the sequence of random changes that belongs to `seed`."""
        self.generator.manual_seed(seed)

    def take(self, share: Share, total: int) -> None:
        """Change the images of a process's share of batches of `total` as the whole batch would."""
        self.part = None if share.size == 1 else (share.of_batch(total), total)

    def encodes(self, image: TensorImage) -> TensorImage:
        """Return the changed images, channels-last in memory."""
        draws = self.generator if self.part is None else PartOfDraws(self.generator, *self.part)
        changed = augment(image.as_subclass(Tensor), self.recipe, draws)
        return TensorImage(changed.contiguous(memory_format=torch.channels_last))


def augment(image: Tensor, recipe: Recipe, generator: Draws) -> Tensor:
    """Return images (B, 3, H, W) in 0..1 after one affine resample, and other sharpness and colour.

    With a generator for each image, its changes do not depend on the batch that it is in.
    """
    if recipe.dihedral:
        image = turn(image, draw(partial(torch.randint, 8), len(image), generator))
    if recipe.moves:
        matrices = draw_affine(len(image), recipe, generator).to(image)
        grid = affine_grid(matrices, *image.shape[2:])
        image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    if recipe.sharpen or recipe.blur:
        image = refocus(image, recipe, generator)
    if recipe.recolours:
        image = recolour(image, recipe, generator).clamp(0, 1)
    return image if recipe.change is None else change(image, recipe.change, generator)


def change(image: Tensor, function: Callable[[Tensor], Tensor], generator: Draws) -> Tensor:
    """Return images (B, 3, H, W) changed by a user's function, with torch seeded for each call.

    Raises `LesionfastError` if it returns another shape.
    """
    first = 0
    if isinstance(generator, PartOfDraws):
        generator, first = generator.generator, generator.part.start
    generators = [generator] if isinstance(generator, torch.Generator) else generator
    changed = []
    for part, one in zip(image.chunk(len(generators)), generators, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=one)) + first)
            changed.append(function(part))
        if getattr(changed[-1], "shape", None) != part.shape:
            got = tuple(getattr(changed[-1], "shape", ())) or type(changed[-1]).__name__
            raise LesionfastError(
                f"the augmentation made {got} of images {tuple(part.shape)}. Return the same shape."
            )
    return torch.cat(changed)


def affine_grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """Return where affine matrices (B, 2, 3) take each pixel from, (B, height, width, 2).

    That is torch's `affine_grid` without aligned corners, which multiplies a matrix for each pixel.
    """
    x, y = ((torch.arange(n, device=matrices.device) * 2 + 1) / n - 1 for n in (width, height))
    of_columns = matrices[:, :, :1] * x
    of_rows = matrices[:, :, 1:2] * y + matrices[:, :, 2:]
    return (of_rows[:, :, :, None] + of_columns[:, :, None]).movedim(1, -1).to(matrices)


def turn(image: Tensor, element: Tensor) -> Tensor:
    """Return images (B, C, H, W) turned by element % 4 quarters, mirrored where element > 3.

    Pictures that are not square are turned by halves only.
    """
    turned = image.clone()
    step = 1 if image.shape[2] == image.shape[3] else 2
    for view in range(8):
        chosen = element == view
        if chosen.any():
            part = image[chosen].rot90(view % 4 * step, (2, 3))
            turned[chosen] = part.flip(3) if view > 3 else part
    return turned


def refocus(image: Tensor, recipe: Recipe, generator: Draws) -> Tensor:
    """Return images (B, 3, H, W) with more or less of the detail that half of the pixels lose.

    That is unsharp masking, and blurring by the same mask.
    """
    half = [max(1, side // 2) for side in image.shape[2:]]
    coarse = F.interpolate(image, half, mode="bilinear", antialias=True)
    coarse = F.interpolate(coarse, image.shape[2:], mode="bilinear")
    middle, reach = (recipe.blur - recipe.sharpen) / 2, (recipe.blur + recipe.sharpen) / 2
    share = middle + uniform(len(image), reach, generator)
    return image.lerp(coarse, share.view(-1, 1, 1, 1).to(image)).clamp(0, 1)


def recolour(image: Tensor, recipe: Recipe, generator: Draws) -> Tensor:
    """Return images (B, 3, H, W) with other contrast, brightness, saturation and white balance."""
    n, shape = len(image), (-1, 1, 1, 1)
    if recipe.tint:
        gains = uniform(3 * n, math.log1p(recipe.tint), generator).exp().view(n, 3, 1, 1)
        image = image * gains.to(image)
    scale = uniform(n, math.log1p(recipe.contrast), generator).exp().view(shape).to(image)
    offset = uniform(n, recipe.brightness, generator).view(shape).to(image)
    if recipe.saturation:
        factor = uniform(n, math.log1p(recipe.saturation), generator).exp().view(shape).to(image)
        grey = (image * image.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
        image = grey + factor * (image - grey)
    return (image - 0.5) * scale + (0.5 + offset)


def draw_affine(n: int, recipe: Recipe, generator: Draws) -> Tensor:
    """Return n affine matrices (n, 2, 3): rotation, mirror, zoom and shift in one."""
    angle = uniform(n, math.radians(recipe.degrees), generator)
    zoom = torch.exp(uniform(n, math.log1p(recipe.zoom), generator))
    flip = draw(torch.rand, n, generator).lt(0.5).float().mul(-2).add(1) if recipe.flip else 1
    shift = uniform(2 * n, 2 * recipe.shift, generator).view(n, 2)  # the grid spans -1..1
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]]
    return torch.stack(rows, dim=1).view(n, 2, 3)


def uniform(n: int, limit: float, generator: Draws) -> Tensor:
    """Return n numbers between -limit and limit."""
    return (draw(torch.rand, n, generator) * 2 - 1) * limit


def draw(function: Callable[..., Tensor], n: int, generator: Draws) -> Tensor:
    """Return n random numbers, from one generator or in equal parts from each of several."""
    if isinstance(generator, PartOfDraws):
        part, total = generator.part, generator.total
        each = n // (part.stop - part.start)
        whole = function((total * each,), generator=generator.generator)
        return whole[part.start * each : part.stop * each]
    if isinstance(generator, torch.Generator):
        return function((n,), generator=generator)
    return torch.cat([function((n // len(generator),), generator=one) for one in generator])
