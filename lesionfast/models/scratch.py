"""The project's own architectures, trained from scratch: each gives its last feature map."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from lesionfast.registry import Registry

archs = Registry("architecture of the project's own", "--arch")
SMALLEST = 32  # pixels: every one of them halves an image five times
STAGES = ((32, 1), (64, 2), (128, 2), (256, 4), (512, 2))  # channels and convolutions of each


def convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3×3 convolution with batch norm and ReLU, (B, n_in, H, W) -> (B, n_out, h, w)."""
    conv = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def stage(n_in: int, n_out: int, depth: int) -> nn.Sequential:
    """Return `depth` convolutions, the first of which halves the sides of the map."""
    rest = [convolution(n_out, n_out) for _ in range(depth - 1)]
    return nn.Sequential(convolution(n_in, n_out, stride=2), *rest)


def initialise(body: nn.Module) -> None:
    """Draw the convolutions' weights as rectifiers need them (He et al. 2015, arXiv:1502.01852)."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@archs.register("vanilla_cnn")
class VanillaCNN(nn.Module):
    """The project's own: a plain deep CNN of 11 convolutions, from scratch, 5.9 M parameters.

    (B, 3, H, W) -> (B, 512, H/32, W/32), with sides rounded up.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for width, _ in STAGES)]
        self.stages = nn.Sequential(
            *(stage(n_in, *each) for n_in, each in zip(widths, STAGES, strict=False))
        )
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last stage's map."""
        return self.stages(image)


@archs.register("pyramid_cnn")
class PyramidCNN(VanillaCNN):
    """The project's own: `vanilla_cnn` whose every stage skips straight to the head, 5.9 M.

    (B, 3, H, W) -> (B, 992, H/32, W/32): the maps of all stages, brought to the last one's grid by
    the maximum of each cell. So global max pooling gives the head each stage's global maximum.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Return the maps of all stages, the finest first, on the grid of the last."""
        maps = []
        for each in self.stages:
            image = each(image)
            maps.append(image)
        grid = maps[-1].shape[-2:]
        return torch.cat([*(adaptive_max_pool2d(m, grid) for m in maps[:-1]), maps[-1]], dim=1)


class DenseLayer(nn.Module):
    """A bottleneck and a 3×3 convolution whose output joins their input (section 3, DenseNet-B)."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        width = 4 * growth
        self.bottleneck = normalised(n_in, width, kernel=1)
        self.growth = normalised(width, growth, kernel=3)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, n_in + growth, H, W)."""
        return torch.cat([features, self.growth(self.bottleneck(features))], dim=1)


def normalised(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    """Return batch norm, ReLU and a convolution that keeps the map's size."""
    conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(n_in), nn.ReLU(inplace=True), conv)


@archs.register("densenet_scratch")
class DenseNet(nn.Module):
    """The project's own DenseNet-BC, from scratch, 5.8 M (Huang et al. 2017, arXiv:1608.06993).

    (B, 3, H, W) -> (B, C, H/32, W/32). Each layer of a block reads all those before it; half of
    the channels go on to the next block.
    """

    def __init__(self, growth: int = 48, depths: tuple[int, ...] = (2, 4, 8, 18)) -> None:
        super().__init__()
        channels = 64
        parts = [convolution(3, channels, stride=2), nn.MaxPool2d(2)]
        for index, depth in enumerate(depths):
            if index:
                parts += [normalised(channels, channels // 2, kernel=1), nn.AvgPool2d(2)]
                channels //= 2
            parts += [DenseLayer(channels + i * growth, growth) for i in range(depth)]
            channels += depth * growth
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last block's map."""
        return self.features(image)
