"""Any architecture's name -> a backbone: cut at its last feature map, in stages, with weights."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.files import read_json
from lesionfast.models.archs import HUBS, SMALLEST, archs, find_arch
from lesionfast.models.encoders import (
    Encoder,
    TimmBody,
    TokenBody,
    as_grid,
    check_patch,
    create_timm,
    find_encoder,
)
from lesionfast.models.weights import load_weights
from lesionfast.run import Run

HEADS = ("avgpool", "classifier", "fc", "head", "heads", "dropout")  # where torchvision pools
AUXILIARY = ("AuxLogits", "aux1", "aux2")
CLS = "cls"  # the pooling that keeps the CLS token
HALVES = (0.5, 0.5, 0.5)
TRANSFORMED = ("inception_v3", "googlenet")  # torchvision turns their input into -1..1 itself


class Backbone(nn.Module):
    """A body that turns images into a feature map.

    Takes float RGB images (B, 3, H, W) in 0..1, normalises them with its own `mean` and `std`,
    and returns (B, num_features, h, w). `stages` are lists of parameters, the stem's first, and
    `blocks` lists of the modules that have them; `pretrained` and `origin` say where its weights
    came from. If `resume` is set, it computes the feature map from its input in place of images.
    `pool` is the pooling that it was made for, `arch_config` what builds an encoder of a hub again.
    """

    num_features: int
    pool: str
    arch_config: dict[str, Any] | None
    stages: list[list[nn.Parameter]]
    blocks: list[list[nn.Module]]

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body, self.mean, self.std = body, tuple(mean), tuple(std)
        self.pool, self.arch_config = "avg", None
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


def create_backbone(
    arch: str,
    *,
    size: int,
    weights: str = "auto",
    pool: str = "avg",
    saved: Mapping[str, Any] | None = None,
) -> Backbone:
    """Return the backbone of that name for square images of `size` pixels.

    `weights` is 'auto', 'none', a file or a run (see `load_weights`). With the `pool` 'cls' its map
    has the CLS token beside the patch tokens; 'auto' is settled by `settle_pool`. `saved` is the
    model.json of a saved model. Raises `LesionfastError` for an unknown name, a size or pooling
    that the backbone can't take, and weights that can't be had.
    """
    library, name = find_arch(arch)
    encoder = None
    if library in HUBS:
        known = (model_beside(weights, arch) if saved is None else saved).get("arch_config")
        if saved is not None and known is None:  # no address in a saved model is followed
            raise LesionfastError(
                f"{arch} can't be built: model.json has no arch_config, which says how; nothing "
                "is downloaded for a saved model. Copy its folder again."
            )
        encoder = find_encoder(arch, library, name, known)
    if encoder:
        backbone = Backbone(*encoder.build(size))
        backbone.arch_config = encoder.describe()
    elif name in archs.modules:
        backbone = registered_backbone(name)
    elif library == "lesionfast":
        check_size(name, size, SMALLEST)
        backbone = Backbone(archs[name](), HALVES, HALVES)
    else:
        backbone = (timm_backbone if library == "timm" else torchvision_backbone)(name, size)
    if saved is None:  # earlier versions took any size
        check_patch(arch, size, getattr(backbone.body, "patch", None))
    backbone.pool = settle_pool(backbone.body, arch, pool)
    if backbone.pool == CLS:
        backbone.body.summarised = True
    measure(backbone, arch, size, encoder.native if encoder else None)
    give_weights(backbone, arch, size, weights, encoder)
    return backbone


def model_beside(weights: str, arch: str) -> Mapping[str, Any]:
    """Return the model.json of a run or an exported folder of that architecture, else nothing.

    Raises `LesionfastError` if it is damaged.
    """
    folder = Path(weights).expanduser()
    if weights in ("auto", "none") or not (folder / "model.json").is_file():
        return {}
    if (folder / "config.json").is_file():
        about = Run(folder).model
    else:
        shape = {"model": {"arch": str, "arch_config?": {str: object}}}
        about = read_json(folder / "model.json", shape, f"Copy {folder} again.")["model"]
    return about if about.get("arch") == arch else {}


def settle_pool(body: nn.Module, arch: str, pool: str) -> str:
    """Return the pooling that 'auto' means for a backbone; any other is checked.

    It is 'max' for this project's own, 'cls' where a network has a CLS token or attention pooling
    beside its patch tokens, and 'avg' for all others. Raises `LesionfastError` for 'cls' without.
    """
    summary, (library, name) = getattr(body, "has_summary", False), find_arch(arch)
    if pool == CLS and not summary:
        raise LesionfastError(f"--pool cls: {arch} has no CLS token. Type --pool avg.")
    if pool != "auto":
        return pool
    own = library == "lesionfast" and name not in archs.modules
    return "max" if own else CLS if summary else "avg"


def give_weights(
    backbone: Backbone, arch: str, size: int, weights: str, encoder: Encoder | None
) -> None:
    """Load the weights of a backbone, and note where they came from."""
    library, name = find_arch(arch)
    if library == "lesionfast" and weights == "auto":
        if name not in archs.modules:
            backbone.origin = f"random weights, trained from scratch: {name} has no pretrained ones"
    elif weights != "none":
        net = getattr(backbone.body, "net", backbone.body)
        of_hub = (encoder.wanted, encoder.conversions(net)) if encoder else ()
        backbone.origin = load_weights(net, arch, size, weights, *of_hub)
        backbone.pretrained = True


def registered_backbone(name: str) -> Backbone:
    """Return the module that a user's registration builds; see `register_backbone`.

    A classifier of torchvision or timm is cut where it pools.
    """
    build = archs[name]
    net = deepcopy(build) if isinstance(build, nn.Module) else build()
    if not isinstance(net, nn.Module):
        raise LesionfastError(
            f"the backbone '{name}' gives {type(net).__name__}, not a torch.nn.Module. Return one."
        )
    config = getattr(net, "pretrained_cfg", None) or {}
    mean, std = (getattr(net, key, config.get(key)) or HALVES for key in ("mean", "std"))
    pretrained = bool(getattr(net, "pretrained", False))
    if type(net).__module__.startswith("torchvision.models."):
        body = cut(net, type(net).__name__.lower())
    else:
        body = TimmBody(net) if hasattr(net, "forward_features") else AnyBody(net)
    backbone = Backbone(body, mean, std)
    backbone.pretrained, backbone.origin = pretrained, f"the weights that {name} comes with"
    return backbone


def timm_backbone(name: str, size: int) -> Backbone:
    """Return a timm model without its head; one of a fixed size is built for `size`."""
    config = timm.get_pretrained_cfg(name)
    check_size(name, size, max(config.min_input_size or (0,)))
    try:
        net = create_timm(name, size, config.fixed_input_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise size_error(name, size, error, config.input_size[-1]) from None
    return Backbone(TimmBody(net), net.pretrained_cfg["mean"], net.pretrained_cfg["std"])


def torchvision_backbone(name: str, size: int) -> Backbone:
    """Return a torchvision model cut before its pooling, without auxiliary heads."""
    data = torchvision.models.get_model_weights(name).DEFAULT
    preset, halves = data.transforms(), name in TRANSFORMED
    extra: dict[str, Any] = {"init_weights": True} if halves else {}
    if not name.startswith(("vit", "swin", "maxvit")):  # their smallest is only the usual size
        check_size(name, size, min(data.meta.get("min_size", (1, 1))))
    if name.startswith("vit"):
        check_patch(name, size, int(name.split("_")[2]))
        extra["image_size"] = size
    if name.startswith("maxvit"):
        extra["input_size"] = (size, size)
    try:
        net = torchvision.models.get_model(name, weights=None, **extra)
    except ValueError as error:
        raise size_error(name, size, error, preset.crop_size[0]) from None
    mean, std = (HALVES, HALVES) if halves else (preset.mean, preset.std)
    return Backbone(cut(net, name), mean, std)


def check_size(arch: str, size: int, smallest: int) -> None:
    """Raise `LesionfastError` for a size below a backbone's smallest."""
    if size < smallest:
        raise LesionfastError(
            f"{arch} needs at least {smallest} pixels, but --size is {size}. "
            f"Type --size {smallest} or more."
        )


def size_error(arch: str, size: int, why: object, possible: int) -> LesionfastError:
    """Return the error for a size that a backbone can't take."""
    reason = str(why).splitlines()[0] if str(why) else "it fails"
    return LesionfastError(
        f"{arch} can't take images of {size} pixels ({reason}). Type --size {possible}."
    )


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


class AnyBody(nn.Module):
    """A module of a user: its features as (B, C, h, w)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return the feature map; tokens (B, N, C) become a grid, features (B, C) one cell."""
        features = self.net(image)
        if not isinstance(features, Tensor) or not 2 <= features.ndim <= 4:
            what = f"a tensor {tuple(features.shape)}" if isinstance(features, Tensor) else features
            raise TypeError(
                f"it returns {what if isinstance(what, str) else type(what).__name__}, not "
                "features (B, C), tokens (B, N, C) or a map (B, C, h, w)"
            )
        if features.ndim == 2:
            return features[:, :, None, None]
        return as_grid(features) if features.ndim == 3 else features


class VisionTransformerBody(TokenBody):
    """torchvision's vision transformer up to its last tokens, as (B, C, h, w)."""

    has_summary = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        net.heads = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return the patch tokens as a grid."""
        tokens = self.net._process_input(image)
        first = self.net.class_token.expand(len(tokens), -1, -1)
        tokens = self.net.encoder(torch.cat([first, tokens], dim=1))
        return self.join(tokens[:, 1:], tokens[:, 0])


def measure(backbone: Backbone, arch: str, size: int, native: int | None = None) -> None:
    """Run the backbone once on an empty image, and set `num_features`, `blocks` and `stages`.

    A stage is a run of blocks whose output has the same size in powers of two; a backbone with
    fewer than four such sizes, such as a vision transformer, is cut into four runs of blocks.
    """
    blocks, strides = find_blocks(backbone.body), {}
    if not blocks:
        raise LesionfastError(f"--arch {arch} has no parameters, so there is nothing to train.")

    def note_stride(block: nn.Module, _: Any, output: Any) -> None:
        output = output[0] if isinstance(output, list | tuple) else output
        if isinstance(output, Tensor):
            tokens = math.sqrt(output.shape[1]) if output.ndim == 3 else 1
            strides.setdefault(block, size / (output.shape[2] if output.ndim == 4 else tokens))

    hooks = [block.register_forward_hook(note_stride) for block in blocks]
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise size_error(arch, size, error, native or native_size(arch)) from None
    except TypeError as error:
        raise LesionfastError(
            f"--arch {arch} can't be a backbone: {error}. Type another; lesionfast list archs"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    drop_unused(backbone.body, set(strides))
    backbone.num_features = features.shape[1]
    backbone.blocks = group_blocks(strides)
    backbone.stages = group_parameters(backbone)
    backbone.train()


def native_size(arch: str) -> int:
    """Return the size in pixels that a backbone was made for; of this project's own the least."""
    library, name = find_arch(arch)
    if library in HUBS:
        return find_encoder(arch, library, name).native
    if library == "lesionfast":
        return TrainConfig().size if name in archs.modules else SMALLEST
    if library == "timm":
        return timm.get_pretrained_cfg(name).input_size[-1]
    return torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]


def find_blocks(body: nn.Module) -> list[nn.Module]:
    """Return the blocks of a body: neither rows of modules, nor most of the parameters."""
    total = count_parameters(body)
    blocks: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        size = count_parameters(module)
        rows = isinstance(module, nn.Sequential | nn.ModuleList)
        if list(module.children()) and (rows or size > total / 2):
            for child in module.children():
                visit(child)
        elif size:
            blocks.append(module)

    visit(body)
    return blocks


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights of a module."""
    return sum(p.numel() for p in module.parameters())


def drop_unused(body: nn.Module, used: set[nn.Module]) -> None:
    """Replace the parts of a network that its features do not need, such as its head."""
    for name, child in body.net.named_children() if isinstance(body, TokenBody) else ():
        if count_parameters(child) and used.isdisjoint(child.modules()):
            setattr(body.net, name, nn.Identity())


def group_blocks(strides: dict[nn.Module, float]) -> list[list[nn.Module]]:
    """Return blocks, given in forward order with their strides, by stage, stem first."""
    stages: list[list[nn.Module]] = []
    deepest = -1
    for block, stride in strides.items():
        depth = max(deepest, round(math.log2(max(stride, 1))))
        if depth > deepest or not stages:
            stages.append([])
        stages[-1].append(block)
        deepest = depth
    if len(stages) < 4:
        blocks = list(strides)
        cuts = np.array_split(np.arange(len(blocks)), min(4, len(blocks)))
        stages = [[blocks[i] for i in part] for part in cuts]
    return stages


def group_parameters(backbone: Backbone) -> list[list[nn.Parameter]]:
    """Return the parameters of a backbone's blocks by stage; any others belong to the stem."""
    stages = [
        list(dict.fromkeys(p for block in blocks for p in block.parameters()))
        for blocks in backbone.blocks
    ]
    grouped = {p for stage in stages for p in stage}
    stages[0] += [p for p in backbone.parameters() if p not in grouped]
    return stages
