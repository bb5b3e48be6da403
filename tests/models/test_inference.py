"""A model over images: every view, the same outputs from less work, modes given back."""

from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn

from lesionfast.data.augment import turn
from lesionfast.data.loaders import images_at_once
from lesionfast.models import inference as module
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import FusionModel
from lesionfast.models.inference import TorchEngine, folded, for_inference, in_eval_mode


def norms(model):
    return sum(isinstance(each, (nn.BatchNorm2d, BatchNormAct2d)) for each in model.modules())


def trained_norms(model):
    """Give the batch norms statistics and scales that are not those of a new model."""
    generator = torch.Generator().manual_seed(0)
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):
            for tensor, low in (
                (each.running_mean, -0.5),
                (each.running_var, 0.5),
                (each.weight.data, 0.5),
                (each.bias.data, -0.5),
            ):
                tensor.uniform_(low, low + 1, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("arch", "left"),
    [
        ("tf_efficientnet_lite0", 0),  # timm, norm and activation in one module
        ("resnet18", 0),
        ("mobilenetv3_large_100", 0),  # squeeze and excitation
        ("densenet121", 62),  # norms before convolutions stay
        ("resnetv2_50", 17),
        ("convnext_atto", 0),  # layer norm only
    ],
)
def test_the_folded_model_gives_the_same(arch, left):
    backbone = trained_norms(create_backbone(arch, size=64, weights="none"))
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    before = norms(backbone)
    faster = folded(backbone, image)
    assert norms(faster) == left
    assert norms(backbone) == before
    with torch.inference_mode():
        expected, found = backbone(image), faster(image)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("side", [63, 64, 65, 70])
def test_uneven_padding_becomes_part_of_the_kernel(side):
    backbone = create_backbone("tf_efficientnet_lite0", size=side, weights="none").eval()
    image = torch.rand(2, 3, side, side - 3)
    faster = folded(backbone, image)
    assert any(isinstance(each, Conv2dSame) for each in backbone.modules())
    assert not any(isinstance(each, Conv2dSame) for each in faster.modules())
    with torch.inference_mode():
        torch.testing.assert_close(faster(image), backbone(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["tf_efficientnet_lite0", "densenet121", "convnext_atto"])
def test_rounding_the_weights_once_is_what_autocast_does_every_time(arch):
    backbone = trained_norms(create_backbone(arch, size=64, weights="none"))
    before = {name: each.clone() for name, each in backbone.state_dict().items()}
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    faster = for_inference(backbone, image, precision="bfloat16")
    assert any(each.dtype == torch.bfloat16 for each in faster.parameters())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(faster(image), folded(backbone, image)(image))
    assert all(torch.equal(each, before[name]) for name, each in backbone.state_dict().items())


def test_what_has_no_norm_after_a_convolution_is_left_as_it_is():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1))
    assert folded(model, torch.rand(2, 3, 8, 8)) is model
    assert not model.training


class Skipping(nn.Module):
    """Uses what the convolution gives beside what the norm makes of it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, image):
        found = self.convolution(image)
        return found + self.norm(found)


class Twice(Skipping):
    """Runs one convolution and one norm two times."""

    def forward(self, image):
        return self.norm(self.convolution(image)) + self.norm(self.convolution(1 - image))


@pytest.mark.parametrize("kind", [Skipping, Twice])
def test_a_copy_that_would_give_something_else_is_not_taken(kind):
    model = trained_norms(kind())
    assert folded(model, torch.rand(2, 3, 8, 8)) is model


def test_a_model_of_image_and_metadata_folds_whole():
    backbone = create_backbone("resnet18", size=64, weights="none")
    parts = {"pool": "avg", "n_metadata": 5, "n_classes": 7, "fusion": "concat", "dropout": 0.5}
    model = trained_norms(FusionModel(backbone, **parts)).train()
    image, metadata = torch.rand(4, 3, 64, 64), torch.rand(4, 5)
    faster = folded(model, image, metadata)
    assert norms(faster) == 0
    assert not any(each.training for each in faster.modules())
    with torch.inference_mode():
        torch.testing.assert_close(
            faster(image, metadata), model(image, metadata), rtol=1e-4, atol=1e-4
        )


def test_no_hook_stays_behind():
    model = timm.create_model("resnet10t", num_classes=2).eval()
    faster = folded(model, torch.rand(1, 3, 64, 64))
    for each in (*model.modules(), *faster.modules()):
        assert not each._forward_hooks
        assert not each._forward_pre_hooks


def test_each_module_is_in_its_own_mode_again_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()
    with pytest.raises(ValueError), in_eval_mode(model):
        assert not any(each.training for each in model.modules())
        raise ValueError
    assert [each.training for each in model] == [False, True] and model.training


@pytest.fixture(scope="module")
def model():
    backbone = create_backbone("test_resnet", size=32, weights="none")
    parts = {"pool": "avg", "n_metadata": 5, "n_classes": 3, "fusion": "concat", "dropout": 0.5}
    return trained_norms(FusionModel(backbone, **parts))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


def test_probabilities_are_the_mean_of_the_turned_pictures_and_features_of_the_first(model, pixels):
    metadata = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    image = torch.from_numpy(pixels).movedim(-1, 1).float() / 255
    with torch.inference_mode():
        views = [turn(image, torch.full((40,), view)) for view in range(6)]
        logits = [model(view, torch.from_numpy(metadata)) for view in views]
        expected = torch.stack(logits).softmax(dim=-1).mean(dim=0).numpy()
        first = model.features(image).numpy()
    found, features = TorchEngine(model, views=6, precision="float32")(pixels, metadata)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(features, first, rtol=0, atol=1e-4 * np.abs(first).max())


def test_each_table_of_metadata_and_each_choice_of_rows_has_its_own_probabilities(model, pixels):
    engine = TorchEngine(model, views=2, precision="float32")
    known, unknown = np.ones((16, 5), np.float32), np.zeros((16, 5), np.float32)
    rows = np.arange(16) * 2
    (with_it, without), features = engine.run(pixels, rows, known, unknown)
    for metadata, found in ((known, with_it), (unknown, without)):
        alone, same = engine(pixels[rows], metadata)
        np.testing.assert_array_equal(found, alone)
        np.testing.assert_array_equal(features, same)
    assert not np.allclose(with_it, without)


def test_one_copy_serves_all_views_and_batches(model, pixels, monkeypatch):
    made = []

    def count(*given, **named):
        made.append(for_inference(*given, **named))
        return made[-1]

    monkeypatch.setattr(module, "for_inference", count)
    engine = TorchEngine(model, views=3, precision="float32")
    assert images_at_once(engine.device) < len(pixels)
    engine(pixels, np.zeros((40, 5), np.float32))
    assert len(made) == 1 and engine.fast is made[0] is not model
    assert norms(model) and not norms(engine.fast)


def test_a_compiled_model_predicts_by_its_folded_copy_and_is_not_compiled_again(model, pixels):
    metadata = np.zeros((40, 5), np.float32)
    expected = TorchEngine(model, views=1, precision="float32")(pixels, metadata)[0]
    compiled = deepcopy(model)
    compiled._compiled_call_impl = lambda *given: pytest.fail("it would be compiled")
    engine = TorchEngine(compiled, views=1, precision="float32")
    np.testing.assert_array_equal(engine(pixels, metadata)[0], expected)
    assert not norms(engine.fast)
