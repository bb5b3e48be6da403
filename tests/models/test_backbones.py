"""Backbones of every family: cut where their own library pools, with stages that cover them."""

import pytest
import timm
import torch
import torchvision

from lesionfast.errors import LesionfastError
from lesionfast.models.archs import archs
from lesionfast.models.backbones import TimmBody, create_backbone, cut

TORCHVISION = [  # one of each of torchvision's files; the size that it takes
    *[(name, 96) for name in ("alexnet", "vgg11_bn", "resnet18", "squeezenet1_1", "densenet121")],
    *[(name, 96) for name in ("googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large")],
    *[(name, 96) for name in ("shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "swin_t")],
    *[(name, 96) for name in ("efficientnet_b0", "convnext_tiny")],
    ("maxvit_t", 224),
]
TIMM = [  # NCHW, NHWC, tokens with one, two and no prefix, and an attention of fixed size
    *("test_efficientnet", "test_nfnet", "test_convnext", "test_resnet", "test_mambaout"),
    *("test_vit", "test_vit3", "deit_tiny_distilled_patch16_224", "xcit_nano_12_p16_224"),
    *("test_coatnet", "timm:swin_tiny_patch4_window7_224", "pvt_v2_b0"),
]
FAMILIES = [
    *("densenet121", "resnet50", "vgg16_bn", "inception_v3", "convnext_tiny", "efficientnet_b0"),
    *("mobilenet_v3_large", "swin_t", "tf_efficientnet_lite0", "timm:densenet121", "test_vit"),
    *("test_mambaout", "mobilenetv3_small_050", "vit_tiny_patch16_224", "googlenet"),
]


def build(arch, size=96):
    return create_backbone(arch, size=size, weights="none").eval()


@pytest.mark.parametrize(("arch", "size"), TORCHVISION)
def test_a_torchvision_body_and_the_rest_give_the_whole_models_logits(arch, size):
    """Exactly: the body's features, through the pooling and classifier that were cut off."""
    quick = {"init_weights": False} if arch in ("inception_v3", "googlenet") else {}
    whole = torchvision.models.get_model(arch, weights=None, **quick).eval()
    body = cut(whole, arch).eval()
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(finish(whole, body(image)), whole(image))


def finish(whole, features):
    """Apply pooling and classifier as torchvision's own forward does."""
    if isinstance(whole, torchvision.models.SqueezeNet):
        return whole.classifier(features).flatten(1)
    if isinstance(whole, torchvision.models.MaxVit):
        return whole.classifier(features)
    pooled = whole.avgpool(features) if hasattr(whole, "avgpool") else features.mean((2, 3))
    if isinstance(whole, torchvision.models.ConvNeXt):
        return whole.classifier(pooled)
    if isinstance(whole, torchvision.models.DenseNet):
        pooled = torch.nn.functional.adaptive_avg_pool2d(features, (1, 1))
    for name in ("classifier", "fc", "head"):
        if hasattr(whole, name):
            return getattr(whole, name)(pooled.flatten(1))
    raise AssertionError("a family without a classifier")


def test_torchvisions_vision_transformer_gives_its_patch_tokens_as_a_grid():
    whole = torchvision.models.VisionTransformer(64, 16, 2, 4, 32, 64).eval()
    seen = []
    whole.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole(image)
        features = cut(whole, "vit_b_16")(image)
    assert features.shape == (2, 32, 4, 4)
    assert torch.equal(features[:, :, 1, 2], seen[0][:, 1 + 1 * 4 + 2])


@pytest.mark.parametrize("arch", TIMM)
def test_a_timm_body_holds_what_timms_own_head_turns_into_the_logits(arch, tmp_path):
    name = arch.removeprefix("timm:")
    size = 224 if "224" in name else 64
    img_size = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    whole = timm.create_model(name, **img_size).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = create_backbone(arch, size=size, weights=str(tmp_path / "whole.pth")).eval()
    image = torch.rand(1, 3, size, size)
    normalised = (image - backbone.shift) / backbone.scale
    with torch.no_grad():
        features = backbone(image)
        raw = whole.forward_features(normalised)
        assert torch.equal(whole.forward_head(raw), whole(normalised))
    assert features.shape[1] == backbone.num_features == whole.num_features
    assert torch.equal(features.flatten(2), as_channels_first(raw, whole).flatten(2))


def as_channels_first(raw, whole):
    if raw.ndim == 3:
        return raw[:, getattr(whole, "num_prefix_tokens", 0) :].mT
    return raw.movedim(-1, 1) if raw.shape[-1] == whole.num_features else raw


def test_inception_takes_what_torchvision_turns_its_weights_input_into():
    """Its ImageNet weights expect -1..1, which `transform_input` makes of the usual range."""
    backbone = build("inception_v3")
    whole = torchvision.models.inception_v3(init_weights=False, transform_input=True)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    image, seen = torch.rand(1, 3, 96, 96), []
    backbone.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        backbone(image)
    torch.testing.assert_close(seen[0], whole._transform_input((image - mean) / std))


@pytest.mark.parametrize("arch", FAMILIES)
def test_stages_cover_every_parameter_once(arch):
    backbone = build(arch, 224 if arch == "vit_tiny_patch16_224" else 96)
    staged = [id(p) for stage in backbone.stages for p in stage]
    assert len(staged) == len(set(staged))
    assert set(staged) == {id(p) for p in backbone.parameters()}
    assert len(backbone.stages) >= 4
    assert all(backbone.stages)


def test_the_stages_are_those_of_the_papers():
    vgg = build("vgg16")
    assert [sum(p.ndim == 4 for p in stage) for stage in vgg.stages] == [2, 2, 3, 3, 3]
    resnet = build("resnet50")
    last = {id(p) for p in resnet.body.layer4.parameters()}
    assert {id(p) for p in resnet.stages[-1]} == last


@pytest.mark.parametrize("arch", ["test_vit", "timm:deit_tiny_distilled_patch16_224"])
def test_parameters_outside_the_blocks_belong_to_the_stem(arch):
    backbone = build(arch, 224 if "224" in arch else 96)
    stem = {id(p) for p in backbone.stages[0]}
    assert {id(backbone.body.net.pos_embed), id(backbone.body.net.cls_token)} <= stem


def test_inception_at_its_own_299_pixels_has_no_auxiliary_head():
    backbone = build("inception_v3", 299)
    assert backbone.num_features == 2048 and len(backbone.stages) == 5
    assert not any("aux" in name.lower() for name, _ in backbone.named_modules())
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 299, 299)).shape == (1, 2048, 8, 8)


def test_what_the_features_do_not_need_is_gone():
    assert not any("aux" in name.lower() for name, _ in build("googlenet").named_parameters())
    assert not any("head" in name for name, _ in build("timm:vgg11").named_parameters())


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


def test_channels_last_images_give_the_same_features():
    backbone, image = build("resnet18"), torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        plain = backbone(image)
        last = torch.channels_last
        features = backbone.to(memory_format=last)(image.to(memory_format=last))
    assert features.is_contiguous(memory_format=last)
    torch.testing.assert_close(features, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "mean"),
    [
        ("tf_efficientnet_lite0", 0.5),
        ("resnet18", 0.485),
        ("googlenet", 0.5),
        ("vit_tiny_patch16_224", 0.5),
    ],
)
def test_normalisation_is_the_backbones_own(arch, mean):
    backbone, seen = build(arch), []
    assert backbone.mean[0] == mean
    backbone.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        backbone(torch.full((1, 3, 96, 96), 0.75))
    expected = (0.75 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("inception_v3", 64, "inception_v3 needs at least 75 pixels.*Type --size 75 or more"),
        ("vgg16", 16, "Type --size 32 or more"),
        ("sam2_hiera_tiny", 128, "Type --size 224 or more"),
        ("vit_b_16", 100, "patches of 16 pixels, and --size 100.*Type --size 96 or --size 112"),
        ("vit_small_patch14_dinov2", 128, "patches of 14.*Type --size 126 or --size 140"),
        ("test_vit", 8, "Type --size 16\\.$"),
        ("maxvit_t", 128, "can't take images of 128 pixels.*Type --size 224"),
        ("timm:inception_v3", 32, "can't take images of 32 pixels.*Type --size 299"),
        ("pit_ti_224", 8, "can't take images of 8 pixels.*Type --size 224"),
    ],
)
def test_a_size_that_it_can_not_take_says_which_it_can(arch, size, message):
    with pytest.raises(LesionfastError, match=message):
        create_backbone(arch, size=size, weights="none")


def test_a_model_without_one_feature_map_is_no_backbone():
    with pytest.raises(LesionfastError, match=r"2 outputs.*lesionfast list archs"):
        create_backbone("crossvit_9_240", size=240, weights="none")


def test_an_unknown_name_is_refused_before_anything_is_built():
    with pytest.raises(LesionfastError, match="Did you mean 'densenet121'"):
        create_backbone("densnet121", size=96)


def test_a_timm_body_tells_tokens_in_no_square_apart():
    class Tokens(torch.nn.Module):
        num_prefix_tokens, cls_token = 1, None

        def forward_features(self, image):
            return torch.arange(14.0).view(1, 7, 2)

    assert TimmBody(Tokens())(torch.zeros(1)).shape == (1, 2, 6, 1)


@pytest.mark.parametrize("arch", ["test_vit", "vit_b_32", "deit_tiny_distilled_patch16_224"])
def test_the_pool_cls_is_the_cls_token_beside_the_mean_of_the_patches(arch):
    torch.manual_seed(0)
    backbone = create_backbone(arch, size=64, weights="none", pool="auto").eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pooled = backbone(image).mean((2, 3))
        scaled = (image - backbone.shift) / backbone.scale
        net = backbone.body.net
        if arch == "vit_b_32":
            tokens = net._process_input(scaled)
            tokens = net.encoder(torch.cat([net.class_token.expand(2, -1, -1), tokens], dim=1))
        else:
            tokens = net.forward_features(scaled)
    prefix = getattr(net, "num_prefix_tokens", 1)
    expected = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)
    torch.testing.assert_close(pooled, expected)
    assert backbone.pool == "cls" and backbone.num_features == 2 * tokens.shape[2]


def test_attention_pooling_takes_the_place_of_a_cls_token():
    name, small = "vit_base_patch16_siglip_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}
    net = timm.create_model(name, num_classes=0, img_size=32, **small)
    net.mean = net.std = (0.5, 0.5, 0.5)
    archs.register("siglip_small", "elsewhere")(net)
    whole = create_backbone("siglip_small", size=32, weights="none", pool="auto").eval()
    patches = create_backbone("siglip_small", size=32, weights="none").eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        summary = net.eval()((image - 0.5) / 0.5)
        torch.testing.assert_close(whole(image).mean((2, 3))[:, :32], summary)
        torch.testing.assert_close(whole(image)[:, 32:], patches(image))
    assert not any("attn_pool" in name for name in patches.state_dict())


@pytest.mark.parametrize(("arch", "pool"), [("resnet18", "avg"), ("vanilla_cnn", "max")])
def test_what_has_no_cls_token_is_pooled_as_before_and_refuses_cls(arch, pool):
    assert create_backbone(arch, size=32, weights="none", pool="auto").pool == pool
    with pytest.raises(LesionfastError, match=f"{arch} has no CLS token. Type --pool avg"):
        create_backbone(arch, size=32, weights="none", pool="cls")


def test_a_saved_model_of_a_size_that_is_no_multiple_of_the_patch_still_opens():
    name, size = "vit_tiny_patch16_224", 40
    with pytest.raises(LesionfastError, match="Type --size 32 or --size 48"):
        create_backbone(name, size=size, weights="none")
    assert create_backbone(name, size=size, weights="none", saved={}).num_features == 192
