"""Features of images by a trained or pretrained backbone: computed once, kept where they can be."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lesionfast.data.images import cache_folder
from lesionfast.models.fusion import FusionModel
from lesionfast.runs import write_atomically

BATCH = 64
VERSION = 1  # part of every key: raise it when the features of the same weights change
Progress = Callable[[int, int], None] | None


def unchanged(image: Tensor) -> Tensor:
    """Return the images as they are."""
    return image


def image_features(
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    progress: Progress = None,
    change: Callable[[Tensor], Tensor] = unchanged,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Return the pooled features float32 (n, F) of the rows (n,) of pixels uint8 (N, H, W, 3).

    `change` is applied to each batch of images (B, 3, H, W) in 0..1, such as an augmentation; the
    backbone computes in `dtype` by autocast. Runs where the model is, in eval mode, and leaves the
    model in the mode that it was in.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    found = []
    cast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with torch.inference_mode(), cast:
        for start in range(0, len(rows), BATCH):
            batch = torch.from_numpy(pixels[rows[start : start + BATCH]]).to(device)
            image = change(batch.movedim(-1, 1).float() / 255)
            found.append(model.features(image).float().cpu().numpy())
            if progress:
                progress(min(start + BATCH, len(rows)), len(rows))
    model.train(training)
    return np.concatenate(found)


def kept_features(
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    progress: Progress = None,
    change: Callable[[Tensor], Tensor] = unchanged,
    dtype: torch.dtype = torch.float32,
    about: tuple = (),
) -> np.ndarray:
    """Return what `image_features` does, from the cache if it has them.

    `about` names the change: two changes with the same `about` are taken for one.
    """
    file = features_file(model, pixels, rows, str(dtype), *about)
    return keep(file, lambda: image_features(model, pixels, rows, progress, change, dtype))


def keep(file: Path | None, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return features from a file of the cache, or computed and then kept there.

    Without a file they are computed each time. What comes from the file is mapped, not read.
    """
    if file is None:
        return compute()
    try:
        return np.load(file, mmap_mode="c")
    except (OSError, ValueError, EOFError):  # not there, or broken
        found = compute()
        file.parent.mkdir(parents=True, exist_ok=True)

    def save(aside: Path) -> None:
        with aside.open("wb") as out:
            np.save(out, found)

    write_atomically(file, save)
    return found


def features_file(
    model: FusionModel, pixels: np.ndarray, rows: np.ndarray, *about: object
) -> Path | None:
    """Return where the cache keeps the features of these rows by this backbone.

    `about` is whatever else they depend on. None if the pixels themselves are not in the cache.
    """
    source = getattr(pixels, "filename", None)
    if source is None:
        return None
    digest = hashlib.sha256(repr((VERSION, Path(source).name, model.pool_name, about)).encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    for name, tensor in model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return cache_folder() / "features" / f"{digest.hexdigest()[:32]}.npy"


def fused_features(model: FusionModel, features: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    """Return what the head sees, float32 (n, W), from image features (n, F) and metadata (n, M)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        both = [torch.from_numpy(each).to(device) for each in (features, metadata)]
        return model.fusion(*both).float().cpu().numpy()
