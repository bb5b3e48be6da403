"""The autoencoder: over any backbone, an image in and an image of the same size out."""

import pytest
import torch
from safetensors.torch import save_file

from lesionfast.models.backbones import create_backbone
from lesionfast.models.weights import read_weights
from lesionfast.training.pretrain import Autoencoder


def build(arch, size):
    torch.manual_seed(0)
    return Autoencoder(create_backbone(arch, size=size, weights="none"), size)


@pytest.mark.parametrize(
    ("arch", "size"),
    [("vanilla_cnn", 32), ("pyramid_cnn", 75), ("test_resnet", 50), ("test_vit", 64)],
)
def test_a_reconstruction_is_an_image_of_the_same_size_that_all_weights_draw(arch, size):
    model = build(arch, size)
    image = torch.rand(2, 3, size, size)
    drawn = model(image)
    assert drawn.shape == image.shape and drawn.min() >= 0 and drawn.max() <= 1
    (drawn - image).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_decoder_is_small_beside_the_encoder():
    model = build("vanilla_cnn", 128)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.decoder, model.backbone)]
    assert sizes[0] < sizes[1] / 5


def test_to_build_it_leaves_the_encoder_as_it_was():
    backbone = create_backbone("test_resnet", size=32, weights="none")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    Autoencoder(backbone, 32)
    assert backbone.training
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("arch", ["vanilla_cnn", "test_resnet"])
def test_its_weights_are_read_as_those_of_its_encoder(arch, tmp_path):
    model = build(arch, 32)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    net = getattr(model.backbone.body, "net", model.backbone.body)
    assert read_weights(tmp_path).keys() == net.state_dict().keys()
