"""Names of architectures: which library each is taken from, and what an unknown one says."""

import pytest
import torch

from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.models.archs import HUBS, archs, find_arch, list_archs, list_names
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import build_model, stage_groups


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet50", ("torchvision", "resnet50")),
        ("timm:resnet50", ("timm", "resnet50")),
        ("torchvision:resnet50", ("torchvision", "resnet50")),
        ("resnet50.a1_in1k", ("timm", "resnet50.a1_in1k")),
        ("timm:resnet50.a1_in1k", ("timm", "resnet50.a1_in1k")),
        ("tf_efficientnet_lite0", ("timm", "tf_efficientnet_lite0")),
        ("hf-hub:owner/some_vit.tag", ("hf-hub", "owner/some_vit.tag")),
        ("open_clip:ViT-B-16.laion2b_s34b_b88k", ("open_clip", "ViT-B-16.laion2b_s34b_b88k")),
        ("open_clip:hf-hub:owner/name", ("open_clip", "hf-hub:owner/name")),
        ("transformers:owner/name@v1.0", ("transformers", "owner/name@v1.0")),
        ("transformers:./folder", ("transformers", "./folder")),
    ],
)
def test_a_name_of_both_libraries_is_torchvisions_unless_said(arch, expected):
    assert find_arch(arch) == expected


def test_every_name_is_listed_with_its_library():
    archs = list_archs()
    own = list_names("lesionfast")
    hubs = [name for name in archs if name.partition(":")[0] in HUBS]
    assert [find_arch(name)[0] for name in hubs] == list(HUBS)
    archs = {name: library for name, library in archs.items() if name not in hubs}
    assert set(archs) == {*own, *list_names("timm"), *list_names("torchvision")}
    for name, library in archs.items():
        assert find_arch(name) == ("lesionfast" if name in own else library, name)
    assert list(archs) == [*own, *sorted(set(archs) - set(own))] and len(archs) > 1000
    assert not any("quantized" in name or "rcnn" in name for name in archs)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("densnet121", "Did you mean 'densenet121'.*lesionfast list archs"),
        ("DenseNet121", "Did you mean 'densenet121'"),
        ("", "lesionfast list archs"),
        ("timm:mobilenet_v3_large", "timm does not have it"),
        ("torchvision:resnet50.a1_in1k", "torchvision does not have it"),
        ("keras:vgg16", "Type torchvision:vgg16 or timm:vgg16; of a hub: hf-hub, open_clip"),
        ("hf-hub:", "Type --arch hf-hub:OWNER/NAME"),
        ("transformers:dinov3", "Type --arch transformers:OWNER/NAME"),
        ("open_clip:a/b/c", "Type --arch open_clip:NAME.TAG"),
        ("resnet50.a1_in1", "Did you mean 'a1_in1k'.*Type --arch resnet50 for its default"),
        ("resnet50.", "has no weights ''"),
    ],
)
def test_an_unknown_name_says_what_to_type(arch, message):
    with pytest.raises(LesionfastError, match=message):
        find_arch(arch)


@pytest.mark.parametrize("name", archs)
def test_each_has_about_six_million_parameters_and_five_or_more_groups(name):
    model = build_model(TrainConfig(arch=name, size=64), n_metadata=6, n_classes=7)
    assert 5.4e6 < sum(p.numel() for p in model.parameters()) < 6.6e6
    assert len(stage_groups(model)) >= 5
    assert model.pool_name == "max"
    assert "has no pretrained ones" in model.backbone.origin


@pytest.mark.parametrize("name", archs)
@pytest.mark.parametrize("size", [32, 50])
def test_each_takes_any_size_and_learns(name, size):
    torch.manual_seed(0)
    backbone = create_backbone(name, size=size)
    features = backbone(torch.rand(2, 3, size, size))
    assert features.shape[:2] == (2, backbone.num_features)
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_of_the_pyramid_every_stage_reaches_the_head():
    torch.manual_seed(0)
    body = archs["pyramid_cnn"]().eval()
    image, maps = torch.rand(2, 3, 64, 64), []
    for row in body.rows:
        row.register_forward_hook(lambda module, inputs, output: maps.append(output))
    pooled = body(image).amax((2, 3))
    expected = torch.cat([each.amax((2, 3)) for each in maps], dim=1)
    torch.testing.assert_close(pooled, expected)


def test_they_come_first_in_the_list_with_their_origin():
    listed = list(list_archs().items())[:3]
    assert [name for name, _ in listed] == list(archs)
    assert all(origin.startswith("This project:") for _, origin in listed)


def test_too_small_a_size_says_what_to_type():
    with pytest.raises(LesionfastError, match="Type --size 32 or more"):
        create_backbone("vanilla_cnn", size=16)


def test_another_pool_is_as_wanted():
    for arch, pool, expected in (("vanilla_cnn", "avg", "avg"), ("test_resnet", "auto", "avg")):
        config = TrainConfig(arch=arch, pool=pool, size=32, weights="none")
        assert build_model(config, n_metadata=6, n_classes=7).pool_name == expected
