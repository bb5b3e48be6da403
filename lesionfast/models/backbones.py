"""Any torchvision or timm name, cut at its last feature map, with its stage groups."""

import math
from collections import OrderedDict
from functools import lru_cache
from importlib import import_module
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.models.stages import blocks, drop_unused, group_stages, side_of
from lesionfast.models.weights import Wanted, find_weights, load_into, modernize

LIBRARIES = ("torchvision", "timm")
HEADS = ("avgpool", "classifier", "fc", "head", "heads", "dropout")  # where torchvision pools
AUXILIARY = ("AuxLogits", "aux1", "aux2")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TRANSFORMED = ("inception_v3", "googlenet")  # torchvision turns their input into -1..1 itself


@lru_cache
def names_of(library: str) -> tuple[str, ...]:
    """Return the names of a library's classification architectures."""
    if library == "timm":
        return tuple(timm.list_models())
    return tuple(torchvision.models.list_models(module=torchvision.models))


def list_archs() -> dict[str, str]:
    """Return every name -> the library that it is taken from."""
    both = [(name, library) for library in LIBRARIES for name in names_of(library)]
    return dict(sorted(reversed(both)))


def check_arch(arch: str) -> tuple[str, str]:
    """Return (library, name); raises `LesionfastError` for a name that neither library has.

    A name that both have is torchvision's; "timm:resnet50" takes the other.
    """
    library, _, name = arch.rpartition(":")
    if library not in ("", *LIBRARIES):
        raise LesionfastError(
            f"--arch is '{arch}', but there is no library '{library}'. "
            f"Type torchvision:{name} or timm:{name}."
        )
    for each in [library] if library else LIBRARIES:
        base = name.split(".")[0] if each == "timm" else name
        if base in names_of(each):
            return each, name
    known = names_of(library) if library else list_archs()
    raise LesionfastError(
        f"--arch is '{arch}', which {library or 'neither torchvision nor timm'} does not have."
        f"{did_you_mean(name, known)} List names with: lesionfast list archs"
    )


class Backbone(nn.Module):
    """A body that turns images into a feature map.

    Takes float RGB images (B, 3, H, W) in 0..1, normalises them with its own `mean` and `std`,
    and returns (B, num_features, h, w). `stages` are lists of parameters, the stem's first;
    `pretrained` and `origin` say where its weights came from.
    """

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body, self.mean, self.std = body, tuple(mean), tuple(std)
        self.pretrained, self.origin = False, "random weights, trained from scratch"
        self.register_buffer("shift", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last feature map."""
        return self.body((image - self.shift) / self.scale)


class TimmBody(nn.Module):
    """A timm model up to its last feature map, whatever its family, as (B, C, h, w)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return the feature map; tokens become a grid, channels-last becomes channels-first."""
        features = self.net.forward_features(image)
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
    library, name = check_arch(arch)
    backbone = (timm_backbone if library == "timm" else torchvision_backbone)(name, size)
    measure(backbone, arch, size)
    if weights != "none":
        wanted = wanted_weights(arch, library, name)
        tensors, origin = find_weights(wanted, weights)
        net = backbone.body if isinstance(backbone.body, nn.Sequential) else backbone.body.net
        load_into(net, fit_names(tensors, net, library, size), arch, origin)
        backbone.pretrained, backbone.origin = True, origin
    return backbone


def timm_backbone(name: str, size: int) -> Backbone:
    """Return a timm model without its head; a fixed-size one is built for `size`."""
    config = timm.get_pretrained_cfg(name.split(".")[0], allow_unregistered=True)
    fixed = config is not None and config.fixed_input_size
    try:
        net = timm.create_model(name, num_classes=0, **({"img_size": size} if fixed else {}))
    except TypeError:
        net = timm.create_model(name, num_classes=0)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise cannot_take(name, size, error, config.input_size[-1]) from None
    return Backbone(TimmBody(net), net.pretrained_cfg["mean"], net.pretrained_cfg["std"])


def torchvision_backbone(name: str, size: int) -> Backbone:
    """Return a torchvision model cut before its pooling, without auxiliary heads."""
    data = torchvision.models.get_model_weights(name).DEFAULT
    smallest = min(data.meta.get("min_size", (1, 1)))
    transformer = name.startswith("vit_")
    if size < smallest and not (transformer or name.startswith("swin")):
        raise cannot_take(name, size, f"its smallest is {smallest}", smallest)
    extra: dict[str, Any] = {"init_weights": True} if name in TRANSFORMED else {}
    if transformer:
        patch = int(name.split("_")[2])
        if size % patch:
            raise cannot_take(name, size, f"not a multiple of {patch}", -(-size // patch) * patch)
        extra["image_size"] = size
    net = torchvision.models.get_model(name, weights=None, **extra)
    mean, std = HALVES if name in TRANSFORMED else IMAGENET
    return Backbone(VisionTransformerBody(net) if transformer else cut(net, name), mean, std)


def cut(net: nn.Module, name: str) -> nn.Sequential:
    """Return a torchvision model's parts, in forward order, up to where it pools."""
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
    if library == "torchvision":
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        return Wanted(arch, library, name, url=url)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return Wanted(arch, library, name)
    return Wanted(arch, library, name.split(".")[0], config.url or None, config.hf_hub_id or None)


def fit_names(
    tensors: dict[str, Tensor], net: nn.Module, library: str, size: int
) -> dict[str, Tensor]:
    """Return the tensors with the names and sizes that the library's own loading gives them."""
    if library == "timm":
        convert = getattr(import_module(type(net).__module__), "checkpoint_filter_fn", None)
        return convert(tensors, net) if convert else tensors
    position = tensors.get("encoder.pos_embedding")
    if position is not None and position.shape != net.encoder.pos_embedding.shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        patch = net.patch_size
        return dict(interpolate_embeddings(size, patch, OrderedDict(tensors)))
    return modernize(tensors)


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
    finally:
        for hook in hooks:
            hook.remove()
    drop_unused(backbone.body, sides)
    backbone.num_features = features.shape[1]
    backbone.stages = group_stages(backbone, [(unit, size / side) for unit, side in sides.items()])
    backbone.train()


def native_size(arch: str) -> int:
    """Return the side in pixels that a backbone was made for."""
    library, name = check_arch(arch)
    if library == "timm":
        config = timm.get_pretrained_cfg(name.split(".")[0], allow_unregistered=True)
        return config.input_size[-1]
    return torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
