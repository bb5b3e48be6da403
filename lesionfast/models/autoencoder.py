"""A convolutional autoencoder: any backbone, and small convolutions that draw the image again."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lesionfast.models.backbones import Backbone
from lesionfast.models.scratch import conv
from lesionfast.models.state import in_eval_mode

WIDEST, NARROWEST = 256, 16  # channels of the decoder, halved with each doubling of the map


class Autoencoder(nn.Module):
    """Encode images with a backbone and decode them from its last feature map alone.

    (Masci et al. 2011, doi:10.1007/978-3-642-21735-7_7.) Upsampling takes the place of their
    unpooling, so that the encoder may be of any kind.
    """

    def __init__(self, backbone: Backbone, size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = build_decoder(backbone.num_features, count_doublings(backbone, size))

    def forward(self, image: Tensor) -> Tensor:
        """Return the reconstructions (B, 3, H, W) of images (B, 3, H, W), both in 0..1."""
        drawn = self.decoder(self.backbone(image))
        return interpolate(drawn, image.shape[-2:], mode="bilinear").sigmoid()


def count_doublings(backbone: Backbone, size: int) -> int:
    """Return how often the rows of the last feature map double until they are `size` or more."""
    device = next(backbone.parameters()).device
    with torch.no_grad(), in_eval_mode(backbone):
        rows = backbone(torch.zeros(1, 3, size, size, device=device)).shape[2]
    return max(0, math.ceil(math.log2(size / rows)))


def build_decoder(n_in: int, doublings: int) -> nn.Sequential:
    """Return the decoder (B, n_in, h, w) -> (B, 3, h · 2^doublings, w · 2^doublings)."""
    widths = [max(WIDEST >> i, NARROWEST) for i in range(doublings + 1)]
    layers: list[nn.Module] = [nn.Conv2d(n_in, widths[0], 1), nn.ReLU(inplace=True)]
    for before, after in pairwise(widths):
        layers += [nn.Upsample(scale_factor=2), conv(before, after)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1))
