"""The model in PyTorch: pixels and metadata in, probabilities and features out."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lesionfast.data.augment import turn
from lesionfast.data.loaders import images_at_once, pick_device
from lesionfast.models.folding import for_inference
from lesionfast.models.fusion import FusionModel, model_of
from lesionfast.models.precision import autocast, dtype_of


class TorchEngine:
    """Runs a model over its views as a training does after its last epoch."""

    def __init__(
        self, about: dict, weights: Path, *, views: int, precision: str, device: str = "auto"
    ) -> None:
        self.views, self.precision, self.device = views, precision, pick_device(device)
        self.leaves_cpu_free = self.device.type != "cpu"
        again = "Copy the whole folder again."
        self.model: FusionModel = model_of(about, weights, again)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.fast: FusionModel | None = None  # made for the first images

    def __call__(self, pixels: np.ndarray, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, k) and image features (n, F), float32.

        `pixels` are uint8 (n, size, size, 3), `metadata` float32 (n, width). The probabilities are
        the mean over the views, the features those of the first.
        """
        size = images_at_once(self.device)
        parts = [
            self.run(*(torch.from_numpy(each[start : start + size]) for each in (pixels, metadata)))
            for start in range(0, len(pixels), size)
        ]
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    def run(self, pixels: Tensor, metadata: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities and features of as many images as fit at once."""
        image = pixels.to(self.device).movedim(-1, 1).float() / 255
        metadata = metadata.to(self.device)
        if self.fast is None:
            dtype = dtype_of(self.precision, self.device)
            self.fast = for_inference(self.model, image, metadata, dtype=dtype)
        views = [self.look(image, metadata, view) for view in range(self.views)]
        probabilities = torch.stack([each[0] for each in views]).mean(dim=0)
        return probabilities.cpu().numpy(), views[0][1].cpu().numpy()

    @torch.inference_mode()
    def look(self, image: Tensor, metadata: Tensor, view: int) -> tuple[Tensor, Tensor]:
        """Return probabilities and features of images turned by one element of the group."""
        if view:
            image = turn(image, torch.full((len(image),), view))
        with autocast(self.precision, self.device):
            features = self.fast.features(image)
            logits = self.fast.classify(features, metadata)
        return logits.float().softmax(dim=-1), features.float()
