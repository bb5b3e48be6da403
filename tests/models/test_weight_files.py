"""Weights files: what is read of them, and what is said of those that are broken or unsafe."""

import pickle
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from lesionfast.errors import LesionfastError
from lesionfast.models.weights import read_weights


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
    with pytest.raises(LesionfastError, match=r"holds .* that could run code.*torch.save"):
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
    with pytest.raises(LesionfastError, match="cut short or no weights file.*--weights"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>404</html>", "--weights"),
        (b"PK\x03\x04 no archive", "cut short or no weights file"),
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
    with pytest.raises(LesionfastError, match="a list that is no state dict"):
        read_weights(tmp_path / "list.pth")
