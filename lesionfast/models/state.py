"""What is changed for a while and given back: a model's mode, and how the process keeps memory."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import nn

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt(3)
USUAL = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}  # glibc's own values


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; each of its modules is in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class Keepers:
    """How many parts of the process want freed memory kept."""

    count, lock = 0, Lock()


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[bool]:
    """Let a process that trains on a CPU keep what it frees; yield whether it does so.

    glibc gives large blocks, as those of feature maps, back to the system at once, which hands them
    out again page by page: up to a fifth of a training step. Afterwards glibc's usual limits hold
    again, and what is free goes back. Does nothing elsewhere.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    with Keepers.lock:
        Keepers.count += 1
        kept = bool(libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, -1))
    try:
        yield kept
    finally:
        with Keepers.lock:
            Keepers.count -= 1
            if not Keepers.count:
                for parameter, value in USUAL.items():
                    libc.mallopt(parameter, value)
                libc.malloc_trim(0)
