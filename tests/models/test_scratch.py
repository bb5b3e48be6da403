"""The project's own architectures: size, feature maps, stages, first weights and pooling."""

import pytest
import torch
from safetensors.torch import save_file

from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import build_model, maximum, pool_of
from lesionfast.models.scratch import PyramidCNN, VanillaCNN, archs


@pytest.fixture(scope="module", params=list(archs))
def backbone(request):
    torch.manual_seed(0)
    return create_backbone(request.param, size=64).eval()


def test_it_has_about_six_million_parameters(backbone):
    assert 5.5e6 < sum(p.numel() for p in backbone.parameters()) < 6.5e6


@pytest.mark.parametrize(("size", "side"), [(32, 1), (33, 2), (64, 2), (75, 3), (128, 4)])
def test_any_size_from_32_pixels_gives_a_map(backbone, size, side):
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, size, size))
    assert features.shape[:2] == (2, backbone.num_features)
    assert features.shape[2] == features.shape[3] and abs(features.shape[2] - side) <= 1


def test_five_stages_cover_every_parameter_once(backbone):
    staged = [id(p) for stage in backbone.stages for p in stage]
    assert len(backbone.stages) == 5 and all(backbone.stages)
    assert len(staged) == len(set(staged))
    assert set(staged) == {id(p) for p in backbone.parameters()}


def test_every_parameter_learns_even_from_the_smallest_image(backbone):
    backbone.zero_grad()
    backbone(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    backbone.zero_grad()


def test_the_first_weights_keep_the_signal_at_its_size(backbone):
    """He's weights neither blow the features up nor put them out, however deep."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    with torch.no_grad():
        features = backbone.train()(torch.rand(16, 3, 64, 64))
    backbone.eval()
    assert 0.1 < features.std() < 10


def test_the_image_is_centred_with_halves(backbone):
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)


def test_the_pyramid_brings_the_global_maximum_of_every_stage_to_the_head():
    body, image, maxima = PyramidCNN().eval(), torch.rand(2, 3, 75, 75), []
    with torch.no_grad():
        features = body(image)
        for stage in body.stages:
            image = stage(image)
            maxima.append(maximum(image))
    assert features.shape == (2, 32 + 64 + 128 + 256 + 512, 3, 3)
    assert torch.equal(maximum(features), torch.cat(maxima, dim=1))


def test_the_pyramid_goes_on_from_the_weights_of_the_plain_cnn():
    assert PyramidCNN().state_dict().keys() == VanillaCNN().state_dict().keys()


@pytest.mark.parametrize("arch", list(archs))
def test_it_trains_from_scratch_and_says_so(arch):
    backbone = create_backbone(arch, size=32, weights="auto")
    assert not backbone.pretrained
    assert backbone.origin == f"random weights: {arch} has no pretrained ones"


def test_it_takes_the_weights_of_a_file_and_of_a_run(tmp_path):
    first = create_backbone("vanilla_cnn", size=32)
    state = first.body.state_dict()
    save_file(state, tmp_path / "file.safetensors")
    run = {f"backbone.body.{name}": tensor for name, tensor in state.items()}
    save_file({**run, "head.1.bias": torch.zeros(7)}, tmp_path / "weights.safetensors")
    for source in (tmp_path / "file.safetensors", tmp_path):
        loaded = create_backbone("vanilla_cnn", size=48, weights=str(source))
        assert loaded.pretrained and str(source) in loaded.origin
        assert all(torch.equal(loaded.body.state_dict()[k], v) for k, v in state.items())
    assert loaded.origin == f"weights of the run {tmp_path}"
    with pytest.raises(LesionfastError, match="those of vanilla_cnn: type --arch vanilla_cnn"):
        create_backbone("densenet_scratch", size=32, weights=str(tmp_path / "file.safetensors"))


def test_a_size_under_32_pixels_says_what_to_type():
    with pytest.raises(LesionfastError, match="Type --size 32 or more"):
        create_backbone("pyramid_cnn", size=31)


@pytest.mark.parametrize(
    ("arch", "pool", "expected"),
    [
        ("vanilla_cnn", "auto", "max"),
        ("lesionfast:densenet_scratch", "auto", "max"),
        ("pyramid_cnn", "avg", "avg"),
        ("densenet121", "auto", "avg"),
        ("timm:resnet18", "concat", "concat"),
    ],
)
def test_the_projects_own_are_pooled_by_their_maximum_unless_said(arch, pool, expected):
    assert pool_of(TrainConfig(arch=arch, pool=pool)) == expected


def test_a_model_pools_as_its_configuration_says():
    config = TrainConfig(arch="vanilla_cnn", size=32)
    assert build_model(config, n_metadata=2, n_classes=7).pool is maximum
