"""Weights that fit, from files, caches and packages; and what is said of those that do not."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from lesionfast.errors import LesionfastError
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import FusionModel
from lesionfast.models.hubs import Wanted, torch_cache
from lesionfast.models.weights import PACKAGES, find_weights, whole_model


@pytest.fixture(autouse=True)
def caches(hub_caches):
    return hub_caches


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(3)
    return torchvision.models.resnet18()


@pytest.fixture(scope="module")
def resnet_file(resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.save(resnet.state_dict(), path)
    return path


def load(arch, path):
    return create_backbone(arch, size=64, weights=str(path))


def assert_loaded(backbone, state):
    net = getattr(backbone.body, "net", backbone.body)
    assert backbone.pretrained
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


def test_a_file_is_loaded_whole_and_named(resnet, resnet_file):
    backbone = load("resnet18", resnet_file)
    assert_loaded(backbone, resnet.state_dict())
    assert "best.pth" in backbone.origin


def test_a_file_without_a_classifier_or_counters_is_enough(resnet, tmp_path):
    state = {k: v for k, v in resnet.state_dict().items() if "fc" not in k and "num_b" not in k}
    save_file(state, tmp_path / "file.safetensors")
    counters = {k: v for k, v in resnet.state_dict().items() if "num_batches" in k}
    assert_loaded(load("resnet18", tmp_path / "file.safetensors"), {**state, **counters})


def test_a_run_gives_its_backbone(tmp_path):
    backbone = create_backbone("test_resnet", size=64, weights="none")
    model = FusionModel(backbone, pool="avg", n_metadata=2, n_classes=7, fusion="film", dropout=0)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert_loaded(load("test_resnet", tmp_path), backbone.body.net.state_dict())


def test_the_cache_of_torch_hub_is_used(resnet, resnet_file):
    torch_cache().mkdir(parents=True)
    (torch_cache() / "resnet18-f37072fd.pth").write_bytes(resnet_file.read_bytes())
    backbone = create_backbone("resnet18", size=64)
    assert_loaded(backbone, resnet.state_dict())
    assert "local cache" in backbone.origin


def test_the_cache_of_hugging_face_is_used(caches):
    model = timm.create_model("test_resnet")
    folder = caches / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / "main"
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    assert_loaded(create_backbone("test_resnet", size=64), model.state_dict())


def test_a_broken_file_in_a_cache_is_to_be_deleted():
    torch_cache().mkdir(parents=True)
    (torch_cache() / "resnet18-f37072fd.pth").write_bytes(b"half a downl")
    with pytest.raises(LesionfastError, match=r"resnet18-f37072fd.pth.*delete that file"):
        create_backbone("resnet18", size=64)


def test_the_installed_package_needs_no_network():
    backbone = create_backbone("tf_efficientnet_lite0", size=64)
    assert backbone.pretrained and "package efficientnet-lite0" in backbone.origin
    stem = backbone.body.net.conv_stem.weight
    random = create_backbone("tf_efficientnet_lite0", size=64, weights="none").body.net
    assert not torch.allclose(stem, random.conv_stem.weight)


def test_a_package_of_another_model_is_refused(monkeypatch):
    package = PACKAGES["tf_efficientnet_lite0"]
    monkeypatch.setitem(PACKAGES, "tf_efficientnet_lite1", package)
    wanted = Wanted("x", "timm", "tf_efficientnet_lite1", package=package[0])
    with pytest.raises(LesionfastError, match="not those of tf_efficientnet_lite1"):
        find_weights(wanted, "auto")


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet50", "test_vit"])
def test_nothing_trains_from_scratch_in_silence(arch):
    with pytest.raises(LesionfastError, match=r"Three ways on.*--weights none to train from"):
        create_backbone(arch, size=64)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet34", r"of its 180 tensors match.*those of resnet18: type --arch resnet18"),
        ("vgg11", r"0 of its 16 tensors match; features.0.weight is missing; .* is not of vgg11"),
        ("tf_efficientnet_lite0", r"do not fit tf_efficientnet_lite0.*--arch"),
    ],
)
def test_weights_of_another_architecture_are_refused(resnet_file, arch, message):
    with pytest.raises(LesionfastError, match=message):
        load(arch, resnet_file)


def test_the_name_of_the_file_says_whose_weights_they_are(resnet_file, tmp_path):
    path = tmp_path / "resnet18-f37072fd.pth"
    path.write_bytes(resnet_file.read_bytes())
    with pytest.raises(LesionfastError, match="They look like those of resnet18"):
        load("densenet121", path)


def test_a_deeper_sister_holds_all_tensors_and_is_still_refused(tmp_path):
    """Every tensor of resnet26 has its like in resnet50, so that only what is left over tells."""
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "best.pth")
    with pytest.raises(
        LesionfastError, match=r"layer1.2.conv1.weight is not of resnet26.*resnet50"
    ):
        load("resnet26", tmp_path / "best.pth")


def test_another_shape_and_no_tensors_are_said(resnet, tmp_path):
    state = {**resnet.state_dict(), "conv1.weight": torch.zeros(64, 1, 7, 7)}
    save_file(state, tmp_path / "grey.safetensors")
    with pytest.raises(LesionfastError, match=r"conv1.weight .*\(64, 1, 7, 7\), not \(64, 3, 7, 7"):
        load("resnet18", tmp_path / "grey.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(LesionfastError, match="0 of its 100 tensors match"):
        load("resnet18", tmp_path / "empty.safetensors")


def test_a_whole_model_has_names_and_shapes_but_no_values():
    state = whole_model("torchvision", "resnet18")
    assert state["fc.weight"].shape == (1000, 512) and state["fc.weight"].is_meta
