"""The precision of a model's arithmetic: float32, or 16 bits where the device is fast at it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lesionfast.errors import LesionfastError

FAST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # what makes a CPU fast at bfloat16


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return the precision to compute in; 'auto' is bfloat16 where the hardware is fast at it.

    Raises `LesionfastError` for float16 without a CUDA GPU, whose loss scaling it needs.
    """
    if wanted == "float16" and device.type != "cuda":
        raise LesionfastError(
            f"--precision float16 needs a CUDA GPU, but the device is {device.type}. "
            "Type --precision auto, or bfloat16."
        )
    if wanted != "auto":
        return wanted
    return "bfloat16" if find_fast_bfloat16(device) else "float32"


def describe_precision(wanted: str, device: torch.device) -> str:
    """Return the precision to compute in, and why: "bfloat16, because the device has AMX"."""
    chosen = choose_precision(wanted, device)
    if wanted != "auto":
        return f"{chosen}, as requested"
    missing = "no AMX or AVX512-BF16" if device.type == "cpu" else "no fast bfloat16"
    return f"{chosen}, because the device has {find_fast_bfloat16(device) or missing}"


def find_fast_bfloat16(device: torch.device) -> str:
    """Return the name of what makes a device fast at bfloat16, or ''."""
    if device.type == "cuda":
        return "CUDA" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in older PyTorch
    present = capabilities() if device.type == "cpu" else {}
    return next((name for key, name in FAST.items() if present.get(key)), "")


@contextmanager
def autocast(wanted: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision, except for what is many times slower in it."""
    chosen = choose_precision(wanted, device)
    if chosen == "float32":
        yield
        return
    slow = SlowDepthwiseInFloat32() if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype=getattr(torch, chosen)), slow:
        yield


class SlowDepthwiseInFloat32(TorchFunctionMode):
    """Train depthwise convolutions with a stride, or with a wide kernel, in float32.

    PyTorch's CPU library (oneDNN) has no fast backward pass in bfloat16 for them: with it
    tf_efficientnet_lite0 spends half of a training step in ten of its layers.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.conv2d and torch.is_grad_enabled() and is_slow(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                named = {name: as_float32(value) for name, value in kwargs.items()}
                return torch.conv2d(*map(as_float32, args), **named)
        return function(*args, **kwargs)


def is_slow(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Return whether a convolution has a backward pass that is slow in bfloat16 on a CPU."""
    learns = input.requires_grad or weight.requires_grad
    depthwise = 1 < groups == weight.shape[0]
    strided = stride not in (1, (1, 1), [1, 1])
    return learns and depthwise and (strided or max(weight.shape[2:]) > 3)


def as_float32(value: Any) -> Any:
    """Return a tensor in float32, and anything else as it is."""
    return value.float() if isinstance(value, Tensor) else value
