"""The one way to run a model over images: folded for their size, in its precision, view by view."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lesionfast.data.augment import turn
from lesionfast.data.loaders import copy_batch, images_at_once, read_ahead
from lesionfast.errors import DamageError
from lesionfast.models.fusion import FusionModel
from lesionfast.models.precision import autocast, choose_precision

TOLERANCE = 1e-2  # of the largest output: TensorFloat-32 has 10 bits
CONVOLUTIONS, NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)


class TorchEngine:
    """Runs a model over images: probabilities are the mean over the views, features of the first.

    The `views` are the first elements of the dihedral group (`data.augment.turn`), the image itself
    before all others. The model stays on its device, in eval mode; what runs is a copy that
    `for_inference` makes for the size of the first images.
    """

    def __init__(self, model: FusionModel, *, views: int, precision: str) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self.views, self.precision = views, precision
        self.device = next(model.parameters()).device
        self.leaves_cpu_free = self.device.type != "cpu"
        self.fast: FusionModel | None = None

    def __call__(
        self, pixels: np.ndarray | Sequence[np.ndarray], metadata: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, k) and features (n, F), float32.

        `pixels` are uint8 (n, size, size, 3), or a list of them; `metadata` float32 (n, width).
        """
        pixels = pixels if isinstance(pixels, np.ndarray) else pixels[0]
        rows, probabilities, features = np.arange(len(pixels)), [], []
        # batch by batch, as the last bits of a mean depend on how many rows are averaged at once
        for part in batch_slices(len(rows), self.device):
            (batch,), first = self.run(pixels, rows[part], metadata[part])
            probabilities.append(batch)
            features.append(first)
        return np.concatenate(probabilities), np.concatenate(features)

    def run(
        self, pixels: np.ndarray, rows: np.ndarray, *metadata: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the probabilities (n, k) with each of the `metadata` (n, width), and features.

        The images are the `rows` (n,) of pixels uint8 (N, size, size, 3).
        """
        batches = (
            tuple(map(torch.from_numpy, (pixels[rows[part]], *(m[part] for m in metadata))))
            for part in batch_slices(len(rows), self.device)
        )
        if self.device.type == "cuda":
            batches = read_ahead(copy_batch(batch, self.device) for batch in batches)
        probabilities, features = zip(*(self.look(*batch) for batch in batches), strict=True)
        tables = [torch.cat(views, dim=1) for views in zip(*probabilities, strict=True)]
        return [views.mean(dim=0).numpy() for views in tables], np.concatenate(features)

    @torch.inference_mode()
    def look(self, pixels: Tensor, *metadata: Tensor) -> tuple[list[Tensor], np.ndarray]:
        """Return probabilities (views, B, k) with each metadata, and features of the first view."""
        image = as_images(pixels, self.device)
        tables = [table.to(self.device) for table in metadata]
        if self.fast is None:
            self.fast = for_inference(self.model, image, tables[0], precision=self.precision)
        probabilities, first = [], None
        for view in range(self.views):
            turned = turn(image, torch.full((len(image),), view)) if view else image
            with autocast(self.precision, self.device):
                features = self.fast.features(turned)
                outputs = [self.fast.classify(features, table) for table in tables]
            probabilities.append([logits.float().softmax(dim=-1).cpu() for logits in outputs])
            first = features.float().cpu().numpy() if first is None else first
        return [torch.stack(views) for views in zip(*probabilities, strict=True)], first


def batch_slices(n: int, device: torch.device) -> list[slice]:
    """Return slices that cut n images into batches of as many as a device should run at once."""
    size = images_at_once(device)
    return [slice(start, start + size) for start in range(0, n, size)]


def as_images(pixels: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return pixels uint8 (n, H, W, 3) as a model takes them: float32 (n, 3, H, W) in 0..1."""
    return torch.as_tensor(pixels).to(device).movedim(-1, 1).float() / 255


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards each of its modules is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def for_inference(model: nn.Module, *inputs: Tensor, precision: str = "float32") -> nn.Module:
    """Return a model in eval mode with the same outputs for inputs of this size, and less work.

    It is `folded`. In a precision of 16 bits, the weights that `autocast` would round in every
    batch are rounded once, and the model must run inside `autocast`. The given model does not
    change.
    """
    fast = folded(model, *inputs)
    dtype = getattr(torch, choose_precision(precision, inputs[0].device))
    if dtype == torch.float32:
        return fast
    with torch.inference_mode():
        fast = deepcopy(fast) if fast is model else fast
        for module in fast.modules():
            if type(module) in (*CONVOLUTIONS, nn.Linear):
                for name, parameter in module.named_parameters():
                    rounded = nn.Parameter(parameter.to(dtype), requires_grad=False)
                    setattr(module, name, rounded)
    return fast


def folded(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Return a copy in eval mode with the same outputs for inputs of this size, and less work.

    A batch norm that follows a convolution becomes part of its weights (Jacob et al. 2018,
    arXiv:1712.05877, section 3.2), and TensorFlow's uneven padding becomes even padding of a kernel
    with an extra row and column of zeros. A forward pass of the first of the `inputs` (B, …) shows
    where that is possible. If it is nowhere, or the copy has other outputs, the model itself is
    returned, in eval mode.
    """
    model.eval()
    sample = [given[:1] for given in inputs]
    with torch.inference_mode(), torch.autocast(inputs[0].device.type, enabled=False):
        expected, pairs, sizes = watch(model, sample)
        if not torch.isfinite(expected).all():
            raise DamageError(
                "the model gives NaN or infinite values for a first image: its training has "
                "diverged, or its files are damaged. Train with a lower --lr, or copy the model "
                "again."
            )
        if not (pairs or sizes):
            return model
        copy = deepcopy(model)
        for convolution, norm in pairs:
            fold_norm(copy, convolution, norm)
        for convolution, size in sizes.items():
            fold_padding(copy, convolution, size)
        largest = expected.abs().max().item()
        close = torch.allclose(copy(*sample), expected, rtol=0, atol=TOLERANCE * largest)
    return copy if close else model


def watch(
    model: nn.Module, sample: list[Tensor]
) -> tuple[Tensor, list[tuple[str, str]], dict[str, tuple[int, int]]]:
    """Return a model's output, and what can be folded of the modules that ran exactly once.

    That is the names of convolutions with the norms after them, and the height and width of the
    inputs of convolutions with TensorFlow's padding.
    """
    calls, pairs, sizes = Counter(), [], {}
    outputs: dict[int, tuple[str, Tensor]] = {}  # held, so that no other tensor gets their ids

    def after_convolution(name: str, module: nn.Module, given: tuple, output: Tensor) -> None:
        calls[name] += 1
        outputs[id(output)] = (name, output)
        if isinstance(module, Conv2dSame):
            sizes[name] = tuple(given[0].shape[-2:])

    def before_norm(name: str, module: nn.Module, given: tuple) -> None:
        calls[name] += 1
        if id(given[0]) in outputs:
            pairs.append((outputs[id(given[0])][0], name))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if type(module) in CONVOLUTIONS:
                hook = module.register_forward_hook(partial(after_convolution, name))
                stack.callback(hook.remove)
            elif type(module) in NORMS and module.track_running_stats:
                hook = module.register_forward_pre_hook(partial(before_norm, name))
                stack.callback(hook.remove)
        output = model.forward(*sample)  # not the compiled call, which hooks would compile again
    once = {name for name, n in calls.items() if n == 1}
    pairs = [pair for pair in pairs if once.issuperset(pair)]
    return output, pairs, {name: size for name, size in sizes.items() if name in once}


def fold_norm(model: nn.Module, convolution: str, norm: str) -> None:
    """Make a batch norm part of a convolution, in place; its activation stays."""
    old = model.get_submodule(norm)
    fused = fuse_conv_bn_eval(model.get_submodule(convolution), old)
    rest = nn.Sequential(old.drop, old.act) if isinstance(old, BatchNormAct2d) else nn.Identity()
    model.set_submodule(convolution, fused)
    model.set_submodule(norm, rest.eval())


def fold_padding(model: nn.Module, convolution: str, size: tuple[int, int]) -> None:
    """Give a convolution even padding for inputs of a size, instead of a padded copy of each.

    Where one more row is padded after than before, the kernel gets a first row of zeros.
    """
    old = model.get_submodule(convolution)
    sides = zip(size, old.kernel_size, old.stride, old.dilation, strict=True)
    total = [get_same_padding(*side) for side in sides]
    uneven = [padding % 2 for padding in total]
    if any(uneven) and set(old.dilation) != {1}:
        return
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        tuple(k + more for k, more in zip(old.kernel_size, uneven, strict=True)),
        stride=old.stride,
        padding=tuple((padding + 1) // 2 for padding in total),
        dilation=old.dilation,
        groups=old.groups,
        bias=old.bias is not None,
        device="meta",
    )
    weight = F.pad(old.weight, (uneven[1], 0, uneven[0], 0))
    new.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    new.bias = old.bias
    model.set_submodule(convolution, new.eval())
