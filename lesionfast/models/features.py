"""What a backbone gives for images: computed once, kept in the cache where it can be."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from lesionfast.data.images import cache_folder
from lesionfast.data.loaders import images_at_once
from lesionfast.files import write_atomically
from lesionfast.models.folding import for_inference
from lesionfast.models.fusion import FusionModel
from lesionfast.models.precision import autocast
from lesionfast.models.prefix import blocks_below, prefix_maps
from lesionfast.models.state import in_eval_mode

VERSION = 4  # part of every key: raise it when the features of the same weights change
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
    allocate: Callable[[tuple[int, ...], str], np.ndarray] = np.empty,
) -> np.ndarray:
    """Return the pooled features float32 (n, F) of the rows (n,) of pixels uint8 (N, H, W, 3).

    `change(image, rows)` is applied to each batch of images (B, 3, H, W) in 0..1, such as an
    augmentation; the backbone computes in `dtype` by autocast. With `stages` it is the feature maps
    of the first stages, float16 (n, C, h, w), which do not depend on the other rows. Runs where the
    model is, in eval mode, and leaves the model in the mode that it was in. `allocate` makes the
    array, of a shape and a type.
    """
    device = next(model.parameters()).device
    found = backbone = None
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
            features = features[: len(rows) - start].cpu().numpy()
            if found is None:
                found = allocate((len(rows), *features.shape[1:]), features.dtype.str)
            found[start : start + len(features)] = features
            if progress:
                progress(start + len(features), len(rows))
    return found


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

    def compute(allocate: Callable[[tuple[int, ...], str], np.ndarray]) -> np.ndarray:
        return image_features(
            model,
            pixels,
            rows,
            progress,
            change=change,
            dtype=dtype,
            stages=stages,
            allocate=allocate,
        )

    def write(aside: Path) -> None:
        compute(lambda shape, kind: npy.open_memmap(aside, "w+", kind, shape)).flush()

    file = features_file(model, pixels, rows, str(dtype), stages, *about)
    if file is None:
        return compute(np.empty)
    if not (file.is_file() and is_whole(file, len(rows))):
        write_atomically(file, write)
    return npy.open_memmap(file, "c")


def is_whole(file: Path, n: int) -> bool:
    """Return whether a file of the cache has the features of n rows."""
    try:
        found = npy.open_memmap(file, "r")
        return len(found) == n and found.offset + found.nbytes == file.stat().st_size
    except (OSError, ValueError, EOFError):
        return False


def features_file(
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    dtype: str,
    stages: int | None,
    *about: object,
) -> Path | None:
    """Return where the cache keeps the features of these rows by this backbone.

    `about` is whatever else they depend on. None if the pixels themselves are not in the cache.
    """
    source = getattr(pixels, "filename", None)
    if source is None:
        return None
    backbone = model.backbone
    told = (VERSION, Path(source).name, dtype, stages, about)
    told += (model.pool_name if stages is None else "", backbone.mean, backbone.std)
    digest = hashlib.sha256(repr(told).encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    parts = [backbone] if stages is None else blocks_below(backbone, stages)
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return cache_folder() / "features" / f"{digest.hexdigest()[:32]}.npy"


def fused_features(model: FusionModel, features: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    """Return what the head sees, float32 (n, W), from image features (n, F) and metadata (n, M)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        both = [torch.from_numpy(each).to(device) for each in (features, metadata)]
        return model.fusion(*both).float().cpu().numpy()
