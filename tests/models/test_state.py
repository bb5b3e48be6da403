import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from lesionfast.models.precision import freed_memory_kept, in_eval_mode

PAGES = """
import resource
import torch
from lesionfast.models.precision import freed_memory_kept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def least():
    return min(pages() for _ in range(20))

def resident():
    return int(open("/proc/self/statm").read().split()[1])

cpu, before, small = torch.device("cpu"), least(), resident()
with freed_memory_kept(cpu) as kept:
    with freed_memory_kept(cpu):
        pass
    inside, large = least(), resident()
print(kept, before, inside, large - small, resident() - small)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so")
def test_memory_that_is_freed_is_not_asked_for_again_until_it_is_given_back():
    command = [sys.executable, "-c", PAGES]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept, *numbers = told.split()
    before, inside, held, left = map(int, numbers)
    assert kept == "True" and before > 1000 and inside < 100  # 64 MiB are 16,384 pages
    assert held > 10_000 and left < held / 2  # pages that the process has


def test_memory_is_not_kept_on_a_gpu_or_without_glibc(monkeypatch):
    with freed_memory_kept(torch.device("cuda")) as kept:
        assert kept is False
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with freed_memory_kept(torch.device("cpu")) as kept:
        assert kept is False


def test_each_module_is_in_its_own_mode_again_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()
    with pytest.raises(ValueError), in_eval_mode(model):
        assert not any(each.training for each in model.modules())
        raise ValueError
    assert [each.training for each in model] == [False, True] and model.training
