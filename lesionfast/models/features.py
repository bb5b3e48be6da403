"""What a backbone gives for images: computed once, kept in the cache where it can be."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from lesionfast.cache import Append, cache_folder, kept_array
from lesionfast.data.loaders import images_at_once
from lesionfast.models.backbones import Backbone
from lesionfast.models.fusion import FusionModel
from lesionfast.models.inference import for_inference
from lesionfast.models.precision import autocast, in_eval_mode


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


VERSION = 5  # part of every key: raise it when the features of the same weights change
PLAIN = (int, float, str, type(None))  # settings of a module, as numbers of channels
Progress = Callable[[int, int], None] | None
Change = Callable[[Tensor, np.ndarray], Tensor]


def unchanged(image: Tensor, rows: np.ndarray) -> Tensor:
    """Return the images as they are."""
    return image


def image_features(
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    progress: Progress = None,
    *,
    change: Change = unchanged,
    dtype: torch.dtype = torch.float32,
    stages: int | None = None,
) -> np.ndarray:
    """Return the pooled features float32 (n, F) of the rows (n,) of pixels uint8 (N, H, W, 3).

    `change(image, rows)` is applied to each batch of images (B, 3, H, W) in 0..1, such as an
    augmentation; the backbone computes in `dtype` by autocast. With `stages` it is the feature maps
    of the first stages, float16 (n, C, h, w), which do not depend on the other rows. Runs where the
    model is, in eval mode, and leaves the model in the mode that it was in.
    """
    blocks: list[np.ndarray] = []
    append_features(blocks.append, model, pixels, rows, progress, change, dtype, stages)
    return np.concatenate(blocks)


def append_features(
    append: Append,
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    progress: Progress,
    change: Change,
    dtype: torch.dtype,
    stages: int | None,
) -> None:
    """Call `append` with the features of each batch of rows in order, as of `image_features`."""
    device, backbone = next(model.parameters()).device, None
    size = images_at_once(device)
    precision = str(dtype).removeprefix("torch.")
    with torch.inference_mode(), in_eval_mode(model), autocast(precision, device):
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            if stages is not None:
                part = np.resize(part, size)  # batches of one size give the same bits
            batch = torch.from_numpy(pixels[part]).to(device)
            image = change(batch.movedim(-1, 1).float() / 255, part)
            if stages is not None:
                features = prefix_maps(model.backbone, image, stages).half()
            elif model.backbone is None:
                features = model.features(image)
            else:
                backbone = backbone or for_inference(model.backbone, image, dtype=dtype)
                features = model.pool(backbone(image)).float()
            append(features[: len(rows) - start].cpu().numpy())
            if progress:
                progress(min(start + size, len(rows)), len(rows))


def kept_features(
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    progress: Progress = None,
    *,
    change: Change = unchanged,
    dtype: torch.dtype = torch.float32,
    stages: int | None = None,
    about: tuple = (),
) -> np.ndarray:
    """Return what `image_features` does, from the cache if it has them.

    `about` names the change: two changes with the same `about` are taken for one. What comes from
    the cache is mapped, not read. If the pixels are not in the cache, neither are the features.
    """
    file = features_file(model, pixels, rows, dtype, stages, about)
    if file is None:
        how = {"change": change, "dtype": dtype, "stages": stages}
        return image_features(model, pixels, rows, progress, **how)
    given = (model, pixels, rows, progress, change, dtype, stages)
    return kept_array(file, len(rows), lambda append: append_features(append, *given))


def features_file(
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    dtype: torch.dtype = torch.float32,
    stages: int | None = None,
    about: tuple = (),
) -> Path | None:
    """Return where the cache keeps the features of these rows by this backbone.

    `about` is whatever else they depend on. None if the pixels themselves are not in the cache.
    """
    source, backbone = getattr(pixels, "filename", None), model.backbone
    if source is None or backbone is None:
        return None
    made = (VERSION, Path(source).name, str(dtype), stages, about, *computed_by(model))
    made += (model.pool_name if stages is None else "", backbone.mean, backbone.std)
    digest = hashlib.sha256(repr((*made, *structure(backbone.body))).encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    for name, tensor in state_below(backbone, stages).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return cache_folder() / "features" / f"{digest.hexdigest()[:32]}.npy"


def computed_by(model: nn.Module) -> tuple[str, ...]:
    """Return what computes: versions, processor, and the batch size, on which last bits depend."""
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if cuda else capabilities()
    versions = (torch.__version__, torchvision.__version__, timm.__version__)
    return (*versions, device.type, processor, str(images_at_once(device)))


@cache
def capabilities() -> str:
    """Return the instructions of this machine's CPU, and its sizes where PyTorch tells them."""
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return repr((torch.backends.cpu.get_cpu_capability(), sorted(found.items())))


def structure(module: nn.Module) -> Iterator[str]:
    """Yield name, class and settings of each module in a module: what it computes, but weights."""
    for name, each in module.named_modules():
        settings = {
            key: value for key, value in vars(each).items() if key != "training" and is_plain(value)
        }
        yield f"{name} {type(each).__module__}.{type(each).__qualname__} {settings}"


def is_plain(value: object) -> bool:
    """Return whether a value is a setting, whose words are the same in each process."""
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(is_plain, value)))


def state_below(backbone: Backbone, stages: int | None) -> dict[str, Tensor]:
    """Return the weights and buffers of a backbone without those above its first `stages`."""
    state = backbone.body.state_dict(keep_vars=True)
    if stages is None:
        return state
    below = {id(each) for block in blocks_below(backbone, stages) for each in tensors_of(block)}
    blocks = blocks_below(backbone, len(backbone.blocks))
    above = {id(each) for block in blocks for each in tensors_of(block)} - below
    return {name: each for name, each in state.items() if id(each) not in above}


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a module."""
    yield from module.parameters()
    yield from module.buffers()


def fused_features(model: FusionModel, features: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    """Return what the head sees, float32 (n, W), from image features (n, F) and metadata (n, M)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        both = [torch.from_numpy(each).to(device) for each in (features, metadata)]
        return model.fusion(*both).float().cpu().numpy()
