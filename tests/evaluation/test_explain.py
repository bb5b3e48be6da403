"""Maps and shares against second implementations, sanity checks, and maps against masks."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch.nn.functional import interpolate

from lesionfast.config import TrainConfig
from lesionfast.data import sample
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import fit_square, open_images
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.explain import (
    attribute_metadata,
    centred_blob,
    compare_with_masks,
    describe_effect,
    explain_images,
    grad_cam,
    log_odds,
    pointing_game,
    read_mask,
    read_masks,
    score_maps,
    share_inside,
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
    parts = encoder.split_columns(np.arange(10).reshape(2, 5))
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


MASK_SIZE = 24


def disc(x: float, y: float, radius: float, size: int = MASK_SIZE) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(columns - x, rows - y) <= radius


def explanation_of(maps: np.ndarray, names: list[str], groups: list[str], resize="crop"):
    """What `compare_with_masks` needs of an explanation."""
    rows = pd.DataFrame({"image_id": names, "group": groups})
    run = SimpleNamespace(model={"size": maps.shape[1], "resize": resize})
    return SimpleNamespace(run=run, rows=rows, maps=maps)


def test_share_and_pointing_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    maps = rng.random((5, MASK_SIZE, MASK_SIZE)).astype(np.float32)
    maps[0, 3, 4] = maps[0, 20, 20] = 2  # two hottest, one of them inside
    masks = np.stack([disc(4, 3, 2)] + [disc(*rng.uniform(6, 18, 2), 6) for _ in range(4)])
    pairs = list(zip(maps, masks, strict=True))
    inside = [sum(m[i, j] for i, j in np.argwhere(k)) / sum(m.ravel()) for m, k in pairs]
    np.testing.assert_allclose(share_inside(maps, masks), inside, rtol=1e-5)
    hits = [k[np.unravel_index(m.argmax(), m.shape)] for m, k in pairs[1:]]
    np.testing.assert_array_equal(pointing_game(maps, masks), [0.5, *hits])


def test_a_perfect_map_beats_the_blob_and_the_blob_itself_does_not():
    masks = np.stack([disc(x, 7, 5) for x in np.linspace(5, 18, 30)])
    lesions = np.arange(30)
    table = score_maps(masks.astype(float), masks, lesions).set_index(["measure", "of"])
    assert table.loc[("share inside", "map"), "value"] == 1
    assert table.loc[("share inside", "difference"), "low"] > 0.5
    assert table.loc[("pointing game", "map"), "low"] == pytest.approx(1 - 0.1135, abs=1e-3)
    blob = np.broadcast_to(centred_blob(MASK_SIZE, MASK_SIZE), masks.shape)
    same = score_maps(blob, masks, lesions).set_index(["measure", "of"])
    assert (same.xs("difference", level="of")[["value", "low", "high"]] == 0).all(axis=None)


def test_intervals_widen_when_images_share_lesions():
    rng = np.random.default_rng(1)
    values = np.repeat(rng.random(40), 4)  # the four images of a lesion are alike
    maps = np.zeros((160, MASK_SIZE, MASK_SIZE))
    maps[:, 0, 0], maps[:, 5, 5] = values, 1 - values
    masks = np.broadcast_to(disc(0, 0, 2), maps.shape)
    by_lesion = score_maps(maps, masks, np.repeat(np.arange(40), 4)).iloc[0]
    by_image = score_maps(maps, masks, np.arange(160)).iloc[0]
    assert by_lesion["value"] == pytest.approx(values.mean())
    assert by_lesion["high"] - by_lesion["low"] > 1.6 * (by_image["high"] - by_image["low"])
    error = 1.96 * values[::4].std() / 40**0.5  # the normal interval of the mean of lesions
    assert by_lesion["high"] - by_lesion["value"] == pytest.approx(error, rel=0.15)


def test_maps_of_nothing_are_left_out_and_none_is_an_error():
    masks = np.stack([disc(12, 12, 5)] * 3)
    maps = masks.astype(float)
    maps[1] = 0
    assert (score_maps(maps, masks, [1, 2, 3])["n"] == 2).all()
    with pytest.raises(LesionfastError, match="every map is 0.*Explain another"):
        score_maps(np.zeros_like(maps), masks, [1, 2, 3])


def test_the_blob_is_symmetric_about_the_centre():
    blob = centred_blob(MASK_SIZE, MASK_SIZE + 1)
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    assert np.unravel_index(blob.argmax(), blob.shape)[1] == MASK_SIZE // 2


@pytest.mark.parametrize("resize", ["crop", "squish"])
def test_masks_lie_where_the_pictures_have_the_lesion(tmp_path, resize):
    """A dark lesion on light skin: its mask after the same cut is where the picture is dark."""
    mask = np.zeros((120, 160), np.uint8)
    mask[20:60, 90:130] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    picture = Image.fromarray(255 - mask).convert("RGB")
    dark = np.asarray(fit_square(picture, 48, resize))[..., 0] < 128
    assert (read_mask(tmp_path / "a.png", 48, resize) == dark).mean() > 0.99
    assert 0 < dark.mean() < 0.3


def test_true_masks_of_painted_lesions_beat_the_blob(tmp_path, monkeypatch):
    """The cover of a painted lesion is its true mask; darkness makes a fair map of it."""
    views, seen = {}, []
    place = sample.place
    monkeypatch.setattr(sample, "place", lambda v, *a: seen.append(v) or place(v, *a))
    for number in range(12):
        rng = np.random.default_rng(number)
        skin = np.float32((232, 190, 172))
        picture = sample.photograph(sample.draw_lesion("mel", rng), skin, rng)
        views[f"a{number}"] = np.asarray(fit_square(picture, 48, "crop").convert("L"), float)
        cover = np.asarray(seen[-1])[..., 3] > 100
        Image.fromarray(cover).save(tmp_path / f"a{number}_segmentation.png")
    grey = np.stack(list(views.values()))
    maps = np.clip(np.quantile(grey, 0.5, axis=(1, 2), keepdims=True) - grey, 0, None)
    table = compare_with_masks(explanation_of(maps, list(views), list(views)), tmp_path)
    value = table.set_index(["measure", "of"])["value"]
    assert value["pointing game", "map"] > 0.9 and value["share inside", "map"] > 0.7
    assert (table["n"] == 12).all() and (table["low"] <= table["value"]).all()


def test_missing_broken_and_empty_masks_are_counted(tmp_path, caplog):
    Image.fromarray(disc(12, 12, 6)).save(tmp_path / "good.png")
    Image.fromarray(disc(12, 12, 6) & False).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = ["broken", "good", "empty", "missing"]
    masks, bad = read_masks(tmp_path, names, MASK_SIZE, "crop")
    assert list(masks) == ["good"] and masks["good"].sum() == disc(12, 12, 6).sum()
    assert bad["empty"] == "it shows no lesion" and bad["missing"] == "there is no file"
    assert "can't be read" in bad["broken"]
    maps = np.stack([disc(12, 12, 3), disc(12, 12, 3), disc(2, 2, 3), disc(2, 2, 3)]).astype(float)
    table = compare_with_masks(explanation_of(maps, names, names), tmp_path)
    assert table.iloc[0]["n"] == 1 and table.iloc[0]["value"] == 1
    assert "3 of 4 images have no usable mask" in caplog.text


def test_no_masks_at_all_say_what_to_name(tmp_path):
    with pytest.raises(LesionfastError, match="there is no folder.*--masks"):
        read_masks(tmp_path / "nowhere", ["a"], MASK_SIZE, "crop")
    with pytest.raises(LesionfastError, match="no usable mask of these 1.*no file.*a_segmentation"):
        read_masks(tmp_path, ["a"], MASK_SIZE, "crop")
