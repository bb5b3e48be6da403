"""Maps and shares against second implementations, and the sanity checks that heat maps fail."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import interpolate

from lesionfast.config import TrainConfig
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.explain import (
    attribute_metadata,
    describe_effect,
    explain_images,
    grad_cam,
    log_odds,
    split_columns,
)
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import FusionModel, fusions, load_model
from lesionfast.models.inference import as_images
from lesionfast.training.experiment import train

SIZE = 64
CONFIG = TrainConfig(
    arch="test_vit",
    weights="none",
    size=SIZE,
    epochs=6,
    metadata="age,sex",
    fusion="concat",
    tta=1,
    precision="float32",
)
ARCHS = ("torchvision:squeezenet1_1", "timm:test_resnet", "timm:test_vit")
N = 3
TARGETS = torch.tensor([0, 1, 1])


@pytest.fixture(scope="module")
def backbones():
    torch.manual_seed(0)
    return {arch: create_backbone(arch, size=SIZE, weights="none") for arch in ARCHS}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(load_dataset(CONFIG), CONFIG, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def explanation(run):
    return explain_images(run, run.predictions["image_id"].tolist())


@pytest.fixture(scope="module")
def inputs(run, explanation):
    """Images, metadata and targets of the explanation, as the model takes them."""
    resize = run.model["resize"]
    opened = open_images(explanation.rows["path"].tolist(), SIZE, resize=resize, cache=False)
    encoder = MetadataEncoder.from_run(run)
    codes = torch.tensor([run.classes.index(name) for name in explanation.targets])
    metadata = torch.from_numpy(encoder.transform(explanation.rows))
    return as_images(opened.pixels), metadata, codes


def build(backbone, fusion="film", pool="avg", parents=None) -> FusionModel:
    torch.manual_seed(1)
    model = FusionModel(
        backbone, pool=pool, n_metadata=5, n_classes=2, fusion=fusion, dropout=0.5, parents=parents
    )
    for parameter in model.fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # FiLM starts as the identity
    return model.eval()


def random_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand((N, 3, SIZE, SIZE), generator=generator)
    return images, torch.randn((N, 5), generator=generator)


def grad_cam_by_hand(model, images, metadata, targets) -> torch.Tensor:
    """Equations 1 and 2 of the paper, an image at a time."""
    maps = []
    for image, numbers, target in zip(images, metadata, targets, strict=True):
        features = model.backbone(image[None]).detach().requires_grad_()
        model.classify(model.pool(features), numbers[None])[0, target].backward()
        heat = (features.grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
        heat = interpolate(heat.detach(), image.shape[-2:], mode="bilinear", align_corners=False)
        maps.append(heat[0, 0] / max(float(heat.max()), 1e-12))
    return torch.stack(maps)


@pytest.mark.parametrize("pool", ["avg", "max", "concat"])
@pytest.mark.parametrize("arch", ARCHS)
def test_grad_cam_is_that_of_the_paper_for_every_family(backbones, arch, pool):
    model = build(backbones[arch], pool=pool)
    maps = grad_cam(model, *random_inputs(), TARGETS)
    assert maps.shape == (N, SIZE, SIZE) and maps.dtype == torch.float32
    assert maps.min() >= 0 and maps.max() == pytest.approx(1)
    torch.testing.assert_close(
        maps, grad_cam_by_hand(model, *random_inputs(), TARGETS), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("fusion", [name for name in fusions if name != "metadata"])
def test_grad_cam_goes_through_every_fusion_and_merged_subclasses(backbones, fusion):
    model = build(backbones["timm:test_resnet"], fusion, parents=[0, 1, 1])
    expected = grad_cam_by_hand(model, *random_inputs(), TARGETS)
    assert expected.any()
    maps = grad_cam(model, *random_inputs(), TARGETS)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-3)


def test_a_model_without_an_image_says_so():
    images, metadata = random_inputs()
    with pytest.raises(LesionfastError, match="has no image to draw a map of.*--fusion"):
        grad_cam(build(None, "metadata"), images, metadata, TARGETS)


@pytest.mark.parametrize("fusion", ["concat", "film", "gated"])
def test_attributions_to_metadata_sum_to_the_difference_in_log_odds(backbones, fusion):
    model = build(backbones["timm:test_resnet"], fusion, parents=[0, 1, 1])
    images, metadata = random_inputs()
    baseline = torch.tensor([0.2, 0.1, 0.4, 0.5, 0.1])
    amounts = attribute_metadata(model, images, metadata, TARGETS, baseline)
    with torch.no_grad():
        shares = torch.stack([model(images, metadata), model(images, baseline.expand(N, -1))])
        p = shares.softmax(-1)[:, torch.arange(N), TARGETS]
    here, there = (p / (1 - p)).log()
    assert (here - there).abs().max() > 0.05
    torch.testing.assert_close(amounts.sum(1), here - there, atol=5e-3, rtol=1e-2)


def test_attributions_of_a_linear_model_are_its_terms():
    model = build(None, "metadata")
    model.fusion.branch = torch.nn.Linear(5, 64)
    images, metadata = random_inputs()
    amounts = attribute_metadata(model, images, metadata, TARGETS, torch.zeros(5))
    weight = (model.head[1].weight @ model.fusion.branch.weight).detach()
    own = weight[TARGETS] - weight[1 - TARGETS]  # of two classes the log-odds are a difference
    torch.testing.assert_close(amounts, own * metadata, atol=1e-5, rtol=1e-4)


def test_a_model_of_the_image_alone_gives_metadata_nothing(backbones):
    model = build(backbones["timm:test_resnet"], "none")
    images, metadata = random_inputs()
    assert not attribute_metadata(model, images, metadata, TARGETS, torch.zeros(5)).any()


def test_log_odds_are_those_of_the_softmax():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 30.0, -30.0]], dtype=torch.float64)
    p = logits.softmax(1)[[0, 1], [2, 0]]
    torch.testing.assert_close(log_odds(logits, torch.tensor([2, 0])), (p / (1 - p)).log())


def test_columns_are_told_apart_even_with_a_category_called_missing():
    df = pd.DataFrame({"age": [30.0, None, 60.0], "site": ["missing", "back", None]})
    encoder = MetadataEncoder(["age", "site"]).fit(df)
    parts = split_columns(encoder, np.arange(10).reshape(2, 5))
    sums = {name: part.sum(axis=1).tolist() for name, part in parts.items()}
    assert sums == {"age": [1, 11], "site": [9, 24]}


def test_amounts_are_put_into_words():
    assert describe_effect("age 70", 0.84, "mel") == "age 70: +0.8 towards mel"
    assert describe_effect("male", -0.26, "nv") == "male: 0.3 against nv"
    assert describe_effect("male", -0.04, "nv") == "male: no effect on nv"


def test_a_run_is_explained_as_it_predicts(run, explanation, inputs):
    predictions = run.predictions.set_index("image_id")
    rows = predictions.loc[explanation.rows["image_id"]]
    columns = [f"p_{name}" for name in run.classes]
    assert rows[columns].to_numpy().argmax(1).tolist() == inputs[2].tolist()
    assert explanation.maps.shape == (len(rows), SIZE, SIZE) and explanation.cells == (4, 4)
    assert list(explanation.metadata) == ["age", "sex"] and explanation.bad == 0
    known = rows["age"].notna().to_numpy()
    expected = [f"age {age:g}" for age in rows["age"][known]]
    assert explanation.words["age"][known].tolist() == expected
    assert set(explanation.words["age"][~known]) <= {"age unknown"}
    assert explanation.describe(0)[0].startswith(explanation.words["age"][0])


def test_some_of_the_images_are_taken_out_in_order(explanation):
    names = explanation.rows["image_id"].tolist()
    some = explanation.select([names[5], "nowhere", names[2]])
    assert some.rows["image_id"].tolist() == [names[5], names[2]] and some.bad == 1
    np.testing.assert_array_equal(some.maps[1], explanation.maps[2])
    assert some.describe(0) == explanation.describe(5)


def test_a_map_for_another_class_is_another_map(run, explanation):
    names = explanation.rows["image_id"].tolist()[:6]
    others = explain_images(run, names, "vasc")
    assert others.targets == ["vasc"] * 6
    assert np.abs(others.maps - explanation.maps[:6]).mean() > 0.05


def test_shuffled_weights_give_another_map(run, explanation, inputs):
    """(Adebayo et al. 2018, arXiv:1810.03292)"""
    similar = [likeness(explanation.maps, grad_cam(shuffled(run, s), *inputs)) for s in range(3)]
    assert likeness(explanation.maps, grad_cam(load_model(run), *inputs)) > 0.99
    assert abs(np.mean(similar)) < 0.4


def shuffled(run, seed: int) -> FusionModel:
    """The model of a run with the weights within each layer shuffled."""
    model, generator = load_model(run), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return model


def likeness(first, second) -> float:
    """The mean rank correlation of maps, 0 where a map is 0 everywhere."""
    pairs = zip(np.asarray(first), np.asarray(second), strict=True)
    return float(
        np.mean([spearmanr(a.ravel(), b.ravel()).statistic if b.any() else 0 for a, b in pairs])
    )


def deletion_area(model, images, metadata, maps, targets, steps: int = 10) -> float:
    """The mean area under the probability of the targets as pixels go, the hottest first.

    They get the mean colour of their image (Petsiuk et al. 2018, arXiv:1806.07421, section 3.2).
    """
    heat = maps.flatten(1)
    rank = heat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank = rank.view(len(images), 1, *images.shape[-2:])
    blank, shares = images.mean(dim=(2, 3), keepdim=True), []
    for step in range(steps + 1):
        left = torch.where(rank < round(heat.shape[1] * step / steps), blank, images)
        with torch.inference_mode():
            shares.append(model(left, metadata).softmax(1)[torch.arange(len(images)), targets])
    return float(torch.trapezoid(torch.stack(shares), dx=1 / steps, dim=0).mean())


def random_maps(n: int, cells: int) -> torch.Tensor:
    """Maps (n, SIZE, SIZE) as smooth as those of a feature map of `cells` a side."""
    noise = torch.rand((n, 1, cells, cells), generator=torch.Generator().manual_seed(0))
    return interpolate(noise, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]


def test_deleting_the_hottest_pixels_hurts_more_than_deleting_random_ones(run, explanation, inputs):
    images, metadata, targets = inputs
    model = load_model(run).eval()
    hot = torch.from_numpy(explanation.maps)
    choices = {
        "hottest": hot,
        "coolest": 1 - hot,
        "patches": random_maps(len(hot), 4),
        "pixels": random_maps(len(hot), SIZE),
    }
    area = {
        name: deletion_area(model, images, metadata, maps, targets)
        for name, maps in choices.items()
    }
    assert area["hottest"] == min(area.values())
    assert area["hottest"] < area["patches"] < area["coolest"]


def test_unknown_images_and_classes_say_what_to_type(run):
    name = run.predictions["image_id"].iloc[0]
    with pytest.raises(LesionfastError, match="no image 'SYNTH_0'.*Type an image id such as SYNTH"):
        explain_images(run, ["SYNTH_0"])
    with pytest.raises(LesionfastError, match="no class 'mell'. Did you mean 'mel'.*Name one of"):
        explain_images(run, [name], "mell")


def test_unreadable_images_are_left_out_and_counted(run, monkeypatch, tmp_path, caplog):
    from lesionfast.evaluation import explain

    df = load_dataset(CONFIG, split=run.path / "split.csv")
    names = run.predictions["image_id"].tolist()[:3]
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    df.loc[df["image_id"] == names[1], "path"] = str(tmp_path / "broken.jpg")
    monkeypatch.setattr(explain, "load_dataset", lambda *_, **__: df)
    found = explain_images(run, names, ["mel", "nv", "bcc"])
    assert found.rows["image_id"].tolist() == [names[0], names[2]]
    assert found.targets == ["mel", "bcc"] and found.bad == 1
    assert "1 of 3 images can't be explained" in caplog.text


def test_a_run_without_an_image_has_no_map(tmp_path):
    config = replace(CONFIG, fusion="metadata", epochs=1)
    run = train(load_dataset(config), config, tmp_path)
    with pytest.raises(LesionfastError, match="no image to draw a map of"):
        explain_images(run, run.predictions["image_id"].tolist()[:1])
