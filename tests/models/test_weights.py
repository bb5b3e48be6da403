"""Weights that fit, from files, caches and packages; and what is said of those that do not."""

import pickle
from argparse import Namespace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from lesionfast.errors import LesionfastError
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import FusionModel
from lesionfast.models.weights import (
    PACKAGES,
    Wanted,
    find_weights,
    read_weights,
    timm_filters,
    torch_cache,
    whole_model,
)


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
    wanted = Wanted("x", "tf_efficientnet_lite1", package=package[0])
    with pytest.raises(LesionfastError, match="not those of tf_efficientnet_lite1"):
        find_weights(wanted, "auto")


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet50", "test_vit"])
def test_nothing_trains_from_scratch_in_silence(arch):
    with pytest.raises(LesionfastError, match=r"Your options.*--weights none to train from"):
        create_backbone(arch, size=64)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet34", r"of its 180 tensors match.*those of resnet18: type --arch resnet18"),
        ("vgg11", r"0 of its 16 tensors match; features.0.weight is missing; .* is not in vgg11"),
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
        LesionfastError, match=r"layer1.2.conv1.weight is not in resnet26.*resnet50"
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


@pytest.fixture
def tensors():
    return {f"layer{i}.weight": torch.randn(20, 10) for i in range(3)}


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_pytorch_file_is_read_wrapped_or_not(tensors, tmp_path, wrapper, prefix):
    state = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "file.pth")
    assert_same(read_weights(tmp_path / "file.pth"), tensors)


def test_a_prefix_that_only_some_names_have_is_part_of_them(tensors, tmp_path):
    tensors["module.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "file.safetensors")
    assert_same(read_weights(tmp_path / "file.safetensors"), tensors)


@pytest.mark.parametrize("prefix", ["backbone.body.net.", "backbone.body."])
def test_a_run_gives_the_weights_of_its_backbone(tensors, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in tensors.items()}
    save_file({**state, "head.1.weight": torch.zeros(7, 3)}, tmp_path / "weights.safetensors")
    assert_same(read_weights(tmp_path), tensors)
    assert_same(read_weights(tmp_path / "weights.safetensors"), tensors)


class Trap:
    def __reduce__(self):
        return (print, ("the trap went off",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, capsys, save):
    path = tmp_path / "trap.pth"
    save({"weight": Trap()}, path)
    with pytest.raises(LesionfastError, match=r".* could run code.*torch.save"):
        read_weights(path)
    assert "the trap" not in capsys.readouterr().out


def test_a_checkpoint_with_the_options_of_its_training_says_what_is_in_the_way(tensors, tmp_path):
    torch.save({"state_dict": tensors, "args": Namespace(lr=0.1)}, tmp_path / "file.pth")
    with pytest.raises(LesionfastError, match=r"argparse.Namespace.*model.state_dict()"):
        read_weights(tmp_path / "file.pth")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["pth", "old.pth", "safetensors"])
def test_a_file_cut_short_is_refused(tensors, tmp_path, kind, share):
    path = tmp_path / f"file.{kind}"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(LesionfastError, match="cut short or not a weights file.*--weights"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>404</html>", "--weights"),
        (b"PK\x03\x04 no archive", "cut short or not a weights file"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(LesionfastError, match=message):
        read_weights(tmp_path / "file.pth")


def test_a_missing_file_an_empty_folder_and_a_list(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(LesionfastError, match=r"there is no weights file.*--weights"):
            read_weights(path)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(LesionfastError, match="contains a list, not a state dict"):
        read_weights(tmp_path / "list.pth")


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
