import platform
import subprocess
import sys

import pytest
import torch

from lesionfast.models.memory import keep_freed_memory

PAGES = """
import resource
import torch
from lesionfast.models.memory import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = min(pages() for _ in range(20))
kept = keep_freed_memory(torch.device("cpu"))
print(kept, before, min(pages() for _ in range(20)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so")
def test_memory_that_is_freed_is_not_asked_for_again():
    command = [sys.executable, "-c", PAGES]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept, before, after = told.split()
    assert kept == "True" and int(before) > 1000 and int(after) < 100  # 64 MiB are 16,384 pages


def test_it_does_nothing_on_a_gpu_or_without_glibc(monkeypatch):
    assert keep_freed_memory(torch.device("cuda")) is False
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory(torch.device("cpu")) is False
