"""The fused model: every fusion with every pool, its groups, and its way to disk and back."""

import pytest
import torch
from safetensors.torch import save_file

from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import POOLS, FusionModel, fusions, load_model, stage_groups
from lesionfast.runs import Run, write_json


@pytest.fixture(scope="module")
def backbone():
    return create_backbone("test_resnet", size=32, weights="none")


def build(backbone, fusion="concat", pool="avg", n_metadata=5):
    return FusionModel(
        None if fusion == "metadata" else backbone,
        pool=pool,
        n_metadata=n_metadata,
        n_classes=7,
        fusion=fusion,
        dropout=0.2,
    )


@pytest.mark.parametrize("pool", list(POOLS))
@pytest.mark.parametrize("fusion", list(fusions))
def test_every_fusion_and_pool_gives_logits_and_gradients(backbone, fusion, pool):
    model = build(backbone, fusion, pool)
    image, metadata = torch.rand(4, 3, 32, 32), torch.randn(4, 5)
    logits = model(image, metadata)
    assert logits.shape == (4, 7)
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(
        model.eval()(image, metadata), model.classify(model.features(image), metadata)
    )
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("fusion", list(fusions))
def test_what_a_fusion_looks_at(backbone, fusion):
    """`none` ignores metadata, `metadata` the image, and the others neither."""
    torch.manual_seed(0)
    model = build(backbone, fusion).eval()
    if fusion == "film":
        torch.nn.init.normal_(model.fusion.modulation.weight)
    first, second = torch.rand(2, 1, 3, 32, 32)
    one, two = torch.randn(2, 1, 5)
    with torch.no_grad():
        same_image = torch.equal(model(first, one), model(second, one))
        same_metadata = torch.equal(model(first, one), model(first, two))
    assert same_image == (fusion == "metadata")
    assert same_metadata == (fusion == "none")


def test_film_begins_as_the_identity(backbone):
    model = build(backbone, "film")
    features = torch.randn(3, backbone.num_features)
    torch.testing.assert_close(model.fusion(features, torch.randn(3, 5)), features)


@pytest.mark.parametrize("fusion", list(fusions))
def test_groups_hold_every_parameter_once_head_last(backbone, fusion):
    model = build(backbone, fusion)
    groups = stage_groups(model)
    grouped = [id(p) for group in groups for p in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}
    assert {id(p) for p in model.head.parameters()} <= {id(p) for p in groups[-1]}
    assert len(groups) == (1 if fusion == "metadata" else len(backbone.stages) + 1)


def test_a_fusion_without_metadata_says_what_to_type(backbone):
    with pytest.raises(LesionfastError, match="--fusion none, or --metadata age,sex"):
        build(backbone, "concat", n_metadata=0)
    assert build(backbone, "none", n_metadata=0)(torch.rand(2, 3, 32, 32), torch.zeros(2, 0)).shape


@pytest.fixture
def run(backbone, tmp_path):
    config = TrainConfig(arch="test_resnet", size=32)
    run = Run.create(tmp_path, config)
    names = ("arch", "size", "pool", "fusion", "dropout")
    about = {name: getattr(config, name) for name in names}
    write_json(run.path / "model.json", {**about, "n_metadata": 5, "classes": list("abcdefg")})
    save_file(build(backbone).state_dict(), run.path / "weights.safetensors")
    return run


def test_a_model_comes_back_from_json_and_safetensors(run, backbone):
    loaded = load_model(run)
    assert not loaded.training
    torch.testing.assert_close(
        loaded.backbone.body.state_dict(), backbone.body.state_dict(), rtol=0, atol=0
    )


@pytest.mark.parametrize("harm", ["cut", "other", "gone"])
def test_broken_weights_say_how_to_train_again(run, harm):
    path = run.path / "weights.safetensors"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif harm == "other":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.unlink()
    with pytest.raises(LesionfastError, match="lesionfast train --config"):
        load_model(run)
