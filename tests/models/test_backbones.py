"""Backbones of every family: cut where their own library pools, with stages that cover them."""

import pytest
import timm
import torch
import torchvision

from lesionfast.errors import LesionfastError
from lesionfast.models.backbones import check_arch, create_backbone, list_archs

CONVOLUTIONAL = [
    "densenet121",
    "resnet18",
    "vgg11_bn",
    "inception_v3",
    "googlenet",
    "efficientnet_b0",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "mnasnet0_5",
    "convnext_tiny",
]
FAMILIES = [
    *("densenet121", "resnet50", "vgg16_bn", "inception_v3", "convnext_tiny", "efficientnet_b0"),
    *("mobilenet_v3_large", "swin_t", "tf_efficientnet_lite0", "timm:densenet121"),
    *("test_vit", "test_resnet", "mobilenetv3_small_050", "vit_tiny_patch16_224"),
]


def build(arch, size=96):
    return create_backbone(arch, size=size, weights="none").eval()


@pytest.mark.parametrize("arch", CONVOLUTIONAL)
def test_a_torchvision_body_and_its_own_head_give_the_whole_models_logits(arch):
    """Load one random model into both, run the body, then what the model does after it."""
    backbone = build(arch)
    whole = torchvision.models.get_model(arch, weights=None, **init(arch)).eval()
    state = {k: v for k, v in whole.state_dict().items() if k in backbone.body.state_dict()}
    backbone.body.load_state_dict(state)
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        features = backbone(image)
        expected = whole((image - backbone.shift) / backbone.scale)
        torch.testing.assert_close(finish(whole, features), expected, rtol=1e-4, atol=1e-4)


def init(arch):
    return {"init_weights": False} if arch in ("inception_v3", "googlenet") else {}


def finish(whole, features):
    """Apply pooling and classifier as torchvision's own forward does."""
    pooled = whole.avgpool(features) if hasattr(whole, "avgpool") else features.mean((2, 3))
    if isinstance(whole, torchvision.models.ConvNeXt):
        return whole.classifier(pooled)
    if isinstance(whole, torchvision.models.DenseNet):
        pooled = features.mean((2, 3))
    flat = pooled.flatten(1)
    return whole.classifier(flat) if hasattr(whole, "classifier") else whole.fc(flat)


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet", "test_convnext"])
def test_a_timm_body_holds_what_timm_pools(arch):
    backbone = build(arch)
    whole = timm.create_model(arch, **({"img_size": 96} if "vit" in arch else {})).eval()
    whole.load_state_dict(backbone.body.net.state_dict(), strict=False)
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        features = backbone(image)
        raw = whole.forward_features((image - backbone.shift) / backbone.scale)
        if raw.ndim == 3:
            raw = raw[:, whole.num_prefix_tokens :].mT
        torch.testing.assert_close(features.flatten(2), raw.flatten(2))


def test_torchvisions_vision_transformer_leaves_the_class_token_out():
    backbone = create_backbone("vit_b_16", size=64, weights="none").eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 64, 64))
    assert features.shape == (1, 768, 4, 4)


@pytest.mark.parametrize("arch", FAMILIES)
def test_stages_cover_every_parameter_once(arch):
    backbone = build(arch, 224 if arch == "vit_tiny_patch16_224" else 96)
    staged = [id(p) for stage in backbone.stages for p in stage]
    assert len(staged) == len(set(staged))
    assert set(staged) == {id(p) for p in backbone.parameters()}
    assert len(backbone.stages) >= 4


def test_the_stages_are_those_of_the_papers():
    vgg = build("vgg16")
    assert [sum(p.ndim == 4 for p in stage) for stage in vgg.stages] == [2, 2, 3, 3, 3]
    resnet = build("resnet50")
    last = {id(p) for p in resnet.body.layer4.parameters()}
    assert {id(p) for p in resnet.stages[-1]} == last


@pytest.mark.parametrize("arch", ["resnet18", "test_vit", "test_convnext", "densenet121"])
def test_freezing_all_but_the_last_stage_gives_gradients_there_only(arch):
    backbone = build(arch)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    for parameter in backbone.stages[-1]:
        parameter.requires_grad_(True)
    backbone(torch.rand(1, 3, 96, 96)).square().sum().backward()
    with_gradient = {id(p) for p in backbone.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in backbone.stages[-1]}


def test_normalisation_is_the_backbones_own():
    assert build("tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    assert build("resnet18").mean == (0.485, 0.456, 0.406)
    assert build("inception_v3").std == (0.5, 0.5, 0.5)
    backbone = build("resnet18")
    seen = []
    backbone.body.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    backbone(torch.full((1, 3, 96, 96), 0.5))
    expected = (0.5 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected)


def test_a_name_of_both_libraries_is_torchvisions_unless_said():
    assert check_arch("resnet50") == ("torchvision", "resnet50")
    assert check_arch("timm:resnet50.a1_in1k") == ("timm", "resnet50.a1_in1k")
    assert check_arch("resnet50.a1_in1k") == ("timm", "resnet50.a1_in1k")
    archs = list_archs()
    assert archs["densenet121"] == "torchvision" and archs["inception_v4"] == "timm"
    assert len(archs) > 1000


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("densnet121", "Did you mean 'densenet121'.*lesionfast list archs"),
        ("timm:mobilenet_v3_large", "timm does not have"),
        ("keras:vgg16", "Type torchvision:vgg16 or timm:vgg16"),
    ],
)
def test_an_unknown_name_says_what_to_type(arch, message):
    with pytest.raises(LesionfastError, match=message):
        create_backbone(arch, size=96, weights="none")


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("inception_v3", 64, "inception_v3 can't take images of 64 pixels.*--size 75"),
        ("vit_b_16", 100, "can't take images of 100 pixels.*--size 112"),
        ("vgg16", 16, "--size 32"),
    ],
)
def test_a_size_that_it_can_not_take_says_which_it_can(arch, size, message):
    with pytest.raises(LesionfastError, match=message):
        create_backbone(arch, size=size, weights="none")
