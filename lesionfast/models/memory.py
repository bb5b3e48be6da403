"""Memory that a batch frees is kept for the next: giving it back and asking again takes time."""

import ctypes
import platform

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory(device: torch.device) -> bool:
    """Make a process that trains on a CPU keep what it frees; return whether it does so.

    glibc gives large blocks, as those of feature maps, back to the system at once, which hands them
    out again page by page: up to a fifth of a training step. The process stays as large as it was
    at its largest. Does nothing elsewhere.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
