from contextlib import nullcontext

import pytest
import torch

from lesionfast.errors import LesionfastError
from lesionfast.models.precision import autocast, choose_precision, describe_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_precision_is_what_was_asked():
    assert (
        choose_precision("float32", CPU) == "float32"
        and choose_precision("bfloat16", CPU) == "bfloat16"
    )
    assert describe_precision("bfloat16", CPU) == "bfloat16, as requested"


@pytest.mark.parametrize(
    ("found", "expected", "told"),
    [
        ({"amx_bf16": True}, "bfloat16", "has AMX"),
        ({"avx512_bf16": True}, "bfloat16", "has AVX512-BF16"),
        ({"avx2": True, "amx_bf16": False}, "float32", "has no AMX or AVX512-BF16"),
    ],
)
def test_auto_is_what_the_processor_is_fast_at(monkeypatch, found, expected, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert choose_precision("auto", CPU) == expected
    assert told in describe_precision("auto", CPU)


def test_float16_needs_a_gpu():
    with pytest.raises(LesionfastError, match="needs a CUDA GPU.*bfloat16"):
        choose_precision("float16", CPU)
    assert choose_precision("float16", CUDA) == "float16"


@pytest.mark.parametrize(("name", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_bare_model_computes_in_the_precision(name, dtype):
    with autocast(name, CPU):
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == getattr(torch, dtype)


def test_a_bare_model_computes_in_float16_on_a_gpu(monkeypatch):
    opened = []

    def note(*given, **named):
        opened.append((given, named))
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", note)
    with autocast("float16", CUDA):
        assert opened == [(("cuda",), {"dtype": torch.float16})]


def convolution(groups, kernel=3, stride=1):
    return torch.nn.Conv2d(16, 16, kernel, stride=stride, padding=kernel // 2, groups=groups)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({"groups": 16, "kernel": 5}, torch.float32),
        ({"groups": 16, "stride": 2}, torch.float32),
        ({"groups": 16}, torch.bfloat16),
        ({"groups": 4, "stride": 2}, torch.bfloat16),
        ({"groups": 1, "stride": 2}, torch.bfloat16),
    ],
    ids=["wide", "strided", "narrow", "grouped", "dense"],
)
def test_depthwise_layers_that_are_slow_in_bfloat16_learn_in_float32(layer, expected):
    image, layer = torch.rand(2, 16, 12, 12), convolution(**layer)
    with autocast("bfloat16", CPU):
        learned = layer(image)
        by_name = torch.nn.functional.conv2d(
            input=image, weight=layer.weight, stride=layer.stride, groups=layer.groups
        )
        with torch.inference_mode():
            assert layer(image).dtype == torch.bfloat16
        assert layer.requires_grad_(False)(image).dtype == torch.bfloat16
    assert learned.dtype == by_name.dtype == expected
    assert layer(image).dtype == torch.float32  # all is as it was


def test_a_step_in_bfloat16_is_that_in_float32_within_two_percent():
    gradients = {}
    for name in ("float32", "bfloat16"):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(convolution(1), convolution(16, 5, 2), convolution(16))
        with autocast(name, CPU):
            found = layers(torch.linspace(0, 1, 2 * 16 * 24 * 24).view(2, 16, 24, 24))
        found.float().square().mean().backward()
        gradients[name] = torch.cat([each.grad.flatten() for each in layers.parameters()])
    difference = (gradients["bfloat16"] - gradients["float32"]).norm()
    assert 0 < difference < 0.02 * gradients["float32"].norm()
