"""Does a map show what matters? Delete what it calls hot, and see what is left of the decision."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

BATCH = 16  # images at once


def deletion_curve(
    model: nn.Module,
    images: Tensor,
    metadata: Tensor,
    maps: Tensor,
    targets: Tensor,
    steps: int = 20,
) -> np.ndarray:
    """Return the probabilities of the targets (n, steps + 1) as more and more pixels go.

    The pixels go the hottest first in equal shares, and get the mean colour of their image
    (Petsiuk et al. 2018, arXiv:1806.07421, section 3.2). The mean of a row, `curve_area`, is small
    if the map shows what matters.
    """
    n, pixels = len(images), images[0, 0].numel()
    rank = torch.empty((n, pixels), dtype=torch.long)
    order = maps.reshape(n, -1).argsort(dim=1, descending=True, stable=True)
    rank.scatter_(1, order, torch.arange(pixels).expand(n, -1))
    rank = rank.view(n, 1, *images.shape[-2:])
    blank, found = images.mean(dim=(2, 3), keepdim=True), []
    model.eval()
    with torch.inference_mode():
        for step in range(steps + 1):
            left = torch.where(rank < round(pixels * step / steps), blank, images)
            parts = zip(left.split(BATCH), metadata.split(BATCH), strict=True)
            shares = torch.cat([model(*part).softmax(dim=1) for part in parts])
            found.append(shares[torch.arange(n), targets])
    return torch.stack(found, dim=1).float().numpy()


def curve_area(curves: np.ndarray) -> np.ndarray:
    """Return the area under deletion curves (n, steps + 1), of a width of 1, by trapezoids."""
    return (curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2


def random_maps(n: int, size: int, cells: int, seed: int) -> Tensor:
    """Return maps (n, size, size) as smooth as those of a feature map of `cells` a side."""
    noise = torch.rand((n, 1, cells, cells), generator=torch.Generator().manual_seed(seed))
    return interpolate(noise, (size, size), mode="bilinear", align_corners=False)[:, 0]
