"""Weights from files, caches and packages; and what is said when they can't be had."""

import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from lesionfast.errors import LesionfastError
from lesionfast.models import weights
from lesionfast.models.backbones import create_backbone
from lesionfast.models.weights import Wanted, find_weights, read_weights


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    """Keep the user's own caches and the network out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(url):
        raise OSError("no network in the tests")

    monkeypatch.setattr(weights, "reach", refuse)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(3)
    return torchvision.models.resnet18()


def assert_loaded(backbone, model, name):
    loaded = dict(backbone.body.named_parameters())[name]
    torch.testing.assert_close(loaded, dict(model.named_parameters())[name])
    assert backbone.pretrained


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_pytorch_file_is_read_wrapped_or_not(resnet, tmp_path, wrapper, prefix):
    state = {prefix + k: v for k, v in resnet.state_dict().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "file.pth")
    backbone = create_backbone("resnet18", size=64, weights=str(tmp_path / "file.pth"))
    assert_loaded(backbone, resnet, "layer4.1.conv2.weight")
    assert "file.pth" in backbone.origin


def test_a_safetensors_file_without_a_classifier_is_enough(resnet, tmp_path):
    state = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc")}
    save_file(state, tmp_path / "file.safetensors")
    backbone = create_backbone("resnet18", size=64, weights=str(tmp_path / "file.safetensors"))
    assert_loaded(backbone, resnet, "conv1.weight")


def test_old_densenet_names_are_understood(tmp_path):
    model = torchvision.models.densenet121()
    old = {
        k.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.").replace("conv2.", "conv.2."): v
        for k, v in model.state_dict().items()
    }  # fmt: skip
    assert any("norm.1." in name for name in old)
    torch.save(old, tmp_path / "old.pth")
    backbone = create_backbone("densenet121", size=64, weights=str(tmp_path / "old.pth"))
    assert_loaded(backbone, model, "features.denseblock2.denselayer3.conv1.weight")


def test_the_cache_of_torch_hub_is_used(resnet, tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(resnet.state_dict(), folder / "resnet18-f37072fd.pth")
    assert_loaded(create_backbone("resnet18", size=64), resnet, "layer1.0.conv1.weight")


def test_the_cache_of_hugging_face_is_used(tmp_path):
    torch.manual_seed(4)
    model = timm.create_model("test_resnet")
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(model.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    backbone = create_backbone("test_resnet", size=64)
    loaded = backbone.body.net.state_dict()
    assert all(torch.equal(loaded[name], model.state_dict()[name]) for name in loaded)


def test_the_installed_package_needs_no_network():
    backbone = create_backbone("tf_efficientnet_lite0", size=64)
    assert backbone.pretrained and "package efficientnet-lite0" in backbone.origin
    with torch.no_grad():
        features = backbone.eval()(torch.rand(4, 3, 64, 64))
    random = create_backbone("tf_efficientnet_lite0", size=64, weights="none").eval()
    with torch.no_grad():
        assert not torch.allclose(features, random(torch.rand(4, 3, 64, 64)))


def test_weights_that_can_not_be_had_offer_three_ways_and_never_train_from_scratch():
    with pytest.raises(LesionfastError) as raised:
        create_backbone("resnet18", size=64)
    message = str(raised.value)
    assert "no network in the tests" in message
    for way in ("resnet18-f37072fd.pth", "--weights FILE", "--weights none"):
        assert way in message
    with pytest.raises(LesionfastError, match="hf download timm/test_vit"):
        create_backbone("test_vit", size=64)


def test_offline_mode_is_honoured(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LesionfastError, match="HF_HUB_OFFLINE is set"):
        find_weights(Wanted("x", "timm", "x", repository="timm/x"), "auto")


def test_weights_of_another_architecture_are_refused_with_the_numbers(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(LesionfastError, match=r"do not fit resnet34.*of 180 tensors match"):
        create_backbone("resnet34", size=64, weights=str(tmp_path / "resnet.pth"))


class Trap:
    def __reduce__(self):
        return (print, ("the trap went off",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "trap.pth"
    torch.save({"weight": Trap()}, path)
    with pytest.raises(LesionfastError, match="can't be read as weights"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(LesionfastError, match="can't be read as weights"):
        read_weights(path)
    assert "the trap" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_cut_short_is_refused(resnet, tmp_path, suffix):
    path = tmp_path / f"file.{suffix}"
    save_file(resnet.state_dict(), path) if suffix != "pth" else torch.save(
        resnet.state_dict(), path
    )
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(LesionfastError, match="can't be read as weights.*--weights"):
        read_weights(path)


def test_a_missing_file_and_a_file_of_something_else(tmp_path):
    with pytest.raises(LesionfastError, match="there is no weights file"):
        read_weights(tmp_path / "nowhere.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(LesionfastError, match="a list that is no state dict"):
        read_weights(tmp_path / "list.pth")
