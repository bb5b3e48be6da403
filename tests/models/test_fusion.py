"""The fused model: every fusion with every pool, its groups, and its way to disk and back."""

import pytest
import torch
from safetensors.torch import save_file

from lesionfast.config import TrainConfig
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.files import write_json
from lesionfast.models.backbones import create_backbone
from lesionfast.models.ensemble import build_any
from lesionfast.models.fusion import (
    POOLS,
    FusionModel,
    build_model,
    fusions,
    load_model,
    stage_groups,
)
from lesionfast.run import Run


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


@pytest.mark.parametrize("fusion", list(fusions))
def test_only_the_fusion_metadata_goes_without_a_backbone(backbone, fusion):
    wrong = backbone if fusion == "metadata" else None
    with pytest.raises(LesionfastError, match="only the fusion 'metadata' has none"):
        FusionModel(wrong, pool="avg", n_metadata=5, n_classes=7, fusion=fusion, dropout=0.2)


@pytest.mark.parametrize(
    ("fusion", "pool", "message"),
    [
        ("flim", "avg", "there is no fusion 'flim'.*Did you mean 'film'.*--fusion"),
        ("film", "mean", "--pool is 'mean'.*avg, max, concat"),
    ],
)
def test_unknown_names_say_what_to_type(backbone, fusion, pool, message):
    with pytest.raises(LesionfastError, match=message):
        build(backbone, fusion, pool)


@pytest.mark.parametrize("fusion", list(fusions))
def test_a_configuration_makes_its_model(fusion):
    config = TrainConfig(
        arch="test_resnet", weights="none", size=32, fusion=fusion, pool="concat", dropout=0.4
    )
    model = build_model(config, n_metadata=4, n_classes=3)
    assert model(torch.rand(2, 3, 32, 32), torch.randn(2, 4)).shape == (2, 3)
    assert (model.backbone is None) == (fusion == "metadata")
    assert model.head[0].p == 0.4


def save_run(folder, model, **changes):
    """Write what `load_model` reads, and a config whose values it must not use instead."""
    run = Run.create(folder, TrainConfig(arch="densenet121", weights="auto"))
    about = {"arch": "test_resnet", "size": 32, "pool": "avg", "fusion": "concat", "dropout": 0.2}
    about |= {"n_metadata": 5, "classes": list("abcdefg"), "prior": [1 / 7] * 7, "rule": "argmax"}
    about |= changes
    write_json(run.path / "model.json", about)
    save_file(model.state_dict(), run.path / "weights.safetensors")
    return run


def test_what_the_loss_did_is_undone_in_eval_mode_and_in_no_run_that_does_not_say_so(
    backbone, tmp_path
):
    model = build(backbone).eval()
    smoothing = {"shift": [0.0] * 7, "level": [0.1 / 7] * 7, "floor": [1e-3] * 7}
    old, new = save_run(tmp_path / "old", model), save_run(tmp_path / "new", model, undo=smoothing)
    image, metadata = torch.rand(3, 3, 32, 32), torch.randn(3, 5)
    with torch.no_grad():
        raw = model(image, metadata)
        assert torch.equal(load_model(old)(image, metadata), raw)
        loaded = load_model(new)
        assert torch.equal(loaded.scores(image, metadata), raw)
        found = loaded.eval()(image, metadata).softmax(1)
    right = (raw.softmax(1) - 0.1 / 7) / 0.9
    assert right.min() > 1e-3
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("fusion", list(fusions))
def test_a_model_comes_back_from_json_and_safetensors(backbone, tmp_path, fusion):
    model = build(backbone, fusion, "concat").eval()
    run = save_run(tmp_path, model, fusion=fusion, pool="concat")
    loaded = load_model(run)
    image, metadata = torch.rand(3, 3, 32, 32), torch.randn(3, 5)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(image, metadata), model(image, metadata))


@pytest.mark.parametrize("harm", ["cut", "other", "one short", "one too many", "gone"])
def test_broken_weights_say_how_to_train_again(backbone, tmp_path, harm):
    model = build(backbone)
    run = save_run(tmp_path, model)
    path = run.path / "weights.safetensors"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif harm == "other":
        save_file({"weight": torch.zeros(2)}, path)
    elif harm == "one short":
        save_file({k: v for k, v in model.state_dict().items() if k != "head.1.bias"}, path)
    elif harm == "one too many":
        save_file({**model.state_dict(), "more": torch.zeros(2)}, path)
    else:
        path.unlink()
    with pytest.raises(LesionfastError, match="lesionfast train --(config|resume)"):
        load_model(run)


SIZES = {"vanilla_cnn": 32, "densenet_scratch": 32, "pyramid_cnn": 32}
SIZES |= {"vgg16": 32, "mobilenet_v2": 32, "densenet121": 32, "inception_v3": 75}


@pytest.fixture(scope="module", params=SIZES)
def sized_backbone(request):
    size = SIZES[request.param]
    return create_backbone(request.param, size=size, weights="none"), size


@pytest.mark.parametrize("fusion", fusions)
def test_every_architecture_takes_a_step_with_every_fusion(sized_backbone, fusion):
    torch.manual_seed(0)
    backbone, size = sized_backbone
    model = FusionModel(
        None if fusion == "metadata" else backbone,
        pool="max",
        n_metadata=5,
        n_classes=7,
        fusion=fusion,
        dropout=0.0,
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    logits = model(torch.rand(4, 3, size, size), torch.rand(4, 5))
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert logits.isfinite().all() and all(moved)


@pytest.mark.parametrize(("pool", "width"), [("avg", 64), ("cls", 128)])
def test_a_vision_transformer_comes_back_with_the_pooling_that_it_had(pool, width, tmp_path):
    """'auto' meant 'avg' in earlier versions, which dropped the CLS token."""
    model = build_model(TrainConfig(arch="test_vit", weights="none", size=32, pool=pool), 5, 7)
    assert model.eval().n_features == width
    run = save_run(tmp_path, model, arch="test_vit", pool=pool)
    loaded = load_model(run)
    image, metadata = torch.rand(3, 3, 32, 32), torch.randn(3, 5)
    with torch.no_grad():
        assert torch.equal(loaded(image, metadata), model(image, metadata))
    assert loaded.pool_name == pool


def test_a_model_without_an_image_takes_any_pooling():
    config = TrainConfig(arch="test_vit", weights="none", size=32, pool="cls", fusion="metadata")
    assert build_model(config, 5, 7).pool_name == "avg"


def test_an_ensemble_may_build_what_it_does_not_keep(tmp_path):
    """The head of a VGG has 494 MB, is left out, and is not in the file."""
    about = {"arch": "vgg11", "size": 32, "pool": "avg", "fusion": "none", "dropout": 0.0}
    about |= {"n_metadata": 0, "classes": ["mel", "nv"], "resize": "squash"}
    both = {"members": [about, about], "weights": [0.5, 0.5]}
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.truncate(80 * 10**6)
    with torch.device("meta"):
        model = build_any(both, file)
        assert len(model.members) == 2
        with pytest.raises(DamageError, match="far more weights than model.safetensors has"):
            build_any({"members": [about] * 30, "weights": [1 / 30] * 30}, file)
