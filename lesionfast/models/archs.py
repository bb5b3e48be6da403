"""The names of architectures: which there are, and which library each is taken from."""

from functools import lru_cache

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.registry import Registry

archs = Registry("architecture", "--arch")
SMALLEST = 32  # pixels: five halvings


@archs.register("vanilla_cnn")
def vanilla_cnn() -> nn.Module:
    """This project: a plain deep CNN, 6 M parameters, global max pooling."""
    return nn.Sequential(*stages((32, 64, 128, 256, 608)))


@archs.register("densenet_scratch")
def densenet_scratch() -> nn.Module:
    """This project: a DenseNet (Huang et al. 2017, arXiv:1608.06993), 6 M, global max pooling."""
    net = DenseNet(growth_rate=48, block_config=(2, 4, 8, 18), num_init_features=64)
    return nn.Sequential(net.features, nn.ReLU(inplace=True))


@archs.register("pyramid_cnn")
def pyramid_cnn() -> nn.Module:
    """This project: a plain CNN whose every stage goes straight to the head, 6 M parameters."""
    return Pyramid(stages((32, 64, 128, 256, 576)))


class Pyramid(nn.Module):
    """Stages whose maps all reach the head: each is max-pooled to the last one's grid.

    So with global max pooling the maximum of every channel of every stage is a feature: low-level
    texture skips what lies between (a spatial pyramid over stages instead of windows; Lazebnik et
    al. 2006, doi:10.1109/CVPR.2006.68).
    """

    def __init__(self, rows: list[nn.Module]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(rows)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, sum of all channels, h, w), h and w those of the last stage."""
        maps = []
        for row in self.rows:
            image = row(image)
            maps.append(image)
        grid = maps[-1].shape[2:]
        return torch.cat([F.adaptive_max_pool2d(each, grid) for each in maps], dim=1)


def stages(channels: tuple[int, ...]) -> list[nn.Module]:
    """Return stages that halve the side each, of two convolutions; the first has a stride."""
    inputs = (3, *channels)
    return [stage(inputs[i], width, first=i == 0) for i, width in enumerate(channels)]


def stage(n_in: int, n_out: int, first: bool) -> nn.Sequential:
    """Return two 3x3 convolutions with batch norm at half the side of the input."""
    halving = [] if first else [nn.MaxPool2d(2)]
    return nn.Sequential(*halving, conv(n_in, n_out, 1 + first), conv(n_out, n_out))


def conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and ReLU (He et al. 2015 initialisation, arXiv:1502.01852)."""
    layer = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


LIBRARIES = ("lesionfast", "torchvision", "timm")


@lru_cache
def names_of(library: str) -> tuple[str, ...]:
    """Return the names of a library's classification architectures."""
    if library == "lesionfast":
        return tuple(archs)
    if library == "timm":
        return tuple(timm.list_models())
    return tuple(torchvision.models.list_models(module=torchvision.models))


def list_archs() -> dict[str, str]:
    """Return every name -> its library, torchvision's before timm's; this project's own first."""
    found = {name: library for library in reversed(LIBRARIES) for name in names_of(library)}
    own = archs.describe()
    return own | {name: found[name] for name in sorted(found) if name not in own}


def find_arch(arch: str) -> tuple[str, str]:
    """Return (library, name); raises `LesionfastError` for a name that no library has.

    A name that two have is torchvision's; "timm:resnet50" takes the other. A timm name may end
    with the tag of its weights: "resnet50.a1_in1k".
    """
    library, _, name = arch.rpartition(":")
    if library not in ("", *LIBRARIES):
        raise LesionfastError(
            f"--arch is '{arch}', but there is no library '{library}'. "
            f"Type torchvision:{name} or timm:{name}."
        )
    for each in [library] if library else LIBRARIES:
        base, _, tag = name.partition(".")
        if name in names_of(each):
            return each, name
        if each == "timm" and base in names_of(each):
            check_tag(arch, base, tag)
            return each, name
    known = names_of(library) if library else list_archs()
    nowhere = "neither this project, torchvision nor timm has it"
    lack = f"{library} does not have it" if library else nowhere
    raise LesionfastError(
        f"--arch is '{arch}', but {lack}.{did_you_mean(name, known)} "
        f"List names with: lesionfast list archs"
    )


def check_tag(arch: str, base: str, tag: str) -> None:
    """Raise `LesionfastError` unless timm has weights of that tag for the architecture `base`."""
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
    if tag not in tags:
        has = f"It has: {', '.join(tags)}. " if tags else ""
        raise LesionfastError(
            f"--arch is '{arch}', but timm's {base} has no weights '{tag}'."
            f"{did_you_mean(tag, tags)} {has}Type --arch {base} for its default."
        )
