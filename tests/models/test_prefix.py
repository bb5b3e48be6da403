"""A backbone in two halves is the whole backbone, or says that it can't be cut."""

import pytest
import torch

from lesionfast.models.backbones import create_backbone
from lesionfast.models.features import can_be_cut, frozen_stages, prefix_maps, resume_maps

ARCHS = ["vanilla_cnn", "densenet_scratch", "mobilenetv3_small_050", "resnet18", "vgg11"]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_halves_give_what_the_whole_gives(arch):
    torch.manual_seed(0)
    backbone = create_backbone(arch, size=64, weights="none").eval()
    image = torch.rand(3, 3, 64, 64)
    whole = backbone(image)
    for stages in range(1, len(backbone.stages)):
        assert can_be_cut(backbone, stages, 64)
        maps = prefix_maps(backbone, image, stages)
        torch.testing.assert_close(resume_maps(backbone, maps, stages, 64), whole)
    assert torch.equal(backbone(image), whole)  # nothing is left of the cut


def test_the_prefix_does_not_run_the_rest():
    backbone = create_backbone("resnet18", size=64, weights="none").eval()
    ran = []
    backbone.blocks[-1][0].register_forward_hook(lambda *_: ran.append("rest"))
    backbone.blocks[0][0].register_forward_hook(lambda *_: ran.append("prefix"))
    maps = prefix_maps(backbone, torch.rand(1, 3, 64, 64), 2)
    assert ran == ["prefix"]
    ran.clear()
    resume_maps(backbone, maps, 2, 64)
    assert ran == ["prefix", "rest"]  # hooks are called, but the block passes on what it is given


def test_a_connection_around_the_blocks_can_not_be_cut():
    backbone = create_backbone("pyramid_cnn", size=64, weights="none")
    assert can_be_cut(backbone, 1, 64)
    assert not any(can_be_cut(backbone, stages, 64) for stages in range(2, len(backbone.stages)))
    assert backbone.training


def test_frozen_stages_are_counted_from_the_stem():
    backbone = create_backbone("resnet18", size=64, weights="none")
    assert frozen_stages(backbone) == 0
    for stages in range(1, len(backbone.stages) + 1):
        for each in backbone.stages[stages - 1]:
            each.requires_grad_(False)
        assert frozen_stages(backbone) == stages


def test_gradients_of_the_rest_are_those_of_the_whole():
    torch.manual_seed(0)
    backbone = create_backbone("vgg11", size=64, weights="none").eval()
    image = torch.rand(2, 3, 64, 64)
    learns = backbone.stages[-1][0]
    backbone(image).sum().backward()
    expected, learns.grad = learns.grad, None
    stages = len(backbone.stages) - 1
    resume_maps(
        backbone, prefix_maps(backbone, image, stages).detach(), stages, 64
    ).sum().backward()
    torch.testing.assert_close(learns.grad, expected)
