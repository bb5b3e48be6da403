"""Which numbers a model computes with: float32, or 16 bits where the device is fast at it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lesionfast.errors import LesionfastError

FAST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # what makes a CPU fast at bfloat16


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return the precision to compute in; 'auto' is bfloat16 where the hardware is fast at it.

    Raises `LesionfastError` for float16 where there is no CUDA GPU, whose loss scaling it needs.
    """
    if wanted == "float16" and device.type != "cuda":
        raise LesionfastError(
            f"--precision float16 needs a CUDA GPU, but the device is {device.type}. "
            "Type --precision auto, or bfloat16."
        )
    if wanted != "auto":
        return wanted
    return "bfloat16" if fast_at_bfloat16(device) else "float32"


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return the type of the numbers of a precision, as of `choose_precision`."""
    return getattr(torch, choose_precision(wanted, device))


def fast_at_bfloat16(device: torch.device) -> str:
    """Return what makes a device fast at bfloat16, or ''."""
    if device.type == "cuda":
        return "CUDA" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in older PyTorch
    found = capabilities() if device.type == "cpu" else {}
    return next((told for name, told in FAST.items() if found.get(name)), "")


def describe_precision(wanted: str, device: torch.device) -> str:
    """Return the precision to compute in, and why, in words."""
    chosen = choose_precision(wanted, device)
    if wanted != "auto":
        return f"{chosen}, as asked"
    missing = "no AMX or AVX512-BF16" if device.type == "cpu" else "no fast bfloat16"
    return f"{chosen}, for the device has {fast_at_bfloat16(device) or missing}"


def autocast(wanted: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which a model computes in a precision."""
    chosen = choose_precision(wanted, device)
    if chosen == "float32":
        return nullcontext()
    if device.type == "cpu":
        return bfloat16_on_cpu()
    return torch.autocast(device.type, dtype=getattr(torch, chosen))


@contextmanager
def bfloat16_on_cpu() -> Iterator[None]:
    """Compute in bfloat16, but for what is many times slower in it."""
    with torch.autocast("cpu", dtype=torch.bfloat16), SlowDepthwiseInFloat32():
        yield


class SlowDepthwiseInFloat32(TorchFunctionMode):
    """Compute depthwise convolutions of a stride, or of a wide kernel, in float32 while they learn.

    PyTorch's CPU library (oneDNN) has no fast backward pass in bfloat16 for them: with it
    tf_efficientnet_lite0 spends half of a training step in ten of its layers.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call a function of torch, in float32 if it is one of these convolutions."""
        kwargs = kwargs or {}
        if function is torch.conv2d and torch.is_grad_enabled() and is_slow(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                return in_float32(*args, **kwargs)
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


def in_float32(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Return a convolution computed in float32."""
    bias = None if bias is None else bias.float()
    return torch.conv2d(input.float(), weight.float(), bias, *args, **kwargs)
