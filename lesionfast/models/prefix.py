"""A backbone in two halves: its first stages are run once, the rest on what they gave."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lesionfast.models.backbones import Backbone
from lesionfast.models.state import in_eval_mode


class _Reached(Exception):
    """Carries the feature maps out of a forward pass that need not go on."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps


def frozen_stages(backbone: Backbone) -> int:
    """Return how many stages, counted from the stem, have no parameter that learns."""
    for number, stage in enumerate(backbone.stages):
        if any(each.requires_grad for each in stage):
            return number
    return len(backbone.stages)


def blocks_below(backbone: Backbone, stages: int) -> list[nn.Module]:
    """Return the blocks of the first `stages` stages in forward order."""
    return [block for run in backbone.blocks[:stages] for block in run]


def prefix_maps(backbone: Backbone, image: Tensor, stages: int) -> Tensor:
    """Return what the first `stages` stages give for images (B, 3, H, W)."""

    def stop(block: nn.Module, given: tuple, maps: Tensor) -> None:
        raise _Reached(maps)

    hook = blocks_below(backbone, stages)[-1].register_forward_hook(stop)
    try:
        backbone.whole(image)
    except _Reached as reached:
        return reached.maps
    finally:
        hook.remove()
    raise AssertionError("a block that was run when the backbone was measured is not run now")


def rest_of(backbone: Backbone, maps: Tensor, stages: int, size: int) -> Tensor:
    """Return the feature map that images of `size` pixels give, from what `prefix_maps` returned.

    The blocks of the prefix pass an empty picture on, and the last of them gives `maps`.
    """
    with standing_in(blocks_below(backbone, stages), maps):
        return backbone.whole(maps.new_zeros(1, 3, size, size))


@contextmanager
def standing_in(blocks: list[nn.Module], maps: Tensor) -> Iterator[None]:
    """Let blocks return what they are given, and the last of them `maps`."""
    *skipped, last = blocks

    def replace(block: nn.Module, forward: Callable[..., Tensor]) -> None:
        block.forward = forward  # type: ignore[method-assign]

    try:
        for block in skipped:
            replace(block, lambda x, *rest, **named: x)
        replace(last, lambda *given, **named: maps)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def can_be_cut(backbone: Backbone, stages: int, size: int) -> bool:
    """Return whether the two halves give what the whole backbone gives, tried on noise.

    They do not where something runs beside the blocks, such as a connection around a stage.
    """
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    image = image.to(backbone.shift.device)
    try:
        with torch.inference_mode(), in_eval_mode(backbone):
            whole = backbone.whole(image)
            halves = rest_of(backbone, prefix_maps(backbone, image, stages), stages, size)
        return halves.shape == whole.shape and torch.allclose(halves, whole, atol=1e-4, rtol=1e-3)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
