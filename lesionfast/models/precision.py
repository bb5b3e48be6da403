"""Which numbers a model computes with: float32, or 16 bits where the device is fast at it."""

from contextlib import AbstractContextManager, nullcontext

import torch

from lesionfast.errors import LesionfastError

FAST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # what makes a CPU fast at bfloat16


def precision(wanted: str, device: torch.device) -> str:
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


def fast_at_bfloat16(device: torch.device) -> str:
    """Return what makes a device fast at bfloat16, or ''."""
    if device.type == "cuda":
        return "CUDA" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return next((told for name, told in FAST.items() if found.get(name)), "")


def explain_precision(wanted: str, device: torch.device) -> str:
    """Return the precision to compute in, and why, in words."""
    chosen = precision(wanted, device)
    if wanted != "auto":
        return f"{chosen}, as asked"
    missing = "no AMX or AVX512-BF16" if device.type == "cpu" else "no fast bfloat16"
    return f"{chosen}, for the device has {fast_at_bfloat16(device) or missing}"


def autocast(wanted: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which a bare model computes in a precision."""
    chosen = precision(wanted, device)
    if chosen == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, chosen))
