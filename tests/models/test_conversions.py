"""What libraries renamed and resized since their weights files were made is made up for."""

import pytest
import timm
import torch
import torchvision

from lesionfast.models.backbones import create_backbone
from lesionfast.models.weights import timm_filters


def old_densenet_name(name):
    for part in ("norm1", "norm2", "conv1", "conv2"):
        name = name.replace(f"{part}.", f"{part[:-1]}.{part[-1]}.")
    return name


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_names_of_old_densenets_are_understood(tmp_path, library):
    model = torchvision.models.densenet121()
    old = {old_densenet_name(name): tensor for name, tensor in model.state_dict().items()}
    assert any("norm.1." in name for name in old)
    torch.save(old, tmp_path / "old.pth")
    path = str(tmp_path / "old.pth")
    backbone = create_backbone(f"{library}:densenet121", size=64, weights=path)
    last = model.features.denseblock4.denselayer16.conv2.weight
    assert any(torch.equal(last, p) for p in backbone.parameters())


def test_positions_of_timms_transformers_are_resized_to_the_image(tmp_path):
    model = timm.create_model("test_vit")
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    backbone = create_backbone("test_vit", size=64, weights=str(tmp_path / "vit.pth"))
    assert model.pos_embed.shape[1] == 1 + 10**2
    assert backbone.body.net.pos_embed.shape[1] == 1 + 4**2
    block = "blocks.3.attn.qkv.weight"
    torch.testing.assert_close(backbone.body.net.state_dict()[block], model.state_dict()[block])


def test_positions_of_torchvisions_transformer_are_resized_to_the_image(tmp_path):
    model = torchvision.models.vit_b_32()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    backbone = create_backbone("vit_b_32", size=64, weights=str(tmp_path / "vit.pth"))
    positions = backbone.body.net.encoder.pos_embedding
    assert model.encoder.pos_embedding.shape[1] == 1 + 7**2
    assert positions.shape[1] == 1 + 2**2
    torch.testing.assert_close(positions[:, 0], model.encoder.pos_embedding[:, 0])


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("test_vit", "checkpoint_filter_fn"),
        ("densenet121", "_filter_torchvision_pretrained"),
        ("regnetx_002", "_filter_fn"),
    ],
)
def test_timms_own_conversion_is_found_under_whatever_name(name, function):
    with torch.device("meta"):
        net = timm.create_model(name)
    assert function in [each.__name__ for each in timm_filters(net, name)]
