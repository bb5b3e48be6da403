"""A model made for inference: what is the same for every image is worked out once."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lesionfast.data.augment import turn
from lesionfast.data.loaders import images_at_once, pick_device
from lesionfast.models.fusion import FusionModel, model_of
from lesionfast.models.precision import autocast, dtype_of

TOLERANCE = 1e-2  # of the largest output: TensorFloat-32 has 10 bits
CONVOLUTIONS, NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)


def for_inference(
    model: nn.Module, *inputs: Tensor, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return a model in eval mode that gives the same for inputs of this size and computes less.

    It is `folded`. For a `dtype` of 16 bits the weights that autocast would round in every batch
    are rounded once: it must be run inside autocast. The model itself stays as it is.
    """
    found = folded(model, *inputs)
    if dtype == torch.float32:
        return found
    with torch.inference_mode():
        found = deepcopy(found) if found is model else found
        for module in found.modules():
            if type(module) in (*CONVOLUTIONS, nn.Linear):
                for name, each in module.named_parameters():
                    setattr(module, name, nn.Parameter(each.to(dtype), requires_grad=False))
    return found


def folded(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Return a copy in eval mode that gives the same for inputs of this size and computes less.

    Each batch norm that is given the output of a convolution becomes part of that convolution's
    weights (Jacob et al. 2018, arXiv:1712.05877, section 3.2), and TensorFlow's uneven padding
    becomes even padding of a kernel with a row and a column of zeros. Which modules these are is
    seen in a forward pass of the first of the `inputs` (B, …). Where there are none, or the copy
    gives something else, it is the model itself, in eval mode.
    """
    model.eval()
    sample = [each[:1] for each in inputs]
    with torch.inference_mode(), torch.autocast(inputs[0].device.type, enabled=False):
        expected, seen = watched(model, sample)
        if not (seen.pairs or seen.sizes):
            return model
        copy = deepcopy(model)
        for convolution, norm in seen.pairs:
            fold_norm(copy, convolution, norm)
        for convolution, size in seen.sizes.items():
            fold_padding(copy, convolution, size)
        largest = expected.abs().max().item()
        close = torch.allclose(copy(*sample), expected, rtol=0, atol=TOLERANCE * largest)
    return copy if close else model


@dataclass
class Seen:
    """What a forward pass shows: how often modules ran, and what each was given.

    `pairs` are the names of convolutions and of the norms after them, `sizes` are the heights and
    widths that convolutions with TensorFlow's padding were given, by name.
    """

    calls: Counter = field(default_factory=Counter)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    outputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)  # held: ids stay theirs

    def after_convolution(self, name: str) -> Callable[..., None]:
        """Return a hook that notes the output, and the size of the input."""

        def note(module: nn.Module, given: tuple, output: Tensor) -> None:
            self.calls[name] += 1
            self.outputs[id(output)] = (name, output)
            if isinstance(module, Conv2dSame):
                self.sizes[name] = tuple(given[0].shape[-2:])

        return note

    def before_norm(self, name: str) -> Callable[..., None]:
        """Return a hook that notes the convolution that the input came from."""

        def note(module: nn.Module, given: tuple) -> None:
            self.calls[name] += 1
            if id(given[0]) in self.outputs:
                self.pairs.append((self.outputs[id(given[0])][0], name))

        return note


def watched(model: nn.Module, sample: list[Tensor]) -> tuple[Tensor, Seen]:
    """Return a model's output and what was seen, without the modules that ran more than once."""
    seen = Seen()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if type(module) in CONVOLUTIONS:
                hook = module.register_forward_hook(seen.after_convolution(name))
            elif type(module) in NORMS and module.track_running_stats:
                hook = module.register_forward_pre_hook(seen.before_norm(name))
            else:
                continue
            stack.callback(hook.remove)
        output = model(*sample)
    once = {name for name, n in seen.calls.items() if n == 1}
    seen.pairs = [pair for pair in seen.pairs if once.issuperset(pair)]
    seen.sizes = {name: size for name, size in seen.sizes.items() if name in once}
    return output, seen


def fold_norm(model: nn.Module, convolution: str, norm: str) -> None:
    """Make a batch norm part of a convolution, in place; its activation stays."""
    old = model.get_submodule(norm)
    fused = fuse_conv_bn_eval(model.get_submodule(convolution), old)
    rest = nn.Sequential(old.drop, old.act) if isinstance(old, BatchNormAct2d) else nn.Identity()
    model.set_submodule(convolution, fused)
    model.set_submodule(norm, rest.eval())


def fold_padding(model: nn.Module, convolution: str, size: tuple[int, int]) -> None:
    """Give a convolution even padding for inputs of a size, in place of a padded copy of each.

    Where one more row is padded after than before, the kernel gets a first row of zeros.
    """
    old = model.get_submodule(convolution)
    sides = zip(size, old.kernel_size, old.stride, old.dilation, strict=True)
    total = [get_same_padding(*side) for side in sides]
    uneven = [each % 2 for each in total]
    if any(uneven) and set(old.dilation) != {1}:
        return
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        tuple(k + more for k, more in zip(old.kernel_size, uneven, strict=True)),
        stride=old.stride,
        padding=tuple((each + 1) // 2 for each in total),
        dilation=old.dilation,
        groups=old.groups,
        bias=old.bias is not None,
        device="meta",
    )
    weight = F.pad(old.weight, (uneven[1], 0, uneven[0], 0))
    new.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    new.bias = old.bias
    model.set_submodule(convolution, new.eval())


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
