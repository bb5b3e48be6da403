"""Features of images by a trained or pretrained backbone: whole images, no augmentation."""

from collections.abc import Callable

import numpy as np
import torch

from lesionfast.models.fusion import FusionModel

BATCH = 64


def image_features(
    model: FusionModel,
    pixels: np.ndarray,
    rows: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return the pooled features float32 (n, F) of the rows (n,) of pixels uint8 (N, H, W, 3).

    Runs where the model is, in eval mode, and leaves the model in the mode that it was in.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            batch = torch.from_numpy(pixels[rows[start : start + BATCH]]).to(device)
            found.append(model.features(batch.movedim(-1, 1).float() / 255).float().cpu().numpy())
            if progress:
                progress(min(start + BATCH, len(rows)), len(rows))
    model.train(training)
    return np.concatenate(found)


def fused_features(model: FusionModel, features: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    """Return what the head sees, float32 (n, W), from image features (n, F) and metadata (n, M)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        both = [torch.from_numpy(each).to(device) for each in (features, metadata)]
        return model.fusion(*both).float().cpu().numpy()
