"""Any torchvision or timm name, cut at its last feature map, with its stage groups."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from lesionfast.errors import LesionfastError
from lesionfast.models.archs import SMALLEST, archs, find_arch
from lesionfast.models.hubs import Wanted
from lesionfast.models.weights import PACKAGES, conversions, find_weights, load_into


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a body: what is no row of modules, nor holds most of the parameters."""
    total = sum(p.numel() for p in module.parameters())
    found: list[nn.Module] = []

    def visit(each: nn.Module) -> None:
        size = sum(p.numel() for p in each.parameters())
        rows = isinstance(each, nn.Sequential | nn.ModuleList)
        if list(each.children()) and (rows or size > total / 2):
            for child in each.children():
                visit(child)
        elif size:
            found.append(each)

    visit(module)
    return found


def side_of(output: Any) -> float:
    """Return the side of a feature map in either memory order, or of a square of tokens."""
    output = output[0] if isinstance(output, list | tuple) else output
    return output.shape[2] if output.ndim == 4 else math.sqrt(output.shape[1])


def drop_unused(body: nn.Module, used: dict[nn.Module, float]) -> None:
    """Replace the parts of a timm model that its features do not run through, such as its head."""
    net = getattr(body, "net", None)
    for name, child in net.named_children() if net is not None else ():
        parts = set(child.modules())
        if any(True for _ in child.parameters()) and not any(unit in parts for unit in used):
            setattr(net, name, nn.Identity())


def group_blocks(units: list[tuple[nn.Module, float]]) -> list[list[nn.Module]]:
    """Return the blocks by stage, stem first, from the blocks in order and their strides."""
    runs: list[list[nn.Module]] = []
    deepest = -1
    for unit, stride in units:
        depth = max(deepest, round(math.log2(max(stride, 1))))
        if depth > deepest or not runs:
            runs.append([])
        runs[-1].append(unit)
        deepest = depth
    if len(runs) < 4:
        cuts = np.array_split(np.arange(len(units)), min(4, len(units)))
        runs = [[units[i][0] for i in part] for part in cuts]
    return runs


def parameters_of(backbone: nn.Module, runs: list[list[nn.Module]]) -> list[list[nn.Parameter]]:
    """Return the parameters of blocks by stage; what is in no block is the stem's."""
    stages = [unique(p for unit in run for p in unit.parameters()) for run in runs]
    grouped = {id(p) for stage in stages for p in stage}
    stages[0] += [p for p in backbone.parameters() if id(p) not in grouped]
    return stages


def unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return each parameter once, in order."""
    return list({id(p): p for p in parameters}.values())


HEADS = ("avgpool", "classifier", "fc", "head", "heads", "dropout")  # where torchvision pools
AUXILIARY = ("AuxLogits", "aux1", "aux2")
HALVES = (0.5, 0.5, 0.5)
TRANSFORMED = ("inception_v3", "googlenet")  # torchvision turns their input into -1..1 itself


class Backbone(nn.Module):
    """A body that turns images into a feature map.

    Takes float RGB images (B, 3, H, W) in 0..1, normalises them with its own `mean` and `std`,
    and returns (B, num_features, h, w). `stages` are lists of parameters, the stem's first, and
    `blocks` lists of the modules that have them; `pretrained` and `origin` say where its weights
    came from. Where `resume` is set, it gets what it makes a feature map of in place of images.
    """

    stages: list[list[nn.Parameter]]
    blocks: list[list[nn.Module]]

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body, self.mean, self.std = body, tuple(mean), tuple(std)
        self.pretrained, self.origin = False, "random weights, trained from scratch"
        self.resume: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("shift", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last feature map."""
        return self.whole(image) if self.resume is None else self.resume(image)

    def whole(self, image: Tensor) -> Tensor:
        """Return the last feature map of images."""
        return self.body((image - self.shift) / self.scale)


class TimmBody(nn.Module):
    """A timm model up to its last feature map, whatever its family, as (B, C, h, w)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return the feature map; tokens become a grid, channels-last becomes channels-first."""
        features = self.net.forward_features(image)
        if not isinstance(features, Tensor):
            raise TypeError(f"timm gives {len(features)} outputs for it, and no feature map")
        if features.ndim == 3:
            return grid(features[:, getattr(self.net, "num_prefix_tokens", 0) :])
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return features.movedim(-1, 1) if last else features


class VisionTransformerBody(nn.Module):
    """torchvision's vision transformer up to its last tokens, as (B, C, h, w)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        net.heads = nn.Identity()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return the patch tokens as a grid."""
        tokens = self.net._process_input(image)
        first = self.net.class_token.expand(len(tokens), -1, -1)
        return grid(self.net.encoder(torch.cat([first, tokens], dim=1))[:, 1:])


def grid(tokens: Tensor) -> Tensor:
    """Return tokens (B, N, C) as (B, C, h, w), square if N allows it."""
    side = math.isqrt(tokens.shape[1])
    shape = (side, side) if side**2 == tokens.shape[1] else (tokens.shape[1], 1)
    return tokens.mT.unflatten(2, shape)


def create_backbone(arch: str, *, size: int, weights: str = "auto") -> Backbone:
    """Return the backbone of that name for square images of `size` pixels.

    `weights` is 'auto', 'none' or a file (see `find_weights`). Raises `LesionfastError` for an
    unknown name, a size that the backbone can't take, and weights that can't be had.
    """
    library, name = find_arch(arch)
    backbone = BUILDERS[library](name, size)
    measure(backbone, arch, size)
    if library == "lesionfast" and weights == "auto":
        backbone.origin = f"random weights, trained from scratch: {name} has no pretrained ones"
    elif weights != "none":
        tensors, origin = find_weights(wanted_weights(arch, library, name), weights)
        net = getattr(backbone.body, "net", backbone.body)
        load_into(net, tensors, conversions(net, library, name, size), arch, origin)
        backbone.pretrained, backbone.origin = True, origin
    return backbone


def scratch_backbone(name: str, size: int) -> Backbone:
    """Return one of this project's own architectures."""
    if size < SMALLEST:
        raise too_small(name, size, SMALLEST)
    return Backbone(archs[name](), HALVES, HALVES)


def timm_backbone(name: str, size: int) -> Backbone:
    """Return a timm model without its head; a fixed-size one is built for `size`."""
    config = timm.get_pretrained_cfg(name)
    smallest = max(config.min_input_size or (0,))
    if size < smallest:
        raise too_small(name, size, smallest)
    fixed = {"img_size": size} if config.fixed_input_size else {}
    try:
        net = timm.create_model(name, num_classes=0, **fixed)
    except TypeError:  # its size is fixed, but no argument
        net = timm.create_model(name, num_classes=0)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise cannot_take(name, size, error, config.input_size[-1]) from None
    return Backbone(TimmBody(net), net.pretrained_cfg["mean"], net.pretrained_cfg["std"])


def torchvision_backbone(name: str, size: int) -> Backbone:
    """Return a torchvision model cut before its pooling, without auxiliary heads."""
    data = torchvision.models.get_model_weights(name).DEFAULT
    preset, smallest = data.transforms(), min(data.meta.get("min_size", (1, 1)))
    any_size = name.startswith(("vit", "swin", "maxvit"))  # their smallest is only the usual size
    if size < smallest and not any_size:
        raise too_small(name, size, smallest)
    extra: dict[str, Any] = {"init_weights": True} if name in TRANSFORMED else {}
    if name.startswith("vit"):
        check_patches(name, size)
        extra["image_size"] = size
    if name.startswith("maxvit"):
        extra["input_size"] = (size, size)
    try:
        net = torchvision.models.get_model(name, weights=None, **extra)
    except ValueError as error:
        raise cannot_take(name, size, error, preset.crop_size[0]) from None
    halves = name in TRANSFORMED
    mean, std = (HALVES, HALVES) if halves else (preset.mean, preset.std)
    return Backbone(cut(net, name), mean, std)


BUILDERS = {
    "lesionfast": scratch_backbone,
    "torchvision": torchvision_backbone,
    "timm": timm_backbone,
}


def check_patches(name: str, size: int) -> None:
    """Raise `LesionfastError` unless a vision transformer's patches fill the image."""
    patch = int(name.split("_")[2])
    if size % patch:
        raise cannot_take(name, size, f"no multiple of {patch}", -(-size // patch) * patch)


def cut(net: nn.Module, name: str) -> nn.Module:
    """Return a torchvision model's parts, in forward order, up to where it pools."""
    if name.startswith("vit"):
        return VisionTransformerBody(net)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for child_name, child in net.named_children():
        if child_name in HEADS:
            break
        if child_name not in AUXILIARY:
            in_a_row = isinstance(child, nn.ModuleList)
            parts[child_name] = nn.Sequential(*child) if in_a_row else child
    if name.startswith("densenet"):
        parts["relu"] = nn.ReLU(inplace=True)  # a function in torchvision's own forward
    return nn.Sequential(parts)


def wanted_weights(arch: str, library: str, name: str) -> Wanted:
    """Return where the pretrained weights of a name are."""
    if library == "lesionfast":
        return Wanted(arch, library, name)
    if library == "torchvision":
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        return Wanted(arch, library, name, url=url)
    config, base = timm.get_pretrained_cfg(name), name.split(".")[0]
    url = config.url if config.url and not config.url.endswith(".npz") else None  # npz: of JAX
    package = PACKAGES[base][0] if base in PACKAGES else None
    return Wanted(arch, library, base, url, config.hf_hub_id or None, package)


def too_small(arch: str, size: int, smallest: int) -> LesionfastError:
    """Return the error for a size under a backbone's smallest."""
    return LesionfastError(
        f"{arch} needs at least {smallest} pixels, but --size is {size}. "
        f"Type --size {smallest} or more."
    )


def cannot_take(arch: str, size: int, why: Any, smallest: int) -> LesionfastError:
    """Return the error for a size that a backbone can't take."""
    reason = str(why).splitlines()[0] if str(why) else "it fails"
    return LesionfastError(
        f"{arch} can't take images of {size} pixels ({reason}). Type --size {smallest}."
    )


def measure(backbone: Backbone, arch: str, size: int) -> None:
    """Run the backbone once on an empty image to learn `num_features` and its `stages`.

    A stage is a run of blocks whose output has the same size in powers of two; a backbone with
    fewer than four such sizes, a vision transformer say, is cut into four runs of blocks.
    """
    units, sides = blocks(backbone.body), {}

    def note(unit: nn.Module, _: Any, output: Any) -> None:
        sides.setdefault(unit, side_of(output))

    hooks = [unit.register_forward_hook(note) for unit in units]
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise cannot_take(arch, size, error, native_size(arch)) from None
    except TypeError as error:
        raise LesionfastError(
            f"--arch {arch} can't be a backbone: {error}. Type another; lesionfast list archs"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    drop_unused(backbone.body, sides)
    backbone.num_features = features.shape[1]
    backbone.blocks = group_blocks([(unit, size / side) for unit, side in sides.items()])
    backbone.stages = parameters_of(backbone, backbone.blocks)
    backbone.train()


def native_size(arch: str) -> int:
    """Return the side in pixels that a backbone was made for, of this project's own the least."""
    library, name = find_arch(arch)
    if library == "lesionfast":
        return SMALLEST
    if library == "timm":
        return timm.get_pretrained_cfg(name).input_size[-1]
    return torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
