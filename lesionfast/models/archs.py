"""Architectures by name: this project's own, torchvision's, timm's, and encoders of the hubs."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.registry import Builder, Registry, calling_module, own_name

archs = Registry("architecture", "--arch")
LIBRARIES = ("lesionfast", "torchvision", "timm")  # the first that has a name counts
HUBS = {  # what comes before the colon -> the form of a name after it, and what that is
    "hf-hub": ("OWNER/NAME", "any model of timm on the Hugging Face hub"),
    "open_clip": (
        "NAME.TAG",
        "the image encoder of a CLIP; open_clip:hf-hub:OWNER/NAME: one on the hub, such as DermLIP "
        "(needs lesionfast[open-clip])",
    ),
    "transformers": (
        "OWNER/NAME",
        "an image encoder such as DINOv3 or MedSigLIP (needs lesionfast[transformers])",
    ),
}
ON_HUB = re.compile(r"(?:[./~].*|[\w.-]+/[\w.-]+(?:@[\w.-]+)?)")  # a folder or owner/name@revision
SMALLEST = 32  # pixels that an architecture of this project needs: five halvings


def register_backbone(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a function or class a backbone: `arch=name`, `--arch NAME`.

    Called without arguments it returns a `torch.nn.Module` that turns images float32 (B, 3, H, W)
    into a feature map (B, C, h, w), tokens (B, N, C) or features (B, C). The images are normalised
    with its attributes `mean` and `std`, by default 0.5 of each channel. If its attribute
    `pretrained` is true, the head trains first. A second registration replaces the first. Raises
    `LesionfastError` for a name that torchvision or timm has.

    >>> @lf.register_backbone("tiny")
    ... def tiny():
    ...     return torch.nn.Conv2d(3, 8, 3, stride=4)
    """
    if library := next((lib for lib in LIBRARIES[1:] if name in list_names(lib)), None):
        raise LesionfastError(f"'{name}' is a backbone of {library}. Type another name.")
    return archs.register(name, calling_module())


def name_backbone(arch: Any) -> str:
    """Return the name of an architecture: a text as it is; a module or function is registered.

    A function of torchvision or timm, such as `resnet34`, has its name there. Any other is known
    by its own name from now on, a module by that of its class; with a number if another
    architecture has it. Raises `LesionfastError` for what is no architecture.
    """
    if isinstance(arch, str):
        return arch
    if not isinstance(arch, nn.Module) and not callable(arch):
        raise LesionfastError(
            f"arch is {arch!r}; it takes a name, a torch.nn.Module, or a function that returns one."
        )
    name = own_name(arch)
    library = (getattr(arch, "__module__", None) or "").split(".")[0]
    if not isinstance(arch, nn.Module) and library in LIBRARIES and name in list_names(library):
        return f"{library}:{name}"
    return archs.name_passed(arch, reserved=[*list_names("torchvision"), *list_names("timm")])


def list_names(library: str) -> tuple[str, ...]:
    """Return the names of a library's classification architectures."""
    return tuple(archs) if library == "lesionfast" else list_names_of_others(library)


@lru_cache
def list_names_of_others(library: str) -> tuple[str, ...]:
    if library == "timm":
        return tuple(timm.list_models())
    return tuple(torchvision.models.list_models(module=torchvision.models))


def list_archs() -> dict[str, str]:
    """Return every name -> its library; this project's own names first, with a description."""
    libraries = {name: library for library in reversed(LIBRARIES) for name in list_names(library)}
    own = archs.describe()
    hubs = {f"{library}:{form}": what for library, (form, what) in HUBS.items()}
    return own | hubs | {name: libraries[name] for name in sorted(libraries) if name not in own}


def find_arch(arch: str) -> tuple[str, str]:
    """Return (library, name); raises `LesionfastError` for a name that no library has.

    A name that both have is torchvision's; "timm:resnet50" is the other. A timm name may end with
    the tag of its weights: "resnet50.a1_in1k". What begins with one of `HUBS` is not looked up.
    """
    if (hub := arch.partition(":")[0]) in HUBS and ":" in arch:
        return hub, check_hub_name(arch, hub)
    library, _, name = arch.rpartition(":")
    if library not in ("", *LIBRARIES):
        raise LesionfastError(
            f"--arch is '{arch}', but there is no library '{library}'. "
            f"Type torchvision:{name} or timm:{name}; of a hub: {', '.join(HUBS)}."
        )
    base, _, tag = name.partition(".")
    for candidate in [library] if library else LIBRARIES:
        if name in list_names(candidate):
            return candidate, name
        if candidate == "timm" and base in list_names("timm"):
            check_tag(arch, base, tag)
            return candidate, name
    nowhere = "neither lesionfast, torchvision nor timm has it"
    lack = f"{library} does not have it" if library else nowhere
    known = list_names(library) if library else list_archs()
    raise LesionfastError(
        f"--arch is '{arch}', but {lack}.{did_you_mean(name, known)} "
        f"List names with: lesionfast list archs. If a module of yours registers it, import that: "
        "lesionfast --import MODULE …"
    )


def check_hub_name(arch: str, hub: str) -> str:
    """Return what follows the colon; raises `LesionfastError` for what no hub can have."""
    name = arch.partition(":")[2]
    own = hub == "open_clip" and "/" not in name.removeprefix("hf-hub:")
    if not name or not (own or ON_HUB.fullmatch(name.removeprefix("hf-hub:"))):
        raise LesionfastError(f"--arch is '{arch}'. Type --arch {hub}:{HUBS[hub][0]}.")
    return name


def check_tag(arch: str, base: str, tag: str) -> None:
    """Raise `LesionfastError` unless timm has weights of that tag for the architecture `base`."""
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
    if tag not in tags:
        has = f"It has: {', '.join(tags)}. " if tags else ""
        raise LesionfastError(
            f"--arch is '{arch}', but timm's {base} has no weights '{tag}'."
            f"{did_you_mean(tag, tags)} {has}Type --arch {base} for its default."
        )


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
        return torch.cat([F.adaptive_max_pool2d(stage_map, grid) for stage_map in maps], dim=1)


def stages(channels: tuple[int, ...]) -> list[nn.Module]:
    """Return stages that halve the side each: pooling (in the first a stride), two convolutions."""
    return [
        nn.Sequential(
            *([nn.MaxPool2d(2)] if i else []),
            conv(n_in, n_out, stride=1 if i else 2),
            conv(n_out, n_out),
        )
        for i, (n_in, n_out) in enumerate(zip((3, *channels), channels, strict=False))
    ]


def conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and ReLU (He et al. 2015 initialisation, arXiv:1502.01852)."""
    layer = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))
